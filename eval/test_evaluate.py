"""Tests of evaluation and of the contract between the stages: `python eval/test_evaluate.py` or pytest."""

import copy
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
from data.sequences import load_sequences, pad_batch
from data.testing.toy import check_refusal, run_pipeline, write_base
from eval import evaluate, evaluate_price, evaluate_reconstructor, quickstart, search
from eval.methods import Agent, CausalSurprisal, IterativeSurprisal, MeanMaskedNats, Random, TokenFrequency, VerifiedMasks, VerifiedOnce
from eval.metrics import Bootstrap, binary_entropy, difference, figures, mean_over_runs, with_intervals
from models.reconstructor import benchmark, pretrain, train_cpu, train_gpu, training
from models.reconstructor.masking import keep_highest
from models.reconstructor.reconstructor import Reconstructor, load_causal_lm
from plots import visualize
from rl import benchmark as rl_benchmark
from rl import compare, train
from rl.ppo import load_policy


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """A folder with everything that the five real command lines write for the toy corpus, and what they printed."""
    folder = tmp_path_factory.mktemp("stages")
    return folder, run_pipeline(folder)


@pytest.fixture(scope="module")
def record(stages):
    return json.loads((stages[0] / "results/evaluation_results.json").read_text())


def copy_with_another_tokenizer(source, target):
    """Copy a model and swap the ids of two of its words."""
    shutil.copytree(source, target)
    tokenizer = json.loads((target / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))


# --- metrics


def test_figures_and_side_information_are_closed_forms():
    found = figures(np.array([[100, 20, 30.0, 15, 1, 4]]))
    assert {k: float(v[0]) for k, v in found.items()} == {"top1": 0.75, "nats": 1.5, "distortion": 0.3, "exact_text": 0.25}
    assert binary_entropy(0.5) == 1.0 and binary_entropy(1.0) == 0.0 and binary_entropy(0.9) == pytest.approx(0.469, abs=1e-3)


def test_bootstrap_interval_covers_the_truth_95_percent_of_the_time():
    """200 experiments with 40 documents each: the true mean nats, 2.0, lies inside about 190 of the intervals."""
    rng, inside = np.random.default_rng(0), 0
    bootstrap = Bootstrap(40, 1000, 0)
    assert (bootstrap.counts.sum(1) == 40).all()
    for _ in range(200):
        nats = rng.gamma(4.0, 0.5, 40) * 10  # mean 2.0 for each of 10 masked tokens
        sums = np.stack([np.full(40, 20.0), np.full(40, 10.0), nats, np.full(40, 5.0), np.zeros(40), np.ones(40)], 1)
        low, high = with_intervals(sums, bootstrap)["nats"]["interval"]
        inside += low <= 2.0 <= high
    # Binomial standard deviation 3; the percentile bootstrap of 40 skewed values covers a little less than it says.
    assert 180 <= inside <= 199, inside


def test_paired_differences_see_what_unpaired_intervals_miss():
    rng, bootstrap = np.random.default_rng(0), Bootstrap(30, 2000, 0)
    level = rng.uniform(5, 50, 30)  # documents differ much, methods by a constant share
    cell = lambda nats: np.stack([np.full(30, 100.0), np.full(30, 20.0), nats, np.full(30, 9.0), np.zeros(30), np.ones(30)], 1)
    a, b = cell(level * 0.97), cell(level)
    assert with_intervals(a, bootstrap)["nats"]["interval"][1] > with_intervals(b, bootstrap)["nats"]["interval"][0], "the intervals overlap"
    found = difference(a, b, bootstrap)
    assert found["nats"]["significant"] and found["nats"]["value"] < 0 and not found["top1"]["significant"]
    assert not difference(a, a, bootstrap)["nats"]["significant"]
    few = difference(a[:3], b[:3] * 2, Bootstrap(3, 500, 0))
    assert not few["nats"]["significant"], "three documents prove nothing"


