"""Compare variants of the agent's training at equal training time: same data, same seeds, one run after the other or `--jobs` at a time.

    python rl/compare.py --reconstructor_path models/reconstructor/fine-tuned --minutes 5 --seeds 0 1 2 \\
        --variants as-is "own=--credit_window 0" "wide=--width 192" --output_dir models/agent/output/compared

A variant is a name and the flags of rl/train.py that make it different, joined by "="; a name alone changes nothing. How many
texts a variant gets is what it can decide in `--minutes`, timed on a few rollouts first, so that its learning rate has
run down at the end. Time is that of rollouts, updates and warm start; held-out evaluations don't count, nor does the
training of an agent after `--init_from`. All are judged on the same texts, prices and reconstructor. The tables show J after
a quarter, a half and all of it, the time that the runs took in truth, and J at the end at every one of the evaluation's λ. What `--output_dir` has already is not run again.
Writes `comparison.json`.
"""

import argparse
import json
import multiprocessing
import re
import shlex
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from tqdm import tqdm

from data.artifacts import SEED, InputError, Parser, bounded, make_output_dir, read_json, run, write_json
from models.reconstructor.reconstructor import find_device
from rl import train
from rl.ppo import warm_start

SCHEMA = "rltc.comparison/1"
UNITS = {"J": "nats per original token, mean over the evaluation prices", "minutes": "minutes of training, without held-out evaluations", "texts": "texts decided in training"}
MEASURE = ("data_path", "reconstructor_path", "max_length", "eval_prices", "eval_sequences")  # what variants are judged by: --flags for all of them
OWN = ("seed", "num_timesteps", "output_dir", "resume")  # what this script decides
SHARES = (0.25, 0.5, 1.0)  # of the time, at which J is compared


def parse_args(argv=None):
    """The command line, and {variant: its rl/train.py settings}."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--data_path", type=Path, default=Path("data/processed/processed_data.json"), help="training sequences; val_data.json is expected beside them")
    add("--reconstructor_path", type=Path, default=Path("models/reconstructor/fine-tuned"), help="directory written by models/reconstructor/train_cpu.py or train_gpu.py")
    add("--output_dir", type=Path, default=Path("models/agent/output/compared"), help="directory for one folder per run and comparison.json")
    add("--variants", nargs="+", required=True, help='"name=flags of rl/train.py" each, or a name alone for the defaults')
    add("--flags", default="", help='flags of rl/train.py that all variants share, as one word: --flags="--width 64 --eval_freq 640"')
    add("--minutes", type=bounded(float, 0, 10**6, open_ends=True), default=5.0, help="training time of every run; all of it takes variants x seeds x minutes, and the held-out evaluations")
    add("--seeds", type=SEED, nargs="+", default=[0, 1, 2], help="every variant is trained once with each")
    add("--pilot_rollouts", type=bounded(int, 1, 10**6), default=4, help="rollouts that a variant's speed is timed on")
    add("--jobs", type=bounded(int, 1, 1024), default=1, help="runs at a time, each in a process of its own; with more than one, each has one CPU thread, so give no more jobs than cores")
    add("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    args.seeds, names = list(dict.fromkeys(args.seeds)), [variant.partition("=")[0] for variant in args.variants]
    if len(set(names)) < len(names) or not all(re.fullmatch(r"[\w.-]+", name) for name in names):
        parser.error(f"--variants: expected different names of letters, digits, dots and dashes, found {', '.join(map(repr, names))}")
    try:
        bare, common, variants = settings("", args, flags=""), settings("", args), {name: settings(variant, args) for name, variant in zip(names, args.variants, strict=True)}
    except ValueError as error:  # an open quote
        parser.error(f"--variants: expected flags as in a shell ({error})")
    for name, found in [("--flags", common), *variants.items()]:
        for flag in OWN:
            if getattr(found, flag) != getattr(bare, flag):
                parser.error(f"{name}: expected no --{flag}, which this script sets for every run")
        for flag in MEASURE:
            if getattr(found, flag) != getattr(common, flag):
                parser.error(f"{name}: expected the --{flag} of the others, by which all are judged; give it in --flags")
    return args, variants


def settings(variant, args, flags=None):
    """rl/train.py's settings of a variant, but for what is in OWN. Its own errors end the script."""
    common = ["--data_path", str(args.data_path), "--reconstructor_path", str(args.reconstructor_path), "--output_dir", str(args.output_dir), "--num_timesteps", str(10**9), "--quiet"]
    return train.parse_args([*common, *shlex.split(args.flags if flags is None else flags), *shlex.split(variant.partition("=")[2])])


def texts_in(minutes, settings, pilot_rollouts):
    """How many texts a variant decides in that time, its warm start included, by the speed of a few rollouts and their updates."""
    device = find_device(settings.device)
    env, reconstructor, texts, _ = train.training_environment(settings, device)
    agent = train.build_agent(settings, env, reconstructor, texts, device)
    agent.learn(settings.n_steps)  # the first is slower
    marks = [time.monotonic()]
    if settings.warm_start:
        warm_start(agent, settings.warm_start, settings.seed)
    marks.append(time.monotonic())
    agent.learn(settings.n_steps * pilot_rollouts)
    marks.append(time.monotonic())
    warm, per_rollout = marks[1] - marks[0], (marks[2] - marks[1]) / pilot_rollouts
    return max(1, round((60 * minutes - warm) / per_rollout)) * settings.n_steps


