"""Tests of what a user may give, of every script, by its own command line: pytest or `python data/test_limits.py`."""

import argparse
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest

from data.artifacts import InputError, Parser
from data.limits import check_memory
from data.provenance import REPOSITORY
from data.testing.preparation import prepared
from data.testing.toy import write_base, write_corpus

FOLDERS = ("data", "models/reconstructor", "models/reconstructor/pretraining", "rl", "eval", "eval/results", "plots")
SCRIPTS = sorted(
    str(path.relative_to(REPOSITORY)) for folder in FOLDERS for path in (REPOSITORY / folder).glob("*.py")
    if "\nif __name__ ==" in path.read_text(encoding="utf-8") and "Parser(" in path.read_text(encoding="utf-8")
    and not path.name.startswith("test_")
)
SCRIPTS += ["models/reconstructor/train_cpu.py", "models/reconstructor/train_gpu.py"]
SIZES = {  # flags that take memory, and the most that may be asked for before it is compared with the machine's
    "batch_size": 4096, "reader_batch": 4096, "width": 1024, "num_masks": 1000, "num_answers": 1000, "dpi": 1200,
}
LEAST = {"learning_rate": 1e-12, "min_price": 1e-3, "max_price": 1e-3, "eval_prices": 1e-3, "prices": 1e-3, "price": 1e-3,
         "keep_ratios": 1e-3, "budgets": 1e-3, "mask_ratio": 1e-3}


class Found(Exception):
    pass


def numbers_of(script, monkeypatch):
    """The argparse actions of a script that take a number."""
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))

    def found(parser, *_):
        raise Found(parser)

    with monkeypatch.context() as patch:
        patch.setattr(Parser, "parse_args", found)
        with pytest.raises(Found) as caught:
            module.main([])
    return [action for action in caught.value.args[0]._actions if action.type in (int, float) or hasattr(action.type, "low")]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_number_has_limits_and_says_them(script, monkeypatch):
    """Within them nothing is lost in 32 bit or needs memory that no machine has; beyond, the limits are named in one line."""
    for action in numbers_of(script, monkeypatch):
        name, kind = action.dest, action.type
        assert hasattr(kind, "low"), f"{script} --{name}: a number without limits"
        assert kind.low == 0 or abs(np.float32(kind.low)) > 1e-30 and np.isfinite(np.float32(kind.high))
        assert kind.low >= LEAST.get(name, -np.inf) and kind.high <= SIZES.get(name, 10**12)
        for value in (kind.low, kind.high):
            assert kind(str(value)) == value, f"{script} --{name} {value}"
        for value in (kind.low - 1, kind.high + 1, 2**64, "nan", "1e-300", "-1e300", "x"):
            if value == "1e-300" and kind.kind is float and kind.low == 0:
                continue
            with pytest.raises(argparse.ArgumentTypeError, match="expected"):
                kind(str(value))


def test_preparation_at_its_limits_works_or_says_what_to_change(tmp_path, monkeypatch, capsys):
    words = ["--input", write_corpus(tmp_path / "toy.jsonl", texts=120), "--tokenizer", write_base(tmp_path / "base")]
    words += ["--min_length", 2]
    for action in numbers_of("data/prepare.py", monkeypatch):
        if action.dest == "retries":  # of a connection
            continue
        for value in (action.type.low, action.type.high):
            capsys.readouterr()
            try:
                prepared(tmp_path, *words, f"--{action.dest}", value)
            except (InputError, SystemExit) as error:
                said = str(error) if isinstance(error, InputError) else capsys.readouterr().err
                assert "expected" in said and len(said.strip().splitlines()) == 1


def test_what_no_memory_holds_is_refused_before_it_is_tried():
    check_memory(1000, "--n_steps 2", "give fewer")
    with pytest.raises(InputError, match=r"^--n_steps 2: expected at most the .* GiB of memory .*, found .* GiB; give fewer$"):
        check_memory(10**18, "--n_steps 2", "give fewer")


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