def test_intervals_of_several_runs_cover_the_mean_of_all_runs():
    """Trainings give 2.0 nats in the mean, with a standard deviation of 0.2; three of them are seen, on 40 documents."""
    rng, inside, over_documents = np.random.default_rng(0), 0, 0
    bootstrap = Bootstrap(40, 1000, 0, runs=3)
    for _ in range(200):
        nats = (rng.gamma(4.0, 0.5, 40) + rng.normal(0, 0.2, (3, 1))) * 10
        sums = np.stack([np.full((3, 40), 20.0), np.full((3, 40), 10.0), nats, np.full((3, 40), 5.0), np.zeros((3, 40)), np.ones((3, 40))], -1)
        found = with_intervals(sums, bootstrap)["nats"]
        inside += found["interval"][0] <= 2.0 <= found["interval"][1]
        over_documents += found["interval_over_documents"][0] <= 2.0 <= found["interval_over_documents"][1]
        assert found["value"] == pytest.approx(nats.mean() / 10)
    assert 180 <= inside and over_documents < inside - 5, (inside, over_documents)
    one = with_intervals(sums[0], Bootstrap(40, 1000, 0))["nats"]
    alike = with_intervals(np.stack([sums[0]] * 3), bootstrap)["nats"]
    assert alike["interval"] == pytest.approx(one["interval"]) and "interval_over_documents" not in one
    lead = difference(sums, sums[:1] * 0.5, bootstrap)["nats"]
    assert lead["value"] == pytest.approx(found["value"] - one["value"]) and np.diff(lead["interval"]) > 2 * np.diff(lead["interval_over_documents"])


# --- methods


def test_causal_surprisal_is_the_models_own_cross_entropy(tmp_path):
    model = load_causal_lm(write_base(tmp_path)).eval()
    ids, valid = pad_batch([np.arange(2, 14), np.arange(5, 9)], 0)
    found = CausalSurprisal(model, 0).scores(ids, valid, 0.5)
    for row, length in ((0, 12), (1, 4)):
        text = torch.tensor([[0, *ids[row, :length]]])
        with torch.no_grad():
            expected = -model(text).logits[0, :-1].log_softmax(-1).gather(1, text[0, 1:, None])[:, 0]
        np.testing.assert_allclose(found[row, :length], expected, rtol=1e-4, atol=1e-4)


def test_frequency_keeps_rare_tokens_and_random_repeats_by_seed():
    ids, valid = np.array([[0, 1, 2, 1]]), np.ones((1, 4), bool)
    assert keep_highest(TokenFrequency(np.array([100, 5, 0])).scores(ids, valid, 0.5), valid, 0.5).tolist() == [[False, True, True, False]]
    a, b, c = (Random(seed).scores(ids, valid, 0.5) for seed in (1, 1, 2))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_iterative_surprisal_reads_segments_after_what_was_kept(tmp_path):
    """By hand: the second segment's surprisal is that of the causal model after the kept tokens of the first."""
    model = load_causal_lm(write_base(tmp_path)).eval()
    text, short = np.random.default_rng(0).integers(2, 20, 11), np.arange(3, 8)
    ids, valid = pad_batch([text, short], 0)
    surprisal = lambda tokens: CausalSurprisal(model, 0).scores(tokens[None], np.ones((1, len(tokens)), bool), 0.5)[0]
    method = IterativeSurprisal(model, 0, segment=6)
    keep_mask = keep_highest(method.scores(ids, valid, 0.5), valid, 0.5)
    first = np.sort(np.argsort(-surprisal(text[:6]), kind="stable")[:3])
    second = 6 + np.argsort(-surprisal(np.concatenate([text[first], text[6:]]))[3:], kind="stable")[:3]  # 11 tokens keep 6
    assert sorted(np.flatnonzero(keep_mask[0])) == sorted([*first, *second]) and method.lm_passes == 2
    one = IterativeSurprisal(model, 0, segment=20)
    assert np.array_equal(keep_highest(one.scores(ids, valid, 0.6), valid, 0.6), keep_highest(CausalSurprisal(model, 0).scores(ids, valid, 0.6), valid, 0.6))


