"""One hostile case: a command line in a private copy of the toy world, in a forked child, and what went wrong there.

What can: a traceback; a status that is not among those expected; damage, any file that a failed run changed or removed, or that a
run that did its work had no right to; a hang; a message that is not one line; files left behind that are nobody's.
"""

import atexit
import codecs
import contextlib
import ctypes
import fnmatch
import hashlib
import io
import json
import os
import resource
import select
import shutil
import signal
import stat
import subprocess
import sys
import time
import traceback
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from hostile_world import OWN, call, mounted, restore_modes, size_of, value_of
from safetensors import SafetensorError, safe_open

LIMIT, MEMORY, LARGEST = 30, 8 << 30, 256 << 20  # seconds of a case; bytes of address space, and of a file
GIVEN_UP = 5  # seconds in which an interrupted run has to end
KINDS = ("traceback", "status", "damage", "hang", "message", "left")
TEMPORARY = ("*.tmp*", ".write_test*", ".unfinished*", ".rltc_aside*")
NOBODYS = (".rltc_cache", ".rltc_lock")  # what may lie in a directory that was read from, or that was written to


@dataclass
class Case:
    """`spoil(world)` makes the world hostile; `within()` is called in the child before the script. `expect`: right statuses.

    `patience`: seconds until the run is interrupted, if it does not end by itself. `room`: KB free on its disk. `torn`: a run
    that fails may have replaced its own results, which must be whole. `mine`: patterns of paths that are no run's own.
    """

    family: str
    script: str
    words: list
    expect: tuple = (2,)
    spoil: Callable = lambda world: None
    within: Callable = lambda: None
    stdout: str = "file"  # file, closed, pipe that nobody reads, or a path
    stderr: str = "file"
    encoding: str = "utf-8"
    patience: float | None = None
    room: int | None = None
    torn: bool = False
    mine: tuple = ()
    note: str = ""
    wrong: list = field(default_factory=list)  # (kind, what)

    def __str__(self):
        words = " ".join(repr(word) if set(word) - PLAIN or not word else word for word in self.words)
        return f"{self.script.split()[0]} {words}" + f"   # {self.note}" * bool(self.note)

    def output(self):
        return value_of(self.words, "--output_dir") or value_of(self.words, "--output")

    def owns(self, path):
        """Whether a run of this case may write or delete the file at `path`, relative to the world."""
        if path.endswith("mine.txt") or any(fnmatch.fnmatch(path, pattern) for pattern in self.mine):
            return False
        out, patterns = os.path.normpath(self.output() or "."), OWN.get(self.script)
        if patterns is None:
            return path in (out, value_of(self.words, "--html")) or path.startswith(f"{out}/")
        return any(fnmatch.fnmatch(path, os.path.normpath(f"{out}/{pattern}")) for pattern in patterns)


PLAIN = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./=,+:@")


def snapshot(world):
    """{path: what is there, with the SHA-256 of a file}, without the caches of readers."""
    found = {}
    for folder, folders, names in os.walk(world):
        for name in (*folders, *names):
            path = os.path.join(folder, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                content = os.readlink(path)
            elif stat.S_ISREG(mode):
                with open(path, "rb") as file:
                    content = hashlib.file_digest(file, "sha256").hexdigest()
            else:
                content = ""
            found[os.path.relpath(path, world)] = stat.S_IFMT(mode), content
        folders[:] = [name for name in folders if name != ".rltc_cache" or os.path.exists(f"{folder}/{name}/mine.txt")]
    return found


def whole(path):
    """Whether a file of ours is whole, as far as its kind tells."""
    try:
        if path.suffix == ".json" and path.name.endswith("_data.json"):
            [json.loads(line) for line in path.read_text().splitlines()]
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".zip":
            with zipfile.ZipFile(path) as file:
                return file.testzip() is None
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                file.keys()
        elif path.suffix == ".png":
            return path.read_bytes()[-8:-4] == b"IEND"
        if path.name == "dataset_info.json":
            splits = json.loads(path.read_text())["splits"].values()
            return all(len((path.parent / s["file"]).read_text().splitlines()) == s["sequences"] for s in splits)
    except (ValueError, OSError, zipfile.BadZipFile, SafetensorError):
        return False
    return True


def drop_privileges():
    """Let permissions count for root, too: without its capabilities it may do to its own files what their modes say."""
    if os.geteuid() == 0:
        header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None, use_errno=True).capset(header, data):
            raise OSError(ctypes.get_errno(), "capset")


def screen(descriptor, kind, encoding, path):
    """Give the child a stdout or stderr of some kind; returns the file object, as Python would have made it."""
    if kind == "closed":
        os.close(descriptor)
        return None
    if kind == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(path if kind == "file" else kind, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(writer, descriptor)
    os.close(writer)
    errors = "strict" if descriptor == 1 else "backslashreplace"
    file = io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False))
    return io.TextIOWrapper(file, encoding=encoding, errors=errors, line_buffering=descriptor == 2)


