"""Tests of the sequence files: pytest or `python data/test_sequences.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest

from data.artifacts import InputError
from data.sequences import load_sequences, pad_batch
from data.testing.preparation import prepared, write_texts
from data.testing.toy import write_base
from models.reconstructor.tokenizer import fingerprint, load_tokenizer


def test_sequences_are_cut_to_a_shorter_length_without_loss(tmp_path, tokenizer):
    out = prepared(tmp_path, "--input", write_texts(tmp_path / "texts"), "--max_length", 50)
    whole, cut = (load_sequences(out / "processed_data.json", fingerprint(tokenizer), n) for n in (None, 7))
    assert np.array_equal(*(np.concatenate([found[i] for i in range(len(found))]) for found in (whole, cut)))
    assert [len(cut[i]) for i in range(len(cut))] == cut.lengths.tolist() and cut.lengths.max() == 7
    assert cut.lengths[: 8 * 5].min() >= 6, "a piece of a token or two is left"
    assert set(cut.docs) == set(whole.docs) and len(cut.docs) == len(cut)


def test_padding_is_marked():
    ids, valid = pad_batch([np.array([1, 2]), np.array([3])], 9, length=3)
    assert ids.tolist() == [[1, 2, 9], [3, 9, 9]] and valid.tolist() == [[True, True, False], [True, False, False]]


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


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
