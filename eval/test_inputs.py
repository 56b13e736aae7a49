"""Tests of what evaluations open, and of a reconstructor that learns from an agent: `python eval/test_inputs.py` or pytest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest

from data import prepare
from data.artifacts import InputError
from eval import evaluate
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


def test_a_reconstructor_gets_used_to_an_agents_masks(stages, tmp_path):
    """Fine-tuned further on the agent's masks alone, it restores those better, and random ones not much worse."""
    folder, adapted = stages[0], tmp_path / "adapted"
    masks = f"--mask_policy {folder}/agent/best_model.zip --policy_share 0.7 --mask_ratio 0.5"
    fine_tune(folder, adapted, f"--base_model {folder}/tuned {masks} --max_steps 200 --learning_rate 2e-3")
    models = {"tuned": Reconstructor.load(folder / "tuned"), "adapted": Reconstructor.load(adapted)}
    args = evaluate.parse_args(["--data_path", str(folder / "data/test_data.json"), "--num_sequences", "30"])
    corpus, nats = draw_texts(args, models["tuned"], 16), {}
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
