"""Hostile cases of command lines, of places to write to, and of what happens meanwhile: disks, screens, interrupts, resuming."""

import argparse
import builtins
import errno
import inspect
import json
import os
import shutil
import sys
from pathlib import Path
from unittest import mock

import torch
from filelock import FileLock
from hostile_run import Case, mounted
from hostile_world import (
    COMPRESS, DRAW, EVALUATE, OTHERS, PREPARE, PROPOSER, READ, TRAIN, TUNE, WORDS, WORTH, inputs, line, module_of,
)

from data.artifacts import Parser
from data.scratch import LOCK, make_scratch
from models.reconstructor.checkpoints import MANIFEST, checksums

BAD = ("two", "nan", "inf", "-inf", "-1", "0", "1e-300", "1e300", "9" * 30, "9" * 5000, "0x10", "1_000", "½", " 5", "\n", "1,5", "-",
       "１", "None", "../..", "*", "unknown", "--", "true")
PATIENCE = 3  # seconds for what a flag's value may make long


class Captured(Exception):
    """A parser that was about to parse."""


def parser_of(script):
    """The parser of a script."""

    def capture(self, args=None, namespace=None):
        raise Captured(self)

    with mock.patch.object(Parser, "parse_args", capture):
        try:
            module_of(script).parse_args([])
        except Captured as captured:
            return captured.args[0]
        except TypeError:  # of train_cpu.py and train_gpu.py, whose main has it
            pass
        try:
            module_of(script).main([])
        except Captured as captured:
            return captured.args[0]


def refused(action, value):
    """Whether a flag's own type or choices refuse a value."""
    try:
        found = action.type(value) if action.type else value
    except (argparse.ArgumentTypeError, ValueError, TypeError):
        return True
    return action.choices is not None and found not in action.choices


def ends(action):
    """The least and the most that a number may be, and one beyond each."""
    bounds = inspect.getclosurevars(action.type).nonlocals if inspect.isfunction(action.type) else {}
    if not {"low", "high"} <= bounds.keys():
        return []
    return [str(value) for end in (bounds["low"], bounds["high"]) for value in (end - 1, end, end + 1)]


def flags(world, rng):
    """Every flag of every script with values that are none."""
    for script in (*WORDS, *OTHERS):
        if " --" in script:
            continue
        words = WORDS[script].split() if script in WORDS else []
        parser = parser_of(script)
        yield from (
            Case("flags", script, [*words, *more]) for more in (["--nope"], ["--see", "1"], ["stray"], ["--quiet=1"], ["--", "x"], [""])
        )
        for action in parser._actions:
            name = action.option_strings[-1]
            if action.nargs == 0:
                yield from (Case("flags", script, [*words, f"{name}={value}"]) for value in ("1", "false", "")
                            if name not in ("--help",))
                continue
            yield Case("flags", script, [*words, name], note="no value")
            yield from (Case("flags", script, [*words, *more]) for more in ([name, ""], [f"{name}="]))
            for value in (*BAD, *ends(action)):
                new = [*words, f"{name}={value}"] if action.nargs is None else [*words, name, value]
                if action.nargs is not None and value.startswith("-"):
                    continue
                if refused(action, value):
                    yield Case("flags", script, new)
                elif script in WORDS:
                    yield Case("flags", script, new, (0, 2), patience=PATIENCE)


CLASHES = {  # what a user has in an output directory under a name of ours: a folder where a file is due, and the other way round
    TUNE: "tb_logs training.json model.safetensors config.json reconstructor.json tokenizer.json .unfinished checkpoint-1 checkpoint-2 "
          "checkpoint-9 .rltc_lock gap_head.safetensors",
    TRAIN: "tb_logs training.json best_model.zip final_model.zip checkpoints checkpoints/.unfinished checkpoints/checkpoint-4 "
           "checkpoints/checkpoint-99 .rltc_lock",
    PREPARE: "processed_data.json val_data.json test_data.json dataset_info.json .rltc_partial .rltc_cache .rltc_lock",
    EVALUATE: "evaluation_results.json examples.txt", DRAW: "rate_distortion.png texts.png", PROPOSER: "best_model.zip training.json",
    WORTH: "config.json worth.safetensors model.safetensors",
}


