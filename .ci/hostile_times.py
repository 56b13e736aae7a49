"""Hostile cases of what happens while a script runs: disks, screens, interrupts; and of runs that go on."""

import builtins
import errno
import io
import json
import os
import sys
from pathlib import Path

import torch
from hostile_places import PATIENCE, a_file, clash, folder_of_theirs
from hostile_reads import VALUES
from hostile_run import Case
from hostile_world import COMPRESS, PREPARE, READ, TRAIN, TUNE, WORDS, inputs, line, mounted

from models.reconstructor.checkpoints import MANIFEST, checksums


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
            note = f"full after {count} files"
            yield Case("disk", script, line(script), (0, 2), within=full_after(count), torn=True, note=note)


def screens(world, rng):
    """Screens that show few letters, that are closed, that nobody reads."""
    for script in WORDS:
        flag = "model_path" if "--model_path" in WORDS[script] else inputs(script, world)[0][0]
        good, bad = line(script), line(script, **{flag: "nö—λ"})
        for encoding in ("ascii", "cp1252", "latin-1", "utf-16", "shift_jis", "cp437"):
            for words, expect in ((good, (0,)), (bad, (2,)), (["--help"], (0,))):
                yield Case("screens", script, words, expect, encoding=encoding, note=f"in {encoding}")
        silent = script in (COMPRESS, f"{COMPRESS} --restore", f"{COMPRESS} --lossless")
        full = (0, 2) if silent else (2,)
        pipe = (0, 141) if silent or script == PREPARE else (141,)
        for streams, expect in (
            ({"stdout": "closed"}, (0,)), ({"stderr": "closed"}, (0,)), ({"stdout": "closed", "stderr": "closed"}, (0,)),
            ({"stdout": "pipe"}, pipe), ({"stderr": "pipe"}, (0, 141)), ({"stdout": "pipe", "stderr": "pipe"}, (0, 141)),
            ({"stdout": "/dev/full"}, full), ({"stderr": "/dev/full"}, (0, 2)),
            ({"stdout": "/dev/full", "stderr": "/dev/full"}, (0, 2)),
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
            note = f"interrupted after {moment:.3f} s"
            yield Case("interrupts", script, line(script), (0,), patience=moment, torn=True, note=note)


CHANGED = {  # flags that a run that goes on may not change
    TUNE: "seed=1 mask_ratio=0.5 mask_spread=0.1 span_share=0.5 gaps=told unit=token attention=causal policy_share=0.4 "
    "warmup_ratio=0.5 weight_decay=0.5 max_length=10 mask_policy=frequency gap_head_only batch_size=2 base_model=tuned "
    "gradient_accumulation_steps=2",
    TRAIN: "seed=1 n_steps=8 batch_size=2 n_epochs=2 gamma=0.5 critic_only gaps=told unit=token min_price=1 max_price=9 width=16 "
    "max_length=10 eval_freq=8 eval_sequences=3 eval_prices=4 reconstructor_path=base init_from=proposer/best_model.zip "
    "reader_path=tuned",
    PREPARE: "seed=1 max_length=20 min_length=4 val_ratio=0.3 test_ratio=0.1 near_duplicates=0.5 max_sequences=9 "
    "text_column=text2 source=sotu input=note.txt",
}
FREE = {  # flags that it may
    TUNE: "max_steps=4 learning_rate=0.1 eval_steps=1 save_steps=2 save_total_limit=1 logging_steps=1 eval_sequences=2 epochs=1",
    TRAIN: "num_timesteps=12 learning_rate=0.1", PREPARE: "retries=2 tokenizer=tuned",  # whose tokens are the same
}
DAMAGES = {"empty": lambda path: path.write_bytes(b""), "missing": lambda path: None, "a folder": Path.mkdir,
           "half": lambda path: path.write_bytes(b"PK\3\4half")}
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
            for what, make in DAMAGES.items():
                yield Case("resume", script, on, (0, 2), clash(f"{newest}/{name}", make), note=f"{newest}/{name} is {what}")
        siblings = os.path.dirname(newest)
        for name in ("checkpoint-", "checkpoint-x", "checkpoint-99", "checkpoint-1e9", "checkpoint--1"):
            for what, make in (("a folder", folder_of_theirs), ("a file", a_file), ("a link", lambda p: p.symlink_to("nowhere"))):
                yield Case("resume", script, on, (0, 2), clash(f"{siblings}/{name}", make), note=f"{siblings}/{name} is {what}")
        for content in ("null", "[]", "{}", '{"state.pt": null}', '{"../../toy.jsonl": "x"}', "5", '"x"', "", '{"state.pt": []}'):
            spoil = lambda world, path=newest, c=content: (world / path / MANIFEST).write_text(c)
            yield Case("resume", script, on, (0, 2), spoil, note=f"{newest}/{MANIFEST}: {content}")
        for key in torch.load(world / newest / "state.pt", weights_only=True):
            for name, value in VALUES.items():
                spoil = signed(newest, lambda state, k=key, v=value: state.__setitem__(k, v))
                yield Case("resume", script, on, (0, 2), spoil, patience=PATIENCE, torn=True, note=f"state: {key} is {name}")
            yield Case("resume", script, words, (2,), signed(newest, lambda state, k=key: state.pop(k)), note=f"state: no {key}")
