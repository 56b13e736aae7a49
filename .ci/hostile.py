"""Hostile cases: over a thousand command lines that users type and files that disks hold, against every stage, in minutes.

    python .ci/hostile.py                       # a table; exit status 0 if nothing went wrong
    python .ci/hostile.py --family weights --verbose

Every case runs in a forked child of this process, which imports the scripts once, in a copy of a toy world that is made first.
What can go wrong: see `hostile_run.py`. A case of the family `control` goes wrong on purpose, and must be found out.
"""

import collections
import gc
import multiprocessing
import os
import resource
import sys
import time
import traceback
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1", MPLBACKEND="Agg")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hostile_cases import all_cases
from hostile_run import KINDS, run_case
from hostile_world import build, import_scripts, in_a_folder

from data.artifacts import SEED, InputError, Parser, bounded, run

FAMILY_MOST = 60  # cases of a family, drawn at random if there are more


def in_child(function, *args):
    """Call `function` in a process of its own. Raises InputError if that fails."""
    sys.stdout.flush()
    if not (pid := os.fork()):
        status = 1
        try:
            log = os.open("../world.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            function(*args)
            status = 0
        except SystemExit as error:
            status = error.code or 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if status := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        said = Path("../world.log").read_text().strip().splitlines()[-1:]
        raise InputError(f"the toy world: {function.__name__} {args[:1]} ended with status {status}: {said}")


def play_all(cases, world, folder, jobs):
    """Yield (case, seconds) of all cases, each with what went wrong in it."""
    global one

    def one(number):
        return number, *run_case(cases[number], world, folder / str(number))

    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for number, wrong, seconds in pool.imap_unordered(call_one, range(len(cases))):
            cases[number].wrong = wrong
            yield cases[number], seconds


def call_one(number):
    return one(number)


def table(cases):
    """Lines of the table: cases of every family, and in how many of them what went wrong."""
    families = dict.fromkeys(case.family for case in cases)
    lines = [f"{'family':16s} {'cases':>6s} " + " ".join(f"{kind:>9s}" for kind in KINDS)]
    for family in (*families, "all"):
        some = [case for case in cases if family in (case.family, "all")]
        counts = collections.Counter(kind for case in some for kind in {kind for kind, _ in case.wrong})
        lines.append(f"{family:16s} {len(some):6d} " + " ".join(f"{counts[kind] or '-':>9}" for kind in KINDS))
    return lines


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--family", nargs="+", help="only these families")
    add("--match", help="only cases whose command line or note has this text")
    add("--list", action="store_true", help="print the families and how many cases each has, and run none")
    add("--verbose", action="store_true", help="print the command line of every case that goes wrong, and what it said last")
    add("--most", type=bounded(int, 1, 10**6), default=FAMILY_MOST,
        help="cases of a family, drawn at random if it has more; command lines are seven times as many")
    add("--jobs", type=bounded(int, 1, 256), default=min(2, os.cpu_count()), help="cases at one time")
    add("--seed", type=SEED, default=0, help="draws cases, moments and places")
    return parser.parse_args(argv)


def examine(args, folder):
    """Make the world in `folder`, run the cases and print the table. Returns whether all is as it should be."""
    began, world = time.monotonic(), folder / "world"
    world.mkdir()
    build(world, in_child)
    os.chdir(folder)
    cases, every = all_cases(world, args.seed, args.most)
    if unknown := set(args.family or ()) - set(every):
        raise InputError(f"--family: expected one of {', '.join(every)}, found {min(unknown)}")
    if args.list:
        print("\n".join(f"{name:16s} {count:6d} cases" for name, count in every.items()))
        return True
    chosen = [case for case in cases if case.family in (args.family or every) and (args.match or "") in str(case)]
    built, times = time.monotonic(), []
    for case, seconds in play_all(chosen, world, folder, args.jobs):
        times.append((seconds, str(case)))
        for kind, what in case.wrong if args.verbose else ():
            print(f"[{case.family}] {kind}: {case}\n    {what}".encode("utf-8", "backslashreplace").decode(), flush=True)
    if args.verbose:
        print("\n".join(f"{seconds:5.1f} s  {name[:110]!a}" for seconds, name in sorted(times)[-8:]))
    print("\n".join(table(chosen)))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{len(chosen)} cases in {time.monotonic() - built:.0f} s, the toy world in {built - began:.0f} s before; "
        f"{used.ru_utime + used.ru_stime:.0f} s of processor time"
    )
    found_out = all(case.note in dict(case.wrong) for case in chosen if case.family == "control")
    return found_out and not any(case.wrong for case in chosen if case.family != "control")


def main(argv=None):
    args = parse_args(argv)
    import_scripts()
    gc.collect()
    gc.freeze()  # so that children do not copy what they never change
    in_a_folder(examine, args)


if __name__ == "__main__":
    run(main)
