"""Checkpoints of the agent's training, from which a run that was cut off goes on exactly.

`checkpoints/agent_N_steps.zip` is the agent after N texts, as Stable-Baselines3 saves it; `agent_N_steps.pt` beside it is
what else the run's future depends on: random states, the place in the stream of texts, the evaluations so far. Both are
written whole or not at all, the second one last.
"""

import re
from pathlib import Path

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat
from torch.utils.tensorboard import SummaryWriter

from data.artifacts import InputError, make_output_dir, written_aside
from rl.ppo import AGENTS, UNREADABLE, save_agent

FREE = ("resume", "quiet", "num_timesteps", "checkpoint_freq", "save_total_limit", "output_dir", "patience")  # flags that may change when a run goes on


def number_of(path):
    """How many texts a checkpoint has seen."""
    return int(re.search(r"\d+", path.name).group())


class Checkpoints(BaseCallback):
    """Saves agent and state every `frequency` texts, between update and rollout, and keeps the newest `limit`.

    `state()` returns what else must be saved, a dict that torch.save takes.
    """

    def __init__(self, directory, frequency, limit, state):
        super().__init__()
        self.directory, self.frequency, self.limit, self.state = directory, frequency, limit, state
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
        stem = make_output_dir(self.directory) / f"agent_{self.num_timesteps}_steps"
        save_agent(self.model, stem.with_suffix(".zip"))
        env = self.training_env
        content = self.state() | {"env": env.state(), "torch": torch.get_rng_state(), "numpy": np.random.get_state(), "cuda": torch.cuda.get_rng_state_all()}
        with written_aside(stem.with_suffix(".pt")) as temporary:
            torch.save(content, temporary)
        for old in sorted(self.directory.glob("agent_*_steps.pt"), key=number_of)[: -self.limit]:
            old.unlink()
            old.with_suffix(".zip").unlink(missing_ok=True)


def load_newest(directory, args, env, device):
    """The agent and the state of the newest whole checkpoint, damaged ones are named and skipped; the environment is put back to where it was.

    Raises FileNotFoundError if there is none, InputError if none can be read or it was made with other flags.
    """
    found = sorted(Path(directory).glob("agent_*_steps.pt"), key=number_of)
    if not found:
        raise FileNotFoundError(f"--resume: expected a checkpoint in {directory}, found none; leave --resume away to start anew")
    for path in reversed(found):
        try:
            state = torch.load(path, weights_only=False)
            for name, now in vars(args).items():
                before = state["args"].get(name, "nothing of the kind")
                if name not in FREE and before != str(now):
                    raise InputError(f"--resume: {path} was made with --{name} {before}, found --{name} {now}; give the same, or leave --resume away to start anew")
            agent = AGENTS[args.credit].load(path.with_suffix(".zip"), env=env, device=device, force_reset=False)
            break
        except InputError:
            raise
        except UNREADABLE as error:
            print(f"skipped {path.stem}, which is damaged ({type(error).__name__})")
    else:
        raise InputError(f"--resume: expected a whole checkpoint in {directory}, found only damaged ones; leave --resume away to start anew")
    agent.update_seconds = 0.0
    env.restore(state["env"])
    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    return agent, state


class ContinuedLog(TensorBoardOutputFormat):
    """A TensorBoard log that goes on after `texts`: what an interrupted run logged beyond that is hidden from readers."""

    def __init__(self, folder, texts):
        self.writer, self._is_closed = SummaryWriter(log_dir=str(folder), purge_step=texts + 1), False
