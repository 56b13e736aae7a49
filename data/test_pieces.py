"""Tests of documents too few for three splits: `python data/test_pieces.py` or pytest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest

from data.artifacts import InputError, read_json
from data.pipeline import cut
from data.sequences import SCHEMA, SPLITS
from data.testing.preparation import prepared, rows, split_bytes, write_jsonl

SENTENCES = [f"Sentence number {i} tells that {i * 7919} is not {i * 104729}. " + "\n\n" * (i % 7 == 0) for i in range(400)]


def test_cutting_loses_nothing_and_ends_with_paragraphs_or_else_sentences_or_words():
    for text in ("".join(SENTENCES), "".join(SENTENCES).replace("\n", ""), "word " * 900, "x" * 4000, "short", ""):
        pieces = list(cut(text, 500))
        assert "".join(pieces) == text and max(map(len, pieces)) <= 750 and all(len(each) > 250 for each in pieces[:-1])
    assert all(piece.endswith("\n\n") for piece in list(cut("".join(SENTENCES), 700))[:-1])
    assert all(piece.endswith(". ") for piece in list(cut("".join(SENTENCES).replace("\n", ""), 500))[:-1])


@pytest.mark.parametrize("name", ["notes.txt", "notes/a.md", "notes.jsonl"])
def test_one_document_fills_every_split(tmp_path, tokenizer, capsys, name):
    path, text = tmp_path / name, "".join(SENTENCES)
    path.parent.mkdir(exist_ok=True)
    write_jsonl(path, [text]) if name.endswith(".jsonl") else path.write_text(text, encoding="utf-8")
    out = prepared(tmp_path, "--input", tmp_path / name.split("/")[0], "--min_length", 1)
    info = read_json(out / "dataset_info.json", SCHEMA, "")
    assert info["split_by"] == "pieces" and "1 document(s) do not fill three splits" in capsys.readouterr().out
    assert all(size["documents"] >= 6 for size in info["splits"].values())
    found = {row["doc"]: row["tokens"] for split in SPLITS.values() for row in rows(out / split)}
    pieces = sorted(found, key=lambda name: int(name.rpartition("#")[2]))
    assert tokenizer.decode([token for piece in pieces for token in found[piece]]) == text, "a piece is missing or in two splits"
    first = split_bytes(out)
    prepared(tmp_path, "--input", tmp_path / name.split("/")[0], "--min_length", 1)
    assert split_bytes(out) == first


def test_documents_that_fill_every_split_stay_whole(tmp_path, capsys):
    out = prepared(tmp_path, "--input", write_jsonl(tmp_path / "rows.jsonl", SENTENCES[:90]), "--min_length", 1)
    assert read_json(out / "dataset_info.json", SCHEMA, "")["split_by"] == "documents"
    assert not any("#" in row["doc"] for split in SPLITS.values() for row in rows(out / split))
    assert "warning" not in capsys.readouterr().out


def test_what_is_too_short_even_for_pieces_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("Far too short, but there are two different tokens or more in it, of course.")
    with pytest.raises(InputError, match="found none for"):
        prepared(tmp_path, "--input", tmp_path / "a.txt")


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
