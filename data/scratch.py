"""What the project keeps beside a user's files for its own use: scratch folders, the one function that deletes them, and locks.

A scratch folder carries a mark, a small file of fixed content, in the manner of CACHEDIR.TAG (https://bford.info/cachedir/).
What does not carry it belongs to the user, whatever its name, and stays.
"""

import os
import shutil
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from data.artifacts import InputError
from data.leftovers import left_behind, remove_left_files
from data.room import on_full_disk

MARK = "RLTC_SCRATCH.TAG"
ASIDE = ".rltc_aside."  # and the number of a process
PROBE = ".write_test."  # and that number, too
LOCK = ".rltc_lock"  # in an output directory while a run writes there
CONTENT = b"Signature: rltc-scratch-1\nMade by rl-token-compression, which deletes this folder with all that is in it.\n"


def check_mark(folder):
    """Raise InputError if `folder` is anything else than a real folder, no link, that carries the mark."""
    mark = folder / MARK
    if folder.is_symlink() or not mark.is_file() or mark.read_bytes() != CONTENT:
        raise InputError(f"{folder}: expected a scratch folder with {MARK} in it, found something else; move it away")


def make_scratch(folder):
    """Make a scratch folder, unless it is there. Returns its path; raises InputError if something else has its name."""
    folder = Path(folder)
    remove_left_folders(folder)
    if not os.path.lexists(folder):
        aside = beside(folder)
        aside.mkdir(exist_ok=True)
        try:
            (aside / MARK).write_bytes(CONTENT)
            os.rename(aside, folder)  # so that nobody finds it without its mark
        except BaseException as error:
            delete(aside)
            if not (isinstance(error, OSError) and os.path.lexists(folder)):  # another process was faster
                raise
    check_mark(folder)
    return folder


def remove_scratch(folder):
    """Delete a scratch folder, if there is one. Raises InputError, and deletes nothing, if `folder` does not carry the mark."""
    folder = Path(folder)
    remove_left_folders(folder)
    if not os.path.lexists(folder):
        return
    check_mark(folder)
    os.rename(folder, beside(folder))  # so that nobody finds it without its mark
    delete(beside(folder))


def beside(folder):
    """What `folder` is called while this process makes or deletes it, and any other there: the next run finds what was left."""
    return folder.with_name(f"{ASIDE}{os.getpid()}")


def delete(folder):
    """Delete a folder of ours, the mark last, so that what a killed run leaves of it is still known as ours."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARK:
            path.unlink()
    (folder / MARK).unlink(missing_ok=True)
    folder.rmdir()


def remove_left_folders(folder):
    """Delete what runs that were killed left of scratch folders beside this one, while they made or deleted them."""
    if folder.parent.is_dir():
        for path in left_behind(folder.parent, ASIDE):
            if path.is_dir() and ((path / MARK).is_file() or not any(path.iterdir())):
                delete(path)


def make_output_dir(path):
    """Create an output directory and prove that it can be written. Raises InputError."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        remove_left_files(path, PROBE)
        probe = path / f"{PROBE}{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"{path}: expected a directory that can be written, found: {error.strerror}; choose another --output_dir"
        ) from None
    return path


@contextmanager
def claimed(*paths):
    """Output directories, made and proved to be writable, that no other run writes to until the block ends. Yields the first.

    The operating system lets go of the lock of a process that died. Of several processes of one run the first holds it. Raises
    InputError.
    """
    with ExitStack() as stack:
        for path in map(make_output_dir, paths):
            if os.environ.get("RANK", "0") == "0":
                taken = f"{path}: another run writes there; wait for it, or choose another --output_dir"
                stack.enter_context(held(path / LOCK, taken))
                stack.enter_context(on_full_disk(path))
        yield Path(paths[0])


@contextmanager
def held(path, taken):
    """A lock. Raises InputError with the words `taken` if another process holds it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(taken) from None
    try:
        yield
    finally:
        lock.release()


def keep_apart(output, **inputs):
    """Raises InputError if an output directory is one that a run reads from: {flag: path, or None}."""
    for flag, path in inputs.items():
        if path is not None and Path(path).is_dir() and Path(output).exists() and os.path.samefile(path, output):
            raise InputError(
                f"--output_dir {output}: expected another directory than --{flag}, which would be overwritten; choose another one"
            )
