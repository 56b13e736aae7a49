"""One way to resume, for reconstructor and agent: checkpoints that are there whole or not at all, and known to be undamaged.

A checkpoint is a directory `checkpoint-STEP` with `state.pt`, which holds all that a run's future depends on, whatever else the
training puts beside it, and `checksums.json`. Nothing that is in it is run when it is read. It carries the mark of
data/scratch.py: what does not is never deleted.
"""

import json
import os
import pickle
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from data.artifacts import InputError, reason_of, sha256_of, write_text
from data.room import on_full_disk
from data.scratch import MARK, make_scratch, remove_left_folders, remove_scratch
from data.sequences import SPLITS
from data.shapes import ANY_KEY, NUMBER, OBJECT, TEXT, Kind, count, flaw, optional

STATE = "state.pt"
UNFINISHED = ".unfinished"  # where a checkpoint is written before it gets its name
MANIFEST = "checksums.json"  # SHA-256 of every file of a checkpoint, written last: without it a checkpoint is not whole
RUN = ".rltc_run"  # in a directory of checkpoints, of the run that was begun there last, and in each: what it was begun with
REMEDY = "leave --resume away to start anew"
TENSOR = Kind("a tensor", torch.is_tensor)
TENSORS, FLAGS = {ANY_KEY: TENSOR}, {ANY_KEY: TEXT}
RANDOM = {"torch": TENSOR, "device": optional(TENSOR), "numpy": (TEXT, [count()], count(), count(), NUMBER)}
METRICS = optional({ANY_KEY: NUMBER})
FINE_TUNING = {
    "data": FLAGS, "step_size": count(1), "args": FLAGS, "step": count(), "log": [{ANY_KEY: NUMBER}], "before": METRICS,
    "metrics": METRICS, "optimizer": OBJECT, "scaler": optional(OBJECT), "random": [RANDOM, ...],
}
# What restoring another content than a training's state can raise.
UNUSABLE = (pickle.UnpicklingError, RuntimeError, EOFError, OSError, LookupError, TypeError, ValueError, AttributeError)


def write_checkpoint(directory, step, state, limit, fill=lambda folder: None):
    """Write `state`, and what `fill(folder)` adds, to `directory`/checkpoint-`step`; keep the newest `limit` checkpoints."""
    aside, final = Path(directory) / UNFINISHED, Path(directory) / f"checkpoint-{step}"
    Path(directory).mkdir(parents=True, exist_ok=True)
    remove_scratch(aside)  # of a run that was killed
    make_scratch(aside)
    try:
        with on_full_disk(final):
            torch.save(state, aside / STATE)
            fill(aside)
            if run := run_of(directory):
                (aside / RUN).write_bytes(run)
            (aside / MANIFEST).write_text(json.dumps(checksums(aside), indent=1) + "\n", encoding="utf-8")
        others = [path for path in by_age(directory) if path != final]
        remove_checkpoints(others[: -max(1, limit - 1)])  # before, so that a run that is killed now ends with as many
        remove_scratch(final)
        os.replace(aside, final)
    finally:
        remove_scratch(aside)  # where it did not get its name
    remove_checkpoints(by_age(directory)[:-limit])


@contextmanager
def resumable(directory, args):
    """A run that has checkpoints in `directory`, of the namespace `args`: what lies there of an earlier one is not its own.

    An interrupt inside says what there is to go on with.
    """
    if not args.resume:
        Path(directory).mkdir(parents=True, exist_ok=True)
        settings = {name: str(value) for name, value in vars(args).items() if name not in ("output_dir", "resume", "quiet")}
        write_text(Path(directory) / RUN, json.dumps(settings, sort_keys=True) + "\n")
    try:
        yield
    except KeyboardInterrupt:
        found = own(directory)
        whole = f"{found[-1]} is whole: go on with the same command and --resume" if found else ""
        raise KeyboardInterrupt(whole or "no checkpoint was saved yet: begin anew") from None


def run_of(folder):
    """What the run was begun with that a checkpoint is of, or that was begun last in a directory; None if that is not known."""
    try:
        return (Path(folder) / RUN).read_bytes()
    except OSError:
        return None


def own(directory):
    """The checkpoints of the run that was begun last in `directory`, the one that was finished last at the end."""
    run = run_of(directory)
    return [path for path in by_age(directory) if run in (None, run_of(path))]


def remove_checkpoints(paths):
    """Delete checkpoints; what has the name of one, but not the mark, stays."""
    for path in paths:
        if (path / MARK).is_file():
            remove_scratch(path)


