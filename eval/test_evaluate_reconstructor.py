"""Tests of the reconstructor's evaluation and of what it learns from agents: `python eval/test_evaluate_reconstructor.py`."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest

from data import prepare
from data.artifacts import InputError
from eval import evaluate, evaluate_reconstructor
from eval.conftest import copy_with_another_tokenizer
from eval.inputs import draw_texts, first_base_model
from eval.methods import Agent, Random
from eval.metrics import figures
from models.agent.files import load_policy
from models.reconstructor import train_cpu
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.tokenizer import BASE_MODEL


TRAINING = "--batch_size 16 --eval_sequences 8 --eval_steps 500 --quiet"


def fine_tune(folder, output_dir, words):
    """Fine-tune on the toy corpus in `folder`."""
    train_cpu.main(f"--data_path {folder}/data/processed_data.json --output_dir {output_dir} {words} {TRAINING}".split())


def test_reconstructors_are_compared_on_the_same_masks(stages, tmp_path, capsys):
    folder, causal = stages[0], tmp_path / "causal"
    settings = "--attention causal --max_steps 250 --mask_ratio 0.4 --learning_rate 3e-3"
    fine_tune(folder, causal, f"--base_model {folder}/base {settings}")
    paths = f"--model_paths {folder}/tuned {causal} --data_path {folder}/data/test_data.json --output_dir {tmp_path}"
    words = f"{paths} --num_sequences 30 --mask_ratios 0.2 0.5 --device cpu --quiet".split()
    evaluate_reconstructor.main(words)
    found = json.loads((tmp_path / "reconstructor_results.json").read_text())
    cells = [(r["attention"], r["mask_ratio"]) for r in found["curve"]]
    assert cells == [(a, m) for a in ("bidirectional", "causal") for m in (0.2, 0.5)] and len(found["weights"]) == 2
    for r in found["curve"][2:]:
        lead = r["difference_to_first"]["nats"]
        assert lead["value"] > 0.05 and lead["significant"], "a word's echo stands behind it, where a causal model does not look"
    assert f"| {causal} | causal        | 0.5    |" in capsys.readouterr().out.replace("/tuned ", "/tuned")
    with pytest.raises(InputError, match="expected at most 31"):
        evaluate_reconstructor.main([*words, "--max_length", "32"])


def test_a_reconstructor_gets_used_to_an_agents_masks(stages, tmp_path):
    """Fine-tuned further on the agent's masks alone, it restores those better, and random ones not much worse."""
    folder, adapted = stages[0], tmp_path / "adapted"
    masks = f"--mask_policy {folder}/agent/best_model.zip --policy_share 0.7 --mask_ratio 0.5"
    fine_tune(folder, adapted, f"--base_model {folder}/tuned {masks} --max_steps 200 --learning_rate 2e-3")
    models = {"tuned": Reconstructor.load(folder / "tuned"), "adapted": Reconstructor.load(adapted)}
    args = evaluate.parse_args(["--data_path", str(folder / "data/test_data.json"), "--num_sequences", "30"])
    corpus, nats = draw_texts(args, list(models.values()), 16), {}
    for method in (Agent(load_policy(folder / "agent/best_model.zip", "cpu")), Random(0)):
        for name, model in models.items():
            sums, *_ = evaluate.evaluate_method([method], [0.5], corpus, model)[0.5]
            nats[method.name, name] = figures(sums[0].sum(0))["nats"]
    assert nats["agent", "adapted"] < nats["agent", "tuned"] and nats["random", "adapted"] < nats["random", "tuned"] + 0.1, nats
    assert first_base_model(adapted) == str(folder / "base"), "surprisal is the causal model's, not the reconstructor's it became"
    copy_with_another_tokenizer(folder / "base", tmp_path / "other")
    source = f"--source text --input {folder}/toy.jsonl --tokenizer {tmp_path}/other"
    prepare.main(f"{source} --output_dir {tmp_path}/data --max_length 16 --quiet".split())
    with pytest.raises(InputError, match="--mask_policy .* expected an agent for tokenizer"):
        fine_tune(tmp_path, tmp_path / "refused", f"--base_model {tmp_path}/other {masks} --max_steps 2")


def test_surprisal_under_the_embedded_reconstructor_is_that_of_the_embedded_base():
    assert Path(first_base_model(BASE_MODEL)) == Path(BASE_MODEL)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