def test_asking_the_reconstructor_beats_chance_and_verification_beats_asking(stages):
    """At 0.6 most that is masked has to be echoes. A joint mask costs what its tokens cost together, which only verification sees."""
    folder = stages[0]
    reconstructor = Reconstructor.load(folder / "tuned")
    corpus = evaluate.choose_texts(evaluate.parse_args(["--data_path", str(folder / "data/test_data.json"), "--num_sequences", "30"]), 16, reconstructor)
    asked = MeanMaskedNats(reconstructor, 0)
    methods = {"random": Random(0), "asked": asked, "verified": VerifiedMasks(reconstructor, asked), "random, once": VerifiedOnce(reconstructor, Random(0))}
    sums = {name: mean_over_runs(evaluate.evaluate_method([method], [0.6], corpus, reconstructor)[0.6][0]).sum(0) for name, method in methods.items()}
    nats = {name: figures(s)["nats"] for name, s in sums.items()}
    assert nats["verified"] < nats["asked"] < 0.8 * nats["random"] and nats["random, once"] < 0.8 * nats["random"], nats
    assert len({s[1] for s in sums.values()}) == 1, "all mask equally many"
    assert asked.lm_passes == 24 and methods["verified"].lm_passes == 32


def test_mean_nats_are_those_of_random_masks_of_the_rate(stages):
    """Every mask is exact to the token, every token is hidden equally often, and a text's scores are no other's business."""
    reconstructor, asked = Reconstructor.load(stages[0] / "tuned"), []

    class Spy:
        def predict(self, ids, keep_mask, valid):
            asked.append(valid & ~keep_mask)
            return reconstructor.predict(ids, keep_mask, valid)

    ids, valid = pad_batch([np.arange(2, 12), np.arange(3, 7)], 0)
    for keep_ratio, each in ((0.7, 3), (0.6, 4), (0.9, 1)):
        asked.clear()
        method = MeanMaskedNats(Spy(), 0, passes=20)
        found = method.scores(ids, valid, keep_ratio)
        hidden = np.array(asked)
        assert (hidden[:, 0].sum(1) == each).all() and np.ptp(hidden[:, 0].sum(0)) <= 1 and len(hidden) == method.lm_passes == 20
        nats = sum(reconstructor.predict(ids, ~mask & valid | ~valid, valid).nats.numpy() for mask in asked)
        np.testing.assert_allclose(found[0], nats[0] / hidden[:, 0].sum(0), rtol=1e-4)
    assert MeanMaskedNats(reconstructor, 0, passes=2).scores(ids, valid, 0.9)[0].all(), "more masks, so that every token is hidden"


def test_verified_once_sends_what_came_back_dearest(stages):
    """By hand: 10 tokens at 0.6, of which those that the proposer ranks highest are sent before the reading, 0.36 of them."""
    reconstructor = Reconstructor.load(stages[0] / "tuned")
    ids, proposed = np.arange(2, 12)[None], np.array([[5, 1, 9, 2, 8, 3, 7, 0, 6, 4]])
    proposer = type("Proposer", (), {"lm_passes": 1, "scores": lambda *_: proposed})()
    method, valid = VerifiedOnce(reconstructor, proposer, power=2), np.ones((1, 10), bool)
    sent = proposed >= 6
    nats = reconstructor.predict(ids, sent).nats.numpy()
    dearest = np.argsort(-np.where(sent, 0, nats)[0])[:2]
    found = keep_highest(method.scores(ids, valid, 0.6), valid, 0.6)
    assert sorted(np.flatnonzero(found[0])) == sorted([*np.flatnonzero(sent[0]), *dearest]) and method.lm_passes == 2


# --- the contract between the stages


def test_every_stage_hands_over_what_the_next_one_needs(stages, record):
    folder, printed = stages
    for path in ("data/processed_data.json", "data/val_data.json", "data/test_data.json", "data/dataset_info.json", "tuned/model.safetensors", "tuned/reconstructor.json", "agent/best_model.zip", "agent/final_model.zip", "agent/training.json", "results/evaluation_results.json", "results/examples.txt"):
        assert (folder / path).stat().st_size, path
    for path in ("data/dataset_info.json", "tuned/training.json", "tuned/reconstructor.json", "agent/training.json", "results/evaluation_results.json"):
        written = json.loads((folder / path).read_text())
        assert {"schema", "args", "seed", "versions", "units"} <= set(written), path
    assert "agent" in printed[3] and evaluate.format_table(record) in printed[3]


def test_all_methods_keep_the_same_number_of_tokens(record):
    by_ratio = {}
    for r in record["results"]:
        by_ratio.setdefault(r["keep_ratio_asked"], set()).add((r["masked_tokens"], r["keep_ratio"]))
    assert sorted(by_ratio) == [0.4, 0.5, 0.6, 0.7, 0.8, 0.9] and all(len(found) == 1 for found in by_ratio.values())
    for asked, found in by_ratio.items():
        assert abs(next(iter(found))[1] - asked) <= 0.5 / 16, "16 tokens per text: exact to the token"
    assert {r["method"] for r in record["results"]} == {"agent", "random", "token frequency", "causal surprisal", "iterative surprisal"}


