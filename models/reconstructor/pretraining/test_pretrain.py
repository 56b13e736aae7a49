"""Tests of pre-training: `python models/reconstructor/pretraining/test_pretrain.py` or pytest."""

import gzip
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from data import prepare
from data.artifacts import InputError, sha256_of
from data.provenance import REPOSITORY
from models.reconstructor import tokenizer
from models.reconstructor.gaps import GAP_HEAD, load_gap_head
from models.reconstructor.pretraining import card, checkpoints, draws, positions, pretrain
from models.reconstructor.reconstructor import Reconstructor

SHAPE = "--n_layer 2 --n_embd 32 --n_head 2 --n_positions 32 --window 16 --batch_tokens 512 --eval_tokens 200".split()
NOUNS, VERBS = "cat dog bird fish horse".split(), "sees hears likes".split()


def sentences(seed, count):
    """Documents of a toy language: the same noun before and after each verb, so that a masked one can be read off the other."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield " ".join(f"the {noun} {rng.choice(VERBS)} the {noun}." for noun in rng.choice(NOUNS, 60))


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The directory of a mixture of two kinds."""
    folder = tmp_path_factory.mktemp("toy")
    for seed, kind in enumerate(("animals", "more")):
        with gzip.open(folder / f"{kind}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in sentences(seed, 60))
    files = [str(folder / f"{kind}.jsonl.gz") for kind in ("animals", "more")]
    prepare.main(["--source", "mixed", "--input", *files, "--output_dir", str(folder / "data"), "--max_length", "100", "--quiet"])
    return folder / "data"


def command_line(toy, output, *words):
    return ["--data_dir", str(toy), "--output_dir", str(output), *SHAPE, *map(str, words)]


def run(toy, output, *words):
    pretrain.main(command_line(toy, output, *words))
    return json.loads((output / "pretraining.json").read_text())


def test_streams_have_every_document_once(toy):
    info = json.loads((toy / "dataset_info.json").read_text())
    bos, found = 50_256, 0
    for split in ("train", "val", "test"):
        for kind, stream in draws.read_streams(toy, split, bos).items():
            size = info["splits"][split]["parts"][kind]
            assert (stream == bos).sum() == size["documents"] and len(stream) == size["tokens"] + size["documents"]
            found += size["documents"]
    assert found == 120


def test_kinds_that_differ_or_have_too_little_text_are_refused(toy, tmp_path):
    info = json.loads((toy / "dataset_info.json").read_text())
    for path in toy.glob("*.json"):
        shutil.copy(path, tmp_path)
    train, val = (tmp_path / info["splits"][split]["file"] for split in ("train", "val"))
    lines = val.read_text().splitlines()
    val.write_text("\n".join(line for line in lines if '"more"' not in line))
    with pytest.raises(InputError, match="expected the same kinds in training and validation"):
        run(tmp_path, tmp_path / "run", "--max_steps", 1)
    train.write_text(lines[0])
    with pytest.raises(InputError, match="expected 512 train tokens"):
        run(tmp_path, tmp_path / "run", "--max_steps", 1)


def test_all_objectives_are_learned_and_the_model_is_stock_gpt2(toy, tmp_path):
    record = run(toy, tmp_path, "--max_steps", 300, "--dropout", 0, "--average", 0.9, "--eval_minutes", 60)
    first, last = record["log"][0], record["log"][-1]
    for kind in ("animals", "more"):
        before, after = first["val"][kind], last["val"][kind]
        # Fifty thousand tokens that were never seen share most of the probability; among the others the text is nearly known.
        assert after["causal"] < before["causal"] - 4 and after["masked"] < before["masked"] - 4 and after["top1"] > 0.5, after
        assert after["gaps"] < 0.2 * before["gaps"], "which tokens are missing can be seen in so regular a text"
    assert set(first["weight"]) == {"animals", "more"} and [row["step"] for row in record["log"]] == [0, 50, 300]
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert model.config.vocab_size == 50_258 and load_gap_head(tmp_path, model.config.n_embd).out.out_features == 9
    reconstructor = Reconstructor.load(tmp_path)
    text = torch.tensor([reconstructor.tokenizer("the cat sees the cat. the dog likes the dog.")["input_ids"]]).numpy()
    keep_mask = np.ones(text.shape, dtype=bool)
    keep_mask[0, [3, 9]] = False  # an article in each sentence
    assert (reconstructor.predict(text, keep_mask).top1.numpy() == text).all()


def test_the_same_seed_gives_the_same_weights(toy, tmp_path):
    words = ["--max_steps", 12, "--causal_start", 0.3]
    losses = [run(toy, tmp_path / name, *words)["log"][-1]["loss"] for name in ("a", "b")]
    assert losses[0] == losses[1] and min(losses[0].values()) > 0


def files_of(folder):
    """The weights of a run as bytes, and its log without what a clock says."""
    log = json.loads((folder / "pretraining.json").read_text())["log"]
    weights = [(folder / name).read_bytes() for name in ("model.safetensors", GAP_HEAD)]
    return weights, [{name: row[name] for name in row if name != "minutes"} for row in log]


def test_a_killed_run_goes_on_to_the_same_weights(toy, tmp_path):
    """Limits of time never bind here: minutes would enter the learning rate. It is killed after the look at step EARLY."""
    words = ["--max_steps", 90, "--causal_start", 0.3, "--max_minutes", 10**5, "--eval_minutes", 10**5]
    command = [sys.executable, REPOSITORY / checkpoints.MADE_BY, *command_line(toy, tmp_path / "cut", *words)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (tmp_path / "cut/checkpoint-50").exists():
        assert process.poll() is None, "the run ended by itself"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut/checkpoint-90").exists()
    run(toy, tmp_path / "cut", *words, "--resume")
    run(toy, tmp_path / "whole", *words)
    run(toy, tmp_path / "other", *words, "--seed", 43)
    whole, cut, other = (files_of(tmp_path / name) for name in ("whole", "cut", "other"))
    assert cut == whole and [row["step"] for row in cut[1]] == [0, 50, 90]
    assert other[0][0] != whole[0][0], "the negative control: another seed gives other weights"
    run(toy, tmp_path / "cut", *words, "--resume")
    assert files_of(tmp_path / "cut") == whole, "a run that has ended has nothing to add"
    log = run(toy, tmp_path / "cut", *words, "--max_steps", 100, "--resume")["log"]
    assert [row["step"] for row in log] == [0, 50, 90, 100] and log[-1]["tokens"] > log[-2]["tokens"], "it trains on"
    assert sorted(path.name for path in (tmp_path / "cut").glob("checkpoint-*")) == ["checkpoint-100", "checkpoint-90"]


def test_a_run_goes_on_with_the_shares_of_its_kinds(toy, tmp_path, monkeypatch):
    """Looked at after every step, and strongly moved by gaps: the shares are not those that a run begins with."""
    monkeypatch.setattr(pretrain, "EARLY", 1)
    monkeypatch.setattr(draws.KindWeights, "STRENGTH", 1e4)
    monkeypatch.setattr(checkpoints, "LIMIT", 9)
    words = ["--max_steps", 6, "--max_minutes", 10**5, "--eval_minutes", 0]
    log = run(toy, tmp_path / "whole", *words)["log"]
    assert log[4]["weight"] != log[0]["weight"] and len(log) == 7
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for step in (4, 5, 6):
        shutil.rmtree(tmp_path / f"cut/checkpoint-{step}")
    run(toy, tmp_path / "cut", *words, "--resume")
    assert files_of(tmp_path / "cut") == files_of(tmp_path / "whole")


def test_a_run_goes_on_with_its_own_flags_and_text_only(toy, tmp_path):
    words = ["--max_steps", 1]
    with pytest.raises(FileNotFoundError, match="--resume: expected a checkpoint"):
        run(toy, tmp_path, *words, "--resume")
    run(toy, tmp_path, *words)
    with pytest.raises(InputError, match="was made with --dropout 0.1, found --dropout 0.2"):
        run(toy, tmp_path, *words, "--resume", "--dropout", 0.2)
    less = shutil.copytree(toy, tmp_path / "less")
    train = less / json.loads((less / "dataset_info.json").read_text())["splits"]["train"]["file"]
    train.write_text("".join(train.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match="--resume: expected the training text of .*checkpoint-1, found other text"):
        run(less, tmp_path, *words, "--resume")


def test_a_kind_whose_gap_opens_gets_less():
    weights = draws.KindWeights(torch.tensor([100, 100, 100]))
    weights.update([0.1, 0.5, 0.0])
    assert torch.allclose(weights.shares(), torch.full((3,), 1 / 3, dtype=torch.float64))
    weights.update([0.1, 0.5, 0.4])
    shares = weights.shares()
    assert shares[2] < 0.5 * shares[0] and shares[0] == shares[1]


def test_heads_begin_by_looking_at_their_offset():
    """Most of the attention of each planted head falls on its offset, at every position; the positions are not trained."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=100, n_positions=300, n_embd=256, n_layer=4, n_head=4, attn_implementation="eager")
    model = GPT2LMHeadModel(config).eval()
    positions.begin_with_neighbours(model)
    ids, everything = torch.randint(100, (1, 300)), torch.zeros(1, 1, 300, 300)
    with torch.no_grad():
        attention = model(ids, attention_mask=everything, output_attentions=True).attentions
    for layer, offsets in enumerate(positions.OFFSETS):
        for head, offset in enumerate(offsets):
            on_offset = torch.diagonal(attention[layer][0, head], offset=offset)
            assert on_offset.mean() > 0.6 and on_offset.min() > 0.1, (layer, head)
    assert attention[3].max() < 0.5, "the other layers begin at random"
    assert not model.transformer.wpe.weight.requires_grad and model.transformer.wte.weight.requires_grad


def test_the_card_has_every_kind(toy, tmp_path, monkeypatch, capsys):
    run(toy, tmp_path, "--max_steps", 1, "--n_positions", 64)
    monkeypatch.setattr(card, "WINDOW", 16)
    monkeypatch.setattr(card, "LONG", 64)
    monkeypatch.setattr(tokenizer, "REPOSITORY", tmp_path.parent)  # run from another folder, of a model that is named from here
    monkeypatch.chdir(toy)
    words = ["--base", tmp_path.name, "--compare", tmp_path, "--data_dir", toy, "--unseen_dir", toy, "--tokens", 400]
    card.main([str(word) for word in words])
    record = json.loads((tmp_path / "card.json").read_text())
    assert record["weights"] == {str(tmp_path): sha256_of(tmp_path)}
    rows = record["kinds"]
    assert [row["kind"] for row in rows] == ["animals", "more"] * 2
    assert [row["trained"] for row in rows] == [True, True, False, False]
    row = rows[0]
    assert row["causal"] == row["before_causal"] and row["nats_30"] == row["before_nats_30"]
    bits = row["causal"]["value"] / math.log(2) * row["tokens"]
    assert row["bits_per_byte"]["value"] == pytest.approx(bits / row["bytes"]) and 4 < row["bytes"] / row["tokens"] < 5
    assert "mean causal: 10." in capsys.readouterr().out


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
