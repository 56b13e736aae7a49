"""Tests of the sequence files: pytest or `python data/test_sequences.py`."""

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest

from data import prepare, sequences
from data.artifacts import InputError
from data.scratch import MARK
from data.sequences import CACHE, load_sequences, pad_batch
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
        (lambda p: p.write_bytes(p.read_bytes().replace(b'"doc":"', b'"doc":"\xff')), "expected lines like .* UTF8"),
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


def test_a_cache_is_of_what_the_file_holds_whatever_the_clock_says(small, tokenizer):
    path = small / "processed_data.json"
    times, whole, expected = path.stat(), path.read_text(), len(load_sequences(path, fingerprint(tokenizer)))
    lines = whole.splitlines(keepends=True)
    for changed in (lines[1:] + lines[:1], lines):
        path.write_text("".join(changed))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        found = load_sequences(path, fingerprint(tokenizer))
        assert len(found) == expected and found[0].tolist() == json.loads(changed[0])["tokens"]


def test_data_that_cannot_be_written_beside_are_read_without_a_cache(small, tokenizer, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(sequences, "make_scratch", refuse)
    assert len(load_sequences(small / "processed_data.json", fingerprint(tokenizer))) > 20
    assert not (small / CACHE).exists()


CACHES = {
    "cut to nothing": lambda cache: [path.write_bytes(b"") for path in cache.rglob("*.arrow")],
    "cut": lambda cache: [path.write_bytes(path.read_bytes()[:300]) for path in cache.rglob("*.arrow")],
    "a user's file": lambda cache: (shutil.rmtree(cache), cache.write_text("mine")),
    "a user's folder": lambda cache: (cache / MARK).unlink(),
}


@pytest.mark.parametrize("what", CACHES)
def test_a_cache_that_is_damaged_or_not_ours_is_no_fault_of_the_data(small, tokenizer, what):
    path = small / "processed_data.json"
    first = load_sequences(path, fingerprint(tokenizer)).first(9).tolist()
    CACHES[what](small / CACHE)
    assert load_sequences(path, fingerprint(tokenizer)).first(9).tolist() == first
    if what == "a user's file":
        assert (small / CACHE).read_text() == "mine"


def test_data_in_a_folder_of_any_name(small, tokenizer, tmp_path):
    folder = Path(shutil.copytree(small, tmp_path / os.fsdecode(b"cw\xff")))
    here, there = (load_sequences(path / "processed_data.json", fingerprint(tokenizer)) for path in (small, folder))
    assert len(here) == len(there)


def test_advice_is_the_command_that_made_the_file(small, tmp_path, tokenizer):
    path = small / "val_data.json"
    command = f"python data/prepare.py --output_dir {small} --source text --input {tmp_path / 'texts'} .*--max_length 50 "
    whole = path.read_bytes()
    for damaged, expect in ((whole[:-30], "expected lines like|expected"), (b"", "val_data.json is empty")):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=f"({expect}).*; write it again with: {command}"):
            load_sequences(path, fingerprint(tokenizer))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"is missing; .*; write it again with: {command}"):
        load_sequences(path, fingerprint(tokenizer))


@pytest.mark.parametrize("other_share, share", [(0.1, 0.1), (0.9, 0.05)])
@pytest.mark.parametrize("split, other", [("val", "test"), ("test", "val")])
def test_a_split_that_was_left_out_leads_back(tmp_path, tokenizer, split, other, other_share, share):
    shares = f"--{split}_ratio", 0, f"--{other}_ratio", other_share
    out = prepared(tmp_path, "--input", write_texts(tmp_path / "texts", 60), "--max_length", 50, *shares)
    expect = f"{split}_data.json is empty, as --{split}_ratio 0 asked for.*; give --{split}_ratio a share and write it again with"
    with pytest.raises(InputError, match=f"{expect}: python data/prepare.py .*--source text .*--{split}_ratio {share} ") as found:
        load_sequences(out / f"{split}_data.json", fingerprint(tokenizer))
    prepare.parse_args(shlex.split(str(found.value).partition("data/prepare.py ")[2]))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