def test_the_agent_beats_random_on_the_toy_language(record):
    """A bigger effect than training noise: at 0.7 the agent can drop echoes alone."""
    lead = {(d["method"], d["keep_ratio_asked"]): d for d in record["differences"]}
    assert lead["random", 0.7]["nats"]["significant"] and lead["random", 0.7]["nats"]["value"] < 0
    assert lead["random", 0.7]["top1"]["significant"] and lead["random", 0.7]["top1"]["value"] > 0


def test_results_are_what_the_reconstructor_says(stages, record):
    """The agent's cell at 0.8 from the pieces: policy, exact mask, reconstructor."""
    folder = stages[0]
    reconstructor, policy = Reconstructor.load(folder / "tuned"), load_policy(folder / "agent/best_model.zip")
    args = evaluate.parse_args(["--data_path", str(folder / "data/test_data.json"), "--num_sequences", "30"])
    corpus = evaluate.choose_texts(args, 16, reconstructor)
    nats = masked = right = 0
    for text in corpus.texts:
        keep = Agent(policy).scores(text[None], np.ones((1, len(text)), bool), 0.8)[0]
        dropped = np.sort(np.argsort(-keep, kind="stable")[int(np.floor(0.8 * len(text) + 0.5)) :])
        keep_mask = np.ones((1, len(text)), bool)
        keep_mask[0, dropped] = False
        prediction = reconstructor.predict(text[None], keep_mask)
        nats, masked = nats + float(prediction.nats.sum()), masked + len(dropped)
        right += int((prediction.top1[0].numpy()[dropped] == text[dropped]).sum())
    cell = next(r for r in record["results"] if r["method"] == "agent" and r["keep_ratio_asked"] == 0.8)
    assert cell["masked_tokens"] == masked and cell["nats"]["value"] == pytest.approx(nats / masked, rel=1e-3)
    assert cell["top1"]["value"] == pytest.approx(right / masked, abs=1e-6)


@pytest.fixture(scope="module")
def agents(stages, tmp_path_factory):
    """Two runs of one training, as far as their records tell: the toy agent as it was best, and as it was at the end."""
    folder = tmp_path_factory.mktemp("agents") / "second"
    shutil.copytree(stages[0] / "agent", folder)
    (folder / "final_model.zip").rename(folder / "best_model.zip")
    changed(folder / "training.json", seed=43)
    return [stages[0] / "agent/best_model.zip", folder / "best_model.zip"]


def changed(path, **flags):
    """Write other flags into an agent's record."""
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"args": record["args"] | flags}))


def test_several_agents_are_one_method(stages, agents, tmp_path, capsys):
    folder, words = stages[0], ["--num_sequences", 30, "--methods", "random", "--keep_ratios", 0.8, "--num_examples", 2, "--output_dir", tmp_path]
    found = []
    for paths in (agents[:1], agents[1:], agents):
        evaluate.main(evaluate_words(folder, *words, "--model_path", *paths))
        found.append(json.loads((tmp_path / "evaluation_results.json").read_text()))
    one, other, both = (record["results"][0] for record in found)
    assert [run["nats"] for run in both["runs"]] == [pytest.approx(alone["nats"]["value"]) for alone in (one, other)] and "runs" not in one
    assert both["top1"]["value"] == pytest.approx((one["top1"]["value"] + other["top1"]["value"]) / 2)
    assert both["masked_tokens"] == one["masked_tokens"] and "agents apart" in capsys.readouterr().out
    assert {"interval", "interval_over_documents"} < set(found[2]["differences"][0]["nats"])
    visualize.main(f"--log_dir {folder}/agent/tb_logs --results_path {tmp_path}/evaluation_results.json --output_dir {tmp_path}/plots".split())
    assert (tmp_path / "plots/masked_top1.png").stat().st_size