def trained(settings, folder, seed, texts):
    """The record of a run: trained now, or found in its folder. Raises InputError if what is there was trained otherwise."""
    settings = argparse.Namespace(**vars(settings) | {"seed": seed, "num_timesteps": texts, "output_dir": folder})
    if not (folder / "final_model.zip").exists():
        train.train_agent(settings)
    record = read_json(folder / "training.json", train.SCHEMA, "rl/train.py")
    wanted = json.loads(json.dumps(vars(settings), default=str))
    for name, value in wanted.items():
        if name != "output_dir" and record["args"].get(name) != value:
            raise InputError(f"{folder}: expected a run with --{name} {value}, found {record['args'].get(name)}; delete the folder or choose another --output_dir")
    return record


def texts_of(folders):
    """How many texts the runs in these folders decided, or None if none is there."""
    there = next((folder for folder in folders if (folder / "training.json").exists()), None)
    return read_json(there / "training.json", train.SCHEMA, "rl/train.py")["args"]["num_timesteps"] if there else None


def side_by_side(args, what, function, calls):
    """function(*call) for every call, in order, `--jobs` at a time."""
    bar = {"total": len(calls), "desc": what, "unit": "run", "disable": args.quiet}
    if args.jobs == 1:
        return [function(*call) for call in tqdm(calls, **bar)]
    with ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        return list(tqdm(pool.map(function, *zip(*calls, strict=True)), **bar)) if calls else []


def J_at(rows, seconds):
    """Held-out J at a time, between evaluations in proportion; before the first and after the last: theirs."""
    return float(np.interp(seconds, [r["seconds"] for r in rows], [r["J"] for r in rows]))


def J_at_prices(evaluations):
    """{λ: J of every run at its end}, from the rows of evaluations of every run."""
    prices = [name.removeprefix("J_at_") for name in evaluations[0][-1] if name.startswith("J_at_")]
    return {price: [rows[-1][f"J_at_{price}"] for rows in evaluations] for price in prices}


def format_table(found, minutes):
    lines = [f"{'held-out J after minutes':28s}" + "".join(f"{share * minutes:>18.1f}" for share in SHARES) + f"{'lead':>18s}{'texts':>12s}{'minutes taken':>16s}"]
    first = np.array(found[0]["J"])[:, -1]
    for variant in sorted(found, key=lambda v: -np.mean(v["J"], 0)[-1]):
        J = np.array(variant["J"])  # (seeds, shares)
        spread = J.std(0, ddof=1) if len(J) > 1 else np.full(len(SHARES), np.nan)
        lead = J[:, -1] - first
        spreads = [*spread, lead.std(ddof=1) if len(J) > 1 else np.nan]
        cells = "".join(f"{f'{m:.4f} ±{s:.4f}':>18s}" for m, s in zip([*J.mean(0), lead.mean()], spreads, strict=True))
        took = f"{min(variant['minutes']):.1f} to {max(variant['minutes']):.1f}"
        lines.append(f"{variant['name']:28s}{cells}{variant['texts']:>12,}{took:>16s}{'' if equal_time(variant, minutes) else ' *'}")
    lines.append(f"mean over {len(found[0]['J'])} seeds ± standard deviation over them; lead: over {found[0]['name']} at the end, paired by seed")
    if not all(equal_time(variant, minutes) for variant in found):
        lines.append(f"* a run took less than 0.8 or more than 1.25 times {minutes:g} minutes: not comparable at equal time")
    prices = [price for price in found[0]["J_at_prices"] if all(price in variant["J_at_prices"] for variant in found)]
    lines += ["", f"{'J at the end, at λ =':28s}" + "".join(f"{price:>18s}" for price in prices)]
    for variant in found:
        at_price = [np.array(variant["J_at_prices"][price]) for price in prices]
        lines.append(f"{variant['name']:28s}" + "".join(f"{f'{J.mean():.4f} ±{J.std(ddof=1) if len(J) > 1 else np.nan:.4f}':>18s}" for J in at_price))
    return "\n".join(lines)


def equal_time(variant, minutes):
    return all(0.8 <= taken / minutes <= 1.25 for taken in variant["minutes"])


def main(argv=None):
    args, variants = parse_args(argv)
    make_output_dir(args.output_dir)
    runs = {name: [args.output_dir / f"{name}-{seed}" for seed in args.seeds] for name in variants}
    texts = {name: texts_of(folders) for name, folders in runs.items()}
    new = [name for name, known in texts.items() if known is None]
    texts |= zip(new, side_by_side(args, "pilots", texts_in, [(args.minutes, variants[name], args.pilot_rollouts) for name in new]), strict=True)
    todo = [(name, i) for i in range(len(args.seeds)) for name in runs]  # variants inside, so that a drifting machine drifts for all
    records = dict(zip(todo, side_by_side(args, "runs", trained, [(variants[name], runs[name][i], args.seeds[i], texts[name]) for name, i in todo]), strict=True))
    found = []
    for name, variant in zip(runs, args.variants, strict=True):
        evaluations = [records[name, i]["evaluations"] for i in range(len(args.seeds))]
        J = [[J_at(rows, 60 * args.minutes * share) for share in SHARES] for rows in evaluations]
        found.append({"name": name, "variant": variant, "J": J, "J_at_prices": J_at_prices(evaluations), "texts": texts[name], "minutes": [rows[-1]["seconds"] / 60 for rows in evaluations]})
    write_json(args.output_dir / "comparison.json", SCHEMA, args, UNITS, variants=found, shares_of_time=SHARES)
    print(f"{format_table(found, args.minutes)}\nwritten to {args.output_dir}")


if __name__ == "__main__":
    run(main)
