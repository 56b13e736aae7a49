"""Checkpoints of the agent's training, from which a run that was cut off goes on exactly.

`checkpoints/agent_N_steps.pt` has all that the run's future depends on after N texts: the agent's own tensors, the optimiser,
random states, the place in the stream of texts, the evaluations so far. It is written whole or not at all, and read without
running anything.
"""

import pickle
import re

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat
from torch.utils.tensorboard import SummaryWriter

from data.artifacts import InputError, check_resumed, make_output_dir, written_aside
from models.agent.files import check_reconstructor, load_weights

LIMIT = 3  # newest checkpoints to keep
FREE = ("resume", "quiet", "num_timesteps", "checkpoint_freq", "output_dir", "device")  # flags that may change when a run goes on
PARTS = ("args", "reconstructor", "seconds", "history", "evaluation_seconds", "texts", "updates", "policy", "optimizer", "env",
         "torch", "numpy", "cuda")  # of a checkpoint
# What torch.load can raise.
UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError)


def number_of(path):
    """How many texts a checkpoint has seen."""
    return int(re.search(r"\d+", path.name).group())


def converted(value, kind, convert):
    """A nest of dicts with every value of a `kind` converted: from a file that it does not trust, torch.load takes no arrays."""
    if isinstance(value, dict):
        return {name: converted(part, kind, convert) for name, part in value.items()}
    return convert(value) if isinstance(value, kind) else value


class Checkpoints(BaseCallback):
    """Saves agent and state every `frequency` texts, between update and rollout, and keeps the newest LIMIT.

    `state()` returns what else must be saved: a dict of numbers, text, lists and dicts.
    """

    def __init__(self, directory, frequency, state):
        super().__init__()
        self.directory, self.frequency, self.state = directory, frequency, state
        self.last = 0

    def _on_training_start(self):
        self.last = self.num_timesteps

    def _on_rollout_start(self):
        if self.num_timesteps - self.last >= self.frequency:
            self.save()

    def _on_step(self):
        return True

    def save(self):
        self.last = self.num_timesteps
        name, keys, *rest = np.random.get_state()
        content = self.state() | {
            "texts": self.num_timesteps, "updates": self.model._n_updates, "policy": self.model.policy.own_state(),
            "optimizer": self.model.policy.optimizer.state_dict(),
            "env": converted(self.training_env.state(), np.ndarray, torch.as_tensor),
            "torch": torch.get_rng_state(), "numpy": [name, torch.as_tensor(keys), *rest], "cuda": torch.cuda.get_rng_state_all(),
        }
        with written_aside(make_output_dir(self.directory) / f"agent_{self.num_timesteps}_steps.pt") as temporary:
            torch.save(content, temporary)
        for old in sorted(self.directory.glob("agent_*_steps.pt"), key=number_of)[:-LIMIT]:
            old.unlink()


def read_newest(directory):
    """The content of the newest whole checkpoint; damaged ones are named and skipped. Raises FileNotFoundError or InputError."""
    found = sorted(directory.glob("agent_*_steps.pt"), key=number_of)
    if not found:
        raise FileNotFoundError(f"--resume: expected a checkpoint in {directory}, found none; leave --resume away to start anew")
    for path in reversed(found):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            return path, {name: content[name] for name in PARTS}
        except UNREADABLE as error:
            print(f"skipped {path.stem}, which is damaged ({type(error).__name__})")
    raise InputError(
        f"--resume: expected a whole checkpoint in {directory}, found only damaged ones; leave --resume away to start anew"
    )


def go_on(agent, directory, args):
    """Put a new agent and its environment where the newest whole checkpoint was. Returns what its `state()` had given.

    Raises FileNotFoundError if there is none, InputError if none can be read or it was made with other flags or another
    reconstructor.
    """
    path, state = read_newest(directory)
    check_resumed(path, vars(args), state["args"], FREE)
    check_reconstructor(state, path, agent.env.judge.reconstructor)
    load_weights(agent.policy, state["policy"], path)
    agent.policy.optimizer.load_state_dict(state["optimizer"])
    agent.num_timesteps, agent._n_updates = state["texts"], state["updates"]
    agent.env.restore(converted(state["env"], torch.Tensor, torch.Tensor.numpy))
    agent._last_obs = agent.env.observation
    torch.set_rng_state(state["torch"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy(), *rest))
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
    return state


class ContinuedLog(TensorBoardOutputFormat):
    """A TensorBoard log that goes on after `texts`: what an interrupted run logged beyond that is hidden from readers."""

    def __init__(self, folder, texts):
        self.writer, self._is_closed = SummaryWriter(log_dir=str(folder), purge_step=texts + 1), False
