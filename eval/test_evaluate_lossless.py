"""Tests of the evaluation of lossless payloads: `python eval/test_evaluate_lossless.py` or pytest."""

import json
import lzma
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest
import torch

from eval import evaluate_lossless
from eval.evaluate_lossless import ARITHMETIC, CONTAINER, RANKS, XZ, Coders, documents, parse_args


def words(folder, *more):
    paths = ["--model_path", folder / "agent/best_model.zip", "--data_path", folder / "data/test_data.json"]
    return [str(word) for word in (*paths, "--tokens", 200, "--quiet", *more)]


def test_the_whole_script_writes_what_it_prints(stages, tmp_path, capsys):
    evaluate_lossless.main(words(stages[0], "--output_dir", tmp_path))
    record = json.loads((tmp_path / "lossless_results.json").read_text())
    assert record["schema"] == evaluate_lossless.SCHEMA and record["units"] and record["weights"]
    (found,) = record["corpora"]
    assert found["tokens"] >= 200 and found["documents"] > 5 and 0 < found["as_ranks"] <= 1
    for way in ("documents", "joined"):
        bits, with_model = found["bits_per_byte"][way], found["with_model"][way]
        assert bits[RANKS] < bits[CONTAINER] and bits[ARITHMETIC] < bits[CONTAINER]
        for coder in bits:
            extra = (with_model[coder] - bits[coder]) * found["bytes"] / 8
            assert extra == pytest.approx(record["models"].get(coder, 0))
    assert found["bits_per_byte"]["joined"][XZ] < found["bits_per_byte"]["documents"][XZ], "one header instead of many"
    printed = capsys.readouterr().out
    assert "arithmetic, ideal" in printed and f"{found['bits_per_byte']['joined'][RANKS]:.2f}" in printed


def test_the_arithmetic_coder_by_hand(stages):
    """-sum log2 p of the causal model, one token after the other."""
    args = parse_args(words(stages[0]))
    coders = Coders(args)
    data = documents(args.data_path[0], coders.reconstructor, 16, seed=0)[0]
    ids, nats, model = coders.tokens(data), 0.0, coders.surprisal.model
    with torch.no_grad():
        for i, token in enumerate(ids):
            logits = model(torch.tensor([[coders.reconstructor.bos_id, *ids[:i]]])).logits[0, -1].double()
            nats -= float(logits.log_softmax(-1)[token])
    assert coders.arithmetic(data) == pytest.approx(nats / np.log(2) / 8, rel=1e-4)
    sizes, counts = coders.measure(data)
    assert sizes[XZ] == len(lzma.compress(data, preset=9)) and counts[0] == len(ids)


def test_documents_are_whole_but_for_the_last(stages):
    args = parse_args(words(stages[0]))
    reconstructor = Coders(args).reconstructor
    some, more = (documents(args.data_path[0], reconstructor, tokens, seed=3) for tokens in (40, 200))
    assert more[: len(some) - 1] == some[:-1] and more[len(some) - 1].startswith(some[-1])
    assert documents(args.data_path[0], reconstructor, 40, seed=4) != some, "another seed, another order"


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