def play(case, world, folder):
    """The child: run the script as Python would, and end as Python would."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(world)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ["TMPDIR"] = str(folder / "tmp")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, LARGEST))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    drop_privileges()
    sys.stdout = screen(1, case.stdout, case.encoding, folder / "stdout")
    sys.stderr = screen(2, case.stderr, case.encoding, folder / "stderr")
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)))
    status = 0
    case.within()
    try:
        call(case.script, case.words, interruptible)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        status = 1
        with contextlib.suppress(OSError):  # Python does not say, either, that it can't say anything
            traceback.print_exc()
    atexit._run_exitfuncs()
    try:
        sys.stdout and sys.stdout.flush()
    except OSError:
        status = 120  # as Python does where stdout can't be flushed in the end
    return status


@contextlib.contextmanager
def interruptible():
    """Where an interrupt arrives that was sent before or meanwhile: what is around a script's main is not its own."""
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])


def start(case, world, folder):
    """Fork the child. Returns its id."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    status = 70
    try:
        status = play(case, world, folder)
    except BaseException:
        (folder / "harness").write_text(traceback.format_exc())
    finally:
        os._exit(status)


def ended(pid, seconds):
    """The status of a child, or None if it has not ended after `seconds`."""
    descriptor = os.pidfd_open(pid)
    try:
        if not select.select([descriptor], [], [], seconds)[0]:
            return None
    finally:
        os.close(descriptor)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def watch(case, pid):
    """Wait for a child. Returns its status, None if it had to be killed."""
    status = ended(pid, LIMIT if case.patience is None else case.patience)
    if status is None and case.patience is not None:
        os.kill(pid, signal.SIGINT)
        status = ended(pid, GIVEN_UP)
    if status is None:
        os.kill(pid, signal.SIGKILL)
        ended(pid, None)
    return status


def run_case(case, source, folder):
    """Run a case in a copy of the world `source` in `folder`. Returns what went wrong, (kind, what), and the seconds it took."""
    began, world = time.monotonic(), folder / "w"
    (folder / "tmp").mkdir(parents=True)
    world.mkdir()
    if case.room is not None:
        assert mounted(world, size_of(source) + case.room), "this process may not mount a disk"
    try:
        shutil.copytree(source, world, symlinks=True, dirs_exist_ok=True)
        case.spoil(world)
        before = snapshot(world)
        status = watch(case, start(case, world, folder))
        restore_modes(world)
        wrong = judge(case, status, before, snapshot(world), world, folder)
    finally:
        if case.room is not None:
            subprocess.run(["umount", str(world)], check=True)
        restore_modes(folder)
        shutil.rmtree(os.fsencode(folder))
    return wrong, time.monotonic() - began


def judge(case, status, before, after, world, folder):
    """What went wrong: [(kind, what)]."""
    if (folder / "harness").exists():
        return [("traceback", "of the harness itself: " + (folder / "harness").read_text())]
    text = (folder / "stderr").read_bytes() if (folder / "stderr").exists() else b""
    lines = [line for line in codecs.decode(text, case.encoding, "replace").splitlines() if line.strip()]
    last = lines[-1].strip() if lines else ""
    if status is None:
        return [("hang", f"not ended after {case.patience or LIMIT} s: {last}")]
    wrong, right = [], (*case.expect, *((0, 130) if case.patience is not None else ()))
    if any("Traceback (most recent" in line for line in lines):
        places = [line.strip() for line in lines if line.strip().startswith('File "') and "site-packages" not in line]
        wrong.append(("traceback", " | ".join([last, *places[-2:]])))
    elif status not in right:
        wrong.append(("status", f"{status}, expected {' or '.join(map(str, right))}: {last}"))
    elif status in (2, 130) and case.stderr == "file":
        if len(lines) != 1 or not any(word in last for word in ("error: ", "interrupted")):
            wrong.append(("message", f"{len(lines)} lines: {' | '.join(lines[:3])}"))
    return wrong + harm(case, status, before, after, world) + left(case, status, before, after, folder)


def harm(case, status, before, after, world):
    """Damage: what a run changed that it had no right to."""
    changed = [path for path in before if after.get(path) != before[path]]
    free = status == 0 or status == 130 or case.torn
    bad = [path for path in changed if not (free and case.owns(path)) and not stat.S_ISDIR(before[path][0])]
    ours = [path for path in after if case.owns(path) and stat.S_ISREG(after[path][0]) and after[path] != before.get(path)]
    bad += [f"{path} (half written)" for path in ours if ".rltc_partial" not in path and not whole(world / path)]
    return [("damage", ", ".join(sorted(bad)))] if bad else []


def path_is_open(path):
    """Whether a run that has begun, and fails then, may leave it: what it goes on from, and its log."""
    return ".rltc_partial" in path or "tb_logs/events" in path


def left(case, status, before, after, folder):
    """What was left behind."""
    new = [path for path in after if path not in before and not any(part in NOBODYS for part in Path(path).parts)]
    named = lambda path: any(fnmatch.fnmatch(part, pattern) for part in Path(path).parts for pattern in TEMPORARY)
    found = [path for path in new if named(path)]
    if status == 2 and not case.torn:
        found += [path for path in new if not stat.S_ISDIR(after[path][0]) and not path_is_open(path)]
    found += [f"$TMPDIR/{path.name}" for path in (folder / "tmp").iterdir()]
    return [("left", ", ".join(sorted(set(found))))] if found else []
