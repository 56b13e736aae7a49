"""What runs that were killed left behind: it is known by the number of their process, which stands in its name."""

import os
import re
from pathlib import Path


def is_running(pid):
    """Whether there is a process of this number; where the system can't say so without disturbing it, it is taken for granted."""
    try:
        return os.name != "posix" or os.kill(pid, 0) is None
    except OSError as error:
        return not isinstance(error, ProcessLookupError)


def left_behind(folder, before, after=""):
    """What lies in `folder` under a name that a process, no more there, put its number into: `before`, number, `after`."""
    named = re.compile(rf"{re.escape(before)}([1-9][0-9]{{0,8}}){re.escape(after)}")
    numbers = {name: int(match[1]) for name in os.listdir(folder) if (match := named.fullmatch(name))}
    found = [Path(folder, name) for name, pid in numbers.items() if not is_running(pid)]
    return [path for path in found if not path.is_symlink()]


def remove_left_files(folder, before, after=""):
    """Delete files that `left_behind` finds: temporary ones of runs that were killed."""
    for path in left_behind(folder, before, after):
        if path.is_file():
            path.unlink(missing_ok=True)
