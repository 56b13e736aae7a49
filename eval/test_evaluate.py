"""Tests of evaluation and of the contract between the stages: `python eval/test_evaluate.py` or pytest."""

import copy
import importlib
import json
import shutil
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import numpy as np
import pytest

from data import prepare
from data.artifacts import InputError
from data.testing.toy import check_refusal
from eval import compress, evaluate, quickstart, report
from eval.conftest import change_flags, copy_with_another_tokenizer, evaluate_words, stranger
from eval.methods import Agent
from models.reconstructor import train_cpu, training
from plots import visualize
from rl import train


def test_every_stage_hands_over_what_the_next_one_needs(stages, record):
    folder, printed = stages
    data = [f"data/{name}" for name in ("processed_data.json", "val_data.json", "test_data.json", "dataset_info.json")]
    models = ["tuned/model.safetensors", "tuned/reconstructor.json", "agent/best_model.zip", "agent/final_model.zip"]
    for path in (*data, *models, "agent/training.json", "results/evaluation_results.json", "results/examples.txt"):
        assert (folder / path).stat().st_size, path
    for path in (data[-1], "tuned/training.json", models[1], "agent/training.json", "results/evaluation_results.json"):
        written = json.loads((folder / path).read_text())
        assert {"schema", "args", "seed", "versions", "units"} <= set(written), path
    assert "agent" in printed[3] and report.format_table(record) in printed[3]
    assert "bootstrap-t" in record["units"]["interval"] and record["commit"]
    assert {Path(path).name for path in record["weights"]} == {"best_model.zip", "tuned", "base"}


def test_all_methods_keep_the_same_number_of_tokens(record):
    by_ratio = {}
    for r in record["results"]:
        by_ratio.setdefault(r["keep_ratio_asked"], set()).add((r["masked_tokens"], r["keep_ratio"]))
    assert sorted(by_ratio) == [0.4, 0.5, 0.6, 0.7, 0.8, 0.9] and all(len(found) == 1 for found in by_ratio.values())
    for asked, found in by_ratio.items():
        assert abs(next(iter(found))[1] - asked) <= 0.5 / 16, "16 tokens per text: exact to the token"
    methods = {"agent", "random", "token frequency", "causal surprisal", "iterative surprisal"}
    assert {r["method"] for r in record["results"]} == methods


def test_the_agent_beats_random_on_the_toy_language(record):
    """A bigger effect than training noise: at 0.7 the agent can drop echoes alone, and all come back to where they were."""
    lead = next(d for d in record["differences"] if d["method"] == "random" and d["keep_ratio_asked"] == 0.7)
    for name in ("distortion", "nats", "gaps", "word_error_rate"):
        assert lead[name]["p"] < 0.01 and lead[name]["value"] < 0, name
    for name in ("top1", "chrf"):
        assert lead[name]["p"] < 0.01 and lead[name]["value"] > 0, name
    for name in ("distortion", "word_error_rate"):
        assert lead[name]["significant"] and lead[name]["p"] < lead[name]["p_holm"] < 0.05
    agent = next(r for r in record["results"] if r["method"] == "agent" and r["keep_ratio_asked"] == 0.7)
    assert agent["distortion"]["value"] < 0.1 and agent["word_error_rate"]["value"] < 0.05 and record["gaps"] == "found"


def errors(theirs, ours):
    """Substitutions, insertions and deletions that make words `ours` of words `theirs`, at least: Levenshtein's distance."""
    row = list(range(len(ours) + 1))
    for i, word in enumerate(theirs):
        row, above = [i + 1], row
        for j, other in enumerate(ours):
            row.append(min(above[j] + (word != other), above[j + 1] + 1, row[j] + 1))
    return row[-1]


def test_results_are_what_the_reconstructor_says(opened, record):
    """The agent's cell at 0.4 from the pieces: policy, exact mask, what the gaps and the tokens in them cost, and restoring."""
    models, corpus = opened
    reconstructor, sums = models.reconstructor, np.zeros(5)
    for text in corpus.texts:
        keep = Agent(models.policies[0]).scores(text[None], np.ones((1, len(text)), bool), 0.4)[0]
        dropped = np.sort(np.argsort(-keep, kind="stable")[int(np.floor(0.4 * len(text) + 0.5)) :])
        keep_mask = np.ones((1, len(text)), bool)
        keep_mask[0, dropped] = False
        prediction = reconstructor.predict(text[None], keep_mask)
        right = (prediction.top1[0].numpy()[dropped] == text[dropped]).sum()
        wrong = errors(text.tolist(), reconstructor.restore(text[keep_mask[0]]).tolist())  # in this language a token is a word
        sums += float(prediction.nats.sum()), float(prediction.gaps.sum()), len(dropped), right, wrong
    nats, gaps, masked, right, wrong = sums
    cell = next(r for r in record["results"] if r["method"] == "agent" and r["keep_ratio_asked"] == 0.4)
    assert cell["masked_tokens"] == masked and cell["nats"]["value"] == pytest.approx(nats / masked, rel=1e-3)
    assert cell["top1"]["value"] == pytest.approx(right / masked, abs=1e-6)
    assert cell["gaps"]["value"] == pytest.approx(gaps / corpus.tokens, rel=1e-3)
    assert cell["distortion"]["value"] == pytest.approx((nats + gaps) / corpus.tokens, rel=1e-3)
    assert cell["word_error_rate"]["value"] == pytest.approx(wrong / corpus.tokens, abs=1e-6) and wrong > 0
    assert cell["numbers_sent"]["value"] == cell["negations_sent"]["value"] == 1, "there are none"


