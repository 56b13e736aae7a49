"""Run every command line on a card, compare what it does there with a CPU, and measure its speed.

    .ci/gpu_check.sh [folder]

Writes gpu_check.json (every figure, every step with its seconds) and gpu_check.log (what the steps printed) into the folder.
A step that fails does not stop the others; the exit status is 1 if one did. Steps that only compare run side by side,
those that measure speed run alone.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from data.artifacts import InputError, Parser, bounded, run, write_json
from data.scratch import make_output_dir
from data.sequences import load_info, load_sequences, pad_batch
from data.testing.toy import seal
from models.agent.files import load_policy
from models.reconstructor.tokenizer import BASE_MODEL, load_tokenizer, locate

SCHEMA = "rltc.gpu_check/1"
UNITS = {"seconds": "seconds of wall time", "difference of losses": "nats per masked token", "figures": "as their names say"}
PEAK = 989e12  # bfloat16 FLOP/s without sparsity of an H100 or H200 SXM (NVIDIA's data sheets)
CLOSE = 1e-3  # nats per masked token, how far two loss curves of 20 steps may be apart
DROPOUT = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout")  # off where a card is compared with a CPU
SPEED_LINE = re.compile(r"^\s+(\S.*?)\s{2,}([\d,.]+) (tokens|decisions)/s \(")  # of rl/benchmark.py


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("output_dir", type=Path, help="folder for gpu_check.json and gpu_check.log")
    parser.add_argument("--device", choices=("cuda", "mps", "cpu"), default="cuda", help="what to check")
    parser.add_argument("--small", action="store_true", help="small numbers, for a CPU")
    parser.add_argument("--jobs", type=bounded(int, 1, 64), default=8, help="steps side by side where no speed is measured")
    parser.add_argument("--limit", type=bounded(int, 1, 10**5), default=260, help="seconds; no step begins later")
    args = parser.parse_args(argv)
    if args.small:
        args.jobs, args.limit = 1, 3600
    return args


class Check:
    """Runs steps, and holds what they took and found."""

    def __init__(self, args, work):
        self.args, self.work, self.began = args, work, time.monotonic()
        self.length, self.count = (32, 4) if args.small else (128, 20)  # tokens of a text, optimiser steps of a run
        self.steps, self.figures, self.lock = [], {}, threading.Lock()
        self.log = (args.output_dir / "gpu_check.log").open("w", encoding="utf-8")

    def step(self, name, function):
        """Run `function`; it fails by raising. Returns whether it did not."""
        start, reason = time.monotonic(), None
        try:
            if start - self.began > self.args.limit:
                raise InputError(f"left out: {self.args.limit} seconds had passed")
            function()
        except Exception as error:  # whatever is wrong with a step is reported with it, and the others go on
            reason = f"{type(error).__name__}: {str(error).strip()}"
        seconds = time.monotonic() - start
        with self.lock:
            self.steps.append({"step": name, "seconds": round(seconds, 1), "failed": reason})
            said = f": {reason[-600:]}" if reason else ""
            print(f"{'FAILED' if reason else 'ok':6s} {seconds:6.1f} s  {name}{said}", flush=True)
        return reason is None

    def together(self, steps):
        """Run {name: function} side by side."""
        with ThreadPoolExecutor(self.args.jobs) as pool:
            list(pool.map(lambda item: self.step(*item), steps.items()))

    def script(self, path, *words):
        """Run a script of the repository; raises RuntimeError with its last lines if it fails. Returns what it printed."""
        command = [sys.executable, path, *map(str, words)]
        limit = max(1.0, self.began + self.args.limit + 30 - time.monotonic())
        environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, os.cpu_count() // self.args.jobs)), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment)
        with self.lock:
            self.log.write(f"$ {' '.join(command)}\n{done.stdout}\n{done.stderr}\n")
            self.log.flush()
        if done.returncode:
            raise RuntimeError(" / ".join((done.stderr or done.stdout).strip().splitlines()[-4:]))
        return done.stdout

    def fine_tune(self, name, *words, device=None, base="base"):
        """A step: fine-tune into the folder `name`, on 8 texts an optimiser step unless `words` say otherwise."""
        device = device or self.args.device
        script = f"models/reconstructor/train_{'cpu' if device == 'cpu' else 'gpu'}.py"
        paths = ["--data_path", self.work / "data/processed_data.json", "--output_dir", self.work / name, "--device", device]
        common = f"--max_length {self.length} --max_steps {self.count} --batch_size 8 --learning_rate 1e-4"
        common += f" --eval_sequences {4 if self.args.small else 16} --logging_steps 1 --quiet"
        return lambda: self.script(script, *paths, "--base_model", self.work / base, *common.split(), *words)

    def losses(self, name):
        log = json.loads((self.work / name / "training.json").read_text(encoding="utf-8"))["log"]
        return np.array([row["loss"] for row in log if "loss" in row])

    def same_curve(self, name, other, limit):
        """A step: the losses of two runs are at most `limit` nats apart."""

        def compare():
            difference = float(np.abs(self.losses(name) - self.losses(other)).max())
            self.figures[f"largest difference of losses, {name} and {other}"] = difference
            if not difference <= limit:
                raise RuntimeError(f"expected losses at most {limit} nats apart, found {difference:.5f}")

        return compare


def prepare(check):
    """Data from the embedded corpus, the embedded base with and without dropout, and a GPT-2 with random weights."""
    small = check.args.small
    words = f"--max_length 512 --max_sequences {200 if small else 2000} --quiet".split()
    check.script("data/prepare.py", "--output_dir", check.work / "data", *words)
    for name in ("base", "with_dropout"):
        shutil.copytree(locate(BASE_MODEL), check.work / name)
    config = json.loads((check.work / "base/config.json").read_text())
    (check.work / "base/config.json").write_text(json.dumps(config | dict.fromkeys(DROPOUT, 0.0)))
    seal(check.work / "base")
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_layer=1 if small else 12)).save_pretrained(check.work / "gpt2")
    load_tokenizer(BASE_MODEL).save_pretrained(check.work / "gpt2")


def command_of_readme(check):
    """The promised command line for CUDA, with few steps."""
    words = f"--max_length {4 * check.length} --use_amp --gradient_accumulation_steps 4 --batch_size 4".split()
    return check.fine_tune("command", *words, "--max_steps", check.count // 2, base="with_dropout")


def agent(check):
    """Agent and reconstructor on the card, with the promised flags of rl/train.py."""
    texts = 16 if check.args.small else 256
    words = f"--num_timesteps {texts} --n_steps {texts // 2} --batch_size 8 --gamma 0.99 --eval_freq {texts // 2}".split()
    words += f"--eval_sequences 8 --max_length {check.length} --device {check.args.device} --quiet".split()
    paths = ["--data_path", check.work / "data/processed_data.json", "--output_dir", check.work / "agent"]
    check.script("rl/train.py", *paths, "--reconstructor_path", check.work / "base", *words)


def evaluation(check, device):
    paths = ["--model_path", check.work / "agent/best_model.zip", "--data_path", check.work / "data/test_data.json"]
    paths += ["--base_model", check.work / "base"]
    words = f"--num_sequences {check.count} --max_length {check.length} --methods causal random --device {device} --quiet"
    check.script("eval/evaluate.py", *paths, "--output_dir", check.work / f"results-{device}", *words.split())


def same_masks(check):
    """How many decisions of an agent differ between card and CPU, of about 10,000, and why."""
    path, texts = check.work / "data/test_data.json", check.count * 5
    known = load_info(path)["tokenizer"]["fingerprint"]
    sequences = load_sequences(path, known, check.length)
    ids, valid = pad_batch([sequences[i] for i in range(min(len(sequences), texts))], 0)
    agents = [load_policy(check.work / "agent/best_model.zip", device) for device in ("cpu", check.args.device)]
    scores = [probabilities(policy, ids, valid) for policy in agents]
    masks = [agents[0].reader.words.keep_highest(s, ids, valid, 0.7) for s in scores]
    differing = int((masks[0] != masks[1]).sum())
    apart = float(np.abs(scores[0] - scores[1])[valid].max())
    check.figures["decisions compared"] = int(valid.sum())
    check.figures["decisions that differ between card and CPU at keep ratio 0.7"] = differing
    check.figures["largest difference of keep probabilities between card and CPU"] = apart
    # Why: rounding decides where the last token that is kept and the first that is masked are as good as equal.
    rows = np.flatnonzero((masks[0] != masks[1]).any(1))
    check.figures["texts in which they do"] = len(rows)
    ties = [margin(scores[0][row], masks[0][row], valid[row]) <= 2 * apart for row in rows]
    check.figures["of these, texts whose margin is within twice that difference"] = sum(ties)
    if differing > 0.001 * valid.sum():
        raise RuntimeError(f"expected at most 1 decision in 1,000 to differ, found {differing} of {int(valid.sum())}")


def margin(scores, keep_mask, valid):
    """How far the last kept token of a text is above the first masked one, in keep probability."""
    return scores[keep_mask & valid].min() - scores[~keep_mask].max()


def probabilities(policy, ids, valid):
    """Keep probabilities (B, T) at the λ at which each text keeps 0.7, 50 texts at a time."""
    parts = [policy.keep_probability_at(ids[i : i + 50], valid[i : i + 50], 0.7) for i in range(0, len(ids), 50)]
    return np.concatenate([np.asarray(part) for part in parts])


def resumed(check):
    """A run cut off after half of its steps and resumed, against one that was not, and against the same run once more."""
    shutil.copytree(check.work / "whole", check.work / "cut")
    shutil.rmtree(check.work / f"cut/checkpoint-{check.count}")
    (check.work / "cut/model.safetensors").unlink()
    check.fine_tune("cut", "--save_steps", check.count // 2, "--resume", base="with_dropout")()
    weights = {name: load_file(check.work / name / "model.safetensors") for name in ("whole", "again", "cut")}
    found = {name: max(float((weights["whole"][k] - weights[name][k]).abs().max()) for k in weights["whole"]) for name in weights}
    check.figures["largest difference of weights, interrupted and uninterrupted"] = found["cut"]
    check.figures["largest difference of weights, the same run twice"] = found["again"]
    if not found["cut"] <= CLOSE:
        raise RuntimeError(f"expected weights at most {CLOSE} apart, found {found['cut']}")


def fine_tuning_speed(check):
    """Tokens per second of this repository and of stock practice, their share of the card's peak, and memory."""
    large = "--max_length 512 --batch_size 32 --steps 10 --turns 4 --use_amp"
    words = "--max_length 32 --batch_size 2 --steps 1 --turns 1" if check.args.small else large
    paths = ["--data_path", check.work / "data/processed_data.json", "--base_model", check.work / "gpt2"]
    paths += ["--output", check.work / "speed.json", "--device", check.args.device, "--quiet"]
    check.script("models/reconstructor/benchmark.py", *paths, *words.split())
    for name, found in json.loads((check.work / "speed.json").read_text())["figures"].items():
        speed = float(np.median(found["tokens_per_second"]))
        flops = 6 * found["parameters"] * speed  # forward and backward of every weight; attention's products not counted
        title = f"fine-tuning GPT-2 with {found['parameters'] / 1e6:.0f} M, {name}"
        check.figures |= {f"{title}, tokens/s": speed, f"{title}, 6 N tokens/s as share of {PEAK:.3g} FLOP/s": flops / PEAK}
        check.figures[f"{title}, peak memory in GiB"] = (found["peak_memory"] or 0) / 2**30


