"""Tests of what evaluations open, of receivers, and of told and found: `python eval/test_inputs.py` or pytest."""

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest
import torch

from data import prepare
from data.artifacts import InputError
from data.testing.toy import seal
from eval import evaluate, evaluate_price
from eval.conftest import change_flags, copy_with_another_tokenizer, evaluate_words
from eval.inputs import Corpus, Scores, first_base_model
from eval.methods import Agent, Random
from eval.metrics import figures
from eval.report import examples
from models.reconstructor import train_cpu
from models.reconstructor.gaps import GAP_HEAD
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.tokenizer import BASE_MODEL
from models.reconstructor.words import Words
from rl import train_proposer

TRAINING = "--batch_size 16 --eval_sequences 8 --eval_steps 500 --quiet"
QUICK = "--num_sequences 20 --methods random frequency --keep_ratios 0.6 --num_examples 2".split()


def fine_tune(folder, output_dir, words):
    """Fine-tune on the toy corpus in `folder`."""
    train_cpu.main(f"--data_path {folder}/data/processed_data.json --output_dir {output_dir} {words} {TRAINING}".split())


def cells(folder, output_dir, *words):
    """The record of a quick evaluation of the toy agent, and {method: result}."""
    evaluate.main(evaluate_words(folder, *QUICK, "--output_dir", output_dir, *words))
    record = json.loads((output_dir / "evaluation_results.json").read_text())
    return record, {r["method"]: r for r in record["results"]}


@pytest.fixture(scope="module")
def adapted(stages, tmp_path_factory):
    """The toy reconstructor, fine-tuned further on the toy agent's masks."""
    folder = tmp_path_factory.mktemp("adapted") / "adapted"
    masks = f"--mask_policy {stages[0]}/agent/best_model.zip --policy_share 0.7 --mask_ratio 0.6 --mask_spread 0.1"
    fine_tune(stages[0], folder, f"--base_model {stages[0]}/tuned {masks} --max_steps 150 --learning_rate 2e-3")
    return folder


def test_a_reconstructor_gets_used_to_an_agents_masks(stages, opened, adapted, tmp_path):
    """Fine-tuned further on them, it restores those better, gaps and tokens, and random ones not much worse."""
    models, corpus = opened
    receivers, found = {"tuned": models.reconstructor, "adapted": Reconstructor.load(adapted, gaps="found")}, {}
    for method in (Agent(models.policies[0]), Random(0)):
        for name, receiver in receivers.items():
            sums, *_ = evaluate.evaluate_method(lambda _, m=method: [m], [0.4], corpus, receiver)[0.4]
            found[method.name, name] = figures(sums[0].sum(0))
    nats = {key: cell["distortion"] for key, cell in found.items()}
    assert nats["agent", "adapted"] < 0.95 * nats["agent", "tuned"] and nats["random", "adapted"] < nats["random", "tuned"] + 0.1
    assert found["agent", "adapted"]["gaps"] < found["agent", "tuned"]["gaps"]
    assert first_base_model(adapted) == str(stages[0] / "base"), "surprisal is the causal model's, not what it became"


def test_an_agent_of_another_tokenizer_decides_no_masks(stages, tmp_path):
    folder = stages[0]
    copy_with_another_tokenizer(folder / "base", tmp_path / "other")
    source = f"--source text --input {folder}/toy.jsonl --tokenizer {tmp_path}/other"
    prepare.main(f"{source} --output_dir {tmp_path}/data --max_length 16 --quiet".split())
    with pytest.raises(InputError, match="--mask_policy .* expected an agent for tokenizer"):
        masks = f"--base_model {tmp_path}/other --mask_policy {folder}/agent/best_model.zip"
        fine_tune(tmp_path, tmp_path / "refused", f"{masks} --max_steps 2")


def test_surprisal_under_the_embedded_reconstructor_is_that_of_the_embedded_base():
    assert Path(first_base_model(BASE_MODEL)) == Path(BASE_MODEL)


# --- receivers


def test_a_receiver_of_its_own_changes_that_methods_figures_alone(stages, adapted, tmp_path):
    record, alike = cells(stages[0], tmp_path)
    assert set(record["receivers"].values()) == {str(stages[0] / "tuned")}
    for name, method in (("agent", "agent"), ("frequency", "token frequency")):
        record, found = cells(stages[0], tmp_path, "--receivers", f"{name}={adapted}")
        assert record["receivers"].pop(name) == str(adapted) and str(adapted) in record["weights"]
        assert set(record["receivers"].values()) == {str(stages[0] / "tuned")}
        assert {m for m in alike if found[m]["distortion"] != alike[m]["distortion"]} == {method}
        assert all(found[m]["masked_tokens"] == alike[m]["masked_tokens"] for m in alike), "masks are as they were"
    words = f"--prices 1.2 --num_sequences 10 --tune_sequences 4 --methods random frequency --receivers random={adapted}".split()
    J = []
    for count in (-2, None):  # without --receivers, and with
        evaluate_price.main(evaluate_words(stages[0], *words[:count], "--output_dir", tmp_path))
        results = json.loads((tmp_path / "price_results.json").read_text())["prices"][0]["results"]
        J.append({r["method"]: r["J"] for r in results})
    assert {method for method in J[0] if J[0][method] != J[1][method]} == {"random"}


