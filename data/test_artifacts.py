"""Tests of what every script does alike: `python data/test_artifacts.py` or pytest."""

import errno
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest
import torch

from data.artifacts import Parser, line_of, written_aside
from data.provenance import REPOSITORY
from data.shapes import NUMBER, flaw

SCRIPT = """
import sys
sys.path.insert(0, {repository!r})
from data.artifacts import InputError, Parser, run
def main():
    Parser("λ ± 1 … ─").parse_args()
    {body}
run(main)
"""


def script(tmp_path, body, *words, encoding="utf-8", **kwargs):
    """A script with this body, run by `run` with a screen of this encoding."""
    (tmp_path / "script.py").write_text(SCRIPT.format(repository=str(REPOSITORY), body=body), encoding="utf-8")
    command = [sys.executable, tmp_path / "script.py", *words]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    return subprocess.run(command, capture_output=True, env=environment, **kwargs)


SHOWN = [("ascii", "lambda +- 1 ... ?"), ("cp1252", "lambda ± 1 … ?"), ("utf-8", "λ ± 1 … ─")]


@pytest.mark.parametrize("encoding, expect", SHOWN)
def test_a_screen_that_lacks_letters_gets_plain_ones(tmp_path, encoding, expect):
    for body, *words in (["print('λ ± 1 … ─')"], ["pass", "--help"]):
        done = script(tmp_path, body, *words, encoding=encoding)
        assert done.returncode == 0 and expect in done.stdout.decode(encoding)
    done = script(tmp_path, "raise InputError('λ ± 1 … ─')", encoding=encoding)
    assert done.returncode == 2 and done.stderr.decode(encoding).strip() == f"script.py: error: {expect}"


def test_who_has_read_enough_is_no_full_disk(tmp_path):
    command = f"{sys.executable} {tmp_path}/script.py | true; exit ${{PIPESTATUS[0]}}"
    script(tmp_path, "print('x' * 10**6)")
    done = subprocess.run(["bash", "-c", command], capture_output=True)
    assert done.returncode == 141 and not done.stderr


FREED = """import os, signal, time, weakref
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may have none
    class Thing: pass
    thing = Thing()
    seen = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
    del thing
    time.sleep(20)
    print("went on")"""


def test_an_interrupt_while_an_object_is_freed_is_not_lost(tmp_path):
    done = script(tmp_path, FREED)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (130, b"", 1) and b"interrupted" in done.stderr


@pytest.mark.parametrize("value, right", [(1.5, True), (2**62, True), (2**63, False), (10**400, False), (True, False)])
def test_a_number_is_what_machines_hold(value, right):
    assert bool(flaw(value, NUMBER)) is not right


def test_a_full_disk_is_one_line_with_the_file(tmp_path):
    """Also where a library has words of its own for it."""
    with pytest.raises(OSError) as full, written_aside(tmp_path / "state.pt"):
        torch.save(torch.zeros(1000), "/dev/full")
    assert full.value.errno == errno.ENOSPC and line_of(full.value).startswith(f"{tmp_path}/state.pt: expected room to write")
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="another"), written_aside(tmp_path / "state.pt"):
        raise RuntimeError("another fault is itself")


@pytest.mark.parametrize("words", [["--output_dir", ""], ["--output_dir="], [""], ["--output_dir=--"], ["--"]])
def test_an_empty_argument_is_a_variable_that_was_not_set(words, capsys):
    parser = Parser("")
    parser.add_argument("--output_dir", type=Path)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(words)
    assert ended.value.code == 2 and "expected a value, found " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parser.parse_args(["--other", "\n"])
    assert capsys.readouterr().err.count("\n") == 1, "one line"
    assert parser.parse_args(["--output_dir", "x"]).output_dir == Path("x")


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
