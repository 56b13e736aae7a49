"""Tests of runs that go on, and of what may be deleted: pytest or `python data/test_partial.py`."""

import gzip
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest

from data import pipeline
from data.artifacts import InputError, read_json
from data.partial import FOLDER
from data.scratch import ASIDE, LOCK, claimed, make_scratch, remove_scratch
from data.sequences import CACHE, SCHEMA, load_sequences
from data.testing.preparation import ONE_RUN, prepared, restless, split_bytes, write_jsonl, write_texts
from data.testing.toy import WORDS, write_base
from models.reconstructor.tokenizer import fingerprint


FILES = tuple(f"data/{name}.py" for name in ("partial", "prepare", "scratch", "sequences", "artifacts"))
EACH = ("write", "state", "statistics", "parse", "<genexpr>", "<listcomp>", "<dictcomp>")  # what is called all the time


def write_rows(path, count):
    """A compressed corpus of `count` rows, every third the same as an earlier one."""
    numbers = [i if i % 3 else i // 6 for i in range(count)]
    texts = [f"Row {i} of many. " + " ".join(str(i * n) for n in range(3, 100)) for i in numbers]
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    return path


def kill_at(out, size, *words):
    """Prepare in a process that is killed as soon as its training split has `size` bytes."""
    writing = out / FOLDER / "processed_data.json"
    process = restless(ONE_RUN, "--source", "text", "--output_dir", out, *words)
    while process.poll() is None and not (writing.exists() and writing.stat().st_size > size):
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -9 and {path.name for path in out.iterdir()} == {FOLDER, LOCK}, "it was not killed in time"


def test_a_killed_run_goes_on_and_writes_the_same_files(tmp_path, capsys):
    words = ["--input", write_rows(tmp_path / "rows.jsonl.gz", 900), "--max_length", 40, "--near_duplicates", 0.9]
    whole, out = prepared(tmp_path / "whole", *words), tmp_path / "killed" / "out"
    size = (whole / "processed_data.json").stat().st_size
    kill_at(out, size / 4, *words)
    kill_at(out, size / 2, *words, "--resume")
    capsys.readouterr()
    assert split_bytes(prepared(tmp_path / "killed", *words, "--resume")) == split_bytes(whole)
    infos = [read_json(folder / "dataset_info.json", SCHEMA, "") for folder in (whole, out)]
    assert infos[0]["counts"] == infos[1]["counts"] and infos[0]["splits"] == infos[1]["splits"]
    assert infos[0]["counts"]["duplicates"] > 100
    new = int(capsys.readouterr().out.splitlines()[-1].split()[0].replace(",", ""))
    assert new < 0.6 * sum(split["tokens"] for split in infos[0]["splits"].values()), "it tokenized again what was there"
    assert not (out / FOLDER).exists()


def counted(folder):
    """What the record in `folder/out` counts."""
    return read_json(folder / "out" / "dataset_info.json", SCHEMA, "")["counts"]


def interrupt_replacing(patch, number):
    """Have the `number`th file that takes its name interrupt the run, just before it does. Returns a list that counts them."""
    replace, names = os.replace, []

    def counted(source, target):
        names.append(Path(target).name)
        if len(names) == number:
            raise KeyboardInterrupt
        replace(source, target)

    patch.setattr(os, "replace", counted)
    return names


def test_a_run_interrupted_at_any_file_goes_on(tmp_path, monkeypatch, capsys):
    """Each save replaces state.json; then the splits and their description get their names."""
    monkeypatch.setattr(pipeline, "SAVE_EVERY", 0)
    monkeypatch.setattr(pipeline, "BATCH_CHARACTERS", 6000)
    words = ["--input", write_texts(tmp_path / "texts"), "--max_length", 40]
    with monkeypatch.context() as patch:
        names = interrupt_replacing(patch, 0)
        whole = split_bytes(prepared(tmp_path / "whole", *words))
        counts = counted(tmp_path / "whole")
    assert names[-4:] == [*whole, "dataset_info.json"] and set(names[:-4]) == {"state.json"} and len(names) > 8
    for number in range(1, len(names) + 1):
        folder = tmp_path / str(number)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="--resume"):
            interrupt_replacing(patch, number)
            prepared(folder, *words)
        assert not (folder / "out" / "dataset_info.json").exists()
        resume = ["--resume"] if number > 1 else []  # before the first save there is nothing to go on with
        assert split_bytes(prepared(folder, *words, *resume)) == whole and counted(folder) == counts
        assert not (folder / "out" / FOLDER).exists()


