"""Tests of agents that read with a smaller model than their receiver: `python eval/test_reader_path.py` or pytest."""

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest

from data.artifacts import InputError
from data.testing.toy import ECHO, WORDS, write_small
from eval import evaluate
from eval.compressor import Compressor
from eval.conftest import evaluate_words
from eval.inputs import check_trained_alike, draw_texts, open_models
from models.agent.files import load_policy
from rl import train

TEXT = " ".join(f"{word} {ECHO[word]}" for word in WORDS[:12])


@pytest.fixture(scope="module")
def apart(stages, tmp_path_factory):
    """A folder with a small reader in `reader`, a copy of the stages' reconstructor in `judge`, and an agent of both."""
    folder = tmp_path_factory.mktemp("apart")
    write_small(folder / "reader")
    shutil.copytree(stages[0] / "tuned", folder / "judge")
    paths = f"--data_path {stages[0]}/data/processed_data.json --output_dir {folder} --reconstructor_path {folder}/judge"
    flags = f"--reader_path {folder}/reader --num_timesteps 256 --n_steps 64 --width 16 --eval_sequences 8 --learning_rate 3e-3"
    train.main(f"{paths} {flags} --device cpu --quiet".split())
    return folder


def test_an_evaluation_finds_reader_and_judge(stages, apart, tmp_path):
    words = ("--model_path", apart / "best_model.zip", "--num_sequences", 20, "--methods", "random", "--keep_ratios", 0.6)
    against = ("--against", stages[0] / "agent/best_model.zip")  # whose judge has the same weights, and is its reader
    evaluate.main(evaluate_words(stages[0], *words, *against, "--output_dir", tmp_path))
    record = json.loads((tmp_path / "evaluation_results.json").read_text())
    assert set(record["receivers"].values()) == {str(apart / "judge")}
    assert {Path(path).name for path in record["weights"]} >= {"reader", "judge"}
    ours, theirs = (next(r for r in record["results"] if r["method"].startswith("agent") and ("other" in r["method"]) == other)
                    for other in (False, True))
    assert 2 < ours["lm_passes"] <= 3, "passes of its own model: its one block reads the text, the draft and what the draft sends"
    assert 1.5 < theirs["lm_passes"] <= 2.5, "one block of two reads the text"
    args = evaluate.parse_args(evaluate_words(stages[0], *words))
    models = open_models(args)
    corpus, policy = draw_texts(args, models, args.data_path[0]), models.policies[0]
    assert models.reconstructor.directory == apart / "judge" and policy.reader.reconstructor.directory == apart / "reader"
    masks = corpus.keep_highest([policy.keep_probability_at(*batch, 0.6).numpy() for batch in corpus.batches], 0.6)
    by_judge, by_reader = (
        sums[:, [2, 6]].sum() / corpus.tokens
        for sums in (corpus.sums(judge, masks) for judge in (models.reconstructor, policy.reader.reconstructor))
    )
    assert ours["distortion"]["value"] == pytest.approx(by_judge, abs=1e-4) and abs(by_reader - by_judge) > 0.1


def test_agents_with_and_without_a_reader_are_not_runs_of_one_training():
    """Those from before there was such a flag have none."""
    older, without, other = {"seed": 1}, {"seed": 2, "reader_path": None}, {"seed": 3, "reader_path": "small"}
    check_trained_alike(["a", "b"], [older, without])
    for settings in ([older, other], [other, older], [without, other]):
        with pytest.raises(InputError, match="expected an agent trained as a was, with --reader_path"):
            check_trained_alike(["a", "b"], settings)


def test_compressing_needs_no_judge_and_restoring_no_reader(apart, tmp_path):
    """What is sent is chosen with the reader alone, and comes back by the judge alone."""
    agent = apart / "best_model.zip"
    compressor = Compressor(agent)
    short = compressor.compress(TEXT, target_tokens=14)
    assert 0 < short.kept_tokens <= 14 < short.tokens == 24 and "reconstructor" not in vars(compressor)
    restored = compressor.restore(short)
    assert compressor.reconstructor.directory == apart / "judge" and restored != short.text
    (apart / "reader").rename(tmp_path / "reader")
    try:
        assert Compressor(agent).restore(short.text) == restored
        with pytest.raises(FileNotFoundError, match="reader/reconstructor.json is missing"):
            load_policy(agent)
    finally:
        (tmp_path / "reader").rename(apart / "reader")


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