def test_several_agents_are_one_method(stages, agents, tmp_path, capsys):
    folder, found = stages[0], []
    words = [*"--num_sequences 30 --methods random --keep_ratios 0.8 --num_examples 2 --output_dir".split(), tmp_path]
    for paths in (agents[:1], agents[1:], agents):
        evaluate.main(evaluate_words(folder, *words, "--model_path", *paths))
        found.append(json.loads((tmp_path / "evaluation_results.json").read_text()))
    one, other, both = (record["results"][0] for record in found)
    alone = [pytest.approx(each["nats"]["value"]) for each in (one, other)]
    assert [run["nats"] for run in both["runs"]] == alone and "runs" not in one
    assert both["top1"]["value"] == pytest.approx((one["top1"]["value"] + other["top1"]["value"]) / 2)
    assert both["masked_tokens"] == one["masked_tokens"] and "2 agents" in capsys.readouterr().out
    assert {"interval", "interval_over_documents"} < set(found[2]["differences"][0]["nats"])
    visualize.main(f"--results_path {tmp_path}/evaluation_results.json --output_dir {tmp_path}/plots".split())
    assert (tmp_path / "plots/masked_top1.png").stat().st_size


def test_an_agent_of_another_training_is_one_more_method(stages, agents, tmp_path):
    """Paired with itself an agent differs nowhere, by not so much as a digit; with another one it does."""
    words = [*"--num_sequences 30 --methods random --keep_ratios 0.8 --num_examples 0 --output_dir".split(), tmp_path]
    leads, other = [], stranger(agents[1], tmp_path / "elsewhere")
    for against in (agents[0], other):
        evaluate.main(evaluate_words(stages[0], *words, "--model_path", agents[0], "--against", against))
        record = json.loads((tmp_path / "evaluation_results.json").read_text())
        first, second, _ = record["results"]
        assert [first["method"], second["method"]] == ["agent", "agent, other training"]
        lead = record["differences"][0]["nats"]
        assert lead["value"] == pytest.approx(first["nats"]["value"] - second["nats"]["value"])
        leads.append([lead["value"], *lead["interval"]])
    assert leads[0] == [0, 0, 0] and leads[1][0] != 0 and record["against"] == [str(other)]
    visualize.main(f"--results_path {tmp_path}/evaluation_results.json --output_dir {tmp_path}/plots".split())
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"reconstructor": config["reconstructor"] | {"sha256": "0" * 64}}))
    with pytest.raises(InputError, match="/elsewhere: expected the reconstructor that it was trained with"):
        evaluate.main(evaluate_words(stages[0], *words, "--against", other))


OTHER_FLAGS = [
    ({"width": 8}, "with --width .*, found 8"), ({"seed": 42}, "--seed 42 twice"),
    ({"seed": 44, "reconstructor_path": "elsewhere"}, "found elsewhere"),
]


@pytest.mark.parametrize("flags, expect", OTHER_FLAGS)
def test_agents_of_different_trainings_are_refused(stages, agents, tmp_path, flags, expect):
    shutil.copytree(agents[1], tmp_path / "agent")
    change_flags(tmp_path / "agent", **flags)
    words = ["--output_dir", tmp_path / "out", "--model_path", agents[0], tmp_path / "agent"]
    with pytest.raises(InputError, match=f"/agent: expected .*{expect}"):
        evaluate.main(evaluate_words(stages[0], *words))


def test_examples_are_readable_and_true(record, stages):
    assert len(record["examples"]) == 10
    for example in record["examples"]:
        states = [p["state"] for p in example["pieces"]]
        assert states.count("kept") == pytest.approx(0.7 * len(states), abs=0.51)
        assert all((p["token"] == p["restored"]) == (p["state"] != "wrong") for p in example["pieces"])
    written = (stages[0] / "results/examples.txt").read_text()
    assert written.count("=== ") == 10 and "_" not in written and "|" not in written
    example = record["examples"][0]
    kept = [p["token"] for p in example["pieces"] if p["state"] == "kept"]
    assert example["sent"].split() == kept and f"--- sent\n{example['sent']}\n--- restored\n{example['restored']}\n" in written


