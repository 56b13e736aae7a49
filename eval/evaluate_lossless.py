"""How small a text gets without loss: the container's lossless payload beside xz, zstd and an arithmetic coder.

    python eval/evaluate_lossless.py --model_path models/agent/released --data_path data/processed/addresses/test_data.json \\
        data/processed/wiki/test_data.json --tokens 2000

Of every corpus: the share of tokens that is sent, bits per byte of documents by themselves and of all as one text, and seconds
per 1,000 tokens. `ranks`: the lossless payload, in bytes; `container`: its file, with base64, hashes and names; `arithmetic`:
what an arithmetic coder on the causal LM's probabilities would take, -sum log2 p, in windows as long as the LM reads. "With
model" counts the weights that a receiver needs, as if they were sent with this one text; the agent is the sender's alone.

It is a figure of merit, not a claim to be the smallest. What the arithmetic coder does better: it codes every token given all
before it, where ours reads kept tokens in a row with holes, and masked ones all at one time, not given each other; it takes
-log2 p bits where a rank forgets how sure the model was, but for ten degrees; and it pays for no gaps. Writes
`lossless_results.json`.
"""

import lzma
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from tqdm import tqdm

from data.artifacts import SEED, Parser, run, write_json
from data.limits import COUNT, RATIO
from data.scratch import claimed
from data.sequences import load_sequences
from eval.compressor import Compressor
from eval.container import make_container, weights_of
from eval.inputs import first_base_model
from eval.lossless import as_text, decode, encode, payload_size
from eval.methods import CausalSurprisal
from eval.records import LOSSLESS
from eval.report import markdown, number
from models.agent.files import RELEASED
from models.reconstructor.causal_lm import load_causal_lm
from models.reconstructor.gaps import GAP_HEAD
from models.reconstructor.tokenizer import locate

