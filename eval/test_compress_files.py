"""Tests of the files that the command line writes, and of what can go wrong: `python eval/test_compress_files.py` or pytest."""

import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest

from data.artifacts import InputError
from data.provenance import REPOSITORY
from eval.compressor import Compressor
from eval.conftest import NOTE
from eval.container import checksum
from models.agent.files import save_agent

OTHER = "It was in the autumn of that year that the second of the two ships came back to the harbour, with all of her crew. 🙂\n"


def script(*words, **of_run):
    """The command line in a process of its own."""
    command = [sys.executable, "eval/compress.py", *map(str, words)]
    return subprocess.run(command, cwd=REPOSITORY, text=True, **({"capture_output": True} | of_run))


def test_the_promised_lines_as_they_are_typed(tmp_path, note):
    """In processes of their own; from the repository's root, so that paths of models are as promised, too."""
    lines = (
        "--input notes.txt --keep_ratio 0.7 --output notes.short.txt", "--restore notes.short.txt --output notes.restored.txt",
        "--input notes.txt --lossless --output notes.rltc.json", "--restore notes.rltc.json --output notes.txt",
    )
    for words in lines:
        words = re.sub(r"notes\.\S+", lambda name: str(tmp_path / name[0]), words).split()
        done = script(*words)
        assert done.returncode == 0 and done.stdout == "" and "Traceback" not in done.stderr
        if words[-1].endswith(".rltc.json"):
            note.unlink()
    assert done.stderr.splitlines()[-1].endswith("identical to the original, byte for byte")
    short, restored, text = ((tmp_path / f"notes.{name}txt").read_bytes().decode() for name in ("short.", "restored.", ""))
    assert len(short) < len(NOTE) and len(restored) > len(short) and " not" in short and text == NOTE
    names = ["notes.restored.txt", "notes.rltc.json", "notes.short.txt", "notes.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_a_link_stays_one(run, tmp_path, note):
    (tmp_path / "link").symlink_to(tmp_path / "out.txt")
    (tmp_path / "out.txt").write_text("of an earlier run")
    run("--input", note, "--output", tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "out.txt").read_bytes().decode() == Compressor.from_pretrained().compress(NOTE).text


def test_a_container_of_ones_own_agent_says_whether_the_original_is_back(run, loaded, note, tmp_path):
    path, agent = tmp_path / "notes.rltc.json", tmp_path / "best_model.zip"
    save_agent(loaded[0], loaded[0].config, agent)
    out, err = run("--model_path", agent, "--input", note, "--keep_ratio", 0.6, "--output", path)
    record = json.loads(path.read_text())
    assert not out and record["mode"] == "plain" and record["agent"]["name"] == str(agent) and "(keep ratio 0.6)" in err[0]
    assert record["payload"]["text"] == Compressor.from_pretrained().compress(NOTE, keep_ratio=0.6).text
    out, err = run("--restore", path)
    assert err == [f"{path}: not the original, byte for byte"]
    assert out.decode() == Compressor.from_pretrained().restore(record["payload"]["text"])
    rows = note.rename(tmp_path / "rows.jsonl")
    run("--input", rows, "--keep_ratio", 1, "--output", path)
    out, err = run("--restore", path)
    assert out == NOTE.encode() and err == [f"{path}: identical to the original, byte for byte"]


def test_lossless_takes_any_bytes_from_anywhere(run, monkeypatch, tmp_path):
    of_stdin = lambda data: monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    for data in (b"", OTHER.encode() + b"\xff\x00<|endoftext|><|mask|>", b"\xed\xa0\x80"):
        of_stdin(data)
        container, err = run("--input", "-", "--lossless", "--keep_ratio", 0.5)
        assert err[0].startswith(f"stdin: {len(data)} bytes, ") and err[0].endswith("restored and compared")
        of_stdin(container)
        assert run("--restore", "-") == (data, ["stdin: identical to the original, byte for byte"])
    (tmp_path / "in/deep").mkdir(parents=True)
    contents = {"a.txt": b"hello", "deep/b.bin": bytes(range(256)), "c.jsonl": b"no JSON"}
    for name, content in contents.items():
        (tmp_path / "in" / name).write_bytes(content)
    run("--input", tmp_path / "in", "--lossless", "--output", tmp_path / "made")
    assert (tmp_path / "made/deep/b.bin.rltc.json").is_file()
    run("--restore", tmp_path / "made", "--output", tmp_path / "back")
    assert {name: (tmp_path / "back" / name).read_bytes() for name in contents} == contents


def test_containers_that_are_no_longer_what_they_were_are_refused(run, note, tmp_path):
    path = tmp_path / "notes.rltc.json"
    run("--input", note, "--output", path)
    whole = path.read_text()
    changes = [
        (lambda: whole[: len(whole) // 2], "is not JSON"), (lambda: whole.replace("container/1", "container/2"), "container/2'"),
        (lambda: whole.replace("committee", "committees"), "changed after it was written"),
    ]
    for change, expected in changes:
        path.write_text(change())
        with pytest.raises(InputError, match=expected) as refused:
            run("--restore", path)
        assert "\n" not in str(refused.value)
    record = json.loads(whole)
    record["reconstructor"]["sha256"] = "0" * 64
    record["checksum"] = checksum(record)
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="expected the weights .*--force"):
        run("--restore", path)
    assert run("--restore", path, "--force")[1] == [f"{path}: not the original, byte for byte"]


def test_names_of_any_bytes(run, note, tmp_path):
    """In a folder, as names that stay, as a page and as a container."""
    name = lambda end: tmp_path / os.fsdecode(b"n\xff" + end)
    for made in (name(b".txt"), name(b".names")):
        made.write_bytes(note.read_bytes() if made.suffix == ".txt" else b"in the spring\n")
    run("--input", name(b".txt"), "--keep_names", name(b".names"), "--html", name(b".html"), "--output", name(b".short"))
    run("--input", name(b".txt"), "--lossless", "--output", name(b".rltc.json"))
    run("--restore", name(b".rltc.json"), "--output", name(b".back"))
    assert name(b".back").read_bytes() == note.read_bytes() and "in the spring" in name(b".short").read_text()
    assert "n\\xff.txt" in name(b".html").read_text()
    with pytest.raises(InputError, match="would be written over --input"):
        run("--input", name(b".txt"), "--output", name(b".txt"))


def test_a_page_is_written_beside_the_text(run, note, tmp_path):
    out, _ = run("--input", note, "--html", tmp_path / "page.html")
    assert out.decode() == Compressor.from_pretrained().compress(NOTE).text
    assert "<!DOCTYPE html>" in (tmp_path / "page.html").read_text() and note.name in (tmp_path / "page.html").read_text()
    with pytest.raises(InputError, match="expected one text to show"):
        run("--input", tmp_path, "--html", tmp_path / "page.html", "--output", tmp_path / "out")


def test_who_is_killed_leaves_no_half_file(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("of an earlier run")
    words = [sys.executable, "eval/compress.py", "--input", "-", "--text_column", "text", "--output", str(out), "--quiet"]
    with subprocess.Popen(words, cwd=REPOSITORY, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        process.stdin.write(b'{"text": "hello"}\n' * 3000)
        process.stdin.flush()
        begun = lambda: [path for path in tmp_path.iterdir() if path != out and path.stat().st_size]
        deadline = time.monotonic() + 120
        while not begun() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert begun() and process.poll() is None, "it has written some rows, and waits for more"
        process.kill()
    assert out.read_text() == "of an earlier run"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
def test_a_place_that_cannot_be_written_is_named_in_one_line(run, note, tmp_path):
    """A full device, a folder that nobody may write to, stdout and a disk that are full."""
    for path, expected in (("/dev/full", "/dev/full: .*No space left"), ("/proc/out.txt", "/proc/out.txt: expected a place")):
        with pytest.raises(InputError, match=expected) as refused:
            run("--input", note, "--output", path)
        assert "\n" not in str(refused.value)
    import resource  # only where there is one

    small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
    with open("/dev/full", "wb") as full:
        cases = [
            ((), {"stdout": full, "stderr": subprocess.PIPE, "capture_output": False}, "stdout: .*No space left"),
            (("--output", tmp_path / "out.txt"), {"preexec_fn": small}, "out.txt: .*File too large"),
        ]
        for words, of_run, expected in cases:
            done = script("--input", note, "--quiet", "--device", "cpu", *words, **of_run)
            assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and re.search(expected, done.stderr), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"] and not Path("/dev/full").is_file()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