def die_at(line, folder, *words):
    """Prepare in a process of its own that dies, as if killed, at this line that it comes to in `FILES`. Returns its status."""
    pid, seen = os.fork(), 0
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def trace(frame, event, _):
        nonlocal seen
        if not frame.f_code.co_filename.endswith(FILES) or frame.f_code.co_name in EACH:
            return None
        seen += event == "line"
        if seen == line:
            os._exit(9)
        return trace

    sys.stdout = open(os.devnull, "w")
    sys.settrace(trace)
    prepared(folder, *words)
    os._exit(0)


@pytest.mark.parametrize("times", [1, 2])
def test_a_run_that_dies_anywhere_counts_once_and_leaves_nothing(tmp_path, monkeypatch, times):
    """Also in what follows the last batch, and if the run that goes on dies, too."""
    monkeypatch.setattr(pipeline, "SAVE_EVERY", 0)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    texts = [" ".join(WORDS[int(digit)] for digit in f"{i % 90:04}") for i in range(120)]
    words = ["--input", write_jsonl(tmp_path / "rows.jsonl", texts)]
    words += ["--min_length", 2, "--tokenizer", write_base(tmp_path / "base")]
    whole = split_bytes(prepared(tmp_path / "whole", *words))
    counts, line, first = counted(tmp_path / "whole"), 7, 9
    while first:
        folder, line = tmp_path / str(line), line + 23
        state = folder / "out" / FOLDER / "state.json"
        first = status = die_at(line, folder, *words)
        for again in range(1, times):
            status = die_at(line * 3 // 4 + again, folder, *words, *["--resume"] * state.exists())
        if status:
            prepared(folder, *words, *["--resume"] * state.exists())
        assert split_bytes(folder / "out") == whole and counted(folder) == counts
        left = {path.name for path in (folder / "out").iterdir()} - {*whole, "dataset_info.json", LOCK}
        assert not left, f"line {line} left {left}"
    assert line > 300 and counts["read"] == 120 and counts["duplicates"] == 30


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A folder with a run that was interrupted after some saves, and its arguments."""
    words = ["--input", write_texts(tmp_path / "texts"), "--max_length", 40]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pipeline, "SAVE_EVERY", 0)
        patch.setattr(pipeline, "BATCH_CHARACTERS", 3000)
        interrupt_replacing(patch, 5)
        prepared(tmp_path, *words)
    return tmp_path, words


def test_a_run_goes_on_with_the_same_arguments_and_files_only(interrupted):
    folder, words = interrupted
    with pytest.raises(InputError, match="was made with --max_length 40, found --max_length 50"):
        prepared(folder, *words[:-1], 50, "--resume")
    (folder / "texts" / "00.txt").write_text("changed")
    with pytest.raises(InputError, match="have changed since"):
        prepared(folder, *words, "--resume")
    assert (folder / "out" / FOLDER / "state.json").exists(), "the interrupted run was lost"


def test_a_new_run_discards_an_interrupted_one_and_says_so(interrupted, capsys):
    folder, words = interrupted
    out = prepared(folder, *words)
    assert "discarded the interrupted run" in capsys.readouterr().out
    assert split_bytes(out) == split_bytes(prepared(folder / "whole", *words))


def test_there_must_be_something_to_resume(small, tmp_path):
    with pytest.raises(InputError, match="expected an interrupted run in .*, found none"):
        prepared(tmp_path, "--input", tmp_path / "texts", "--resume")


def test_a_folder_that_another_run_writes_to_is_refused(interrupted):
    folder, words = interrupted
    before = (folder / "out" / FOLDER / "state.json").read_bytes()
    with claimed(folder / "out"):
        for resume in ([], ["--resume"]):
            with pytest.raises(InputError, match="another run writes there"):
                prepared(folder, *words, *resume)
    assert (folder / "out" / FOLDER / "state.json").read_bytes() == before, "the other run was disturbed"
    prepared(folder, *words, "--resume")


def test_files_of_the_user_survive(tmp_path):
    """Of the names that a preparation writes, of other programs, and of the kind that killed runs leave, but not quite."""
    folder, out = write_texts(tmp_path / "texts"), tmp_path / "out"
    out.mkdir()
    for name in ("dataset_info.json", "test_data.json"):
        (out / name).write_text('{"mine": 1}')
        with pytest.raises(InputError, match=f"{name}: expected a file that data/prepare.py wrote.*; move it away"):
            prepared(tmp_path, "--input", folder)
        assert (out / name).read_text() == '{"mine": 1}'
        (out / name).unlink()
    dead = 2**22 + 1  # no process has a higher number than 2**22
    mine = [".dataset_info.tmp.json", f".notes.{dead}.tmp.json", ".dataset_info.x1.tmp.json"]
    ours = [f".dataset_info.{dead}.tmp.json", f".write_test.{dead}"]
    for name in (*mine, *ours):
        (out / name).write_text("left")
    make_scratch(out / f"{ASIDE}{dead}")
    (out / f"{ASIDE}{dead + 1}").mkdir()
    (out / f"{ASIDE}{dead + 1}" / "thesis.txt").write_text("mine")
    prepared(tmp_path, "--input", folder, "--max_length", 50)
    names = {path.name for path in out.iterdir()}
    assert names >= {*mine, f"{ASIDE}{dead + 1}"} and names.isdisjoint([*ours, f"{ASIDE}{dead}"])


def test_folders_of_the_user_survive(tmp_path, tokenizer):
    folder = write_texts(tmp_path / "texts")
    theirs = [tmp_path / "out" / name / "precious.txt" for name in (".cache", ".partial")]
    for path in theirs:
        path.parent.mkdir(parents=True)
        path.write_text("mine")
    for _ in range(2):
        out = prepared(tmp_path, "--input", folder, "--max_length", 50)
        load_sequences(out / "processed_data.json", fingerprint(tokenizer))
    assert (out / CACHE).is_dir() and [path.read_text() for path in theirs] == ["mine", "mine"]


@pytest.mark.parametrize("name", [CACHE, FOLDER])
def test_a_folder_without_the_mark_is_refused_and_survives(tmp_path, name):
    path = tmp_path / "out" / name / "precious.txt"
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(InputError, match="move it away"):
        prepared(tmp_path, "--input", write_texts(tmp_path / "texts"), "--max_length", 50)
    assert path.read_text() == "mine"


def test_only_what_carries_the_mark_is_removed(tmp_path):
    marked = make_scratch(tmp_path / "marked")
    (marked / "a").mkdir()
    (marked / "a" / "b").write_text("scratch")
    (marked / "link").symlink_to(tmp_path / "theirs")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "precious.txt").write_text("mine")
    (tmp_path / "other").symlink_to(marked)
    for path in (tmp_path / "theirs", tmp_path / "theirs" / "precious.txt", tmp_path / "other"):
        for function in (remove_scratch, make_scratch):
            with pytest.raises(InputError, match="move it away"):
                function(path)
    remove_scratch(marked)
    remove_scratch(marked)  # nothing there is nothing to do
    assert not marked.exists() and (tmp_path / "theirs" / "precious.txt").read_text() == "mine"


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
