"""Turn text into token sequences: the first stage.

Reads a corpus (by default the embedded one, so nothing is downloaded), tokenizes it, cuts each document into
sequences and writes `processed_data.json` (training), `val_data.json`, `test_data.json` and `dataset_info.json`.

    python data/prepare.py --output_dir data/processed --max_sequences 50000 --max_length 1024
    python data/prepare.py --source text --input 'notes/**/*.txt' posts.csv.gz --text_column body
    python data/prepare.py --source reddit --subreddits AskReddit tifu --near_duplicates 0.8
    python data/prepare.py --source mixed --input sotu wiki=2 notes.jsonl

A document belongs to one split for ever: the split is read off the SHA-256 of its text, so it depends on no seed,
no source and no order, and the embedded base model, which was pre-trained on the training split alone, has never
seen a test document. Exact duplicates have the same hash; only the first is kept. Of --source text, documents so few that a split
would be empty, a single file say, are cut to pieces, and these are split.

Everything is streamed: memory holds the longest document and 0.1 KB for each one that was read. An interrupted run goes on with
--resume and writes the same files.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.artifacts import SEED, InputError, Parser, bounded, run, write_json
from data.mixed import EMBEDDED, MixedDocuments
from data.partial import COUNTS, Partial, Resumable, check_place
from data.pipeline import Pieces, in_pieces, write_splits
from data.reddit import RedditDocuments
from data.scratch import claimed
from data.sequences import SCHEMA, SPLITS, SequenceWriter
from data.sources import TextDocuments
from models.reconstructor.tokenizer import BASE_MODEL, fingerprint, load_tokenizer, text_vocab_size

UNITS = {
    "max_length": "tokens", "counts.*": "documents", "counts.short": "pieces of documents", "splits.*.documents": "documents",
    "splits.*.characters": "Unicode code points of these documents, whole", "splits.*.sequences": "sequences",
    "splits.*.tokens": "tokens", "splits.*.distinct_tokens": "token ids", "splits.*.shortest": "tokens",
    "splits.*.mean": "tokens per sequence", "splits.*.longest": "tokens",
    "splits.*.parts": "documents, sequences and tokens of each part of a mixture",
}


def check_splits(writers, counts, source, args):
    """Raise InputError if a split that was asked for is empty, or if there is nothing to learn."""
    if args.subreddits and not counts["read"]:
        wanted, found = " or ".join(args.subreddits), f"none among the {counts['other_subreddits']:,} posts read"
        raise InputError(f"--subreddits: expected posts in {wanted}, found {found}; check the spelling")
    shares = {"train": 1.0, "val": args.val_ratio, "test": args.test_ratio}
    for part in getattr(source, "parts", [None]):
        sizes = {split: w.size if part is None else w.size.get("parts", {}).get(part) for split, w in writers.items()}
        if empty := [split for split, size in sizes.items() if shares[split] and not (size and size["sequences"])]:
            of = f"of {part} " if part else ""
            raise InputError(
                f"expected documents {of}with {args.min_length} tokens or more in every split, found none for "
                f"{' and '.join(empty)} among {counts['read']} documents ({counts['blank']} blank, {counts['duplicates']} "
                f"duplicates, {counts['near_duplicates']} near duplicates, {counts['short']} pieces too short); give more (say, "
                "one paragraph a row of a .jsonl file), a smaller --min_length, other shares above 0, weights or --max_sequences"
            )
    if writers["train"].statistics()["distinct_tokens"] < 2:
        raise InputError("expected text with at least two different tokens, found one token again and again; give more text")


def prepare(source, tokenizer, identity, partial, args):
    """Write the splits and `dataset_info.json`; what `report` prints of them. Raises InputError, or Resumable: it can go on."""
    stamp, counts, states = (partial.state.get(name) for name in ("stamp", "counts", "writers"))
    if stamp and source.stamp not in (None, stamp):
        found = "that some have changed since; begin anew without --resume"
        raise Resumable(f"--resume: expected the --input files as they were when the run began, found {found}")
    source.stamp, counts, states = source.stamp or stamp, counts or dict.fromkeys(COUNTS, 0), states or dict.fromkeys(SPLITS)
    size = text_vocab_size(tokenizer)
    writers = {split: SequenceWriter(partial.folder / name, size, states[split]) for split, name in SPLITS.items()}
    before, began = sum(writer.size["tokens"] for writer in writers.values()), time.monotonic()
    try:
        write_splits(source, tokenizer, writers, partial, counts, args)
        check_splits(writers, counts, source, args)
    finally:
        for writer in writers.values():
            writer.close()
    splits = {split: {"file": SPLITS[split], **writer.statistics()} for split, writer in writers.items()}
    partial.publish(
        lambda path: write_json(
            path, SCHEMA, args, UNITS, source=args.source, source_commit=source.stamp if args.source == "reddit" else None,
            max_length=args.max_length, counts=counts, splits=splits, tokenizer=identity,
            split_by="pieces" if isinstance(source, Pieces) else "documents",
        )
    )
    return counts, splits, sum(writer.size["tokens"] for writer in writers.values()) - before, time.monotonic() - began


def report(source, counts, splits, tokens, seconds, args):
    """Print the statistics of `dataset_info.json`, and the speed at which `tokens` were written."""
    print("split  documents   characters  sequences       tokens  distinct  shortest     mean  longest")
    for split, size in splits.items():
        print(
            f"{split:5s} {size['documents']:>10,} {size['characters']:>12,} {size['sequences']:>10,} {size['tokens']:>12,} "
            f"{size['distinct_tokens']:>9,} {size['shortest']:>9,} {size['mean']:>8,.1f} {size['longest']:>8,}"
        )
        for part, found in size.get("parts", {}).items():
            print(f"  {part}: {found['documents']:,} documents, {found['sequences']:,} sequences, {found['tokens']:,} tokens")
    print(
        f"read {counts['read']:,} documents: {counts['duplicates']:,} duplicates, {counts['near_duplicates']:,} near duplicates, "
        f"{counts['blank']:,} blank; {counts['short']:,} remainders too short"
    )
    if args.subreddits:
        posts = counts["read"] + counts["other_subreddits"]
        print(f"{counts['read']:,} of {posts:,} posts were in {', '.join(args.subreddits)}")
    print(f"{tokens:,} tokens in {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s; written to {args.output_dir}")
    if isinstance(source, Pieces):
        print(
            f"warning: {source.documents} document(s) do not fill three splits, so {len(source.pieces)} pieces of them were "
            "split, and count as documents; training and test text are parts of the same ones: for figures on new ones, give more"
        )


def parse_args(argv=None):
    parser = Parser(__doc__, any_bytes=("input",))
    add = parser.add_argument
    add("--output_dir", type=Path, default=Path("data/processed"), help="directory for the three splits and dataset_info.json")
    add("--source", choices=("sotu", "wiki", "text", "mixed", "reddit"), default="sotu",
        help="sotu: the embedded presidential addresses; wiki: the embedded leads of Wikipedia articles; text: your own files; "
        "mixed: several of these; reddit: webis/tldr-17 from the Hugging Face hub")
    add("--input", nargs="+", help="for --source text: files, folders or globs of .txt, .md (one document a file), .jsonl, .csv, "
        ".parquet (one a row); all but .parquet also with .gz; for --source mixed: parts, each sotu, wiki or files, with "
        "=WEIGHT, its share of the characters as long as it lasts (1 if not given)")
    add("--text_column", help="field or column that holds the text; default 'text', for reddit 'content'")
    add("--subreddits", nargs="+", help="for --source reddit: only posts in these, in upper or lower case")
    add("--retries", type=bounded(int, 0, 1000), default=5,
        help="for --source reddit: times in a row that a lost connection is opened again")
    add("--near_duplicates", type=bounded(float, 0.1, 0.95), help="drop documents that share more than this Jaccard similarity, "
        "0.1 to 0.95, of their runs of five words with one kept before; takes 11 KB of memory a document at 0.5, 5 KB at 0.8")
    add("--resume", action="store_true", help="go on with the interrupted run in --output_dir; the other arguments must be its")
    add("--tokenizer", default=BASE_MODEL, help="directory or hub name of the tokenizer; must be the reconstructor's")
    add("--max_sequences", type=bounded(int, 1, 10**9), default=50_000,
        help="sequences over all splits, at most; val and test get their shares of it")
    add("--max_length", type=bounded(int, 2, 10**6), default=1024,
        help="tokens per sequence, at most; longer documents become several sequences")
    add("--min_length", type=bounded(int, 1, 10**6), default=16,
        help="tokens per sequence, at least; a shorter remainder of a document is dropped")
    add("--val_ratio", type=bounded(float, 0, 1), default=0.05, help="share of documents for validation, 0 to 1")
    add("--test_ratio", type=bounded(float, 0, 1), default=0.10,
        help="share of documents for testing, 0 to 1; the embedded base model's training split assumes the defaults")
    add("--seed", type=SEED, default=42,
        help="draws the order of the embedded corpus' documents, which matters if --max_sequences cuts it")
    add("--quiet", action="store_true", help="no progress bar")
    return checked(parser, parser.parse_args(argv))


def checked(parser, args):
    """The arguments with their defaults filled in, if they go together."""
    if args.val_ratio + args.test_ratio >= 1:
        found = args.val_ratio + args.test_ratio
        parser.error(f"--val_ratio + --test_ratio: expected less than 1, found {found:g}; nothing would be left to train on")
    if args.min_length > args.max_length:
        parser.error(f"--min_length {args.min_length}: expected at most --max_length {args.max_length}")
    for flag, sources in (("input", ("text", "mixed")), ("subreddits", ("reddit",))):
        if getattr(args, flag) and args.source not in sources:
            parser.error(f"--{flag}: expected --source {' or '.join(sources)}, found --source {args.source}")
    args.text_column = args.text_column or ("content" if args.source == "reddit" else "text")
    args.subreddits = sorted({name.lower().removeprefix("/").removeprefix("r/") for name in args.subreddits or []})
    return args


def source_of(args):
    """The source that the arguments name. Raises InputError or FileNotFoundError."""
    if args.source in EMBEDDED:
        return EMBEDDED[args.source](args.seed)
    if args.source == "text":
        return in_pieces(TextDocuments(args.input, args.text_column), args)
    if args.source == "mixed":
        return MixedDocuments(args.input, args.text_column, args.seed)
    return RedditDocuments(args.text_column, args.subreddits, args.retries)


def main(argv=None):
    args = parse_args(argv)
    tokenizer = load_tokenizer(args.tokenizer)
    with claimed(args.output_dir):
        check_place(args.output_dir)
        source = source_of(args)
        identity = {"name": args.tokenizer, "fingerprint": fingerprint(tokenizer), "vocab_size": text_vocab_size(tokenizer)}
        partial = Partial(args, identity["fingerprint"])
        try:
            figures = prepare(source, tokenizer, identity, partial, args)
        except (Resumable, BrokenPipeError):
            raise
        except InputError:
            partial.discard()
            raise
        except OSError as error:
            where, found = error.filename or partial.folder, error.strerror or error
            expected = f"expected to write there until the end, found: {found}"
            raise Resumable(f"{where}: {expected}; mend it and {partial.way_on()}") from None
        except KeyboardInterrupt:
            raise KeyboardInterrupt(partial.way_on()) from None
    report(source, *figures, args)


if __name__ == "__main__":
    run(main)
