"""Killed runs: do preparation, fine-tuning and training end the same if they are killed at any moment and go on?

    python .ci/kills.py --kills 20

Every run writes to a directory that a run with other flags used before. It is killed without warning, half of the times after
some processor time and half just before it renames, makes or deletes a file, once or several times; then it goes on with
--resume, or anew where that is refused. What it leaves must be what a run that was left alone leaves: weights and splits byte for
byte, records but for times, and no other files. Prints a table; exit status 1 if there is a difference.
"""

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hostile import in_child
from hostile_run import Case, ended, start
from hostile_world import PREPARE, TRAIN, TUNE, build, import_scripts, in_a_folder, line

from data import pipeline
from data.artifacts import SEED, Parser, bounded, run

STAGES = {  # command lines, and the flags of the run before
    PREPARE: (line(PREPARE, output_dir="out"), line(PREPARE, output_dir="out", max_length=12, val_ratio=0.3)),
    TUNE: (
        line(TUNE, output_dir="out", max_steps=7, save_steps=2, eval_steps=3),
        line(TUNE, output_dir="out", max_steps=5, save_steps=2, seed=7, mask_ratio=0.5),
    ),
    TRAIN: (line(TRAIN, output_dir="out", num_timesteps=20), line(TRAIN, output_dir="out", num_timesteps=12, seed=7, width=16)),
}
CALLS = ("replace", "rename", "unlink", "rmdir", "mkdir")  # of os, before which a run is killed
AGAIN = 0.3  # how often a run that goes on is killed, too
LONGEST = 120  # seconds of a run
TIMES = ("seconds", "processor_seconds", "tokens_per_second", "resume", "commit")  # keys of records that may differ
UNEQUAL = ("events.out", "state.pt", "checksums.json", ".rltc_lock")  # files that have times in them


def restless():
    """Have preparation save its state after every few documents."""
    pipeline.SAVE_EVERY, pipeline.BATCH_CHARACTERS = 0, 400


def after_time(seconds):
    """Die after some processor time; nothing of Python's runs any more."""

    def within():
        restless()
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)

    return within


def before_call(number, count=None):
    """Die before the `number`th of CALLS; `count(n)` is told of each."""

    def within():
        restless()
        calls = [0]

        def counted(function):
            def call(*args, **kwargs):
                calls[0] += 1
                if calls[0] == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                if count:
                    count(calls[0])
                return function(*args, **kwargs)

            return call

        for name in CALLS:
            setattr(os, name, counted(getattr(os, name)))

    return within


def play(script, words, folder, within=restless):
    """Run a script in the world `folder`/w. Returns its status, and the last line that it said."""
    (folder / "tmp").mkdir(exist_ok=True)
    status = ended(start(Case("kills", script, words, within=within), folder / "w", folder), LONGEST)
    lines = (folder / "stderr").read_text().strip().splitlines() if (folder / "stderr").exists() else []
    return status, lines[-1] if lines else ""


def plain(record):
    """A record without its times."""
    if isinstance(record, dict):
        return {key: plain(value) for key, value in record.items() if key not in TIMES}
    return [plain(value) for value in record] if isinstance(record, list) else record


def result(out):
    """{name: what must be the same} of all files of a directory."""
    found = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name, content = str(path.relative_to(out)), path.read_bytes()
        if any(part in name for part in UNEQUAL):
            found["events" if "events" in name else name] = None
        elif path.name.startswith("."):  # that is there at all is a difference
            found[name] = content
        elif name.endswith(".zip"):
            with zipfile.ZipFile(path) as file:
                parts = {part: file.read(part) for part in file.namelist()}
            found[name] = {**parts, "config.json": plain(json.loads(parts["config.json"]))}
        else:
            found[name] = plain(json.loads(content)) if name.endswith(".json") and not name.endswith("_data.json") else content
    return found


def difference(ours, theirs):
    """Names of files that are not alike."""
    absent = object()
    return [name for name in sorted(ours.keys() | theirs.keys()) if ours.get(name, absent) != theirs.get(name, absent)]


def alone(script, used, folder):
    """What a run that is left alone leaves, its seconds of processor time, and how many CALLS it makes."""
    shutil.copytree(used, folder / "w")
    counter, before = folder / "calls", resource.getrusage(resource.RUSAGE_CHILDREN)
    status, said = play(script, STAGES[script][0], folder, before_call(0, lambda n: counter.write_text(str(n))))
    assert status == 0, said
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return result(folder / "w/out"), seconds, int(counter.read_text())


def trial(script, used, folder, seconds, calls, rng):
    """Kill a run until it is over. Returns what it left, how often it was killed, went on, began anew, and what it said last."""
    shutil.copytree(used, folder / "w")
    draw = lambda: rng.choice([lambda: after_time(rng.uniform(0.05, seconds)), lambda: before_call(rng.randint(1, calls))])()
    words, within, killed, resumed, anew = STAGES[script][0], draw(), 0, 0, 0
    for _ in range(20):
        status, said = play(script, words, folder, within)
        if status in (-signal.SIGKILL, -signal.SIGPROF):
            killed += 1
        elif status == 2 and words[-1] == "--resume":
            words, anew = STAGES[script][0], anew + 1
            within = restless
            continue
        else:
            return result(folder / "w/out"), killed, resumed, anew, said if status else ""
        words, resumed = [*STAGES[script][0], "--resume"], resumed + 1
        within = draw() if rng.random() < AGAIN else restless
    return result(folder / "w/out"), killed, resumed, anew, "killed for ever"


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--kills", type=bounded(int, 1, 10**6), default=20, help="runs of every stage that are killed")
    add("--seed", type=SEED, default=0, help="draws the moments")
    return parser.parse_args(argv)


def examine(args, folder):
    """Kill runs of every stage in `folder` and print the table. Returns whether all ended alike."""
    began, world, right = time.monotonic(), folder / "world", True
    world.mkdir()
    build(world, in_child)
    os.chdir(folder)
    print(f"{'stage':36s} {'runs':>5s} {'kills':>6s} {'resumed':>8s} {'anew':>5s} {'failed':>7s} {'different':>10s}")
    for script, (_, before) in STAGES.items():
        place = folder / script.replace("/", "-")
        shutil.copytree(world, place / "used/w")
        status, said = play(script, before, place / "used")
        assert status == 0, said
        used = place / "used/w"
        (place / "alone").mkdir()
        expected, seconds, calls = alone(script, used, place / "alone")
        totals, faults = [0] * 5, []
        for number in range(args.kills):
            (place / str(number)).mkdir()
            rng = random.Random(f"{args.seed} {script} {number}")
            found, killed, resumed, anew, said = trial(script, used, place / str(number), seconds, calls, rng)
            differing = difference(expected, found)
            totals = [a + b for a, b in zip(totals, (killed, resumed, anew, bool(said), bool(differing)), strict=True)]
            if said or differing:
                faults.append(f"  run {number}: {said or ', '.join(differing)}")
            shutil.rmtree(place / str(number))
        counts = "{:5d} {:6d} {:8d} {:5d} {:7d} {:10d}".format(args.kills, *totals)
        print(f"{script:36s} {counts}", flush=True)
        print("\n".join(faults) + "\n" * bool(faults), end="", flush=True)
        right = right and not faults
    print(f"{time.monotonic() - began:.0f} s")
    return right


def main(argv=None):
    args = parse_args(argv)
    import_scripts()
    in_a_folder(examine, args)


if __name__ == "__main__":
    run(main)
