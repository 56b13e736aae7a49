"""Tests of pre-training: `python models/reconstructor/pretraining/test_pretrain.py` or pytest."""

import gzip
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from data.artifacts import InputError
from models.reconstructor.loss import summed_nats
from models.reconstructor.pretraining import checkpoints, mixture, positions, pretrain, vocabulary
from models.reconstructor.tokenizer import BASE_MODEL

SHAPE = "--n_layer 2 --n_embd 32 --n_head 2 --n_positions 32 --window 16 --batch_tokens 512 --eval_tokens 200".split()
NOUNS, VERBS = "cat dog bird fish horse".split(), "sees hears likes".split()


def sentences(seed, count):
    """Documents of a toy language: the same noun before and after each verb, so that a masked one can be read off the other."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield " ".join(f"the {noun} {rng.choice(VERBS)} the {noun}." for noun in rng.choice(NOUNS, 60))


def write_corpus(folder, kind, texts):
    folder.mkdir(exist_ok=True)
    with gzip.open(folder / f"{kind}.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(texts))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The path of a mixture of two kinds and one that is held out; a document of the second kind is in the first, too."""
    folder = tmp_path_factory.mktemp("toy")
    first = list(sentences(0, 60))
    for kind, texts in (("animals", first), ("more", [first[0], *sentences(1, 60)]), ("other", sentences(2, 5))):
        write_corpus(folder / "corpora", kind, texts)
    mixture.main(["--input_dir", str(folder / "corpora"), "--output", str(folder / "mixture.npz"), "--held_out", "other"])
    return folder / "mixture.npz"


def run(toy, output, *words):
    pretrain.main(["--mixture", str(toy), "--output_dir", str(output), *SHAPE, *map(str, words)])
    return json.loads((output / "pretraining.json").read_text())


def test_a_mixture_has_every_document_once(toy):
    with np.load(toy) as file:
        about, arrays = json.loads(str(file["about"])), {name: file[name] for name in file.files}
    assert sum(about["counts"]["more"][split]["documents"] for split in mixture.SPLITS) == 60, "one of 61 is in the first kind"
    assert "train/other" not in arrays and about["counts"]["other"]["val"]["documents"] == 5
    for kind in ("animals", "more"):
        count = about["counts"][kind]["train"]
        assert (arrays[f"train/{kind}"] == about["bos"]).sum() == count["documents"]
        assert len(arrays[f"train/{kind}"]) == count["tokens"] + count["documents"]


def test_all_objectives_are_learned_and_the_model_is_stock_gpt2(toy, tmp_path):
    record = run(toy, tmp_path / "run", "--max_steps", 300, "--eval_steps", 300, "--dropout", 0, "--average", 0.9)
    first, last = record["log"][0], record["log"][-1]
    for kind in ("animals", "more", "other"):
        before, after = first["val"][kind], last["val"][kind]
        # Fifty thousand tokens that were never seen share most of the probability here; among the others the text is nearly known.
        assert after["causal"] < before["causal"] - 4 and after["masked"] < before["masked"] - 4 and after["top1"] > 0.5, after
        assert after["gaps"] < 0.2 * before["gaps"], "which tokens are missing can be seen in so regular a text"
    assert set(first["weight"]) == {"animals", "more"} and [row["step"] for row in record["log"]] == [0, 50, 300]
    checkpoints.main(["--input_dir", str(tmp_path / "run"), "--output_dir", str(tmp_path / "base"), "--tokenizer", BASE_MODEL])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    assert model.config.vocab_size == 50_258 and checkpoints.load_gap_head(tmp_path / "base").out.out_features == 9
    more = run(toy, tmp_path / "more", "--init_from", tmp_path / "base", "--max_steps", 1, "--muon_lr", 0, "--adamw_lr", 0)
    for figure, value in last["val"]["other"].items():
        assert more["log"][-1]["val"]["other"][figure] == pytest.approx(value, abs=0.02)
    assert more["tokens"] > record["tokens"] and len(more["runs"]) == 2
    with pytest.raises(InputError, match="--init_from: expected a GPT-2 of the shape"):
        run(toy, tmp_path / "wide", "--init_from", tmp_path / "base", "--max_steps", 1, "--n_layer", 3)


def test_the_same_seed_gives_the_same_weights_and_half_precision_similar_ones(toy, tmp_path):
    words = ["--max_steps", 12, "--long_share", 0.4, "--causal_start", 0.3]
    losses = [run(toy, tmp_path / name, *words, *more)["log"][-1]["loss"] for name, more in (("a", []), ("b", []), ("half", ["--precision", "bf16"]))]
    assert losses[0] == losses[1]
    assert losses[2] == pytest.approx(losses[0], rel=0.02)


def test_a_kind_whose_gap_opens_gets_less():
    weights = pretrain.KindWeights(torch.tensor([100, 100, 100]), 0.5)
    weights.update([0.1, 0.5, 0.0])
    assert torch.allclose(weights.shares(), torch.full((3,), 1 / 3, dtype=torch.float64))
    weights.update([0.1, 0.5, 0.4])
    shares = weights.shares()
    assert shares[2] < 0.5 * shares[0] and shares[0] == shares[1]


def test_heads_begin_by_looking_at_their_offset():
    """Most of the attention of each planted head falls on its offset, at every position; the positions are not trained."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=100, n_positions=300, n_embd=256, n_layer=4, n_head=4, attn_implementation="eager", bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
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


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