RECEIVERS = [
    ("causal=ADAPTED", "expected METHOD=DIRECTORY with a method of agent, random, frequency"),
    ("ADAPTED", "expected METHOD=DIRECTORY"), ("random=", "expected METHOD=DIRECTORY"),
    ("random=nowhere", "nowhere/reconstructor.json is missing"), ("random=TOLD", "expected a reconstructor that finds gaps"),
]


@pytest.mark.parametrize("word, expect", RECEIVERS)
def test_a_receiver_that_cannot_be_is_refused_in_one_line(stages, adapted, tmp_path, word, expect):
    if "TOLD" in word:
        shutil.copytree(adapted, tmp_path / "told")
        (tmp_path / "told" / GAP_HEAD).unlink()
        seal(tmp_path / "told")
    word = word.replace("ADAPTED", str(adapted)).replace("TOLD", str(tmp_path / "told"))
    with pytest.raises((InputError, FileNotFoundError), match=expect) as refused:
        cells(stages[0], tmp_path / "out", "--receivers", word)
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()


def test_a_receiver_of_another_tokenizer_is_refused_in_one_line(stages, tmp_path):
    copy_with_another_tokenizer(stages[0] / "tuned", tmp_path / "other")
    Reconstructor.from_base(tmp_path / "other", gaps="found").save(tmp_path / "other", args=evaluate.parse_args([]))
    with pytest.raises(InputError, match="--receivers random=.*/other: expected the agent's tokenizer .*, found") as refused:
        cells(stages[0], tmp_path / "out", "--receivers", f"random={tmp_path}/other")
    assert "\n" not in str(refused.value)
    words = ["--prices", 1.2, "--methods", "verified", "--receivers", f"verified={tmp_path}/other"]
    with pytest.raises(InputError, match="with a method of agent; name one"):  # what verifies is the agent's own receiver
        evaluate_price.main(evaluate_words(stages[0], *words, "--output_dir", tmp_path / "out"))


# --- agents of other trainings


def trained_otherwise(agent, folder, seed, width=32, **kind):
    """A copy of an agent in a directory that says of itself that it was trained otherwise."""
    shutil.copytree(agent, folder)
    change_flags(folder, seed=seed, width=width, **kind)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | kind))
    return folder


def test_agents_that_were_trained_alike_are_one_method_named_by_what_they_are(stages, agents, adapted, tmp_path):
    kinds = [(1, {"critic_only": True}), (1, {}), (2, {"critic_only": True}), (1, {"width": 8})]
    paths = [trained_otherwise(agents[1], tmp_path / str(i), seed, **kind) for i, (seed, kind) in enumerate(kinds)]
    for place, seed in ((1, 1), (5, 2)):
        paths_in = f"--data_path {stages[0]}/data/processed_data.json --reconstructor_path {stages[0]}/tuned"
        words = f"--num_texts 32 --epochs 2 --output_dir {tmp_path}/proposer-{seed} --seed {seed} --device cpu --quiet"
        train_proposer.main(f"{paths_in} {words}".split())
        paths.insert(place, tmp_path / f"proposer-{seed}/best_model.zip")
    receivers = ["--receivers", f"critic={adapted}", f"against-2={adapted}"]
    record, found = cells(stages[0], tmp_path, "--against", *paths, *receivers)
    names = {"critic alone": 2, "learned proposer": 2, "agent, other training": 1, "agent, other training 2": 1}
    assert list(found)[1:5] == list(names) and {name: len(found[name].get("runs", [0])) for name in names} == names
    assert [d["method"] for d in record["differences"]] == list(found)[1:]
    assert found["learned proposer"]["lm_passes"] == 0.5 and found["critic alone"]["lm_passes"] > 1.5
    assert list(record["receivers"].values()).count(str(adapted)) == 2 and record["receivers"]["against-2"] == str(adapted)
    words = ["--prices", 1.2, "--num_sequences", 10, "--tune_sequences", 4, "--methods", "random", "--output_dir", tmp_path]
    evaluate_price.main(evaluate_words(stages[0], *words, "--against", *paths, *receivers))
    record = json.loads((tmp_path / "price_results.json").read_text())
    results = {r["method"]: r for r in record["prices"][0]["results"]}
    assert list(results) == ["agent", *names, "random"] and len(results["learned proposer"]["runs"]) == 2
    assert results["agent, other training 2"]["J"] != results["agent, other training"]["J"], "a receiver of its own"
    with pytest.raises(InputError, match="expected METHOD=DIRECTORY with a method of agent, critic, random, frequency;"):
        cells(stages[0], tmp_path, "--against", paths[0], "--receivers", f"proposer={adapted}")
    again = trained_otherwise(agents[1], tmp_path / "again", 1, critic_only=True)
    with pytest.raises(InputError, match="/again: expected agents of different seeds, found --seed 1 twice"):
        cells(stages[0], tmp_path, "--against", paths[0], paths[1], again)


