"""A few hostile cases of every family but those of moments, which `.ci/hostile.py` has by the thousand: pytest, or
`python eval/test_hostile.py`. Its family `control` goes wrong on purpose, and fails the script where that is not found out."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / ".ci/hostile.py"
FAMILIES = "control files records sequences weights names flags outputs disk screens resume".split()


def test_hostile_cases_end_in_a_line_and_do_no_harm(tmp_path):
    words = ["--family", *FAMILIES, "--most", "3", "--jobs", "1", "--verbose"]
    done = subprocess.run([sys.executable, SCRIPT, *words], cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.split()}
    assert all(rows[family][0] == ("21" if family == "flags" else "3") for family in FAMILIES)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
