"""Tests of the evaluation of lossless payloads: `python eval/test_evaluate_lossless.py` or pytest."""

import json
import lzma
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest
import torch

from data.testing.preparation import prepared
from eval import evaluate_lossless
from eval.evaluate_lossless import ARITHMETIC, CONTAINER, RANKS, XZ, Coders, documents, parse_args
from eval.lossless import as_text


@pytest.fixture(scope="module")
def data_path(tmp_path_factory):
    """Held-out presidential addresses, a few short sequences."""
    folder = prepared(tmp_path_factory.mktemp("addresses"), "--max_sequences", 60, "--max_length", 64, source="sotu")
    return folder / "test_data.json"


@pytest.fixture(scope="module")
def coders():
    """Every coder, with the agent that ships and the embedded base."""
    return Coders(parse_args([]))


def test_the_whole_script_writes_what_it_prints(data_path, tmp_path, capsys):
    words = ["--data_path", data_path, data_path, "--tokens", 150, "--keep_ratio", 0.6, "--output_dir", tmp_path, "--quiet"]
    evaluate_lossless.main([str(word) for word in words])
    record = json.loads((tmp_path / "lossless_results.json").read_text())
    assert record["schema"] == evaluate_lossless.SCHEMA and record["units"] and len(record["weights"]) == 2
    one, other = record["corpora"]
    assert record["together"]["bits_per_byte"]["joined"][RANKS] == pytest.approx(one["bits_per_byte"]["joined"][RANKS])
    assert one["bits_per_byte"] == other["bits_per_byte"], "the same every time"
    assert one["as_ranks"] == 1 and 0.5 < one["sent"] <= 0.6
    for way in ("documents", "joined"):
        bits, with_model = one["bits_per_byte"][way], one["with_model"][way]
        assert bits[ARITHMETIC] < bits[RANKS] < bits[XZ] and bits[RANKS] < bits[CONTAINER]
        for coder in bits:
            extra = (with_model[coder] - bits[coder]) * one["bytes"] / 8
            assert extra == pytest.approx(record["models"].get(coder, 0))
    printed = capsys.readouterr().out
    assert ARITHMETIC in printed and f"{one['bits_per_byte']['joined'][RANKS]:.2f}" in printed


def test_the_arithmetic_coder_by_hand(coders):
    """-sum log2 p of the causal model, one token after the other."""
    data = b"The committee met in the old town hall."
    ids, nats, model = coders.tokens(data), 0.0, coders.surprisal.model
    with torch.no_grad():
        for i, token in enumerate(ids):
            logits = model(torch.tensor([[coders.reconstructor.bos_id, *ids[:i]]])).logits[0, -1].double()
            nats -= float(logits[: coders.reconstructor.mask_id + 1].log_softmax(-1)[token])
        assert coders.arithmetic(data) == pytest.approx(nats / np.log(2) / 8, rel=1e-4)
    assert coders.measure(data)[0][XZ] == len(lzma.compress(data, preset=9))


def test_documents_are_whole_but_for_the_last(data_path, coders):
    text = lambda tokens, seed: documents(data_path, coders.reconstructor, tokens, seed)
    rows = [json.loads(line) for line in data_path.read_text().splitlines()]
    whole = {}
    for row in rows:
        whole.setdefault(row["doc"], []).extend(row["tokens"])
    everything = text(10**6, 0)
    assert sorted(everything) == sorted(as_text(coders.reconstructor.tokenizer, ids).encode() for ids in whole.values())
    some = text(100, 0)
    assert everything[: len(some) - 1] == some[:-1] and everything[len(some) - 1].startswith(some[-1])
    assert sum(len(coders.tokens(data)) for data in some) == pytest.approx(100, abs=2)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
