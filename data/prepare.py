"""Turn text into token sequences: the first stage.

Reads a corpus (by default the embedded one, so nothing is downloaded), tokenizes it, cuts each document into
sequences and writes `processed_data.json` (training), `val_data.json`, `test_data.json` and `dataset_info.json`.

    python data/prepare.py --output_dir data/processed --max_sequences 50000 --max_length 1024
    python data/prepare.py --source text --input 'notes/**/*.txt' posts.csv --text_column body

A document belongs to one split for ever: the split is read off the SHA-256 of its text, so it depends on no seed,
no source and no order, and the embedded base model, which was pre-trained on the training split alone, has never
seen a test document. Exact duplicates have the same hash; only the first is kept.
"""

import hashlib
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from data.artifacts import SEED, InputError, Parser, bounded, make_output_dir, run, write_json
from data.sequences import SCHEMA, SPLITS, SequenceWriter
from data.sources import reddit_documents, sotu_documents, text_documents
from models.reconstructor.tokenizer import BASE_MODEL, fingerprint, load_tokenizer

BATCH = 32  # documents tokenized in one call: enough to keep every core busy, few enough to stream
UNITS = {"max_length": "tokens", "splits.*.tokens": "tokens", "splits.*.sequences": "sequences", "splits.*.documents": "documents"}


def split_of(digest, val_ratio, test_ratio):
    """'train', 'val' or 'test' for a text with SHA-256 `digest` (bytes), by its first 64 bits read as a number in [0, 1)."""
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < test_ratio:
        return "test"
    return "val" if position < test_ratio + val_ratio else "train"


def unique_documents(documents, counts):
    """Yield `(name, text, digest)` of documents that have text and were not seen before; count the others."""
    seen = set()
    for name, text in documents:
        try:
            digest = hashlib.sha256(text.encode()).digest()
        except UnicodeEncodeError as error:
            raise InputError(f"{name}: expected text that UTF-8 can hold, found {text[error.start]!a} at character {error.start}; repair the file") from None
        counts["read"] += 1
        if not text.strip():
            counts["blank"] += 1
        elif digest in seen:
            counts["duplicates"] += 1
        else:
            seen.add(digest)
            yield name, text, digest


def quotas(args):
    """Sequences that each split may hold, so that a small --max_sequences still fills all three."""
    test, val = (max(1, round(args.max_sequences * share)) if share else 0 for share in (args.test_ratio, args.val_ratio))
    return {"train": max(1, args.max_sequences - test - val), "val": val, "test": test}


def batches(iterable, size):
    """Lists of up to `size` items."""
    batch = []
    for item in iterable:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def write_splits(documents, tokenizer, writers, counts, args):
    """Tokenize, cut and write until the documents end or every split has its quota of `args.max_sequences`.

    Sequences of one document follow each other. A remainder shorter than `args.min_length` tokens is dropped,
    counted in `counts["short"]`.
    """
    limits = quotas(args)
    with tqdm(total=args.max_sequences, unit="seq", desc="tokenize", disable=args.quiet) as progress:
        fill_splits(documents, tokenizer, writers, limits, counts, progress, args)


def fill_splits(documents, tokenizer, writers, limits, counts, progress, args):
    """The loop of `write_splits`; `limits` are the splits' quotas."""
    for batch in batches(unique_documents(documents, counts), BATCH):
        encoded = tokenizer([text for _, text, _ in batch], add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        for (name, _, digest), tokens in zip(batch, encoded):
            split = split_of(digest, args.val_ratio, args.test_ratio)
            writer = writers[split]
            for index, start in enumerate(range(0, len(tokens), args.max_length)):
                piece = tokens[start : start + args.max_length]
                if len(piece) < args.min_length:
                    counts["short"] += 1
                    continue
                if writer.sequences == limits[split]:
                    break
                writer.write(name, index, piece)
                progress.update()
        if all(w.sequences == limits[s] for s, w in writers.items()):
            return


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("data/processed"), help="directory for the three splits and dataset_info.json")
    parser.add_argument("--source", choices=("sotu", "text", "reddit"), default="sotu", help="sotu: the embedded presidential addresses; text: your own files; reddit: webis/tldr-17, streamed from the Hugging Face hub")
    parser.add_argument("--input", nargs="+", default=None, help="for --source text: files, folders or globs of .txt (one document a file), .jsonl, .csv, .parquet (one a row)")
    parser.add_argument("--text_column", default=None, help="field or column that holds the text; default 'text', for reddit 'content'")
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
    if args.input and args.source != "text":
        parser.error(f"--input: expected --source text, found --source {args.source}")
    args.text_column = args.text_column or ("content" if args.source == "reddit" else "text")
    return args


def check_splits(writers, counts, args):
    """Raise InputError if a split that was asked for is empty, or if there is nothing to learn."""
    shares = {"train": 1.0, "val": args.val_ratio, "test": args.test_ratio}
    empty = [split for split, writer in writers.items() if shares[split] and not writer.sequences]
    if empty:
        raise InputError(
            f"expected documents of {args.min_length} tokens or more in every split, found none for {' and '.join(empty)} among {counts['read']} documents "
            f"({counts['blank']} blank, {counts['duplicates']} duplicates, {counts['short']} pieces too short); give more documents "
            "(say, one paragraph a row of a .jsonl file), a smaller --min_length, or other --val_ratio and --test_ratio"
        )
    if len(writers["train"].vocabulary) < 2:
        raise InputError("expected text with at least two different tokens, found one token again and again; there is nothing to learn from it")


def documents_of(args):
    """The `(name, text)` pairs of the source that the arguments name."""
    if args.source == "sotu":
        return sotu_documents(args.seed)
    if args.source == "text":
        return text_documents(args.input, args.text_column)
    return reddit_documents(args.text_column)


def main(argv=None):
    args = parse_args(argv)
    tokenizer = load_tokenizer(args.tokenizer)
    make_output_dir(args.output_dir)
    counts = {"read": 0, "blank": 0, "duplicates": 0, "short": 0}
    writers = {split: SequenceWriter(args.output_dir / name) for split, name in SPLITS.items()}
    try:
        write_splits(documents_of(args), tokenizer, writers, counts, args)
        check_splits(writers, counts, args)
        # Until the new dataset_info.json is there, no reader takes the old one for a description of the new files.
        (args.output_dir / "dataset_info.json").unlink(missing_ok=True)
        shutil.rmtree(args.output_dir / ".cache", ignore_errors=True)
        for writer in writers.values():
            writer.commit()
    finally:
        for writer in writers.values():
            writer.discard()
    splits = {
        split: {"file": SPLITS[split], "documents": w.documents, "sequences": w.sequences, "tokens": w.tokens} for split, w in writers.items()
    }
    write_json(
        args.output_dir / "dataset_info.json", SCHEMA, args, UNITS,
        source=args.source, max_length=args.max_length, counts=counts, splits=splits,
        tokenizer={"name": args.tokenizer, "fingerprint": fingerprint(tokenizer), "vocab_size": len(tokenizer)},
    )
    for split, size in splits.items():
        print(f"{split:5s} {size['tokens']:>11,} tokens in {size['sequences']:>7,} sequences of {size['documents']:>6,} documents")
    print(f"read {counts['read']:,} documents: {counts['duplicates']} duplicates, {counts['blank']} blank; {counts['short']} remainders too short")
    print(f"written to {args.output_dir}")


if __name__ == "__main__":
    run(main)
