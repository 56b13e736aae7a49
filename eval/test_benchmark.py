"""Tests of the speed by length: `python eval/test_benchmark.py` or pytest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest

from data.artifacts import read_json, sha256_of
from data.provenance import REPOSITORY
from eval import benchmark
from models.agent.files import RELEASED


def seconds_saved(tokens, kept, reads, fixed, speed):
    """Of reading a compressed text instead of the whole, compressing included: simulated, not solved."""
    return tokens / reads - (fixed + tokens / speed + kept * tokens / reads)


@pytest.mark.parametrize("reads", [100, 1000])
def test_compressing_pays_from_the_length_on_that_is_said(reads):
    rows = benchmark.pays(0.05, 4000, 3.0, {"reader": reads})
    assert [row["keep_ratio"] for row in rows] == list(benchmark.KEPT)
    for row in rows:
        for least, fixed in ((row["from_tokens"], 0.05), (row["from_tokens_with_start"], 3.05)):
            if reads < row["reader"]:
                saved = [seconds_saved(tokens, row["keep_ratio"], reads, fixed, 4000) for tokens in (least - 1, least)]
                assert saved[0] < 0 <= saved[1]
            else:
                assert least is None and seconds_saved(10**9, row["keep_ratio"], reads, fixed, 4000) < 0
    assert {row["from_tokens"] is None for row in benchmark.pays(0.05, 4000, 3.0, {"reader": 4000})} == {True}


def test_every_way_is_measured_by_length_or_says_why_not(tmp_path, capsys, monkeypatch):
    """Two lengths, of which the second would take too long, with the agent that ships, from another folder."""
    monkeypatch.chdir(tmp_path)
    benchmark.main(f"--lengths 40 400 --turns 1 --max_seconds 0.001 --device cpu --output_dir {tmp_path}".split())
    record = read_json(tmp_path / "speed_results.json", benchmark.SCHEMA, "eval/benchmark.py")
    assert record["weights"] == {str(REPOSITORY / RELEASED): sha256_of(REPOSITORY / RELEASED)}
    short, long = record["results"][: len(benchmark.WAYS)], record["results"][len(benchmark.WAYS) :]
    assert [row["way"] for row in short] == [row["way"] for row in long] == list(benchmark.WAYS)
    speeds = {row["way"]: row["tokens_per_second"] for row in short}
    for row in short:
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / row["seconds"]) and 36 <= row["tokens"] <= 44
    assert speeds[benchmark.READ] > speeds[benchmark.COMPRESSING], "it reads a text once, the other thrice"
    assert speeds["prefill, own base"] > 2 * speeds["prefill, GPT-2 with 124 M"], "a seventh of the parameters"
    peaks = {row["way"]: row["peak_memory"] for row in short}
    assert peaks["prefill, GPT-2 with 124 M"] - peaks[benchmark.DECIDING] > 300, "each its own: 497 MB of weights"
    assert all(row["seconds"] is None and "more than 0.001" in row["reason"] for row in long if row["way"] != benchmark.RESTORING)
    assert record["start"] > record["fixed"] and {row["by"] for row in record["pays"]} == {benchmark.OWN, benchmark.LARGE}
    assert capsys.readouterr().out.count("would take") == len(benchmark.WAYS)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
