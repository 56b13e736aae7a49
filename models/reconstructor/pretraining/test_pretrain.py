"""Tests of pre-training and of the benchmark of fine-tuning: `python models/reconstructor/test_pretrain.py` or pytest."""

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from data.artifacts import InputError
from data.testing.toy import write_toy
from models.reconstructor import benchmark, positions, pretrain, vocabulary
from models.reconstructor.loss import summed_nats
from models.reconstructor.reconstructor import Reconstructor


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder with the toy base model in `base` and the toy data in `data`."""
    return write_toy(tmp_path_factory.mktemp("toy"))


def pretrain_toy(toy, output, *words):
    common = "--n_layer 2 --n_embd 32 --n_head 2 --n_positions 32 --window 16 --batch_tokens 512 --eval_tokens 200 --quiet"
    pretrain.main(["--data_dir", str(toy / "data"), "--tokenizer", str(toy / "base"), "--output_dir", str(output), *common.split(), *map(str, words)])


def test_pretraining_learns_both_objectives_and_is_stock_gpt2(toy, tmp_path):
    pretrain_toy(toy, tmp_path, "--max_steps", 300, "--eval_steps", 100, "--dropout", 0)
    metrics = json.loads((tmp_path / "pretraining.json").read_text())["metrics"][str(toy / "data")]
    # Unigram: (ln 20 + ln 4) / 2 = 2.2 nats and what the separators cost. Knowing the echo: (ln 20 + 0) / 2 = 1.5.
    assert metrics["val_nats"] < 1.9, metrics
    assert metrics["masked"]["0.1"]["nats"] < 1.9 and metrics["masked"]["0.1"]["top1"] > 0.35, "masked tokens are no better than from frequencies"
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert model.config.vocab_size == 27 and "nats per token" in (tmp_path / "README.md").read_text()
    reconstructor = Reconstructor.from_base(tmp_path)
    assert reconstructor.mask_id == 26 == reconstructor.vocab_size and reconstructor.fingerprint == Reconstructor.from_base(toy / "base").fingerprint
    pretrain_toy(toy, tmp_path / "more", "--init_from", tmp_path, "--max_steps", 1, "--muon_lr", 0, "--adamw_lr", 0)
    more = json.loads((tmp_path / "more/pretraining.json").read_text())["metrics"][str(toy / "data")]
    assert more["val_nats"] == pytest.approx(metrics["val_nats"], abs=0.005) and more["masked"]["0.1"]["nats"] == pytest.approx(metrics["masked"]["0.1"]["nats"], abs=0.02)
    with pytest.raises(InputError, match="--init_from: expected a GPT-2 of the shape"):
        pretrain_toy(toy, tmp_path / "wide", "--init_from", tmp_path, "--max_steps", 1, "--n_layer", 3, "--learned_positions")


def test_other_text_is_mixed_in_and_scored(toy, tmp_path):
    """Training on a second corpus, windows of every kind; a third text is only scored, and the card says what is what."""
    other = write_toy(tmp_path / "other")
    words = f"--extra_dir {other / 'data'} --extra_share 0.5 --score_dir {toy / 'data'} --text_note remarkable --masked_share 0.5 --causal_start 0.2 --long_share 0.5 --cooldown 0.3 --score_tokens 64"
    pretrain_toy(toy, tmp_path, *words.split(), "--max_steps", 10, "--eval_steps", 4, "--weight_decay", 0.2, "--seed", 3)
    record = json.loads((tmp_path / "pretraining.json").read_text())
    assert set(record["metrics"]) == {str(toy / "data"), str(other / "data")} and record["args"]["extra_share"] == 0.5
    assert [m["val_tokens"] for m in record["metrics"].values()] == [64, 64]
    assert [row["masked_nats"] is None for row in record["log"]] == [False, False], "masked windows from step 2 on"
    card = (tmp_path / "README.md").read_text()
    assert "(remarkable)" in card and "In 50% of the windows" in card and "--extra_share 0.5" in card
    with pytest.raises(SystemExit, match="2"):
        pretrain_toy(toy, tmp_path, "--score_tokens", 100, "--n_positions", 128)


def test_pretraining_that_was_cut_off_goes_on_to_the_same_weights(toy, tmp_path, monkeypatch):
    words = ["--max_steps", 20, "--eval_steps", 8, "--max_minutes", 1000, "--average_share", 0.7]
    pretrain_toy(toy, tmp_path / "whole", *words)
    with monkeypatch.context() as patch:
        patch.setattr(pretrain.Pretraining, "save", cut_off_after(pretrain.Pretraining.save))
        with pytest.raises(KeyboardInterrupt):
            pretrain_toy(toy, tmp_path / "cut", *words)
    assert not (tmp_path / "cut/model.safetensors").exists()
    pretrain_toy(toy, tmp_path / "cut", *words, "--resume")
    assert (tmp_path / "cut/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    state = torch.load(tmp_path / "whole/state/state.pt", weights_only=False)
    assert [step for step, _, _ in state["earlier"]] == [8, 16]
    name = "transformer.h.0.mlp.c_fc.weight"
    mean = (state["model"][name] + sum(weights[name] for _, _, weights in state["earlier"])) / 3
    torch.testing.assert_close(load_file(tmp_path / "whole/model.safetensors")[name].float(), mean, atol=1e-4, rtol=2e-3)
    with pytest.raises(InputError, match="--n_layer 2, found --n_layer 3"):
        pretrain_toy(toy, tmp_path / "cut", *words, "--resume", "--n_layer", 3)


def cut_off_after(save):
    def wrapped(self, directory):
        save(self, directory)
        raise KeyboardInterrupt

    return wrapped


def test_heads_begin_by_looking_at_their_offset():
    """Most of the attention of each planted head falls on its offset, at every position; the positions are not trained."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=300, n_embd=256, n_layer=4, n_head=4, attn_implementation="eager", bos_token_id=0, eos_token_id=0)).eval()
    positions.begin_with_neighbours(model)
    with torch.no_grad():
        attention = model(torch.randint(100, (1, 300)), attention_mask=torch.zeros(1, 1, 300, 300), output_attentions=True).attentions
    for layer, offsets in enumerate(positions.OFFSETS):
        for head, offset in enumerate(offsets):
            on_offset = torch.diagonal(attention[layer][0, head], offset=offset)
            assert on_offset.mean() > 0.6 and on_offset.min() > 0.1, (layer, head)
    assert attention[3].max() < 0.5, "the other layers begin at random"
    assert not model.transformer.wpe.weight.requires_grad and model.transformer.wte.weight.requires_grad