def clash(path, make):
    """Spoil: something of the user's at `path`."""

    def spoil(world):
        target = world / path
        if os.path.lexists(target):
            shutil.rmtree(target) if target.is_dir() and not target.is_symlink() else target.unlink()
        target.parent.mkdir(exist_ok=True)
        make(target)

    return spoil


def folder_of_theirs(path):
    path.mkdir()
    (path / "mine.txt").write_text("a user's file\n")


def a_file(path):
    path.write_text("a user's file\n")


def mark_copied(path):
    """A user's folder into which the mark of ours was copied, with a link to their texts."""
    make_scratch(path)
    (path / "theirs").symlink_to("../mine.txt")


HELD = []  # locks of other runs


def hold(path):
    def spoil(world):
        (world / path).parent.mkdir(parents=True, exist_ok=True)
        HELD.append(FileLock(world / path))
        HELD[-1].acquire()

    return spoil


def outputs(world, rng):
    """Places that can't be written to, that are something else, or that have a user's files with names like ours."""
    for script in WORDS:
        words = WORDS[script].split()
        flag = "output_dir" if "--output_dir" in words else "output"
        out = words[words.index(f"--{flag}") + 1]
        lock = lambda path, mode: lambda world: (world / path).chmod(mode)
        spots = {
            "toy.jsonl/x": (2,), "nowhere/a/b": (0,) if flag == "output_dir" else (2,) if script != READ else (0,), "/proc/x": (2,),
            "/dev/null/x": (2,), "loop": (2,), "locked/x": (2,), "shut/x": (2,), "dangling/x": (0, 2), "/sys/kernel/x": (2,),
        }
        if flag == "output_dir":
            spots |= {"toy.jsonl": (2,), "locked": (2,), "shut": (2,), "/dev/null": (2,), "dangling": (0, 2)}

        def spoil(world):
            (world / "loop").symlink_to("loop")
            (world / "dangling").symlink_to("no/where")
            for name, mode in (("locked", 0o555), ("shut", 0)):
                (world / name).mkdir()
                (world / name).chmod(mode)

        for place, expect in spots.items():
            yield Case("outputs", script, line(script, **{flag: place}), expect, spoil)
        for _, path in inputs(script, world):
            own = flag == "output_dir" and (world / path).is_dir() and path != "agent/tb_logs"
            place = path if own or flag == "output" else os.path.dirname(path) or "."
            expect = (2,) if own or flag == "output" and script != READ else (0, 2)
            yield Case("outputs", script, line(script, **{flag: place}), expect, mine=(f"{path}*",), note="an input")
        if flag == "output_dir":
            yield Case("outputs", script, line(script), (2,), lock(out, 0o555), note=f"{out} can't be written")
            yield Case("outputs", script, line(script), (2,), lock(out, 0), note=f"{out} is shut")
        for name in CLASHES.get(script, "").split():
            for what, make in {"a folder": folder_of_theirs, "a file": a_file, "a link to a user's file":
                               lambda path: path.symlink_to("mine.txt"), "a link to nowhere": lambda path: path.symlink_to("nowhere"),
                               "a folder with our mark": mark_copied}.items():
                mine = (f"{out}/{name}/mine.txt", *[f"{out}/{name}"] * (what == "a file" and "." not in name))
                yield Case("outputs", script, line(script), (0, 2), clash(f"{out}/{name}", make), torn=True, mine=mine,
                           note=f"{out}/{name} is {what}")
    for script, path in ((TUNE, f"tuned/{LOCK}"), (TRAIN, f"agent/{LOCK}"), (PREPARE, "half/.rltc_partial/lock")):
        more = {"output_dir": "half"} if script == PREPARE else {}
        yield from (Case("outputs", script, line(script, *words, **more), spoil=hold(path), note="in use by another run")
                    for words in ([], ["--resume"], ["--seed", "1"]))


