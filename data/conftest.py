"""What the tests of this folder share."""

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest

from data import prepare
from data.testing.preparation import prepared, write_texts
from models.reconstructor.tokenizer import BASE_MODEL, load_tokenizer

load_once = functools.cache(load_tokenizer)


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer(BASE_MODEL)


@pytest.fixture(autouse=True)
def same_tokenizer(monkeypatch):
    """Loading the tokenizer takes longer than what most of these tests do with it."""
    monkeypatch.setattr(prepare, "load_tokenizer", load_once)


@pytest.fixture
def small(tmp_path):
    """A small data set, made of `tmp_path/texts`."""
    return prepared(tmp_path, "--input", write_texts(tmp_path / "texts"), "--max_length", 50)