SCHEMA = LOSSLESS.schema
RANKS, CONTAINER, ARITHMETIC, XZ, ZSTD = "ranks", "container", "arithmetic, ideal", "xz -9", "zstd -19"
UNITS = {
    "bits_per_byte": "bits per byte of the original", "with_model": "the same, with the weights that a receiver needs",
    "documents": "mean over all bytes of documents that are coded by themselves", "joined": "all documents as one text",
    "sent": "kept tokens per token of the windows that are ranks", "as_ranks": "share of the tokens that are in such windows",
    "seconds_per_1000_tokens": "seconds; encode: with the agent and the proof that it comes back",
}


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model_path", type=Path, default=Path(RELEASED), help="agent: a directory, or a file written by rl/train.py")
    add("--data_path", type=Path, nargs="+", default=[Path("data/processed/test_data.json")],
        help="held-out sequences of data/prepare.py, one file for each corpus")
    add("--output_dir", type=Path, default=Path("eval/test_output"), help="directory for lossless_results.json")
    add("--keep_ratio", type=RATIO, default=0.7,
        help="kept tokens per original token, of the agent")
    add("--tokens", type=COUNT, default=2000, help="tokens of each corpus: whole documents, the last one cut")
    add("--seed", type=SEED, default=42, help="seeds the order of the documents")
    add("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


def documents(path, reconstructor, tokens, seed):
    """Bytes of documents of a sequence file, in random order, of about `tokens` tokens in all."""
    sequences = load_sequences(path, reconstructor.fingerprint)
    names, number_of = np.unique(sequences.docs, return_inverse=True)
    found = []
    for chosen in np.random.default_rng(seed).permutation(len(names)):
        ids = np.concatenate([sequences[int(i)] for i in np.flatnonzero(number_of == chosen)])[:tokens]
        found.append(as_text(reconstructor.tokenizer, ids.tolist()).encode())
        tokens -= len(ids)
        if tokens <= 0:
            return found
    return found


class Coders:
    """Every coder, as the bytes that it makes of some bytes."""

    def __init__(self, args):
        compressor = Compressor.from_pretrained(args.model_path, keep_ratio=args.keep_ratio)
        self.reconstructor, self.decide = compressor.reconstructor, compressor.keep_mask
        self.base_name = first_base_model(self.reconstructor.directory)
        base = load_causal_lm(self.base_name)
        self.surprisal, self.most = CausalSurprisal(base, self.reconstructor.bos_id), base.config.max_position_embeddings
        self.weights = weights_of(args.model_path, self.reconstructor)
        size = lambda path: sum(part.stat().st_size for part in Path(locate(path)).glob("model*.safetensors"))
        head = (Path(self.reconstructor.directory) / GAP_HEAD).stat().st_size
        ours = size(self.reconstructor.directory) + head
        self.models = {RANKS: ours, CONTAINER: ours, ARITHMETIC: size(self.base_name)}

    def tokens(self, data):
        return self.reconstructor.tokenizer(data.decode(), add_special_tokens=False)["input_ids"]

    def arithmetic(self, data):
        """Bytes of an ideal arithmetic coder on the causal LM's probabilities."""
        ids, nats = np.asarray(self.tokens(data)), 0.0
        for window in np.array_split(ids, -(-len(ids) // self.most)):
            nats += self.surprisal.scores(window[None], np.ones((1, len(window)), dtype=bool), None).sum()
        return nats / np.log(2) / 8

    def zstd(self, data):
        done = subprocess.run(["zstd", "-19", "--stdout", "-"], input=data, capture_output=True, check=True)
        return len(done.stdout)

    def measure(self, data):
        """Bytes by coder; and of tokens all, those in windows and those kept, and seconds to encode and to decode."""
        begin = time.monotonic()
        payload = encode(data, self.reconstructor, self.decide)
        encoded = time.monotonic()
        assert decode(payload, self.reconstructor, len(data)) == data
        decoded = time.monotonic()
        sizes = {
            RANKS: payload_size(payload), CONTAINER: len(make_container(data, "lossless", self.weights, payload)),
            ARITHMETIC: self.arithmetic(data), XZ: len(lzma.compress(data, preset=9)),
        }
        if shutil.which("zstd"):
            sizes[ZSTD] = self.zstd(data)
        counts = [len(self.tokens(data)), payload["tokens"], payload["kept"]]
        return sizes, np.array([*counts, encoded - begin, decoded - encoded])


def corpus_results(coders, texts):
    """The results of a corpus, from its documents' bytes."""
    length, each = sum(map(len, texts)), [coders.measure(data) for data in texts]
    joined, of_joined = coders.measure(b"".join(texts)) if len(texts) > 1 else each[0]
    single = {coder: sum(sizes[coder] for sizes, _ in each) for coder in joined}
    counted = sum(counts for _, counts in each) + (of_joined if len(texts) > 1 else 0)
    tokens, windows, kept, encoding, decoding = counted.tolist()
    bits = lambda sizes, model: {coder: 8 * (size + model.get(coder, 0)) / length for coder, size in sizes.items()}
    ways = {"documents": single, "joined": joined}
    return {
        "documents": len(texts), "bytes": length, "tokens": int(of_joined[0]), "as_ranks": windows / tokens,
        "sent": kept / windows if windows else None,
        "bits_per_byte": {way: bits(sizes, {}) for way, sizes in ways.items()},
        "with_model": {way: bits(sizes, coders.models) for way, sizes in ways.items()},
        "seconds_per_1000_tokens": {"encode": 1000 * encoding / tokens, "decode": 1000 * decoding / tokens},
    }


def together(corpora):
    """Bits per byte of all corpora, bytes added up: without the weights, and with them for each corpus."""
    length, ways = sum(found["bytes"] for found in corpora), ("documents", "joined")
    mean = lambda of, way, coder: sum(found[of][way][coder] * found["bytes"] for found in corpora) / length
    coders = corpora[0]["bits_per_byte"]["joined"]
    return {of: {way: {c: mean(of, way, c) for c in coders} for way in ways} for of in ("bits_per_byte", "with_model")}


def format_results(record):
    """The table: bits per byte of documents by themselves, and joined."""
    coders = list(record["corpora"][0]["bits_per_byte"]["joined"])
    rows = [["corpus", "sent", *coders, "encode", "decode"]]
    for found in record["corpora"]:
        cells = [
            f"{number(found['bits_per_byte']['documents'][coder], 2)} / {number(found['bits_per_byte']['joined'][coder], 2)}"
            for coder in coders
        ]
        seconds = [number(found["seconds_per_1000_tokens"][way], 1) for way in ("encode", "decode")]
        rows.append([found["corpus"], "none" if found["sent"] is None else number(found["sent"], 2), *cells, *seconds])
    sizes = ", ".join(f"{coder} {size / 1e6:.1f} MB" for coder, size in record["models"].items())
    return (
        "bits per byte, documents by themselves / as one text; seconds per 1,000 tokens\n\n" + markdown(rows) +
        f"\n\nWithout the weights that a receiver needs: {sizes}; with_model in the JSON counts them. The arithmetic coder is "
        "ideal,\n-sum log2 p: it codes each token given all before it, is as sure as the model is, and pays for no gaps."
    )


@torch.no_grad()
def main(argv=None):
    args = parse_args(argv)
    coders = Coders(args)
    with claimed(args.output_dir):
        if not shutil.which("zstd"):
            print(f"no zstd on this machine: {ZSTD} is left out")
        corpora = []
        for path in tqdm(args.data_path, desc="lossless", unit="corpus", disable=args.quiet):
            texts = documents(path, coders.reconstructor, args.tokens, args.seed)
            corpora.append({"corpus": path.parent.name, **corpus_results(coders, texts)})
        record = {"keep_ratio": args.keep_ratio, "base_model": coders.base_name, "models": coders.models, "corpora": corpora}
        record["together"] = together(corpora)
        paths = dict.fromkeys(Path(locate(path)) for path in (args.model_path, coders.reconstructor.directory, coders.base_name))
        write_json(args.output_dir / "lossless_results.json", SCHEMA, args, UNITS, list(paths), **record)
        print(f"{format_results(record)}\n\nwritten to {args.output_dir}")


if __name__ == "__main__":
    run(main)