# --- told and found, words and tokens


def test_told_and_found_agents_are_judged_either_way(stages, told, tmp_path):
    """How an agent was trained is one thing, what its receiver has to find another. What a told one is not paid for is high."""
    found = {}
    for name, path in (("found", stages[0] / "agent/best_model.zip"), ("told", told)):
        for gaps in ("found", "told"):
            record, found[name, gaps] = cells(stages[0], tmp_path, "--model_path", path, "--gaps", gaps)
            unit = {"found": "word", "told": "token"}[name]
            assert (record["gaps"], record["unit"]) == (gaps, unit) and ("sent" in record["examples"][0]) == (gaps == "found")
            for result in found[name, gaps].values():
                assert ("word_error_rate" in result) == (gaps == "found") == (result["gaps"]["value"] > 0)
        record, asked = cells(stages[0], tmp_path, "--model_path", path)
        assert asked["agent"] == found[name, name]["agent"] | {
            "seconds_per_1000_tokens": asked["agent"]["seconds_per_1000_tokens"]
        }, "as it was trained, if nothing else is asked for"
        ours, theirs = (found[name, gaps]["agent"] for gaps in ("found", "told"))
        assert ours["nats"]["value"] == pytest.approx(theirs["nats"]["value"]) and ours["lm_passes"] == theirs["lm_passes"]
        assert ours["distortion"]["value"] == pytest.approx(theirs["distortion"]["value"] + ours["gaps"]["value"])
    assert found["told", "told"]["agent"]["lm_passes"] == 1.5 < found["found", "told"]["agent"]["lm_passes"] < 2.5


def english():
    """The embedded base, and a text whose characters, numbers and punctuation are of several tokens."""
    base = Reconstructor.load(BASE_MODEL, gaps="found")
    text = "In 1875 the com\u00admittee unanimously recommended Monongahela's reforestation; it wasn't approved until 1,903"
    return base, np.array(base.tokenizer(f"{text} “citizens” petitioned Washington, naïvely.")["input_ids"])


def test_one_mask_is_for_all_tokens_of_a_word_or_not():
    base, text = english()
    starts = Words(base.tokenizer).starts(torch.as_tensor(text)[None], torch.ones(1, len(text)) > 0)[0].numpy()
    torn = {}
    for unit in ("word", "token"):
        corpus = Corpus([text], ["a"], 1, Words(base.tokenizer, unit), True)
        masks = [Scores(Random(seed), corpus).masks(0.5)[0][0] for seed in range(8)]
        torn[unit] = sum(int((mask[1:] != mask[:-1])[~starts[1:]].sum()) for mask in masks)
        assert all(0.4 < mask.mean() < 0.8 for mask in masks)
    assert torn["word"] == 0 < torn["token"]


def test_examples_show_what_is_sent_and_it_reads_as_it_was_sent():
    base, text = english()
    for as_text in (True, False):  # the control: without what has to be added some of it would not
        corpus, differing = Corpus([text], ["a"], 1, Words(base.tokenizer, "token"), as_text), 0
        for seed in range(8):
            example = examples(corpus, Scores(Random(seed), corpus).masks(0.5), base)[0]
            kept = [int(token) for token, piece in zip(text, example["pieces"], strict=True) if piece["state"] == "kept"]
            assert base.tokenizer.decode(kept) == example["sent"] and example["keep_ratio"] == len(kept) / len(text)
            differing += base.tokenizer(example["sent"])["input_ids"] != kept
        assert (differing == 0) == as_text, differing


def test_texts_of_two_tokens_and_all_or_nothing_sent(stages, tmp_path):
    """The least that can be evaluated. Everything, or nothing, is sent where a price says so, and its gaps are paid for."""
    record, found = cells(stages[0], tmp_path, "--max_length", 2, "--keep_ratios", 0.5)
    assert all(np.isfinite([found[m]["distortion"]["value"], found[m]["word_error_rate"]["value"]]).all() for m in found)
    assert record["tokens"] == 40 and all(r["masked_tokens"] == 20 for r in found.values())
    words = "--max_length 2 --prices 0.01 90 --num_sequences 10 --tune_sequences 4 --methods random verified".split()
    evaluate_price.main(evaluate_words(stages[0], *words, "--output_dir", tmp_path))
    cheap, dear = json.loads((tmp_path / "price_results.json").read_text())["prices"]
    kept = [{r["method"]: r["keep_ratio"] for r in at["results"]} for at in (cheap, dear)]
    assert kept[0]["random"] == 1 and kept[1]["random"] == kept[1][evaluate_price.VERIFIED] == 0
    assert cheap["results"][1]["J"] < 0 < dear["results"][1]["J"] < 90


def test_one_token_decides_words_or_tokens(stages, tmp_path):
    """In the toy language a word is a token: the same decisions. The record says which."""
    (first, words), (second, tokens) = (cells(stages[0], tmp_path, "--unit", unit) for unit in ("word", "token"))
    assert (first["unit"], second["unit"]) == ("word", "token")
    for method in words:
        assert words[method]["distortion"] == tokens[method]["distortion"]


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
