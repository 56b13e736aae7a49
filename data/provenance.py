"""What can change a result beside its settings: this code and the packages that it runs with."""

import functools
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "transformers", "datasets", "gymnasium", "stable-baselines3", "numpy")


def versions():
    """Versions of Python and of the packages that can change a result, as {name: version}."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # pre-training runs where only some of them are
            found[name] = "not installed"
    return found


@functools.cache
def commit():
    """The commit of this code, with "+" if files differ from it; "unknown" where it is no git checkout."""
    git = functools.partial(subprocess.run, cwd=REPOSITORY, capture_output=True, text=True)
    try:
        found, changed = git(["git", "rev-parse", "HEAD"]), git(["git", "status", "--porcelain", "--untracked-files=no"])
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() + "+" * bool(changed.stdout.strip()) if found.returncode == 0 else "unknown"
