"""What the tests of this folder share: toy data and a toy base model, made once."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pytest

from data.testing.toy import write_toy


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A folder with the toy base model in `base` and the toy data in `data`."""
    return write_toy(tmp_path_factory.mktemp("toy"))
