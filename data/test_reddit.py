"""Tests of streaming from the hub, against a toy hub on loopback: pytest or `python data/test_reddit.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest

from data.artifacts import read_json
from data.partial import FOLDER
from data.scratch import LOCK
from data.sequences import SCHEMA, SPLITS
from data.testing.hub import COMMIT, toy_hub, write_shards
from data.testing.preparation import ONE_RUN, all_tokens, prepared, restless, rows
from data.testing.toy import check_refusal

OTHERS = "[*sys.argv[1:], *f'--output_dir {sys.argv[-1]}_some --subreddits TIFU r/relationships --max_sequences 40'.split()]"
TWO_RUNS = f"{ONE_RUN}; run(lambda: prepare.main({OTHERS}))"


def local_tokens(tmp_path, folder):
    """The tokens of a toy hub's files, read from the disk."""
    return all_tokens(prepared(tmp_path / "local", "--input", folder, "--text_column", "content", "--max_length", 64))


def test_reddit_is_streamed_through_lost_connections_filtered_and_stopped(tmp_path):
    local = local_tokens(tmp_path, write_shards(tmp_path / "hub"))
    cuts = {"0001": 1, "0002": 3}

    def drop(path):
        shard = Path(path).stem
        cuts[shard] = cuts.get(shard, 0) - 1
        return cuts[shard] >= 0

    with toy_hub(tmp_path / "hub") as hub:
        hub.drop = drop
        words = ["--source", "reddit", "--max_length", 64, "--output_dir", tmp_path / "out"]
        process = restless(TWO_RUNS, *words, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"))
        printed, errors = process.communicate()
    assert process.returncode == 0 and errors.count("Got disconnected") == 4 and "[3/6]" in errors, errors
    assert all_tokens(tmp_path / "out") == local, "other posts than in the files"
    info = read_json(tmp_path / "out" / "dataset_info.json", SCHEMA, "")
    assert info["counts"]["read"] == 240 and info["source_commit"] == COMMIT
    some = read_json(tmp_path / "out_some" / "dataset_info.json", SCHEMA, "")
    counts = some["counts"]
    assert sum(s["sequences"] for s in some["splits"].values()) == 40
    assert 0 < counts["other_subreddits"] < 80, "it read on after --max_sequences"
    numbers = [int(r["doc"][1:]) for name in SPLITS.values() for r in rows(tmp_path / "out_some" / name)]
    assert {n % 3 for n in numbers} == {1, 2}
    assert f"{counts['read']} of {counts['read'] + counts['other_subreddits']} posts were in relationships, tifu" in printed


def test_reddit_goes_on_after_the_hub_was_lost(tmp_path):
    folder = write_shards(tmp_path / "hub")
    words = ["--source", "reddit", "--max_length", 64, "--output_dir", tmp_path / "out", "--retries", 2]
    with toy_hub(tmp_path / "hub") as hub:
        hub.drop = lambda path: "0001" in path and hub.die()
        process = restless(ONE_RUN, *words, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"))
        _, errors = process.communicate()
    assert process.returncode == 2 and errors.count("Got disconnected") == 3 and "Traceback" not in errors, errors
    assert "after 80 posts and 2 retries" in errors.splitlines()[-1] and "--resume" in errors, errors
    assert {p.name for p in (tmp_path / "out").iterdir()} == {FOLDER, LOCK}
    with toy_hub(tmp_path / "hub") as hub:
        process = restless(ONE_RUN, *words, "--resume", HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "home"))
        printed, errors = process.communicate()
    assert process.returncode == 0, errors
    tokens = all_tokens(tmp_path / "out")
    assert tokens == local_tokens(tmp_path, folder)
    assert f"{sum(map(len, tokens)):,} tokens in" not in printed, "it began anew"


def test_reddit_without_the_hub_is_one_clear_line(tmp_path):
    words = ["--quiet", "--source", "reddit", "--output_dir", tmp_path / "out"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    check_refusal("data/prepare.py", *words, expect=["webis/tldr-17", "--source text"], **offline)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
