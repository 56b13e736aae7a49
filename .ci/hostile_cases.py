"""All hostile cases, and those that must be found out."""

import os
import random
import time
from pathlib import Path

from hostile_places import flags, names, outputs
from hostile_reads import files, records, sequences
from hostile_run import Case
from hostile_times import disk, interrupts, resume, screens
from hostile_weights import weights
from hostile_world import DRAW, line, module_of


def control(world, rng):
    """What must be found out: a case for every kind of what can go wrong, named by it."""
    good, bad = line(DRAW), line(DRAW, dpi="no")
    fail = lambda: setattr(module_of(DRAW), "main", lambda: 1 / 0)
    meddle = lambda: Path("toy.jsonl").write_text("")
    yield from (
        Case("control", DRAW, good, within=fail, note="traceback"), Case("control", DRAW, bad, (0,), note="status"),
        Case("control", DRAW, good, (0,), within=meddle, note="damage"),
        Case("control", DRAW, good, within=lambda: time.sleep(60), patience=0.5, note="hang"),
        Case("control", DRAW, bad, within=lambda: os.write(2, b"more\n"), note="message"),
        Case("control", DRAW, bad, within=lambda: Path(".x.1.tmp").write_text(""), note="left"),
    )


CHEAP = 7  # most command lines are refused before anything is read
FAMILIES = (control, files, records, sequences, weights, names, flags, outputs, disk, screens, interrupts, resume)


def all_cases(world, seed, most):
    """The cases, up to `most` of each family, of command lines CHEAP times as many, and {family: how many there are}."""
    cases, every = [], {}
    for family in FAMILIES:
        rng = random.Random(f"{seed} {family.__name__}")
        some, count = list(family(world, rng)), most * (CHEAP if family.__name__ == "flags" else 1)
        every[family.__name__] = len(some)
        cases += rng.sample(some, count) if len(some) > count else some
    return cases, every