def agent_speed(check, texts):
    """Deciding beside causal passes, training beside one environment at a time."""
    words = f"--texts {texts} --max_length {check.length} --turns {1 if check.args.small else 3} --quiet".split()
    paths = ["--data_path", check.work / "data/processed_data.json", "--reconstructor_path", check.work / "base"]
    printed = check.script("rl/benchmark.py", "--device", check.args.device, *paths, *words)
    for line in printed.splitlines():
        if match := SPEED_LINE.match(line):
            check.figures[f"{texts} texts: {match[1]}, {match[3]}/s"] = float(match[2].replace(",", ""))
    if not any(name.startswith(f"{texts} texts") for name in check.figures):
        raise RuntimeError("expected lines with tokens/s from rl/benchmark.py, found none")


def all_steps(check):
    """The steps in their order. Those that only compare run side by side."""
    half, devices = check.count // 2, sorted({"cpu", check.args.device})
    if not check.step("prepare", lambda: prepare(check)):
        return
    check.step("speed of fine-tuning", lambda: fine_tuning_speed(check))
    for texts in (1, 4) if check.args.small else (64, 1024, 1):
        check.step(f"speed of the agent, {texts} texts", lambda texts=texts: agent_speed(check, texts))
    amp = {f"AMP {t}": check.fine_tune(t, "--use_amp", "--amp_dtype", t) for t in ("bfloat16", "float16")}
    check.together({
        "torch.compile": check.fine_tune("compiled", "--torch_compile"), "rl/train.py": lambda: agent(check),
        "the CPU's curve": check.fine_tune("cpu", device="cpu"), "the card's curve": check.fine_tune("card"),
        "the command of COMMANDS": command_of_readme(check), **amp,
        "gradient accumulation": check.fine_tune("accumulated", "--batch_size", 2, "--gradient_accumulation_steps", 4),
        "gradient checkpointing": check.fine_tune("checkpointed", "--gradient_checkpointing"),
        "with dropout": check.fine_tune("whole", "--save_steps", half, base="with_dropout"),
        "with dropout, again": check.fine_tune("again", "--save_steps", half, base="with_dropout"),
    })
    check.together({
        "resumed": lambda: resumed(check), "masks of card and CPU": lambda: same_masks(check),
        **{f"eval/evaluate.py on {device}": lambda device=device: evaluation(check, device) for device in devices},
        **{f"{name} against the card's curve": check.same_curve(name, "card", CLOSE)
           for name in ("cpu", "accumulated", "checkpointed", "compiled")},
        **{f"{name} against float32": check.same_curve(name, "card", 0.1) for name in ("bfloat16", "float16")},
    })


def main(argv=None):
    args = parse_args(argv)
    make_output_dir(args.output_dir)
    with tempfile.TemporaryDirectory() as temporary:
        check = Check(args, Path(temporary))
        all_steps(check)
    card = torch.cuda.get_device_name() if args.device == "cuda" else args.device
    seconds = time.monotonic() - check.began
    content = {"card": card, "seconds": seconds, "steps": check.steps, "figures": check.figures}
    write_json(args.output_dir / "gpu_check.json", SCHEMA, args, UNITS, **content)
    width = max(map(len, check.figures), default=0)
    print(f"\n{card}, torch {torch.__version__}, {seconds:.0f} s")
    for name, value in check.figures.items():
        print(f"  {name:{width}s}  {value:,.6g}")
    sys.exit(1 if any(step["failed"] for step in check.steps) else 0)


if __name__ == "__main__":
    run(main)
