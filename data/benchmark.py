"""Measure what data preparation promises: speed beside bare `tokenizers`, the opening of a large file, and memory.

    python data/benchmark.py
    python data/benchmark.py --measures opening --sequences 50000 --length 1024

`speed` runs preparation, from a .jsonl file to the finished data set, and bare batch encoding of the same documents in turn, with
the same number of threads (RAYON_NUM_THREADS sets it, TOKENIZERS_PARALLELISM=false means one), and prints the medians and their
ratio. `opening` makes a sequence file and opens it in a new process as a training stage does: once cold, when `datasets` converts
it, and once warm. `memory` prepares a corpus and one several times as large and prints the peaks of the two processes.
Reads the embedded corpus; writes into a temporary directory, which it deletes.
"""

import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from contextlib import redirect_stdout
from itertools import cycle
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from data import prepare
from data.artifacts import Parser, bounded, run, write_json
from data.partial import Partial
from data.pipeline import BATCH_CHARACTERS
from data.sequences import INFO, SCHEMA, SPLITS, SequenceWriter, load_sequences
from data.sources import SotuDocuments, TextDocuments
from data.testing.preparation import write_jsonl
from models.reconstructor.tokenizer import BASE_MODEL, fingerprint, load_tokenizer, text_vocab_size

MIB = 2**20
DOCUMENT = 1200  # characters, about the mean of a Reddit post in webis/tldr-17
GROWTH = 4  # times as many documents has the second corpus of the memory measurement
SIDES = ("prepare", "encode_batch_fast", "encode_batch")


def write_corpus(path, documents):
    """A .jsonl file of that many documents of about DOCUMENT characters, numbered so that no two are equal. Returns the texts."""
    pieces, text = [], ""
    for _, address in SotuDocuments(seed=42):
        for paragraph in address.split("\n"):
            text += paragraph + "\n"
            if len(text) >= DOCUMENT:
                pieces.append(text)
                text = ""
    texts = [f"{number} {text}" for number, text in zip(range(documents), cycle(pieces))]
    write_jsonl(path, texts)
    return texts


def prepare_seconds(corpus, folder, tokenizer):
    """Seconds of preparation from the corpus to the end of its splits' last byte, and the tokens written."""
    words = f"--source text --input {corpus} --output_dir {folder} --quiet --max_sequences {10**9} --min_length 1"
    args = prepare.parse_args(words.split())
    began = time.perf_counter()
    with redirect_stdout(io.StringIO()):
        prepare.prepare(TextDocuments(args.input, args.text_column), tokenizer, {}, Partial(args, {}), args)
    seconds = time.perf_counter() - began
    splits = json.loads((folder / INFO).read_text())["splits"]
    return seconds, sum(split["tokens"] for split in splits.values())


def bare_seconds(texts, encode):
    """Seconds in which bare `tokenizers` encodes the same texts in calls of the same size."""
    began = time.perf_counter()
    batch, characters = [], 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            encode(batch, add_special_tokens=False)
            batch, characters = [], 0
    encode(batch, add_special_tokens=False)
    return time.perf_counter() - began


def measure_speed(folder, args):
    """Preparation and bare encoding in turn, `args.repeats` times after one round that is not counted."""
    tokenizer = load_tokenizer(BASE_MODEL)
    texts = write_corpus(folder / "corpus.jsonl", args.documents)
    seconds = {side: [] for side in SIDES}
    for _ in range(args.repeats + 1):
        prepared, tokens = prepare_seconds(folder / "corpus.jsonl", folder, tokenizer)
        seconds["prepare"].append(prepared)
        for side in SIDES[1:]:
            seconds[side].append(bare_seconds(texts, getattr(tokenizer.backend_tokenizer, side)))
    median = {side: statistics.median(times[1:]) for side, times in seconds.items()}
    print(f"speed: {len(texts):,} documents, {tokens:,} tokens, medians of {args.repeats} rounds")
    for side, value in median.items():
        share = value / median["prepare"]
        print(f"  {side:18s} {value:7.2f} s {tokens / value:>12,.0f} tokens/s; prepare reaches {share:.2f} of that")