def full_after(count):
    """From the `count`th file on that is opened for writing, renamed or made, the disk is full."""

    def within():
        left = [count]

        def guarded(function, writes):
            def call(*args, **kwargs):
                if writes(*args, **kwargs):
                    left[0] -= 1
                    if left[0] < 0:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))
                return function(*args, **kwargs)

            return call

        writing = lambda file, mode="r", *_, **__: set(str(mode)) & set("wax+") and not str(file).startswith("/dev")
        import io

        builtins.open = io.open = guarded(io.open, writing)
        for name in ("replace", "rename", "mkdir"):
            setattr(os, name, guarded(getattr(os, name), lambda *_, **__: True))

    return within


def disk(world, rng):
    """A disk that is full, or that fills up."""
    probe = world.parent / "probe"
    probe.mkdir(exist_ok=True)
    may_mount = mounted(probe, 4) and not os.system(f"umount '{probe}'")
    if not may_mount:
        print("disk: this process may not mount a small disk, so that only calls that fail are tried", file=sys.stderr)
    for script in WORDS:
        for room in (0, 4, 12, 24, 48, 96, 192, 384) if may_mount else ():
            yield Case("disk", script, line(script), (0, 2), room=room, torn=True, note=f"{room} KB free")
        for count in range(0, 16):
            yield Case("disk", script, line(script), (0, 2), within=full_after(count), torn=True, note=f"full after {count} files")


def screens(world, rng):
    """Screens that show few letters, that are closed, that nobody reads."""
    for script in WORDS:
        good, bad = line(script), line(script, **{"model_path" if "--model_path" in WORDS[script] else inputs(script, world)[0][0]: "nö—λ"})
        for encoding in ("ascii", "cp1252", "latin-1", "utf-16", "shift_jis", "cp437"):
            for words, expect in ((good, (0,)), (bad, (2,)), (["--help"], (0,))):
                yield Case("screens", script, words, expect, encoding=encoding, note=f"in {encoding}")
        silent = script in (COMPRESS, f"{COMPRESS} --restore", f"{COMPRESS} --lossless")
        full = (0, 2) if silent else (2,)
        pipe = (0, 141) if silent or script == PREPARE else (141,)
        for streams, expect in (
            ({"stdout": "closed"}, (0,)), ({"stderr": "closed"}, (0,)), ({"stdout": "closed", "stderr": "closed"}, (0,)),
            ({"stdout": "pipe"}, pipe), ({"stderr": "pipe"}, (0, 141)), ({"stdout": "pipe", "stderr": "pipe"}, (0, 141)),
            ({"stdout": "/dev/full"}, full), ({"stderr": "/dev/full"}, (0, 2)), ({"stdout": "/dev/full", "stderr": "/dev/full"}, (0, 2)),
        ):
            note = ", ".join(f"{name} {kind}" for name, kind in streams.items())
            yield Case("screens", script, good, expect, torn=True, note=note, **streams)
            if "stderr" in streams:
                yield Case("screens", script, bad, (2, 141), note=note, **streams)
        yield Case("screens", script, ["--help"], (141,), stdout="pipe", note="stdout pipe")


def interrupts(world, rng):
    """Interrupts at random moments."""
    for script in WORDS:
        for _ in range(6):
            moment = rng.uniform(0.01, 0.4 if script in (COMPRESS, PREPARE, READ) else 1.2)
            yield Case("interrupts", script, line(script), (0,), patience=moment, torn=True, note=f"interrupted after {moment:.3f} s")


CHANGED = {
    TUNE: "seed=1 mask_ratio=0.5 mask_spread=0.1 span_share=0.5 gaps=told unit=token attention=causal policy_share=0.4 warmup_ratio=0.5 "
          "weight_decay=0.5 max_length=10 mask_policy=frequency gap_head_only batch_size=2 gradient_accumulation_steps=2 base_model=tuned",
    TRAIN: "seed=1 n_steps=8 batch_size=2 n_epochs=2 gamma=0.5 critic_only gaps=told unit=token min_price=1 max_price=9 max_length=10 "
           "width=16 eval_freq=8 eval_sequences=3 eval_prices=4 reconstructor_path=base init_from=proposer/best_model.zip "
           "reader_path=tuned",
    PREPARE: "seed=1 max_length=20 min_length=4 val_ratio=0.3 test_ratio=0.1 tokenizer=tuned near_duplicates=0.5 max_sequences=9 "
             "text_column=text2 source=sotu input=note.txt",
}
FREE = {TUNE: "max_steps=4 learning_rate=0.1 eval_steps=1 save_steps=2 save_total_limit=1 logging_steps=1 eval_sequences=2 epochs=1",
        TRAIN: "num_timesteps=12 learning_rate=0.1", PREPARE: "retries=2"}
