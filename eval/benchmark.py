"""Measure deciding, compressing and restoring by length, beside causal passes: when does compressing cost more than it saves?

    python eval/benchmark.py --output_dir eval/results/speed

With the agent that ships, at keep ratio RATIO, on texts of `--lengths` tokens of the embedded corpus. Every way on every length
runs in a process of its own, one thread, whose peak memory is that of this length. Beside it stand the agent's own base and a
GPT-2 with 124 M parameters (random weights; they don't change the time), in windows of WINDOW tokens: `surprisal` has logits at
every token, as Selective Context needs; `prefill` reads a text as a prompt, with logits at its end. What would take longer than
`--max_seconds`, at the speed of the length before, is not measured, and `reason` says so.

`pays`: a language model that reads R tokens per second in prefill saves (1 − k) n / R seconds on n tokens, of which the share k
is sent, and compressing costs a + n / C: C is the speed on the longest text, a what the shortest one takes beyond that. So it
pays only if R < (1 − k) C, from a / ((1 − k) / R − 1 / C) tokens on. The command line has to start, too. C is measured at RATIO
and taken for the other keep ratios. Writes `speed_results.json`, after every length.
"""

import itertools
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from data.artifacts import SEED, Parser, bounded, quieten_libraries, run, write_json
from data.provenance import REPOSITORY
from data.scratch import claimed
from data.sources import SotuDocuments
from eval.compressor import Compressor
from eval.methods import CausalSurprisal
from models.agent.files import RELEASED
from models.reconstructor.causal_lm import load_causal_lm
from models.reconstructor.reconstructor import find_device
from models.reconstructor.tokenizer import locate

SCHEMA = "rltc.speed/1"
RATIO, WINDOW = 0.7, 512
DOCUMENTS = 40  # some 200,000 tokens, which come again in a longer text
ENOUGH = 3.0  # seconds after which no call is made again
KEPT = (0.9, 0.8, 0.7, 0.6, 0.5)  # keep ratios of `pays`
OWN, LARGE = "own base", "GPT-2 with 124 M"
DECIDING, COMPRESSING, READ, RESTORING = "deciding", "compressing, to restore", "compressing, to read", "restoring"
PASSES = tuple(f"{kind}, {model}" for model in (OWN, LARGE) for kind in ("surprisal", "prefill"))
WAYS = (DECIDING, COMPRESSING, READ, RESTORING, *PASSES)
UNITS = {
    "tokens": "tokens of the original text, also of what is restored",
    "seconds": "of a call with models loaded, median; of the processor, one thread; beside a card of the wall",
    "tokens_per_second": "tokens / seconds", "peak_memory": "MiB, of the process or of the card",
    "load": "average number of programs that ran or waited in the last minute",
    "fixed": "seconds of a call, whatever the length",
    "start": "seconds of eval/compress.py --goal read on the shortest text, beyond the call: Python, libraries, models",
    "reader": "tokens/s of prefill below which compressing saves time",
    "from_tokens": "shortest text on which it does; null: none", "from_tokens_with_start": "the same from the command line",
}


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model_path", type=Path, default=Path(RELEASED), help="the agent, a directory or a .zip")
    add("--output_dir", type=Path, default=Path("eval/test_output"), help="directory of speed_results.json")
    add("--lengths", type=bounded(int, 16, 10**9), nargs="+", default=[10**n for n in range(2, 7)], help="of texts")
    add("--turns", type=bounded(int, 1, 1000), default=5, help="calls at most, of which the median counts")
    add("--max_seconds", type=bounded(float, 0, 10**6), default=300.0, help="what would take longer is left out")
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("--seed", type=SEED, default=42, help="seeds texts and random weights")
    return parser.parse_args(argv)


