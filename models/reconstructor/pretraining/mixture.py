"""Turn corpora into the token arrays that pre-training reads: one stream per kind of text and split.

    python models/reconstructor/pretraining/corpora.py --output_dir corpora
    python models/reconstructor/pretraining/mixture.py --input_dir corpora --output mixture.npz --held_out moby-dick

Reads every `KIND.jsonl.gz` (`text`) of `--input_dir`. A document belongs to the split that data/prepare.py gives it, by its hash, and
to the first kind that has it. The file holds uint16 arrays `SPLIT/KIND`, BOS in front of every document, and what pretrain.py needs
of the tokenizer, so that it runs without; the test splits lie in a file of their own (`mixture-test.npz`). Of a kind that is held out
nothing is in 'train', and all of it in 'val' and 'test'.
"""

import gzip
import hashlib
import json
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np

from data.artifacts import InputError, Parser, bounded, run, written_aside
from data.pipeline import encoder, split_of
from models.reconstructor.tokenizer import BASE_MODEL, bos_id, fingerprint, load_tokenizer, text_vocab_size

SPLITS = ("train", "val", "test")
VAL_RATIO, TEST_RATIO = 0.05, 0.10  # the defaults of data/prepare.py
FEWEST = 512  # tokens of a kind in every split
BATCH = 512  # documents tokenized in one call


def read_corpus(path):
    """Yield the texts of a KIND.jsonl.gz."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def build(files, held_out, tokenizer):
    """({(split, kind): uint16 array}, {kind: {split: {"documents", "tokens", "bytes"}}}) of corpora {kind: path}. Raises InputError."""
    encode, bos, seen = encoder(tokenizer), bos_id(tokenizer), set()
    streams, counts = {}, {}
    for kind, path in files.items():
        parts = {split: [] for split in SPLITS}
        counts[kind] = {split: {"documents": 0, "tokens": 0, "bytes": 0} for split in SPLITS}
        texts = [text for text in read_corpus(path) if text.strip()]
        for first in range(0, len(texts), BATCH):
            batch = texts[first : first + BATCH]
            for text, encoding in zip(batch, encode(batch), strict=True):
                digest = hashlib.sha256(text.encode()).digest()
                if digest in seen:
                    continue
                seen.add(digest)
                split = split_of(digest, VAL_RATIO, TEST_RATIO)
                for name in ("val", "test") if kind in held_out else (split,):
                    parts[name].append(np.array([bos, *encoding.ids], dtype=np.uint16))
                    for unit, number in (("documents", 1), ("tokens", len(encoding.ids)), ("bytes", len(text.encode()))):
                        counts[kind][name][unit] += number
        for split, arrays in parts.items():
            if kind in held_out and split == "train":
                continue
            stream = np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.uint16)
            if len(stream) < FEWEST:
                raise InputError(f"{path}: expected at least {FEWEST} tokens in the {split} split, found {len(stream)}; give more documents or leave it out")
            streams[split, kind] = stream
        print(f"{kind:20s} " + "  ".join(f"{split} {counts[kind][split]['documents']:,} documents, {counts[kind][split]['tokens']:,} tokens" for split in SPLITS), flush=True)
    return streams, counts


def joins(tokenizer):
    """(2, V) bool: whether a token's first, last character is one that words go on with, a letter, digit or apostrophe."""
    texts = [tokenizer.decode([i]) for i in range(text_vocab_size(tokenizer))]
    inside = lambda character: character.isalnum() or character in "'’\ufffd"
    return np.array([[bool(text) and inside(text[0]) for text in texts], [bool(text) and inside(text[-1]) for text in texts]])


def write_arrays(path, arrays):
    """As np.savez_compressed, with LZMA, which makes token arrays a fifth smaller; np.load reads both."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array)


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--input_dir", type=Path, required=True, help="folder with a KIND.jsonl.gz of every kind")
    parser.add_argument("--output", type=Path, required=True, help="the .npz to write")
    parser.add_argument("--held_out", nargs="*", default=[], help="kinds that are never trained on")
    parser.add_argument("--held_out_tokens", type=bounded(int, FEWEST, 10**9), default=100_000, help="tokens of a held-out kind that are kept, at most")
    parser.add_argument("--tokenizer", default=BASE_MODEL, help="directory or hub name of the tokenizer")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    files = {path.name.removesuffix(".jsonl.gz"): path for path in sorted(args.input_dir.glob("*.jsonl.gz"))}
    missing = [kind for kind in args.held_out if kind not in files]
    if missing or not files:
        raise InputError(f"{args.input_dir}: expected KIND.jsonl.gz files{' and of ' + ', '.join(missing) if missing else ''}, found {', '.join(files) or 'none'}; make them with corpora.py")
    tokenizer = load_tokenizer(args.tokenizer)
    streams, counts = build(files, set(args.held_out), tokenizer)
    arrays = {f"{split}/{kind}": stream[: args.held_out_tokens] if kind in args.held_out else stream for (split, kind), stream in streams.items()}
    test = {name: arrays.pop(name) for name in list(arrays) if name.startswith("test/")}
    about = {"bos": bos_id(tokenizer), "vocab_size": text_vocab_size(tokenizer), "tokenizer_fingerprint": fingerprint(tokenizer), "held_out": args.held_out, "counts": counts}
    common = {"joins": joins(tokenizer), "about": np.array(json.dumps(about))}
    for path, chosen in ((args.output, arrays), (args.output.with_stem(f"{args.output.stem}-test"), test)):
        with written_aside(path) as temporary:
            write_arrays(temporary, common | chosen)
    total = sum(len(stream) for (split, _), stream in streams.items() if split == "train")
    print(f"{total:,} training tokens, {args.output.stat().st_size / 2**20:.1f} MiB, written to {args.output}")


if __name__ == "__main__":
    run(main)