@pytest.mark.parametrize("flags, expect", [({"width": 8}, "with --width .*, found 8"), ({"seed": 42}, "--seed 42 a second time"), ({"seed": 44, "reconstructor_path": "elsewhere"}, "found elsewhere")])
def test_agents_of_different_trainings_are_refused(stages, agents, tmp_path, flags, expect):
    shutil.copytree(agents[1].parent, tmp_path / "agent")
    changed(tmp_path / "agent/training.json", **flags)
    with pytest.raises(InputError, match=f"best_model.zip: expected .*{expect}"):
        evaluate.main(evaluate_words(stages[0], "--output_dir", tmp_path / "out", "--model_path", agents[0], tmp_path / "agent/best_model.zip"))


def test_examples_are_readable_and_true(record, stages):
    assert len(record["examples"]) == 10
    for example in record["examples"]:
        states = [p["state"] for p in example["pieces"]]
        assert states.count("kept") == pytest.approx(0.7 * len(states), abs=0.51)
        assert all((p["token"] == p["restored"]) == (p["state"] != "wrong") for p in example["pieces"])
        assert np.mean([p["importance"] for p in example["pieces"]]) == pytest.approx(1, abs=2e-3)
    assert (stages[0] / "results/examples.txt").read_text().count("=== ") == 10


def test_the_table_admits_a_loss(record):
    lost = copy.deepcopy(record)
    for d in lost["differences"]:
        d["top1"]["value"], d["nats"]["value"] = 0.1, -0.1
    assert "leads everywhere" in evaluate.format_table(lost)
    lost["differences"][0]["nats"]["value"] = 0.2
    assert "does NOT lead" in evaluate.format_table(lost)


def test_quickstart_prints_real_commands():
    args = quickstart.parse_args([])
    commands = quickstart.stages(Path("."), args)
    assert [words[0] for _, words in commands] == ["data/prepare.py", "models/reconstructor/train_cpu.py", "rl/train.py", "eval/evaluate.py", "plots/visualize.py"]
    for (_, words), script in zip(commands, (prepare, train_cpu, train, evaluate, visualize), strict=True):
        if script is train_cpu:
            training.parse_args(words[1:], ("cpu",), train_cpu.__doc__)
        else:
            script.parse_args(words[1:])


# --- the reconstructor alone


def test_reconstructors_are_compared_on_the_same_masks(stages, tmp_path, capsys):
    folder = stages[0]
    causal = tmp_path / "causal"
    train_cpu.main(f"--data_path {folder}/data/processed_data.json --base_model {folder}/base --output_dir {causal} --attention causal --max_steps 250 --batch_size 16 --mask_ratio 0.4 --learning_rate 3e-3 --eval_sequences 8 --eval_steps 500 --quiet".split())
    words = f"--model_paths {folder}/tuned {causal} --data_path {folder}/data/test_data.json --output_dir {tmp_path} --mask_ratios 0.2 0.5 --num_sequences 30 --device cpu --quiet"
    evaluate_reconstructor.main(words.split())
    found = json.loads((tmp_path / "reconstructor_results.json").read_text())
    assert [(r["attention"], r["mask_ratio"]) for r in found["curve"]] == [(a, m) for a in ("bidirectional", "causal") for m in (0.2, 0.5)]
    for r in found["curve"][2:]:
        lead = r["difference_to_first"]["nats"]
        assert lead["value"] > 0.05 and lead["significant"], "a word's echo stands behind it, where a causal model does not look"
    with pytest.raises(InputError, match="expected at most 31"):
        evaluate_reconstructor.main(words.split() + ["--max_length", "32"])


