"""What the tests of this folder share: toy data and a toy reconstructor, made once, and a short training on them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest
import torch

from data.sequences import load_sequences
from data.testing.toy import write_toy
from models.agent.files import load_policy
from models.reconstructor import train_cpu
from models.reconstructor.reconstructor import Reconstructor
from rl import train


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


@pytest.fixture(scope="session")
def earlier(toy, tmp_path_factory):
    """An agent to begin with."""
    folder = tmp_path_factory.mktemp("earlier")
    train_agent(toy, folder, "--num_timesteps", 64)
    return folder / "best_model.zip"


def agent_words(toy, output):
    """The flags of a short training on a CPU."""
    paths = f"--data_path {toy / 'data/processed_data.json'} --reconstructor_path {toy / 'tuned'} --output_dir {output}"
    flags = "--gaps told --unit token --quiet --device cpu --width 16 --n_steps 32 --batch_size 16 --eval_sequences 8"
    return f"{paths} {flags}".split()


def train_agent(toy, output, *words):
    train.main([*agent_words(toy, output), *(str(w) for w in words)])


def weights(path):
    """The tensors of an agent's file."""
    return load_policy(path).own_state()


def alike(ours, theirs):
    """Whether two {name: tensor} are the same to the last bit."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
