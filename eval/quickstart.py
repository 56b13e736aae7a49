"""The whole pipeline on the embedded corpora and base model, on a CPU, without a network: 7.5 minutes on two cores.

    python eval/quickstart.py

Runs the five stage scripts as one would type them, printing each command before it runs, with settings small enough for a first
look, prints the result table and the paths of the figures, and has the new agent compress a held-out paragraph and restore it. It
writes where the stages write by default, under --root; use another root to keep results that are already there.
"""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.artifacts import SEED, InputError, Parser, bounded, run, write_text
from data.provenance import REPOSITORY
from data.scratch import make_output_dir
from data.sequences import load_sequences
from eval.records import EVALUATION, read_results
from eval.report import format_table
from models.reconstructor.tokenizer import fingerprint, load_tokenizer

TRAINED = 5  # commands, after which there is a system to use

def stages(root, args):
    """The commands: a title and the command line after `python`."""
    folders = ("data/processed", "models/reconstructor/fine-tuned", "models/agent/output", "eval/test_output")
    data, tuned, agent, results = (shlex.quote(str(root / folder)) for folder in folders)
    seed = f"--seed {args.seed}"
    commands = {
        "prepare data": f"data/prepare.py --source mixed --input sotu wiki --output_dir {data} --max_length 128",
        "fine-tune the reconstructor": f"models/reconstructor/train_cpu.py --data_path {data}/processed_data.json "
        f"--output_dir {tuned} --max_steps {args.finetune_steps} --batch_size 8 --learning_rate 1e-4 --eval_steps 60 "
        f"--eval_sequences 64 {seed}",
        "train the agent": f"rl/train.py --data_path {data}/processed_data.json --output_dir {agent} "
        f"--reconstructor_path {tuned} --num_timesteps {args.num_timesteps} --n_steps 64 --batch_size 16 --eval_freq 640 {seed}",
        "evaluate": f"eval/evaluate.py --model_path {agent}/best_model.zip --data_path {data}/test_data.json "
        f"--output_dir {results} --num_sequences {args.num_sequences} {seed}",
        "draw the figures": f"plots/visualize.py --log_dir {agent}/tb_logs --results_path {results}/evaluation_results.json "
        f"--output_dir {shlex.quote(str(root / 'plots/output'))}",
        "compress a held-out paragraph": f"eval/compress.py --model_path {agent}/best_model.zip --input {results}/paragraph.txt "
        f"--keep_ratio 0.7 --output {results}/paragraph.short.txt",
        "restore it": f"eval/compress.py --model_path {agent}/best_model.zip --restore {results}/paragraph.short.txt "
        f"--output {results}/paragraph.restored.txt",
    }
    return [(title, shlex.split(command)) for title, command in commands.items()]


def write_paragraph(root):
    """A held-out text of the first stage, as a file."""
    tokenizer = load_tokenizer(root / "models/reconstructor/fine-tuned")
    ids = load_sequences(root / "data/processed/test_data.json", fingerprint(tokenizer))[0]
    write_text(root / "eval/test_output/paragraph.txt", tokenizer.decode(ids))


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--root", type=Path, default=Path("."), help="directory under which data, models, results and figures are written")
    add("--finetune_steps", type=bounded(int, 1, 10**9), default=60, help="optimiser steps of the reconstructor")
    add("--num_timesteps", type=bounded(int, 64, 10**12), default=1280, help="texts the agent is trained on")
    add("--seed", type=SEED, default=42, help="seeds reconstructor, agent and evaluation; the data stay the same")
    add("--num_sequences", type=bounded(int, 1, 10**9), default=100, help="held-out texts to evaluate on")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    root = make_output_dir(args.root.absolute())
    os.chdir(REPOSITORY)
    root = root.relative_to(REPOSITORY) if root.is_relative_to(REPOSITORY) else root
    results = root / "eval/test_output"
    start = time.monotonic()
    commands = stages(root, args)
    for number, (title, words) in enumerate(commands, 1):
        if number == TRAINED + 1:
            write_paragraph(root)
        began = time.monotonic()
        print(f"\n[{number}/{len(commands)}] {title}\n$ python {shlex.join(words)}\n", flush=True)
        status = subprocess.run([sys.executable, *words]).returncode
        if status:
            raise InputError(f"stage {number} ({title}) ended with exit status {status}; its own message stands above")
        print(f"\n{title}: {time.monotonic() - began:.0f} s", flush=True)
    record = read_results(results / "evaluation_results.json", EVALUATION)
    print(f"\n{format_table(record)}\n\nFigures:")
    for path in sorted((root / "plots/output").glob("*.png")):
        print(f"  {path}")
    print(f"\nTraining curves: tensorboard --logdir {root / 'models/agent/output/tb_logs'}")
    for name in ("paragraph.txt", "paragraph.short.txt", "paragraph.restored.txt"):
        print(f"\n{results / name}\n{(results / name).read_text(encoding='utf-8')}")
    print(f"\nThe whole pipeline took {(time.monotonic() - start) / 60:.1f} minutes.")


if __name__ == "__main__":
    run(main)