def test_a_reconstructor_gets_used_to_an_agents_masks(stages, tmp_path):
    """Fine-tuned further on the agent's masks alone, it restores those better, and random ones not much worse."""
    folder = stages[0]
    adapted = tmp_path / "adapted"
    words = f"--data_path {folder}/data/processed_data.json --base_model {folder}/tuned --output_dir {adapted} --mask_policy {folder}/agent/best_model.zip --policy_share 0.7 --max_steps 200 --batch_size 16 --mask_ratio 0.5 --learning_rate 2e-3 --eval_sequences 8 --eval_steps 500 --quiet"
    train_cpu.main(words.split())
    policy = load_policy(folder / "agent/best_model.zip")
    corpus = evaluate.choose_texts(evaluate.parse_args(["--data_path", str(folder / "data/test_data.json"), "--num_sequences", "30"]), 16, Reconstructor.load(adapted))
    nats = {(method.name, path.name): figures(mean_over_runs(evaluate.evaluate_method([method], [0.5], corpus, Reconstructor.load(path))[0.5][0]).sum(0))["nats"] for method in (Agent(policy), Random(0)) for path in (folder / "tuned", adapted)}
    assert nats["agent", "adapted"] < nats["agent", "tuned"], nats
    assert nats["random", "adapted"] < nats["random", "tuned"] + 0.1, nats
    assert evaluate.first_base_model(adapted) == str(folder / "base"), "what surprisal is measured with is the causal model, not the reconstructor it became"
    copy_with_another_tokenizer(folder / "base", tmp_path / "other")
    prepare.main(f"--source text --input {folder}/toy.jsonl --tokenizer {tmp_path}/other --output_dir {tmp_path}/data --max_length 16 --quiet".split())
    with pytest.raises(InputError, match="--mask_policy .* expected an agent for tokenizer"):
        train_cpu.main(f"--data_path {tmp_path}/data/processed_data.json --base_model {tmp_path}/other --output_dir {tmp_path}/refused --mask_policy {folder}/agent/best_model.zip --max_steps 2 --quiet".split())


# --- at a price


def test_exhaustive_search_is_a_maximum_and_verification_reveals_what_is_dear(stages):
    folder = stages[0]
    reconstructor = Reconstructor.load(folder / "tuned")
    text = load_sequences(folder / "data/test_data.json", reconstructor.fingerprint)[0][:6]
    (J, mask), = search.optima(reconstructor, text, [1.2])
    assert search.all_masks(6).shape == (64, 6) and len(np.unique(search.all_masks(6), axis=0)) == 64
    by_hand = []
    for keep_mask in search.all_masks(6):
        nats = float(reconstructor.predict(text[None], keep_mask[None]).nats.sum())
        by_hand.append((1.2 * (~keep_mask).sum() - nats) / 6)
    assert J == pytest.approx(max(by_hand), abs=1e-5) == search.J_of_masks(reconstructor, text, mask[None], 1.2)[0]
    everything, nothing = np.ones(6, bool), np.zeros(6, bool)
    found = search.local_search(reconstructor, text, everything, 1.2)
    local = search.J_of_masks(reconstructor, text, np.stack([found, everything]), 1.2)
    assert local[0] > 0.2 and local[1] == 0 and local[0] <= J + 1e-6
    flips = search.J_of_masks(reconstructor, text, found ^ np.eye(6, dtype=bool), 1.2)
    assert flips.max() <= local[0] + 1e-6, "a single flip betters it"
    verified = search.verified_mask(reconstructor, text, nothing, 1.2)
    nats = reconstructor.predict(text[None], verified[None]).nats[0].numpy()
    assert (nats <= 1.2).all() and (~verified).any() and verified.any()


@pytest.mark.parametrize("price", np.linspace(0, 1, 23))
def test_a_rule_is_found_without_trying_all(price):
    class Hill(evaluate_price.Rules):
        def __init__(self):
            self.kinds, self.asked = [[evaluate_price.Rule(keep_ratio=r) for r in np.linspace(0, 1, n)] for n in (43, 19)], set()

        def J(self, rule, price):
            self.asked.add(rule)
            return -((rule.keep_ratio - price) ** 2)

    hill = Hill()
    best = max((rule for kind in hill.kinds for rule in kind), key=lambda rule: hill.J(rule, price))
    hill.asked.clear()
    assert hill.best(price).keep_ratio == best.keep_ratio and len(hill.asked) < sum(map(len, hill.kinds)) / 2