def by_age(directory):
    """The checkpoints of a directory, the one that was finished last at the end."""
    found = (path for path in Path(directory).glob("checkpoint-*") if path.is_dir())
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def is_record_of(path, **content):
    """Whether the JSON record `path`, the last thing that a run writes, has this content, and is not an earlier run's."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        return all(found[name] == value for name, value in content.items())
    except (OSError, ValueError, LookupError, TypeError):
        return False


def checksums(directory):
    """{name: SHA-256} of the files of a directory but the manifest."""
    return {path.name: sha256_of(path) for path in sorted(directory.iterdir()) if path.name != MANIFEST}


def damage(directory):
    """What is wrong with a checkpoint, in a few words; None if every file is as it was written."""
    try:
        expected = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        expected = None
    if flaw(expected, {ANY_KEY: TEXT}):
        return f"{MANIFEST} is missing or unreadable: it was never finished"
    found = checksums(directory)
    differing = [name for name in expected if found.get(name) != expected[name]]
    return f"{', '.join(differing)} not as written" if differing else None


def read_newest(directory, shape):
    """The undamaged checkpoint of `directory` that was finished last: its path, and its state, a dict of this shape.

    Damaged ones are named and skipped. Raises FileNotFoundError if there is none, InputError if all are damaged or the state is
    not that of such a training.
    """
    remove_left_folders(Path(directory) / UNFINISHED)
    damaged = []
    for path in reversed(by_age(directory)):
        if not (reason := damage(path)):
            if damaged:
                print(f"skipped {'; '.join(damaged)}; going on from {path.name}")
            if path not in own(directory):
                found = f"found {path.name} of an earlier one"
                remedy = f"{REMEDY}; to go on with that one, delete {Path(directory) / RUN}"
                raise InputError(f"--resume: expected a checkpoint of the run that was begun last, {found}; {remedy}")
            return path, read_state(path / STATE, shape)
        if MARK in reason:  # a run that goes on from an earlier one could not replace it
            raise InputError(f"--resume: {path}: expected a checkpoint with its mark, found {reason}; move it away")
        damaged.append(f"{path.name} ({reason})")
    if damaged:
        found = f"found only damaged ones: {'; '.join(damaged)}"
        raise InputError(f"--resume: expected a whole checkpoint in {directory}, {found}; {REMEDY}")
    raise FileNotFoundError(f"--resume: expected a checkpoint-* directory in {directory}, found none; {REMEDY}")


def read_state(path, shape):
    """The dict of this shape that torch.save wrote to `path`. Runs nothing that is in the file. Raises InputError."""
    with restoring(path):
        state = torch.load(path, map_location="cpu", weights_only=True)
        if wrong := flaw(state, shape):
            raise ValueError(wrong)
        return {name: state[name] for name in shape}


@contextmanager
def restoring(path):
    """A block that restores what is in `path`. Raises InputError where that is not the state of such a training."""
    try:
        yield
    except InputError:
        raise
    except UNUSABLE as error:
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise InputError(f"--resume: expected a training's state in {path}, found another content ({reason}); {REMEDY}") from None


def read_from(data_path, *files):
    """{name: SHA-256} of what a run's future depends on: its texts, those for validation, and `files`, if they are there."""
    return digests(data_path, data_path.with_name(SPLITS["val"]), *files)


def digests(*files):
    """{name: SHA-256} of those of the files that are there; None is none."""
    return {str(path): sha256_of(path) for path in files if path is not None and Path(path).is_file()}


def check_read_from(path, began, ours):
    """A run goes on with what it `began` with, both of `read_from`; `path` is what it left. Raises InputError."""
    theirs = {Path(name).name: digest for name, digest in began.items()}
    for name, digest in ours.items():
        if theirs.get(Path(name).name) != digest:
            raise InputError(f"--resume: {path} was made from another {name} than there is now; bring that one back, or {REMEDY}")


def random_states(device):
    """The states of the generators that a training on `device`, a torch device's name, draws from."""
    name, keys, *place = np.random.get_state()
    on_device = None if device == "cpu" else torch.get_device_module(device).get_rng_state()
    return {"torch": torch.get_rng_state(), "device": on_device, "numpy": [name, keys.tolist(), *place]}


def restore_random_states(states, device):
    """Put the generators back to where `random_states` was called; on another kind of device its own one stays as it is."""
    torch.set_rng_state(states["torch"])
    np.random.set_state(states["numpy"])
    if states["device"] is not None and device != "cpu":
        torch.get_device_module(device).set_rng_state(states["device"])
