"""Tests of the sources of text: pytest or `python data/test_sources.py`."""

import gzip
import io
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from data.artifacts import InputError, read_json
from data.scratch import LOCK
from data.sequences import SCHEMA, SPLITS
from data.testing.preparation import all_tokens, prepared, rows, split_bytes, write_texts
from models.reconstructor.tokenizer import BASE_MODEL, MASK_TOKEN, load_tokenizer

UNICODE = [
    "\u0301 lone combining marks \u20dd\u0fb2", "\x00NUL\x00\x00 and \x01\x1b\x7f controls",
    "\ufeffa mark of byte order\ufeff inside",
    "one\r\ntwo\rthree\n\r\n four \u2028\u2029\x85\x0b\x0c",
    "family 👨‍👩‍👧‍👦 and 🏴\U000e0067\U000e0062\U000e007f flags 🇪🇺🇪",
    "עברית \u202e reversed \u202c العربية \u200f",
    "private \ue000\U0010fffd",
    "unassigned \u0378\U000e0fff\uffff\ufdd0",
    "é e\u0301 ﬁ ① Å \u212b ｆｕｌｌ", "<|endoftext|> <|mask|><|mask|> [MASK] </s>", "x" * 20_000, "ﷺ" * 3000,
    "   leading and trailing \t\xa0\u3000  ", "'s 'LL don't '' ' 1234567890 ²³ ٣",
]


def test_rows_of_jsonl_csv_and_parquet_are_documents_plain_or_compressed(tmp_path):
    texts = [f"Row {i} has words, a \"quote\" and\na second line. " * 6 for i in range(60)]
    table = pa.table({"id": list(range(60)), "body": texts})
    pyarrow.csv.write_csv(table, tmp_path / "rows.csv")
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"body": t}) + "\n" for t in texts), encoding="utf-8")
    for ending in ("csv", "jsonl"):
        (tmp_path / f"rows.{ending}.gz").write_bytes(gzip.compress((tmp_path / f"rows.{ending}").read_bytes()))
    tokens = []
    for ending in ("csv", "parquet", "jsonl", "csv.gz", "jsonl.gz"):
        out = prepared(tmp_path / f"out_{ending}", "--input", tmp_path / f"rows.{ending}", "--text_column", "body")
        tokens.append(all_tokens(out))
    assert len(tokens[0]) == 60 and all(t == tokens[0] for t in tokens)


def test_folders_and_globs_find_compressed_texts(tmp_path):
    folder = write_texts(tmp_path / "texts")
    plain = all_tokens(prepared(tmp_path / "plain", "--input", folder))
    for path in list(folder.iterdir())[::2]:
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        path.unlink()
    assert sorted(all_tokens(prepared(tmp_path / "folder", "--input", folder))) == sorted(plain)
    assert sorted(all_tokens(prepared(tmp_path / "glob", "--input", folder / "*.txt", folder / "*.gz"))) == sorted(plain)


def test_hostile_unicode_comes_back_byte_for_byte(tmp_path, tokenizer):
    with_mask = load_tokenizer(BASE_MODEL)
    with_mask.add_special_tokens({"mask_token": MASK_TOKEN})
    with_mask.save_pretrained(tmp_path / "tokenizer")
    mask_id = with_mask.convert_tokens_to_ids(MASK_TOKEN)
    texts = [f"{text}{i}" if i % 2 else f"{i}{text}" for i in range(5) for text in UNICODE]
    lines = [json.dumps({"text": text}, ensure_ascii=i % 2 == 0) + "\n" for i, text in enumerate(texts)]
    (tmp_path / "rows.jsonl").write_bytes("".join(lines).encode())
    (tmp_path / "rows.csv").write_bytes(("text\r\n" + "".join('"' + t.replace('"', '""') + '"\r\n' for t in texts)).encode())
    pyarrow.parquet.write_table(pa.table({"text": texts}), tmp_path / "rows.parquet")
    for ending in ("jsonl", "csv", "parquet"):
        words = ["--min_length", 1, "--max_length", 50, "--tokenizer", tmp_path / "tokenizer"]
        out = prepared(tmp_path / ending, "--input", tmp_path / f"rows.{ending}", *words)
        documents = {}
        for row in sum((rows(out / name) for name in SPLITS.values()), []):
            documents.setdefault(int(row["doc"].rsplit(":", 1)[1]), []).extend(row["tokens"])
        found = [tokenizer.decode(documents[number]).encode() for number in sorted(documents)]
        assert found == [t.encode() for t in texts], f"{ending}: a text was changed"
        assert all(mask_id not in tokens for tokens in documents.values()), "a mask token was read out of a text"