NEWEST = {TUNE: "tuned/checkpoint-3", TRAIN: "agent/checkpoints/checkpoint-8"}


def signed(path, change):
    """Spoil: another state in the newest checkpoint, as if it had been written so."""

    def spoil(world):
        state = torch.load(world / path / "state.pt", weights_only=True)
        change(state)
        torch.save(state, world / path / "state.pt")
        (world / path / MANIFEST).write_text(json.dumps(checksums(world / path)))

    return spoil


def resume(world, rng):
    """Runs that go on with other flags, other data, damaged checkpoints, or from nothing."""
    for script in (TUNE, TRAIN, PREPARE):
        base = {"resume": True, **({"output_dir": "half"} if script == PREPARE else {})}
        again = lambda **more: line(script, **{**base, **more})
        yield Case("resume", script, again(), (0,), note="unchanged")
        yield Case("resume", script, again(output_dir="nowhere"), (2,))
        yield Case("resume", script, again(output_dir="results"), (2,))
        for words, expect in ((CHANGED, (2,)), (FREE, (0,))):
            for word in words[script].split():
                flag, _, value = word.partition("=")
                more = {"input": None} if word == "source=sotu" else {}
                yield Case("resume", script, again(**{flag: value or True}, **more), expect)
        data = "toy.jsonl" if script == PREPARE else "data/processed_data.json"
        reverse = lambda world, p=data: (world / p).write_bytes(b"".join(reversed((world / p).read_bytes().splitlines(True))))
        yield Case("resume", script, again(), (2,), reverse, note=f"{data} in another order")
    for script, newest in NEWEST.items():
        words, more = line(script, resume=True), "max_steps" if script == TUNE else "num_timesteps"
        on = line(script, resume=True, **{more: 4 if script == TUNE else 12})
        for name in sorted(path.name for path in (world / newest).iterdir()):
            for what, make in {"empty": lambda p: p.write_bytes(b""), "missing": lambda p: None, "a folder": Path.mkdir, "half": lambda p:
                               p.write_bytes(b"PK\3\4half")}.items():
                yield Case("resume", script, on, (0, 2), clash(f"{newest}/{name}", make), note=f"{newest}/{name} is {what}")
        siblings = os.path.dirname(newest)
        for name in ("checkpoint-", "checkpoint-x", "checkpoint-99", "checkpoint-1e9", "checkpoint--1"):
            for what, make in (("a folder", folder_of_theirs), ("a file", a_file), ("a link", lambda p: p.symlink_to("nowhere"))):
                yield Case("resume", script, on, (0, 2), clash(f"{siblings}/{name}", make), note=f"{siblings}/{name} is {what}")
        for content in ("null", "[]", "{}", '{"state.pt": null}', '{"../../toy.jsonl": "x"}', "5", '"x"', "", '{"state.pt": []}'):
            spoil = lambda world, path=newest, c=content: (world / path / MANIFEST).write_text(c)
            yield Case("resume", script, on, (0, 2), spoil, note=f"{newest}/{MANIFEST}: {content}")
        for key in torch.load(world / newest / "state.pt", weights_only=True):
            for name, value in {"null": None, "a word": "x", "-1": -1, "a list": [], "an object": {}, "NaN": float("nan")}.items():
                spoil = signed(newest, lambda state, k=key, v=value: state.__setitem__(k, v))
                yield Case("resume", script, on, (0, 2), spoil, patience=PATIENCE, torn=True, note=f"state: {key} is {name}")
            yield Case("resume", script, words, (2,), signed(newest, lambda state, k=key: state.pop(k)), note=f"state: no {key}")


FAMILIES = (flags, outputs, disk, screens, interrupts, resume)
