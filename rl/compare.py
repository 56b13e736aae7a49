"""Compare variants of the agent's training at equal wall time: same data, same seeds, one after the other.

    python rl/compare.py --reconstructor_path models/reconstructor/fine-tuned --minutes 5 --seeds 0 1 2 \\
        --variants own "neighbours=--credit_window 2" "wide=--width 192" --output_dir models/agent/output/compared

A variant is a name and the flags of rl/train.py that make it different, joined by "="; a name alone changes nothing. How many
texts a variant gets is what it can decide in `--minutes`, timed on a few rollouts first, so that its learning rate has
run down at the end. Every run is whole or not there: what `--output_dir` has already is not run again. Prints held-out J
after a quarter, a half and all of the time, and writes `comparison.json`.
"""

import shlex
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from data.artifacts import SEED, Parser, bounded, make_output_dir, read_json, run, write_json
from models.reconstructor.reconstructor import Reconstructor, find_device
from models.reconstructor.training import open_splits
from rl import train
from rl.env import TokenCompressionVecEnv

SCHEMA = "rltc.comparison/1"
UNITS = {"J": "nats per original token, mean over the evaluation prices", "seconds": "seconds of wall time, held-out evaluations included", "texts": "texts decided in training"}
SHARES = (0.25, 0.5, 1.0)  # of the time, at which J is compared


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--data_path", type=Path, default=Path("data/processed/processed_data.json"), help="training sequences; val_data.json is expected beside them")
    add("--reconstructor_path", type=Path, default=Path("models/reconstructor/fine-tuned"), help="directory written by models/reconstructor/train_cpu.py or train_gpu.py")
    add("--output_dir", type=Path, default=Path("models/agent/output/compared"), help="directory for one folder per run and comparison.json")
    add("--variants", nargs="+", required=True, help='"name=flags of rl/train.py" each, or a name alone for the defaults')
    add("--flags", default="", help="flags of rl/train.py that all variants share, in one word")
    add("--minutes", type=bounded(float, 0, 10**6, open_ends=True), default=5.0, help="training time of every run")
    add("--seeds", type=SEED, nargs="+", default=[0, 1, 2], help="every variant is trained once with each")
    add("--pilot_rollouts", type=bounded(int, 1, 10**6), default=3, help="rollouts that a variant's speed is timed on")
    add("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


def settings_of(variant, args, seed, *words):
    """A variant's name and its rl/train.py settings. The command line's own errors end the script."""
    name, _, flags = variant.partition("=")
    common = ["--data_path", str(args.data_path), "--reconstructor_path", str(args.reconstructor_path), "--seed", str(seed), "--quiet"]
    output = ["--output_dir", str(args.output_dir / f"{name}-{seed}")]
    return name, [*common, *shlex.split(args.flags), *shlex.split(flags), *output, *map(str, words)]


def texts_in(minutes, words, rollouts):
    """How many texts a variant decides in that time: the speed of a few rollouts and their updates, in whole rollouts."""
    args = train.parse_args(words)
    device = find_device(args.device)
    reconstructor = Reconstructor.load(args.reconstructor_path, device)
    texts, _, length = open_splits(args, reconstructor)
    env = TokenCompressionVecEnv(texts, reconstructor, length, args.n_envs, (args.min_price, args.max_price), group_size=args.group_size, flips=args.flips)
    agent = train.build_agent(args, env, reconstructor, texts, device)
    agent.learn(args.n_steps)  # the first is slower
    start = time.monotonic()
    agent.learn(args.n_steps * rollouts)
    return max(1, round(60 * minutes / (time.monotonic() - start) * rollouts)) * args.n_steps


def J_at(rows, seconds):
    """Held-out J at a time, between evaluations in proportion; before the first and after the last: theirs."""
    return float(np.interp(seconds, [r["seconds"] for r in rows], [r["J"] for r in rows]))


def format_table(found, minutes):
    lines = [f"{'held-out J after minutes':28s}" + "".join(f"{share * minutes:>18.1f}" for share in SHARES) + f"{'texts':>12s}"]
    for variant in sorted(found, key=lambda v: -np.mean(v["J"], 0)[-1]):
        J = np.array(variant["J"])  # (seeds, shares)
        cells = "".join(f"{f'{m:.4f} ±{s:.4f}':>18s}" for m, s in zip(J.mean(0), J.std(0, ddof=1) if len(J) > 1 else 0 * J[0], strict=True))
        lines.append(f"{variant['name']:28s}{cells}{int(np.mean(variant['texts'])):>12,}")
    return "\n".join([*lines, f"mean over {len(found[0]['J'])} seeds ± standard deviation over them"])


def main(argv=None):
    args = parse_args(argv)
    make_output_dir(args.output_dir)
    found = []
    for variant in tqdm(args.variants, unit="variant", disable=args.quiet):
        J, texts = [], []
        for seed in args.seeds:
            name, words = settings_of(variant, args, seed)
            folder = args.output_dir / f"{name}-{seed}"
            if not (folder / "final_model.zip").exists():
                count = texts_in(args.minutes, words, args.pilot_rollouts)
                train.main([*words, "--num_timesteps", str(count)])
            record = read_json(folder / "training.json", train.SCHEMA, "rl/train.py")
            J.append([J_at(record["evaluations"], 60 * args.minutes * share) for share in SHARES])
            texts.append(record["texts"])
        found.append({"name": name, "variant": variant, "J": J, "texts": texts})
    write_json(args.output_dir / "comparison.json", SCHEMA, args, UNITS, variants=found, shares_of_time=SHARES)
    print(f"{format_table(found, args.minutes)}\nwritten to {args.output_dir}")


if __name__ == "__main__":
    run(main)
