"""What the tests of evaluation, figures and compressing share: the files of the five stages for the toy corpus, made once."""

import functools
import json
import shutil
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest
import safetensors.torch
import torch

from data.artifacts import sha256_of
from data.testing.toy import run_pipeline, seal
from eval import compress, evaluate
from eval.inputs import draw_texts, open_models
from models.agent.files import WEIGHTS, load_policy
from models.reconstructor.reconstructor import Reconstructor
from rl import train

NOTE = (
    "The committee met in the spring, and it was of the opinion that all of the papers should be read again by the members, of "
    "whom there were not many.\r\n\r\nThe meeting of 14 May was the last one that was held in the old house by the river.\r\n"
)


@functools.cache
def run_stages(parent):
    folder = parent / "stages"
    folder.mkdir()
    return folder, run_pipeline(folder)


@pytest.fixture(scope="session")
def stages(tmp_path_factory):
    """A folder with everything that the five real command lines write for the toy corpus, and what they printed."""
    return run_stages(tmp_path_factory.getbasetemp())


@pytest.fixture
def record(stages):
    return json.loads((stages[0] / "results/evaluation_results.json").read_text())


def evaluate_words(folder, *words):
    """Words of a command line that evaluates the toy agent."""
    paths = ["--model_path", folder / "agent/best_model.zip", "--data_path", folder / "data/test_data.json"]
    return [str(word) for word in (*paths, "--device", "cpu", "--quiet", *words)]


@pytest.fixture(scope="session")
def agents(stages, tmp_path_factory):
    """Two runs of one training, as far as their configs tell: the toy agent and, in a directory, itself with a little noise."""
    folder = tmp_path_factory.mktemp("agents")
    with zipfile.ZipFile(stages[0] / "agent/best_model.zip") as file:
        file.extractall(folder / "first")
    change_flags(stranger(folder / "first", folder / "second", 0.05), seed=43)
    folder = folder / "second"
    return [stages[0] / "agent/best_model.zip", folder]


@pytest.fixture(scope="session")
def told(stages, tmp_path_factory):
    """A told agent that decides tokens, hardly trained, with the reconstructor of the toy agent."""
    folder = tmp_path_factory.mktemp("told")
    paths = f"--data_path {stages[0]}/data/processed_data.json --reconstructor_path {stages[0]}/tuned --output_dir {folder}"
    flags = "--gaps told --unit token --num_timesteps 256 --n_steps 64 --width 16 --learning_rate 3e-3 --eval_sequences 8"
    train.main(f"{paths} {flags} --device cpu --quiet".split())
    return folder / "final_model.zip"


@pytest.fixture(scope="session")
def opened(stages):
    """The Models of the toy agent, and a Corpus of 30 texts."""
    args = evaluate.parse_args(evaluate_words(stages[0], "--num_sequences", 30))
    models = open_models(args)
    return models, draw_texts(args, models, args.data_path[0])


def stranger(agent, folder, noise=0.3):
    """A copy, in `folder`, of an agent in a directory, with noise on its weights: as one of another training."""
    shutil.copytree(agent, folder)
    weights, generator = safetensors.torch.load_file(folder / WEIGHTS), torch.Generator().manual_seed(0)
    for name, tensor in weights.items():
        if tensor.is_floating_point():
            weights[name] = tensor + noise * torch.randn(tensor.shape, generator=generator)
    safetensors.torch.save_file(weights, folder / WEIGHTS)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"weights": {WEIGHTS: sha256_of(folder / WEIGHTS)}}))
    return folder


def change_flags(agent, **flags):
    """Write other flags into the config of an agent in a directory."""
    config = json.loads((agent / "config.json").read_text())
    (agent / "config.json").write_text(json.dumps(config | {"args": config["args"] | flags}))


def copy_with_another_tokenizer(source, target):
    """Copy a model and swap the ids of two of its words."""
    shutil.copytree(source, target)
    tokenizer = json.loads((target / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))
    if (target / "reconstructor.json").is_file():
        seal(target)


@pytest.fixture(scope="session")
def loaded():
    """The agent that ships, and its reconstructor."""
    return load_policy("models/agent/released"), Reconstructor.load("models/reconstructor/base", gaps="found")


@pytest.fixture
def run(loaded, monkeypatch, capfdbinary):
    """The command line, in this process, with the models loaded once: what it printed, stdout in bytes and stderr in lines."""
    monkeypatch.setattr("eval.compressor.load_policy", lambda *_: loaded[0])
    monkeypatch.setattr("eval.compressor.Reconstructor.load", lambda *_: loaded[1])

    def command(*words):
        compress.main([*map(str, words), "--quiet", "--device", "cpu"])
        out, err = capfdbinary.readouterr()
        return out, err.decode().splitlines()

    return command


@pytest.fixture
def note(tmp_path):
    """A file with NOTE."""
    path = tmp_path / "notes.txt"
    path.write_bytes(NOTE.encode())
    return path