def test_the_table_admits_a_loss(record):
    lost = copy.deepcopy(record)
    for gaps, better in (("found", {"distortion": -0.1, "word_error_rate": -0.1}), ("told", {"top1": 0.1, "nats": -0.1})):
        lost["gaps"] = gaps
        for d in lost["differences"]:
            for name, value in better.items():
                d[name] |= {"value": value, "p_holm": 0.01}
        first, second = ("nats", "word error rate") if gaps == "found" else ("top-1", "nats")
        ahead = f"- causal surprisal: ahead in {first} everywhere; "
        assert f"{ahead}{second} everywhere\n" in (text := report.format_table(lost)) and "not distinguishable" not in text
        ours = [d[list(better)[1]] for d in lost["differences"] if d["method"] == "causal surprisal"]
        ours[1]["p_holm"] = 0.06
        ours[0]["value"] = 0.2
        where = f"{second} at 0.7, 0.6, 0.5, 0.4; not distinguishable in {second} at 0.8; behind in {second} at 0.9"
        assert f"{ahead}{where}\n" in report.format_table(lost)
    assert f"Holm-corrected over {2 * len(lost['differences'])} differences" in text
    lost["documents"] = 5
    assert "only 5 documents" in report.format_table(lost)


def test_quickstart_prints_real_commands():
    args = quickstart.parse_args([])
    scripts = prepare, train_cpu, train, evaluate, visualize, compress, compress
    commands = quickstart.stages(Path("my folder"), args)
    for (_, words), script in zip(commands, scripts, strict=True):
        assert words[0] == script.__name__.replace(".", "/") + ".py"
        assert all(word.startswith("my folder/") for word in words if "folder" in word)
        if script is train_cpu:
            training.parse_args(words[1:], ("cpu",), train_cpu.__doc__)
        else:
            script.parse_args(words[1:])


def test_bad_input_leaves_results_alone(stages, tmp_path):
    folder, before = stages[0], (stages[0] / "results/evaluation_results.json").read_bytes()
    words = evaluate_words(folder, "--data_path", "nowhere/test_data.json", "--output_dir", folder / "results")
    expect = ["nowhere/test_data.json is missing", "python data/prepare.py --output_dir nowhere"]
    check_refusal("eval/evaluate.py", *words, expect=expect)
    assert (folder / "results/evaluation_results.json").read_bytes() == before


def test_a_base_model_of_another_tokenizer_is_refused(stages, tmp_path):
    folder = stages[0]
    copy_with_another_tokenizer(folder / "base", tmp_path / "other")
    with pytest.raises(InputError, match="expected the reconstructor's tokenizer"):
        evaluate.main(evaluate_words(folder, "--base_model", tmp_path / "other", "--output_dir", tmp_path / "out"))


BAD_SETTINGS = [
    (["--max_length", 400], "expected at most 31"), (["--keep_ratios", 0.99], "expected a masked token"),
    (["--keep_ratios", 0.01], "and a kept one"), (["--base_model", "nowhere/at/all"], "no causal language model"),
    (["--model_path", "nowhere"], "nowhere"),
]


@pytest.mark.parametrize("words, expect", BAD_SETTINGS)
def test_bad_settings_are_refused(stages, tmp_path, words, expect):
    with pytest.raises((InputError, FileNotFoundError), match=expect):
        evaluate.main(evaluate_words(stages[0], *words, "--output_dir", tmp_path / "out"))


IMPOSSIBLE = ("--keep_ratios 1.7", "--num_examples -1", "--num_sequences 0", "--batch_size x")


@pytest.mark.parametrize("words", IMPOSSIBLE)
def test_impossible_flags_are_refused(words):
    with pytest.raises(SystemExit, match="2"):
        evaluate.parse_args(words.split())


MODULES = sorted(path for path in REPOSITORY.glob("[!v.]*/**/*.py") if not path.name.startswith("test_"))
TEXTS = {path: path.read_text(encoding="utf-8") for path in MODULES}
SCRIPTS = [path for path, text in TEXTS.items() if "    run(main)\n" in text and "import argparse" not in text]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_help_teaches(path, capsys):
    """Every script's --help ends well and gives each flag a text and a default."""
    script = importlib.import_module(".".join(path.relative_to(REPOSITORY).with_suffix("").parts))
    with pytest.raises(SystemExit, match="0"):
        script.main(["--help"])
    text = capsys.readouterr().out
    assert text.count("default:") >= 1 and "Traceback" not in text


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
