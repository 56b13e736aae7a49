"""Scratch folders: what the project keeps beside a user's files for its own use, and the one function that deletes them.

A scratch folder carries a mark, a small file of fixed content, in the manner of CACHEDIR.TAG (https://bford.info/cachedir/).
What does not carry it belongs to the user, whatever its name, and stays.
"""

import os
import shutil
from pathlib import Path

from data.artifacts import InputError

MARK = "RLTC_SCRATCH.TAG"
CONTENT = b"Signature: rltc-scratch-1\nMade by rl-token-compression, which deletes this folder with all that is in it.\n"


def check_mark(folder):
    """Raise InputError if `folder` is anything else than a real folder, no link, that carries the mark."""
    mark = folder / MARK
    if folder.is_symlink() or not mark.is_file() or mark.read_bytes() != CONTENT:
        raise InputError(f"{folder}: expected a scratch folder with {MARK} in it, found something else; move it away")


def make_scratch(folder):
    """Make a scratch folder, unless it is there. Returns its path; raises InputError if something else has its name."""
    folder = Path(folder)
    if not os.path.lexists(folder):
        aside = folder.with_name(f"{folder.name}.{os.getpid()}")
        aside.mkdir(exist_ok=True)
        (aside / MARK).write_bytes(CONTENT)
        try:
            os.rename(aside, folder)  # so that nobody finds it without its mark
        except OSError:  # another process was faster
            shutil.rmtree(aside)
    check_mark(folder)
    return folder


def remove_scratch(folder):
    """Delete a scratch folder, if there is one. Raises InputError, and deletes nothing, if `folder` does not carry the mark."""
    folder = Path(folder)
    if not os.path.lexists(folder):
        return
    check_mark(folder)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARK:  # last, so that what a killed run left of the folder can still be deleted
            path.unlink()
    (folder / MARK).unlink()
    folder.rmdir()
