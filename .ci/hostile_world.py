"""The toy world of the hostile cases: every stage has run in it once, with relative paths, so that a copy of it is a world, too.

All scripts are imported here, once. `WORDS` has a command line for each that works in the world; `OWN` says what a run may write.
"""

import contextlib
import importlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from data.artifacts import run
from data.testing.toy import write_byte_base
from models.reconstructor.tokenizer import load_tokenizer
from models.reconstructor.words import Words

PREPARE, TUNE, TRAIN, PROPOSER = "data/prepare.py", "models/reconstructor/train_cpu.py", "rl/train.py", "rl/train_proposer.py"
READ, WORTH, EVALUATE, PRICE = "rl/read.py", "rl/train_worth.py", "eval/evaluate.py", "eval/evaluate_price.py"
READER, LOSSLESS, COMPRESS = "eval/evaluate_reader.py", "eval/evaluate_lossless.py", "eval/compress.py"
DRAW = "plots/visualize.py"
AGENT, TEST = "--model_path agent/best_model.zip", "--data_path data/test_data.json"
RESTORE, PACK = f"{COMPRESS} --restore", f"{COMPRESS} --lossless"  # further ways to run a script
PANEL, CURVES = f"{DRAW} --results_path", f"{DRAW} --log_dir"
WORDS = {  # command lines that work, in the order in which a world is made
    PREPARE: "--source text --input toy.jsonl --tokenizer base --output_dir data --max_length 24 --min_length 8 --val_ratio 0.2 "
    "--test_ratio 0.2 --quiet",
    TUNE: "--data_path data/processed_data.json --base_model base --output_dir tuned --max_steps 3 --batch_size 4 --save_steps 1 "
    "--eval_steps 2 --eval_sequences 4 --quiet",
    TRAIN: "--data_path data/processed_data.json --reconstructor_path tuned --output_dir agent --num_timesteps 8 --n_steps 4 "
    "--batch_size 4 --n_epochs 1 --width 8 --eval_freq 4 --eval_sequences 2 --eval_prices 3 --device cpu --quiet",
    PROPOSER: "--data_path data/processed_data.json --reconstructor_path tuned --output_dir proposer --num_texts 4 "
    "--eval_sequences 2 --epochs 1 --device cpu --quiet",
    READ: "--data_path data/processed_data.json --tokenizer base --reader base --without questions.jsonl --output new.jsonl "
    "--num_texts 2 --num_answers 1 --num_masks 2 --device cpu --quiet",
    WORTH: f"--reads reads.jsonl {AGENT} --output_dir taught --epochs 1 --device cpu --quiet",
    EVALUATE: f"{AGENT} {TEST} --output_dir results --num_sequences 3 --tune_sequences 2 --keep_ratios 0.5 --num_examples 1 "
    "--methods frequency head --device cpu --quiet",
    PRICE: f"{AGENT} {TEST} --output_dir results --num_sequences 3 --tune_sequences 2 --prices 3 --methods frequency "
    "--device cpu --quiet",
    READER: f"{AGENT} {TEST} --output_dir results --reader base --questions questions.jsonl --split all --num_questions 3 "
    "--budgets 0.5 --methods head agent --device cpu --quiet",
    LOSSLESS: f"{AGENT} {TEST} --output_dir results --tokens 40 --quiet",
    COMPRESS: f"{AGENT} --input note.txt --keep_ratio 0.5 --output note.short.txt --device cpu --quiet",
    PACK: f"{AGENT} --input note.txt --lossless --output note.rltc.json --device cpu --quiet",
    RESTORE: f"{AGENT} --restore note.rltc.json --output restored.txt --device cpu --quiet",
    DRAW: "--results_path results/evaluation_results.json --output_dir figures --dpi 30",
    PANEL: "--results_path results/reader_results.json --output_dir figures --dpi 30",
    CURVES: "--log_dir agent/tb_logs --output_dir figures --dpi 30",
}
OTHERS = (  # scripts whose command lines alone are tried: what they do takes long, or needs what is not there
    "models/reconstructor/train_gpu.py", "models/reconstructor/benchmark.py", "models/reconstructor/pretraining/pretrain.py",
    "models/reconstructor/pretraining/card.py", "data/benchmark.py", "eval/benchmark.py", "rl/benchmark.py", "eval/quickstart.py",
)
RUN = ("training.json", "tb_logs/events*", ".rltc_lock", "*.rltc_run")
MODEL = ("config.json", "generation_config.json", "*.safetensors", "reconstructor.json", "tokenizer*.json")
OWN = {  # what a run may write or delete in its output directory; all else there, and everything elsewhere, is the user's
    PREPARE: ("processed_data.json", "val_data.json", "test_data.json", "dataset_info.json", ".rltc_partial/*", ".rltc_lock"),
    TUNE: (*RUN, *MODEL, "checkpoint-*/*", ".unfinished/*"),
    TRAIN: (*RUN, "best_model.zip", "final_model.zip", "checkpoints/checkpoint-*/*", "checkpoints/.unfinished/*"),
    PROPOSER: (*RUN, "best_model.zip"),
    WORTH: ("config.json", "*.safetensors"),
    EVALUATE: ("evaluation_results.json", "examples.txt"), PRICE: ("price_results.json",), READER: ("reader_results.json",),
    LOSSLESS: ("lossless_results.json",), DRAW: ("*.png",), PANEL: ("*.png",), CURVES: ("*.png",),
}
INPUTS = ("input", "tokenizer", "data_path", "base_model", "reconstructor_path", "reader", "reads", "model_path", "questions",
          "restore", "log_dir", "results_path", "without")
