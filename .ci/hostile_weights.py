"""Hostile cases of weights: cut off, renamed, of other shapes, not finite, or another program's."""

import math
import os
import zipfile
from pathlib import Path

import torch
from hostile_reads import KINDS, replace_by, rewrite_zip
from hostile_run import Case
from hostile_world import COMPRESS, EVALUATE, PROPOSER, READER, TRAIN, TUNE, WORTH, line
from safetensors.torch import load_file, save_file


def tensors_of(path):
    """Tensors of a file of weights, or of an agent's."""
    if path.suffix != ".zip":
        return load_file(path)
    with zipfile.ZipFile(path) as file:
        Path(f"{path}.tensors").write_bytes(file.read("model.safetensors"))
    found = load_file(f"{path}.tensors")
    os.unlink(f"{path}.tensors")
    return found


def save_tensors(path, tensors):
    if path.suffix != ".zip":
        return save_file(tensors, path, metadata={"format": "pt"})
    save_file(tensors, f"{path}.tensors")
    content = Path(f"{path}.tensors").read_bytes()
    os.unlink(f"{path}.tensors")
    rewrite_zip(path, lambda name, old: content if name == "model.safetensors" else old)


def filled(value):
    def change(tensors, name):
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[-1] = value

    return change


def other(make):
    def change(tensors, name):
        tensors[name] = make(tensors[name]).contiguous()

    return change


CHANGES = {  # of tensors, and the statuses that are right
    "is missing": (lambda tensors, name: tensors.pop(name), (2,)), "is NaN": (filled(math.nan), (2,)),
    "is inf": (filled(math.inf), (2,)),
    "has another name": (lambda tensors, name: tensors.update({f"{name}x": tensors.pop(name)}), (2,)),
    "has a row more": (other(lambda t: torch.cat([t, t[:1]])), (2,)),
    "has another shape": (other(lambda t: t.flatten()[:-1]), (2,)), "has no elements": (other(lambda t: t[:0]), (2,)),
    "is of integers": (other(lambda t: t.long()), (0, 2)),
    "is complex": (other(lambda t: t.to(torch.complex64)), (0, 2)), "is of Booleans": (other(lambda t: t > 0), (0, 2)),
    "is in 16 bit": (other(lambda t: t.half()), (0, 2)), "is huge": (other(lambda t: t * 0 + 1e38), (0, 2)),
    "is a number": (other(lambda t: t.sum()), (2,)), "has a stranger beside it": (
        lambda tensors, name: tensors.update({"stranger": torch.ones(3)}), (0, 2)),
}
WEIGHTS = {"base/model.safetensors": (TUNE, READER), "tuned/model.safetensors": (TRAIN, PROPOSER), "tuned/gap_head.safetensors":
           (TRAIN, PROPOSER), "agent/best_model.zip": (EVALUATE, COMPRESS, WORTH), "taught/worth.safetensors": (COMPRESS,),
           "taught/model.safetensors": (COMPRESS,)}
FOREIGN = {  # entries of an agent's file that are not the agent's
    "a pickle alone": {"data.pkl": b"cposix\nsystem\n(S'touch owned'\ntR."}, "a name that climbs": {"../../owned.txt": b"x"},
    "no config": {"model.safetensors": b""}, "of an older library": {"policy.pth": b"\x80\x02}q\0.", "data": b"{}"},
    "an empty config": {"config.json": b"", "model.safetensors": b""}, "a header that lies":
    {"config.json": b"{}", "model.safetensors": (2**62).to_bytes(8, "little") + b"{}"}, "nothing": {},
}


def weights(world, rng):
    """Weights that are cut off, renamed, of other shapes, not finite, or another program's."""
    for path, scripts in WEIGHTS.items():
        floating = [name for name, t in tensors_of(world / path).items() if t.is_floating_point() and t.ndim and t.numel() > 1]
        for script in scripts:
            words = line(script, **({"model_path": "taught", "goal": "read"} if path.startswith("taught") else {}))
            for kind, (change, expect) in CHANGES.items():
                for name in rng.sample(floating, 2):
                    spoil = lambda world, p=path, c=change, n=name: (lambda t: (c(t, n), save_tensors(world / p, t)))(
                        tensors_of(world / p))
                    yield Case("weights", script, words, expect, spoil, note=f"{path}: {name} {kind}")
            for _ in range(4):
                size = rng.randrange(1, (world / path).stat().st_size - 1)
                cut = lambda world, p=path, size=size: os.truncate(world / p, size)
                yield Case("weights", script, words, (2,), cut, note=f"{path} is cut to {size} bytes")
            for kind in ("random", "PNG", "empty", "lfs"):
                yield Case("weights", script, words, (2,), replace_by(path, KINDS[kind]), note=f"{path} is {kind}")
            for kind, parts in FOREIGN.items() if path.endswith(".zip") else ():
                spoil = lambda world, p=path, parts=parts: write_zip(world / p, parts)
                yield Case("weights", script, words, (2,), spoil, note=f"{path}: {kind}")


def write_zip(path, parts):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in parts.items():
            file.writestr(name, content)