@pytest.mark.parametrize(
    "name, content, expect",
    [
        ("a.txt", b"", "among 1 documents"),
        ("a.jsonl", b'{"text": "lone \\ud800 surrogate"}\n', "expected text that UTF-8 can hold"),
        ("a.csv", "text\nna\u00efve\n".encode("latin-1"), "expected CSV in UTF-8"),
        ("a.csv", b"text\n" + b"plain\n" * 59 + b"na\xefve\n" + b"plain\n" * 9, "line 61: .*0xef; convert it with: iconv -f"),
        ("a.txt", b"na\xefve", "0xef at offset 2; convert it with: iconv -f ENCODING -t utf-8"),
        ("a.jsonl", b'{"text": "x"}\n{broken\n', "line 2"),
        ("a.jsonl", b'{"body": "x"}\n', "--text_column"),
        ("a.csv", b"id,body\n1,x\n", "expected a column 'text', found: id, body"),
        ("a.parquet", b"not parquet", "expected a Parquet file"),
        ("a.pdf", b"%PDF", "expected a file ending in"),
        ("a.txt.zip", b"PK", "expected a file ending in"),
        ("a.txt.gz", gzip.compress(b"word " * 9999, mtime=0)[:-20], "a.txt.gz: expected a whole gzip file"),
        ("a.csv.gz", gzip.compress(b"text\n" + b"word " * 9999, mtime=0)[:-20], "a.csv.gz: expected a whole gzip file"),
        ("a.jsonl.gz", b'{"text": "not compressed"}', "expected a whole gzip file"),
        ("a.csv", b"text,id\nx\n", "line 2: expected 2 columns"),
        ("a.csv", b'text\n"x', "expected CSV"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, content, expect):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=expect):
        prepared(tmp_path, "--input", tmp_path / name)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK], "something was left behind"


def test_a_row_of_parquet_that_is_no_utf8_is_named(tmp_path):
    texts = pa.array([b"plain"] * 60 + [b"na\xefve"]).cast(pa.binary())
    column = pa.StringArray.from_buffers(len(texts), *texts.buffers()[1:])
    pyarrow.parquet.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="a.parquet, row 61: expected text in UTF-8, found: byte 0xef"):
        prepared(tmp_path, "--input", tmp_path / "a.parquet")


def test_names_hold_any_bytes(tmp_path):
    """In files that are named, and in folders; documents stay apart, and a run that goes on knows its files."""
    for name in (b"a\xff.txt", b"a\xfe.txt"):
        text = b"".join(b"%d of %d words, to the end. " % (n * n, name[1]) for n in range(300))
        (tmp_path / os.fsdecode(name)).write_bytes(text)
    for words in ([tmp_path], [tmp_path / os.fsdecode(b"a\xff.txt"), tmp_path / os.fsdecode(b"a\xfe.txt")]):
        out = prepared(tmp_path, "--input", *words)
        documents = {row["doc"].split("#")[0] for name in SPLITS.values() for row in rows(out / name)}
        assert documents == {f"{tmp_path}/a\\xff.txt", f"{tmp_path}/a\\xfe.txt"}
    assert [Path(name) for name in read_json(out / "dataset_info.json", SCHEMA, "")["args"]["input"]] == words
    before = split_bytes(out)
    with pytest.raises(SystemExit), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", io.StringIO())
        prepared(tmp_path / os.fsdecode(b"\xff"), "--input", tmp_path)
    assert split_bytes(out) == before


def test_columns_that_are_not_text_are_refused_and_numbers_in_csv_are_text(tmp_path):
    pyarrow.parquet.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="expected text in the column 'text', found: int64"):
        prepared(tmp_path, "--input", tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("text\n" + "".join(f"{i * 123456789}\n" for i in range(60)))
    out = prepared(tmp_path, "--input", tmp_path / "a.csv", "--min_length", 2)
    assert read_json(out / "dataset_info.json", SCHEMA, "")["counts"]["read"] == 60


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