def test_the_evaluation_at_a_price(stages, agents, tmp_path, capsys):
    """On the toy language the agent at λ = 1.2 drops echoes: nearly λ / 2, as no rule for all texts does better."""
    words = f"--prices 0.01 1.2 2 90 --num_sequences 20 --tune_sequences 10 --search_sequences 2 --window 6 --window_sequences 5 --bootstrap_samples 200 --output_dir {tmp_path}"
    evaluate_price.main(evaluate_words(stages[0], *words.split(), "--model_path", *agents))
    record = json.loads((tmp_path / "price_results.json").read_text())
    assert [at["price"] for at in record["prices"]] == [0.01, 1.2, 2.0, 90.0]
    cheap = {r["method"]: r for r in record["prices"][0]["results"]}
    assert cheap["random"]["rule"] == "everything kept" and cheap["random"]["J"] == 0
    dear = {r["method"]: r for r in record["prices"][3]["results"]}
    assert dear["random"]["rule"] == "nothing kept" and dear["random"]["keep_ratio"] == 0, "no token is worth a price of 90"
    for at in record["prices"][1:3]:
        J = {r["method"]: r["J"] for r in at["results"]}
        assert set(J) == {"agent", "random", "token frequency", "causal surprisal", "iterative surprisal", "mean nats under random masks", "masks verified at λ", "the agent's masks, verified at λ"}
        assert J["the agent's masks, verified at λ"] >= at["results"][0]["runs"][0] - 1e-3, "what is dear is sent"
        assert J["agent"] == pytest.approx(np.mean(at["results"][0]["runs"])) and len(at["results"][0]["runs"]) == 2
        assert J["agent"] > J["random"] > -0.1 and at["local_search"]["J"] >= at["local_search"]["agent"] - 1e-6
        for r in at["results"]:
            assert r["interval"][0] <= r["J"] <= r["interval"][1]
            if "agent_leads_by" in r:
                of_the_first = r["method"] == "the agent's masks, verified at λ"
                theirs = at["results"][0]["runs"][0] if of_the_first else J["agent"]
                assert r["agent_leads_by"]["value"] == pytest.approx(theirs - r["J"], abs=1e-6)
                assert ("interval_over_documents" in r["agent_leads_by"]) != of_the_first
    for w in record["windows"]:
        assert max(w["J"].values()) == pytest.approx(w["J"]["best of all masks"], abs=1e-5)
    assert "share of the distance" in capsys.readouterr().out


# --- bad input


def evaluate_words(folder, *words):
    return ["--model_path", str(folder / "agent/best_model.zip"), "--data_path", str(folder / "data/test_data.json"), "--device", "cpu", "--quiet", *map(str, words)]


def test_bad_input_leaves_results_alone(stages, tmp_path):
    folder, before = stages[0], (stages[0] / "results/evaluation_results.json").read_bytes()
    check_refusal("eval/evaluate.py", *evaluate_words(folder, "--data_path", "nowhere.json", "--output_dir", folder / "results"), expect=["nowhere.json is missing", "data/prepare.py"])
    assert (folder / "results/evaluation_results.json").read_bytes() == before


def test_an_agent_of_another_tokenizer_is_refused(stages, tmp_path):
    folder = stages[0]
    copy_with_another_tokenizer(folder / "tuned", tmp_path / "other")
    with pytest.raises(InputError, match="expected tokenizer"):
        evaluate.main(evaluate_words(folder, "--reconstructor_path", tmp_path / "other", "--output_dir", tmp_path / "out"))


@pytest.mark.parametrize("words, expect", [(["--max_length", 400], "expected at most 31"), (["--keep_ratios", 0.99], "expected a masked token"), (["--keep_ratios", 0.01], "and a kept one"), (["--base_model", "nowhere/at/all"], "no causal language model"), (["--reconstructor_path", "nowhere"], "is missing")])
def test_bad_settings_are_refused(stages, tmp_path, words, expect):
    with pytest.raises((InputError, FileNotFoundError), match=expect):
        evaluate.main(evaluate_words(stages[0], *words, "--output_dir", tmp_path / "out"))


@pytest.mark.parametrize("words", [["--keep_ratios", "1.7"], ["--example_keep_ratio", "0"], ["--num_sequences", "0"], ["--bootstrap_samples", "3"], ["--num_examples", "-1"], ["--batch_size", "x"]])
def test_impossible_flags_are_refused(words):
    with pytest.raises(SystemExit, match="2"):
        evaluate.parse_args(words)


@pytest.mark.parametrize("script", [prepare, pretrain, benchmark, rl_benchmark, train_cpu, train_gpu, train, compare, evaluate, evaluate_price, evaluate_reconstructor, quickstart, visualize])
def test_help_teaches(script, capsys):
    """Every script's --help ends well and gives each flag a text and a default."""
    with pytest.raises(SystemExit, match="0"):
        script.main(["--help"])
    text = capsys.readouterr().out
    assert text.count("default:") >= 4 and "Traceback" not in text, script.__name__


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
