"""From documents to the three splits: read, drop what was there before, tokenize in large batches, cut, write."""

import hashlib
import time
from itertools import islice

import numpy as np
from tqdm import tqdm

from data.artifacts import InputError
from data.duplicates import Seen

BATCH_CHARACTERS = 2**18  # of documents tokenized in one call: enough to keep every core busy, few enough to stream
BATCH_DOCUMENTS = 2**12  # documents in one batch, at most, so that a run which drops nearly all of them is saved too
SAVE_EVERY = 5.0  # seconds
FEW = 100  # documents: with more of them no split is empty by chance
PIECES = 60  # of so few documents, about
LEAST = 6  # of them in a split, as many as an interval needs
SHORTEST_PIECE, LONGEST_PIECE = 500, 2000  # characters, about


def split_of(digest, val_ratio, test_ratio):
    """'train', 'val' or 'test' for a text with SHA-256 `digest` (bytes), by its first 64 bits read as a number in [0, 1)."""
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < test_ratio:
        return "test"
    return "val" if position < test_ratio + val_ratio else "train"


class Pieces:
    """Documents that are too few for three splits, cut to pieces, each a document of its own.

    Every split gets its share of the pieces, and at least LEAST or a fifth of them, in the order of their hashes. `splits`:
    {SHA-256: split}.
    """

    part = None

    def __init__(self, documents, stamp, args):
        self.stamp, self.documents = stamp, len(documents)
        size = min(max(sum(len(text) for _, text in documents) // PIECES, SHORTEST_PIECE), LONGEST_PIECE)
        found = ((f"{name}#{i}", piece) for name, text in documents for i, piece in enumerate(cut(text, size)))
        self.pieces = [(name, piece) for name, piece in found if piece.strip()]
        digests = sorted({hashlib.sha256(piece.encode()).digest() for _, piece in self.pieces})
        least = max(1, min(LEAST, len(digests) // 5))
        test, val = (max(least, round(len(digests) * share)) if share else 0 for share in (args.test_ratio, args.val_ratio))
        order = ["test"] * test + ["val"] * val + ["train"] * len(digests)
        self.splits = dict(zip(digests, order))

    def __iter__(self):
        return iter(self.pieces)


def cut(text, size):
    """Pieces of about `size` characters that end with a paragraph, or else a line, a sentence or a word; no character is lost."""
    start = 0
    while len(text) - start > size * 3 // 2:
        places = ((mark, text.rfind(mark, start + size // 2, start + size * 3 // 2)) for mark in ("\n\n", "\n", ". ", " "))
        end = next((place + len(mark) for mark, place in places if place >= 0), start + size)
        yield text[start:end]
        start = end
    yield text[start:]


def in_pieces(source, args):
    """The source, or Pieces of it if its documents are so few that, by their hashes, a split would be empty."""
    first = [each for each in islice(with_digests(source), FEW + 1) if each[2].strip()]
    shares = {"train": 1, "val": args.val_ratio, "test": args.test_ratio}
    found = {split_of(digest, args.val_ratio, args.test_ratio) for *_, digest in first}
    if not first or len(first) > FEW or all(split in found for split, share in shares.items() if share):
        return source
    return Pieces([(name, text) for _, name, text, _ in first], source.stamp, args)


def quotas(args):
    """Sequences that each split may hold, so that a small --max_sequences still fills all three."""
    test, val = (max(1, round(args.max_sequences * share)) if share else 0 for share in (args.test_ratio, args.val_ratio))
    return {"train": max(1, args.max_sequences - test - val), "val": val, "test": test}


def with_digests(source):
    """Yield `(part of the mixture, name, text, SHA-256)`; the last two are None for a document that is not wanted."""
    for name, text in source:
        try:
            yield source.part, name, text, None if text is None else hashlib.sha256(text.encode()).digest()
        except UnicodeEncodeError as error:
            found = f"{text[error.start]!a} at character {error.start}"
            raise InputError(f"{name}: expected text that UTF-8 can hold, found {found}; repair the file") from None


def batches(documents):
    """Yield lists of documents, each large enough for one call of the tokenizer."""
    batch, characters = [], 0
    for document in documents:
        batch.append(document)
        characters += len(document[2] or "")
        if characters >= BATCH_CHARACTERS or len(batch) == BATCH_DOCUMENTS:
            yield batch
            batch, characters = [], 0
    yield batch


def encoder(tokenizer):
    """A function from texts to their `tokenizers.Encoding`s; special tokens that stand in a text are text like any other."""
    if not tokenizer.is_fast:
        name = tokenizer.name_or_path
        raise InputError(f"{name}: expected a tokenizer with a tokenizer.json, found one without; save it as a fast tokenizer")
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True  # as `split_special_tokens` would; each call of the tokenizer itself sets it anew
    backend.no_truncation()
    backend.no_padding()
    return lambda texts: backend.encode_batch_fast(texts, add_special_tokens=False)


def write_splits(source, tokenizer, writers, partial, counts, args):
    """Write until the documents end or every split has its quota of `args.max_sequences`; save on the way.

    `counts` are carried on; they tell how many documents an interrupted run has read.
    """
    limits, seen, documents, encode = quotas(args), Seen(args.near_duplicates), with_digests(source), encoder(tokenizer)
    splits = getattr(source, "splits", {})

    def save():
        partial.save(stamp=source.stamp, counts=counts, writers={split: writer.state() for split, writer in writers.items()})
        return time.monotonic()

    saved = save()
    for part, _, text, digest in islice(documents, counts["read"] + counts["other_subreddits"]):
        seen.fault(text, digest, part)
    with tqdm(total=args.max_sequences, unit="seq", desc="tokenize", disable=args.quiet) as progress:
        for batch in batches(documents):
            for (part, name, text, digest), encoding in zip(batch, encode([text or "" for _, _, text, _ in batch])):
                fault = seen.fault(text, digest, part)
                counts["read"] += fault != "other_subreddits"
                if fault:
                    counts[fault] += 1
                else:
                    split = splits.get(digest) or split_of(digest, args.val_ratio, args.test_ratio)
                    counts["short"] += write_document(part, name, text, encoding, writers[split], limits[split], args)
            progress.set_postfix(read=counts["read"], refresh=False)
            progress.update(sum(writer.size["sequences"] for writer in writers.values()) - progress.n)
            if all(writer.size["sequences"] == limits[split] for split, writer in writers.items()):
                break
            if time.monotonic() - saved >= SAVE_EVERY:
                saved = save()


def write_document(part, name, text, encoding, writer, limit, args):
    """Cut one document and write it, as far as the limit of its split allows. Returns the remainders dropped (0 or 1)."""
    tokens = np.fromiter(encoding.ids, np.int32, len(encoding))
    for index, start in enumerate(range(0, len(tokens), args.max_length)):
        piece = tokens[start : start + args.max_length]
        if len(piece) < args.min_length:
            return 1
        if writer.size["sequences"] == limit:
            break
        writer.write(name, index, piece, len(text), part)
    return 0
