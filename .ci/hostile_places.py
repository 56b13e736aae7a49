"""Hostile cases of command lines, of names, and of places to write to."""

import argparse
import inspect
import os
import shutil
from unittest import mock

from filelock import FileLock
from hostile_run import Case
from hostile_world import (
    DRAW, EVALUATE, OTHERS, PREPARE, PROPOSER, READ, TRAIN, TUNE, WORDS, WORTH, inputs, line, module_of, value_of,
)

from data.artifacts import Parser
from data.scratch import LOCK, make_scratch

BAD = (
    "two", "nan", "inf", "-inf", "-1", "0", "1e-300", "1e300", "9" * 30, "9" * 5000, "0x10", "1_000", "½", " 5", "\n", "1,5", "-",
    "１", "None", "../..", "*", "unknown", "--", "true",
)
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
        for more in (["--nope"], ["--see", "1"], ["stray"], ["--quiet=1"], ["--", "x"], [""]):
            yield Case("flags", script, [*words, *more])
        for action in parser._actions:
            name = action.option_strings[-1]
            if action.nargs == 0:
                yield from (Case("flags", script, [*words, f"{name}={value}"]) for value in ("1", "false", "")
                            if name not in ("--help",))
                continue
            yield Case("flags", script, [*words, name], note="no value")
            yield from (Case("flags", script, [*words, *more]) for more in ([name, ""], [f"{name}="]))
            for value in (*BAD, *ends(action)):
                first = ["first"] * (action.nargs == 2)  # of --keep_lines
                new = [*words, f"{name}={value}"] if action.nargs is None else [*words, name, *first, value]
                if action.nargs is not None and value.startswith("-"):
                    continue
                if refused(action, value):
                    yield Case("flags", script, new)
                elif script in WORDS:
                    yield Case("flags", script, new, (0, 2), patience=PATIENCE)


NAMES = {  # names that a file system takes, and the statuses that are right
    "spaces": ("a b  c", (0,)), "letters": ("naïve 文 🙂", (0,)), "quotes": ("it's \"a\"", (0,)), "a pattern": ("a[0-9]*?", (0,)),
    "braces": ("{x}%s%20$HOME~", (0,)), "a colon": ("a:b=c,d;e", (0,)), "a backslash": ("a\\b", (0,)), "dots": ("...", (0,)),
    "a newline": ("a\nb", (0, 2)), "no UTF-8": (os.fsdecode(b"a\xff\xfeb"), (0, 2)), "a dash": ("-x", (0,)),
    "long": ("n" * 235, (0, 2)), "too long": ("n" * 256, (2,)), "too deep": ("d/" * 2100 + "x", (2,)),
    "a scheme": ("file:", (0,)),
    "a hash": ("a#b?c&d", (0,)), "two colons": ("a::b", (0,)), "a control": ("a\x1b[31m\x07", (0, 2)), "tabs": ("a\tb", (0,)),
    "a train": ("train", (0,)),
}


def names(world, rng):
    """Inputs and outputs of unusual names."""
    for script in WORDS:
        for kind, (name, expect) in NAMES.items():
            for flag, path in inputs(script, world):
                folder, last = os.path.split(path) if flag in ("data_path", "results_path") else ("", path)
                suffix = "" if folder or "." not in last else "." + last.split(".", 1)[1]
                new = f"{name}/{last}" if folder else f"{name}{suffix}"
                if kind in ("too long", "too deep"):
                    spoil = lambda world: None
                else:
                    copy = shutil.copytree if (world / (folder or path)).is_dir() else shutil.copyfile
                    spoil = lambda world, c=copy, s=folder or path, n=name if folder else new: c(world / s, world / n)
                yield Case("names", script, line(script, **{flag: new}), expect, spoil, note=f"--{flag}: {kind}")
            out = "output_dir" if "--output_dir" in WORDS[script] else "output"
            old = value_of(WORDS[script].split(), f"--{out}")
            suffix = "." + old.split(".", 1)[1] if "." in old else ""
            yield Case("names", script, line(script, **{out: name + suffix}), expect, note=f"--{out}: {kind}")


CLASHES = {  # what a user has in an output directory under a name of ours: a folder where a file is due, and the other way round
    TUNE: "tb_logs training.json model.safetensors config.json reconstructor.json tokenizer.json .unfinished checkpoint-1 "
    "checkpoint-2 checkpoint-9 .rltc_lock gap_head.safetensors",
    TRAIN: "tb_logs training.json best_model.zip final_model.zip checkpoints checkpoints/.unfinished checkpoints/checkpoint-4 "
    "checkpoints/checkpoint-99 .rltc_lock",
    PREPARE: "processed_data.json val_data.json test_data.json dataset_info.json .rltc_partial .rltc_cache .rltc_lock",
    EVALUATE: "evaluation_results.json examples.txt", DRAW: "rate_distortion.png texts.png",
    PROPOSER: "best_model.zip training.json", WORTH: "config.json worth.safetensors model.safetensors",
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


THEIRS = {  # what may lie there
    "a folder": folder_of_theirs, "a file": a_file, "a link to a user's file": lambda path: path.symlink_to("mine.txt"),
    "a link to nowhere": lambda path: path.symlink_to("nowhere"), "a folder with our mark": mark_copied,
}
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
            "toy.jsonl/x": (2,), "nowhere/a/b": (0,) if flag == "output_dir" or script == READ else (2,), "/proc/x": (2,),
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
            over = own and script in (TUNE, TRAIN, PROPOSER, WORTH) or flag == "output" and script != READ
            expect = (2,) if over else (0, 2)
            yield Case("outputs", script, line(script, **{flag: place}), expect, mine=(f"{path}*",), note="an input")
        if flag == "output_dir":
            yield Case("outputs", script, line(script), (2,), lock(out, 0o555), note=f"{out} can't be written")
            yield Case("outputs", script, line(script), (2,), lock(out, 0), note=f"{out} is shut")
        for name in CLASHES.get(script, "").split():
            for what, make in THEIRS.items():
                mine = (f"{out}/{name}/mine.txt", *[f"{out}/{name}"] * (what == "a file" and "." not in name))
                yield Case("outputs", script, line(script), (0, 2), clash(f"{out}/{name}", make), torn=True, mine=mine,
                           note=f"{out}/{name} is {what}")
    for script, path in ((TUNE, f"tuned/{LOCK}"), (TRAIN, f"agent/{LOCK}"), (PREPARE, f"half/{LOCK}")):
        more = {"output_dir": "half"} if script == PREPARE else {}
        yield from (Case("outputs", script, line(script, *words, **more), spoil=hold(path), note="in use by another run")
                    for words in ([], ["--resume"], ["--seed", "1"]))
