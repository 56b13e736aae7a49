"""Scratch folders: what the project keeps beside a user's files for its own use, and the one function that deletes them.

A scratch folder carries a mark, a small file of fixed content, in the manner of CACHEDIR.TAG (https://bford.info/cachedir/).
What does not carry it belongs to the user, whatever its name, and stays.
"""

import shutil
from pathlib import Path

from data.artifacts import InputError

MARK = "RLTC_SCRATCH.TAG"
CONTENT = "Signature: rltc-scratch-1\nMade by rl-token-compression, which deletes this folder with all that is in it.\n"


def is_scratch(folder):
    """Whether `folder` is a real folder, no link, that carries the mark."""
    mark = Path(folder) / MARK
    return not Path(folder).is_symlink() and mark.is_file() and mark.read_bytes() == CONTENT.encode()


def make_scratch(folder):
    """Make a scratch folder, unless it is there. Returns its path; raises InputError if something else has its name."""
    folder = Path(folder)
    if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and (is_scratch(folder) or not any(folder.iterdir())))):
        raise InputError(f"{folder}: expected a scratch folder with {MARK} in it, found something else of that name; move it away")
    folder.mkdir(exist_ok=True)
    (folder / MARK).write_bytes(CONTENT.encode())
    return folder


def remove_scratch(folder):
    """Delete a scratch folder, if there is one. Raises InputError, and deletes nothing, if `folder` does not carry the mark."""
    folder = Path(folder)
    if not folder.exists() and not folder.is_symlink():
        return
    if not is_scratch(folder):
        raise InputError(f"{folder}: expected a scratch folder with {MARK} in it, found something else of that name; move it away")
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARK:  # last, so that what a killed run left of the folder can still be deleted
            path.unlink()
    (folder / MARK).unlink()
    folder.rmdir()
