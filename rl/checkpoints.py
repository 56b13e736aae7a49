"""Checkpoints of the agent's training, from which a run that was cut off goes on exactly.

`checkpoints/checkpoint-N` is the run after N texts: the agent's own tensors, the optimiser, random states, the place in the
stream of texts, the evaluations so far. How it is written and read: `models/reconstructor/checkpoints.py`.
"""

from stable_baselines3.common.logger import TensorBoardOutputFormat
from torch.utils.tensorboard import SummaryWriter

from data.artifacts import InputError, check_resumed
from data.scratch import MARK, make_scratch
from data.shapes import NUMBER, OBJECT, count, optional
from models.agent.files import NAMED, check_reconstructor, differing, load_weights
from models.reconstructor.checkpoints import (
    FLAGS,
    RANDOM,
    TENSORS,
    by_age,
    check_read_from,
    random_states,
    read_newest,
    remove_checkpoints,
    restore_random_states,
    restoring,
    write_checkpoint,
)

LIMIT = 3  # newest checkpoints to keep
# Flags that may change when a run goes on; of texts their SHA-256 counts.
FREE = ("resume", "quiet", "num_timesteps", "output_dir", "data_path", "device", "learning_rate")
PARTS = {  # of a checkpoint
    "data": FLAGS, "args": FLAGS, "reconstructor": NAMED, "reader": optional(NAMED), "seconds": NUMBER,
    "history": [{"texts": count(), "J": NUMBER}], "evaluation_seconds": NUMBER, "texts": count(), "updates": count(),
    "policy": TENSORS, "optimizer": OBJECT, "random": RANDOM,
    "env": {"stream": {"rng": OBJECT, "position": count(), "order": [count()]}, "observation": TENSORS},
}


def save_checkpoint(agent, directory, **content):
    """Write a checkpoint of agent and environment with `content`: numbers, text, lists and dicts. Keeps the newest LIMIT."""
    policy, environment = agent.policy, agent.env.state()
    content |= {"texts": agent.num_timesteps, "updates": agent._n_updates, "policy": policy.own_state(), "env": environment}
    content |= {"optimizer": policy.optimizer.state_dict(), "random": random_states(agent.device.type)}
    write_checkpoint(directory, agent.num_timesteps, content, LIMIT)


def go_on(agent, directory, args, data):
    """Put a new agent and its environment where the newest whole checkpoint was. Returns what was saved with it.

    `data`: what is read now, of `read_from`.

    Raises FileNotFoundError if there is none, InputError if none can be read or it was made with other flags or another
    reconstructor.
    """
    path, state = read_newest(directory, PARTS)
    check_resumed(path, vars(args), state["args"], FREE)
    check_read_from(path, state["data"], data)
    check_reconstructor(state["reconstructor"], path, agent.env.judge.reconstructor)
    if state["reader"]:
        check_reconstructor(state["reader"], path, agent.policy.reader.reconstructor)
    load_weights(agent.policy, state["policy"], path)
    agent.num_timesteps, agent._n_updates = state["texts"], state["updates"]
    with restoring(path):
        agent.policy.optimizer.load_state_dict(state["optimizer"])
        agent.env.restore(state["env"])
        agent._last_obs = agent.env.observation
        restore_random_states(state["random"], agent.device.type)
    return state


def check_trained_for(args, config, reader):
    """Say so if the agent of `--init_from` decided otherwise, or read with another reconstructor than `reader`: it may be meant.

    Raises InputError if it was trained for another kind of receiver.
    """
    if config["gaps"] != args.gaps:
        raise InputError(
            f"--init_from {args.init_from}: expected an agent trained with --gaps {args.gaps}, found one trained with --gaps "
            f"{config['gaps']}, whose network is another; say --gaps {config['gaps']}, or leave --init_from away"
        )
    named = config.get("reader") or config["reconstructor"]
    if config["unit"] != args.unit:
        print(f"--init_from {args.init_from}: was trained with --unit {config['unit']}, and goes on with --unit {args.unit}")
    if differing(named, reader):
        print(f"--init_from {args.init_from}: read with {named['path']} as it was then, and goes on with {reader.directory}")


class ContinuedLog(TensorBoardOutputFormat):
    """A TensorBoard log that goes on after `texts`: what an interrupted run logged beyond that is hidden from readers."""

    def __init__(self, folder, texts):
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            make_scratch(folder)
        self.writer, self._is_closed = SummaryWriter(log_dir=str(folder), purge_step=texts + 1), False


def what_a_run_left(logs, checkpoints):
    """The log files and checkpoints of an earlier run: two runs in one log would be drawn as one zigzag line.

    Of logs only those in a folder that a run made, which has the mark.
    """
    return [*(logs.glob("events.out.tfevents.*") if (logs / MARK).is_file() else ()), *by_age(checkpoints)]


def delete_run(paths):
    """Delete what `what_a_run_left` found, when the new run is known to work. Returns an empty list."""
    for path in paths:
        if path.is_file():
            path.unlink()
    if checkpoints := [path for path in paths if path.is_dir()]:
        print(f"{checkpoints[0].parent}: {len(checkpoints)} checkpoints of an earlier run are deleted")
    remove_checkpoints(checkpoints)
    return []
