"""Tests of the choice of unused test documents: `python eval/test_fresh.py` or pytest."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest

from data import prepare
from data.artifacts import InputError
from data.sequences import SPLITS, load_info, load_sequences
from eval.results import fresh


def rows(folder, split="test"):
    return [json.loads(line) for line in (folder / SPLITS[split]).read_text().splitlines()]


def test_no_text_of_an_earlier_draw_is_chosen_and_documents_are_whole(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fresh, "OTHERS", 15)
    monkeypatch.setattr(fresh, "LOSSLESS", 100)
    for kind, first in (("tales", 0), ("mixed", 40)):  # 40 to 99 are in both, under another name
        texts = [f"Number {i} and {i * 7919}. " * 9 for i in range(first, 100)]
        (tmp_path / f"{kind}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        words = ["--max_length", "50", "--min_length", "1", "--test_ratio", "0.7", "--val_ratio", "0.1", "--quiet"]
        given = ["--input", str(tmp_path / f"{kind}.jsonl"), "--output_dir", str(tmp_path / kind)]
        prepare.main(["--source", "text", *given, *words])
    monkeypatch.setitem(fresh.DRAWN, "mixed", 10)
    paths = [f"--input={tmp_path / 'tales'}", f"--mixture={tmp_path / 'mixed'}", f"--output_dir={tmp_path / 'fresh'}"]
    fresh.main([*paths, "--documents", "10", "--texts", "15"])
    chosen, whole = rows(tmp_path / "fresh/tales"), rows(tmp_path / "tales")
    names = {row["doc"] for row in chosen}
    assert len(names) >= 10 and len(chosen) >= 15
    assert [r["tokens"] for r in chosen] == [r["tokens"] for name in sorted(names) for r in whole if r["doc"] == name]
    for kind, count in (("tales", 15), ("mixed", 10)):
        drawn = [rows(tmp_path / kind)[i] for i in np.random.default_rng(42).permutation(len(rows(tmp_path / kind)))[:count]]
        assert not {tuple(r["tokens"]) for r in drawn} & {tuple(r["tokens"]) for r in chosen}, f"a text drawn from {kind}"
    info = load_info(tmp_path / "fresh/tales/test_data.json")
    for split, name in SPLITS.items():
        found = load_sequences(tmp_path / "fresh/tales" / name, info["tokenizer"]["fingerprint"])
        assert len(found) == info["splits"][split]["sequences"]
    said = capsys.readouterr().out
    assert f"{len(names)} of" in said and "tales: 0 of" in said, "no run of eight words is in a training text"
    some = ["one two three it's 4 5 six seven", "two three it's 4 5 six seven eight"]
    assert fresh.runs("One two, THREE; it's 4 5 six seven eight") == set(some)
    monkeypatch.setattr(fresh, "RUN", 1)
    fresh.main([*paths, "--documents", "10", "--texts", "15"])
    assert f"tales: 2 of {2 + 2 * len(names)} runs" in capsys.readouterr().out, "number, and"
    monkeypatch.setattr(fresh, "OTHERS", 1000)
    with pytest.raises(InputError, match="that no result was made from, found none"):
        fresh.main([*paths, "--documents", "10"])


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