def alone(task, *arguments):
    """What `task(*arguments)` returns, in a process of its own, forked of one that has but the libraries in memory."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["eval.benchmark"])
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(task, *arguments).result()


def make_texts(args):
    """Texts of about `--lengths` tokens each, ascending."""
    tokenizer = Compressor(args.model_path).reconstructor.tokenizer
    ids = tokenizer("\n".join(text for _, text in itertools.islice(SotuDocuments(args.seed), DOCUMENTS)))["input_ids"]
    return [tokenizer.decode(np.resize(ids, length)) for length in sorted(args.lengths)]


def causal_pass(kind, model, compressor, ids):
    """A function that reads ids (T,) in windows by a causal language model."""
    if model == LARGE:
        model = GPT2LMHeadModel(GPT2Config(n_positions=1024, vocab_size=compressor.reconstructor.vocab_size))
    else:
        model = load_causal_lm(compressor.config["reconstructor"]["path"])
    model, bos_id = model.to(compressor.device).eval(), compressor.reconstructor.bos_id
    width = min(WINDOW, model.config.max_position_embeddings - 1)
    windows = [ids[None, at : at + width].astype(np.int64) for at in range(0, len(ids), width)]
    surprisal = CausalSurprisal(model, bos_id)

    @torch.inference_mode()
    def read():
        for window in windows:
            if kind == "surprisal":
                surprisal.scores(window, window >= 0, None)
            else:
                model(torch.as_tensor(window, device=model.device), use_cache=True, logits_to_keep=1)

    return read


def prepared(way, text, sent, args):
    """A function that does `way` once, and the tokens of the text. `sent`: what was sent of it, which is restored."""
    goal = "read" if way == READ else "restore"
    compressor = Compressor.from_pretrained(args.model_path, find_device(args.device), goal=goal, keep_ratio=RATIO)
    ids = compressor.encoder.encode(text).ids
    if way in PASSES:
        return causal_pass(*way.split(", "), compressor, ids), len(ids)
    calls = {DECIDING: lambda: compressor.keep_mask(ids), RESTORING: lambda: compressor.restore(sent)}
    return calls.get(way, lambda: compressor.compress(text).text), len(ids)


def measure(way, text, sent, args):
    """The figures of one way on one text, and what it returned. Of several calls the first is not counted."""
    quieten_libraries()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    call, tokens = prepared(way, text, sent, args)
    on_card, took = find_device(args.device) == "cuda", []
    while len(took) <= args.turns and sum(took[1:]) < ENOUGH:
        start = clock(on_card)
        returned = call()
        if on_card:
            torch.cuda.synchronize()
        took.append(clock(on_card) - start)
        if took[0] > ENOUGH:
            break
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    peak = torch.cuda.max_memory_allocated() if on_card else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    seconds = float(np.median(took[1:] or took))
    figures = {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds, "peak_memory": peak / 2**20}
    return figures | {"turns": len(took[1:] or took), "load": os.getloadavg()[0]}, returned


def clock(on_card):
    """Seconds, of the wall beside a card, else of this process: programs beside it do not count."""
    return time.perf_counter() if on_card else time.process_time()


def measure_all(args):
    """After every length, in ascending order: the rows of every way so far, and the shortest text."""
    rows, texts, last = [], alone(make_texts, args), {}
    for length, text in zip(sorted(args.lengths), texts, strict=True):
        sent = None
        for way in WAYS:
            expected = length / last[way]["tokens_per_second"] if way in last else 0
            figures = dict.fromkeys(("tokens", "seconds", "tokens_per_second", "peak_memory"))
            if expected > args.max_seconds:
                figures["reason"] = f"would take {expected:,.0f} s, more than {args.max_seconds:g}"
            elif way == RESTORING and sent is None:
                figures["reason"] = "nothing was compressed to restore"
            else:
                last[way], returned = alone(measure, way, text, sent, args)
                figures, sent = last[way], returned if way == COMPRESSING else sent
            rows.append({"way": way, "length": length, **figures})
            said = "{tokens_per_second:9,.0f} tokens/s, peak {peak_memory:,.0f} MiB"
            print(f"{length:11,} tokens, {way:30s}", figures.get("reason") or said.format_map(figures), flush=True)
        yield rows, texts[0]


def start_of(text, args, seconds):
    """Seconds of the processor that the command line takes on a text beyond those of the call."""
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / "text.txt").write_text(text, encoding="utf-8")
        words = ["--input", path, "--goal", "read", "--model_path", args.model_path, "--device", args.device, "--quiet"]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, REPOSITORY / "eval/compress.py", *words]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return max(0.0, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime - seconds)


def pays(fixed, speed, start, readers):
    """When compressing to be read saves time: a row for every keep ratio and reader {name: tokens per second of prefill}.

    `fixed` and `start`: seconds that a call and the command line take whatever the length; `speed`: tokens per second.
    """
    rows = []
    for kept in KEPT:
        for name, reads in readers.items():
            gain = (1 - kept) / reads - 1 / speed  # seconds saved per token
            least = [float(np.ceil(cost / gain)) if gain > 0 else None for cost in (fixed, fixed + start)]
            row = {"keep_ratio": kept, "reader": speed * (1 - kept), "by": name, "tokens_per_second": reads}
            rows.append(row | {"from_tokens": least[0], "from_tokens_with_start": least[1]})
    return rows


def main(argv=None):
    args, start = parse_args(argv), None
    with claimed(args.output_dir):
        for rows, text in measure_all(args):
            measured = {way: [row for row in rows if row["way"] == way and row["seconds"]] for way in WAYS}
            short, long = measured[READ][0], measured[READ][-1]
            fixed = max(0.0, short["seconds"] - short["tokens"] / long["tokens_per_second"])
            start = start_of(text, args, short["seconds"]) if start is None else start
            readers = {model: measured[f"prefill, {model}"][-1]["tokens_per_second"] for model in (OWN, LARGE)}
            found = pays(fixed, long["tokens_per_second"], start, readers)
            content = {"keep_ratio": RATIO, "results": rows, "fixed": fixed, "start": start, "pays": found}
            write_json(args.output_dir / "speed_results.json", SCHEMA, args, UNITS, [locate(args.model_path)], **content)
        print(args.output_dir / "speed_results.json")


if __name__ == "__main__":
    run(main)