def write_sequences(folder, sequences, length):
    """A training split of random tokens, each equally likely (its numbers are longer than a text's), and its description."""
    tokenizer, rng = load_tokenizer(BASE_MODEL), np.random.default_rng(42)
    vocab_size = text_vocab_size(tokenizer)
    writer = SequenceWriter(folder / SPLITS["train"], vocab_size)
    for number in range(sequences):
        writer.write(f"document {number}", 0, rng.integers(vocab_size, size=length), 5 * length)
    writer.close()
    write_json(
        folder / INFO, SCHEMA, Namespace(seed=42), prepare.UNITS, max_length=length,
        splits={"train": {"file": SPLITS["train"], **writer.statistics()}},
        tokenizer={"name": BASE_MODEL, "fingerprint": fingerprint(tokenizer), "vocab_size": vocab_size},
    )


def peak_memory():
    """The most memory that this process had resident so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage's figure, not inherited from the process that started this one
        return int(next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def open_sequences(folder):
    """In a process of its own: open the training split as a training stage does, and print the figures as JSON."""
    import torch  # noqa: F401, a training stage has it in memory

    tokenizer = load_tokenizer(BASE_MODEL)
    before, began = peak_memory(), time.perf_counter()
    sequences = load_sequences(folder / SPLITS["train"], fingerprint(tokenizer))
    sequences[len(sequences) - 1]
    print(json.dumps({"seconds": time.perf_counter() - began, "before": before, "peak": peak_memory()}))


def prepare_corpus(folder):
    """In a process of its own: prepare `folder/corpus.jsonl` and print the peak as JSON."""
    words = f"--source text --input {folder / 'corpus.jsonl'} --output_dir {folder / 'out'} --quiet --max_sequences {10**9}"
    prepare.main(words.split())
    print(json.dumps({"peak": peak_memory()}))


def in_new_process(step, folder):
    """Run one of this script's steps in a new process; what it printed last, as JSON."""
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_opening(folder, args):
    """The seconds and the memory of opening a large file, cold and warm."""
    write_sequences(folder, args.sequences, args.length)
    size = (folder / SPLITS["train"]).stat().st_size
    print(f"opening: {args.sequences:,} sequences of {args.length:,} tokens, {size / MIB:,.0f} MiB")
    for name in ("cold", "warm"):
        found = in_new_process("open", folder)
        seconds, peak, before = found["seconds"], found["peak"] / MIB, found["before"] / MIB
        print(f"  {name} {seconds:5.1f} s, peak of resident memory {peak:,.0f} MiB, of which {before:,.0f} MiB are libraries")


def measure_memory(folder, args):
    """The peaks of preparing a corpus and one GROWTH times as large."""
    print("memory: peak of resident memory of preparation")
    for documents in (args.documents, args.documents * GROWTH):
        texts = write_corpus(folder / "corpus.jsonl", documents)
        found = in_new_process("prepare", folder)
        print(f"  {documents:>9,} documents, {sum(map(len, texts)):>13,} characters: {found['peak'] / MIB:,.0f} MiB")


MEASURES = {"speed": measure_speed, "opening": measure_opening, "memory": measure_memory}
STEPS = {"open": open_sequences, "prepare": prepare_corpus}


def parse_args(argv=None):
    parser = Parser(__doc__)
    add, count = parser.add_argument, bounded(int, 1, 10**7)
    add("--measures", nargs="+", choices=MEASURES, default=list(MEASURES), help="what to measure")
    add("--repeats", type=count, default=5, help="counted rounds of the speed measurement")
    add("--documents", type=count, default=8000, help=f"documents of about {DOCUMENT} characters, for speed and memory")
    add("--sequences", type=count, default=50_000, help="sequences of the file that is opened")
    add("--length", type=count, default=1024, help="tokens of each of these sequences")
    add("--step", choices=STEPS, help="a part of a measurement, which the script runs in a process of its own")
    add("--folder", type=Path, help="for --step: where its files are")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if args.step:
        return STEPS[args.step](args.folder)
    for name in args.measures:
        with tempfile.TemporaryDirectory() as folder:
            MEASURES[name](Path(folder), args)


if __name__ == "__main__":
    run(main)
