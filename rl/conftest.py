"""What the tests of this folder share: toy data and a toy reconstructor, made once."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest

from data.sequences import load_sequences
from data.testing.toy import write_toy
from models.reconstructor import train_cpu
from models.reconstructor.reconstructor import Reconstructor


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A folder with toy data in `data` and a toy reconstructor that knows the echo in `tuned`."""
    folder = write_toy(tmp_path_factory.mktemp("toy"))
    command = f"--data_path {folder / 'data/processed_data.json'} --base_model {folder / 'base'} --output_dir {folder / 'tuned'}"
    flags = "--quiet --learning_rate 3e-3 --max_steps 400 --batch_size 32 --mask_ratio 0.5 --mask_spread 0.4 --eval_steps 400"
    train_cpu.main([*command.split(), *flags.split()])
    return folder


@pytest.fixture(scope="session")
def reconstructor(toy):
    return Reconstructor.load(toy / "tuned")


@pytest.fixture(scope="session")
def texts(toy, reconstructor):
    return load_sequences(toy / "data/processed_data.json", reconstructor.fingerprint)