def test_the_sampled_partition_function_is_unbiased(monkeypatch):
    monkeypatch.setattr(vocabulary, "FREQUENT", 10)
    monkeypatch.setattr(vocabulary, "RARE_SAMPLE", 20)
    torch.manual_seed(0)
    hidden, weight, targets, rng = torch.randn(6, 8), torch.randn(200, 8) / 3, torch.tensor([0, 5, 9, 40, 41, 150]), np.random.default_rng(0)
    exact = (hidden @ weight.T).exp().sum(1)
    draws = []
    for _ in range(2000):
        sample = vocabulary.OutputSample(targets, 200, rng)
        draws.append((hidden @ weight[sample.ids].T + sample.bias.T).exp().sum(1))
    error = torch.stack(draws).std(0) / 2000**0.5
    assert ((torch.stack(draws).mean(0) - exact).abs() < 4 * error).all()
    monkeypatch.setattr(vocabulary, "RARE_SAMPLE", 1000)  # all of them: no estimate any more
    everything = vocabulary.OutputSample(targets, 200, rng)
    torch.testing.assert_close(everything.summed_nats(hidden, weight, targets), summed_nats(hidden, weight, targets))


def test_the_benchmark_trains_both_ways_alike(toy, capsys):
    """Stock practice and ours differ in speed, not in what is learnt: the mask token among the answers is all that does."""
    benchmark.main(f"--data_path {toy / 'data/processed_data.json'} --base_model {toy / 'base'} --max_length 16 --steps 4 --turns 3 --learning_rate 3e-3 --quiet".split())
    said = capsys.readouterr().out
    losses = [float(x) for x in re.findall(r"turn ([0-9.]+) nats", said)]
    assert losses[0] == pytest.approx(losses[1], abs=0.05) and max(losses) < 3.2, said
    assert re.search(r"ours / stock: [0-9.]+ \(from", said)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