WRITTEN = "do not restart the server and never delete the logs there".split()  # the words of the toy corpus


def module_of(script):
    """The module of a script, or of a further way to run it."""
    return importlib.import_module(script.split()[0].removesuffix(".py").replace("/", "."))


def import_scripts():
    for script in (*WORDS, *OTHERS):
        module_of(script)
    torch.set_num_threads(1)


def value_of(words, flag):
    """What a command line, a list, gives for a flag; None if nothing."""
    return words[words.index(flag) + 1] if flag in words[:-1] else None


def line(script, *more, **flags):
    """The words of a script's command line that works, with other values of flags; None: without it."""
    words = WORDS[script].split()
    for flag, value in flags.items():
        name = f"--{flag}"
        if name not in words:
            words += [name]
        place, end = words.index(name), words.index(name) + 1
        while end < len(words) and not words[end].startswith("--"):
            end += 1
        given = [] if value is True else [str(value)]
        words[place:end] = [] if value is None else [f"{name}={value}"] if str(value).startswith("-") else [name, *given]
    return [*words, *more]


def inputs(script, world):
    """(flag, path) of all that a script reads in the world."""
    words = WORDS[script].split()
    return [(flag, value_of(words, f"--{flag}")) for flag in INPUTS if f"--{flag}" in words and
            (world / value_of(words, f"--{flag}")).exists()]


def call(script, words, around=contextlib.nullcontext):
    """Run a script in this process, as its last lines do. `around`: a context that it runs in."""

    def main():
        with around():
            module_of(script).main()

    sys.argv = [script.split()[0], *words]
    run(main)


def mounted(world, room):
    """Mount a disk of `room` KB at `world`. Returns whether this process may."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}k", "tmpfs", str(world)], capture_output=True)
    return done.returncode == 0


def size_of(world):
    """KB that the files of a world take on a disk of 4 KB pages."""
    return sum(-(-os.lstat(os.path.join(f, n)).st_size // 4096) * 4 for f, _, names in os.walk(world) for n in names)


def restore_modes(folder):
    """Make everything readable again."""
    for path, folders, _ in os.walk(folder):
        for name in folders:
            if not os.path.islink(inner := os.path.join(path, name)):
                os.chmod(inner, 0o755)


def write_inputs(rng):
    """Corpus, base model and questions, in the current directory."""
    write_byte_base("base", n_positions=256)
    texts = [" ".join(rng.choice(WRITTEN, 14)) + "." for _ in range(60)]
    Path("toy.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    Path("note.txt").write_text("\n".join(texts[:2]) + "\n", encoding="utf-8")
    rows = [{"context": text, "question": "What is it?", "answer": text.split()[2]} for text in texts[:12]]
    Path("questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tokenizer, reads = load_tokenizer("base"), []
    for text in texts[:20]:
        words = len(Words(tokenizer).first_of(tokenizer(text, add_special_tokens=False)["input_ids"]))
        masks = ["".join(rng.choice(["0", "1"], words)) for _ in range(2)]
        reads.append({"text": text, "masks": masks, "questions": [{"question": "?", "answer": "a", "nats": [9, 1, 3, 5]}]})
    Path("reads.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reads), encoding="utf-8")


def interrupt():
    """Leave a preparation that was interrupted in `half`."""
    from data import pipeline

    pipeline.SAVE_EVERY, pipeline.BATCH_CHARACTERS = 0, 400
    replace, count = os.replace, itertools.count()

    def interrupted(source, target):
        if next(count) == 4:
            raise KeyboardInterrupt
        replace(source, target)

    os.replace = interrupted
    try:
        call(PREPARE, line(PREPARE, output_dir="half"))
    except SystemExit as error:
        assert error.code == 130, error.code


def build(folder, runner):
    """Make the world in `folder`. `runner(function, *args)` runs each step in a process of its own."""
    os.chdir(folder)
    runner(write_inputs, np.random.default_rng(0))
    for script, words in WORDS.items():
        runner(call, script, words.split())
    runner(interrupt)
    shutil.rmtree("data/.rltc_cache")
    os.unlink("new.jsonl")
    os.unlink("new.jsonl.json")
    for directory in ("data", "tuned", "agent", "agent/tb_logs", "agent/checkpoints", "results", "figures", "taught", "proposer"):
        Path(directory, "mine.txt").write_text("a user's file\n")
        Path(directory, ".cache").mkdir(exist_ok=True)
        Path(directory, ".cache/mine.txt").write_text("a user's file\n")


def in_a_folder(examine, args):
    """Exit with status 1 unless `examine(args, folder)` finds everything right; the folder is new, and deleted in the end."""
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))  # no TemporaryDirectory: children would delete it when they end
    try:
        right = examine(args, folder)
    finally:
        os.chdir("/")
        shutil.rmtree(folder)
    if not right:
        sys.exit(1)
