"""Choose test documents that no earlier comparison of methods was made from, for the last word on an agent.

    python eval/results/fresh.py --input data/processed/kinds/* data/processed/addresses data/outside/* \\
        --used data/processed/wiki

Reads test splits of data/prepare.py, a folder for each kind. Writes a data set of the same form to `--output_dir`/KIND: unused
test documents with all of their texts, in the order of the hashes of their names; the kind's own validation texts, on which
opponents are tuned; and the training texts of `--mixture`, the agent's, whose tokens are counted.

A document was used if a text of it was drawn for a result in eval/results/, by `draw_texts` or by evaluate_lossless.py, from any
of the files: texts are compared too, since the same one has several names. Where hardly a document is left, unused texts are
taken, spread over all. Base, reconstructor and agent have learned from none; the base's card has the base's nats on parts of all.
Printed is the share of their runs of RUN words that stand in training texts of `--mixture`, too.
"""

import hashlib
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from data.artifacts import InputError, Parser, run, write_json
from data.limits import COUNT
from data.prepare import UNITS
from data.partial import check_place
from data.scratch import make_output_dir
from data.sequences import INFO, SCHEMA, SPLITS, SequenceWriter, load_info, load_sequences
from models.reconstructor.tokenizer import BASE_MODEL, load_tokenizer, text_vocab_size

EARLIER = 42  # --seed of every earlier result
DRAWN = {"mixed": 200, "addresses": 100}  # texts that earlier results drew from a data set, at most
OTHERS = 60  # the same of every other kind
NEW = ("news", "film-reviews", "medical-abstracts", "consultations")  # kinds that no result was made from
LOSSLESS = 2000  # tokens of whole documents that evaluate_lossless.py took of a kind, at most
FEWEST = 5  # documents; of a kind with fewer unused ones, unused texts are taken, one in so many:
SPREAD = 16
RUN = 8  # words of a run that two texts share
WORDS = re.compile(r"[a-z0-9']+")


def texts_of(path, identity):
    """{document: [tokens of its texts]} of a sequence file, and [(document, number of the text)] in the file's order."""
    found, order, sequences = {}, [], load_sequences(path, identity)
    for i, name in enumerate(sequences.docs):
        order.append((name, len(found.setdefault(name, []))))
        found[name].append(sequences[i])
    return found, order


def used(kind, texts, order):
    """The (document, number) of every text that a result was made from."""
    if kind in NEW:
        return set()
    drawn = np.random.default_rng(EARLIER).permutation(len(order))[: DRAWN.get(kind, OTHERS)]
    found, names, tokens = {order[i] for i in drawn}, np.unique([name for name, _ in order]), LOSSLESS
    for i in np.random.default_rng(EARLIER).permutation(len(names)):
        found |= {(names[i], number) for number in range(len(texts[names[i]]))} if tokens > 0 else set()
        tokens -= sum(map(len, texts[names[i]]))
    return found


def choose(texts, seen, args):
    """[(document, number, tokens)] of unused documents, or of unused texts if there are too few."""
    by_hash = lambda name, number=0: hashlib.sha256(f"{Path(name).name}#{number}".encode()).digest()
    fresh = [name for name, parts in texts.items() if not any(ids.tobytes() in seen for ids in parts)]
    chosen = []
    for count, name in enumerate(sorted(fresh, key=by_hash)):
        if count >= args.documents and len(chosen) >= args.texts:
            break
        chosen += [(name, number, ids) for number, ids in enumerate(texts[name])]
    if len(fresh) < FEWEST:
        chosen = [(name, i, ids) for name in texts for i, ids in enumerate(texts[name]) if ids.tobytes() not in seen]
        chosen = [text for text in chosen if by_hash(*text[:2])[0] % SPREAD == 0]
    return sorted(chosen, key=lambda text: text[:2])


def runs(text):
    """The runs of RUN words of a text."""
    words = WORDS.findall(text.lower())
    return {" ".join(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}


def main(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--input", type=Path, nargs="+", required=True, help="folders with the test splits of kinds, named by the kinds")
    add("--used", type=Path, nargs="*", default=[], help="more folders whose test splits results were made from")
    add("--mixture", type=Path, default=Path("data/processed/mixed"), help="data set that the agent was trained on")
    add("--output_dir", type=Path, default=Path("data/processed/fresh"), help="directory for a data set of every kind")
    add("--documents", type=COUNT, default=20, help="documents of every kind, at least, if there are as many")
    add("--texts", type=COUNT, default=40, help="texts of every kind, at least, if there are as many")
    args = parser.parse_args(argv)
    tokenizer, info = load_tokenizer(BASE_MODEL), load_info(args.mixture / SPLITS["test"])
    identity, size = info["tokenizer"]["fingerprint"], text_vocab_size(tokenizer)
    kinds = {path.name: texts_of(path / SPLITS["test"], identity) for path in [args.mixture, *args.used, *args.input]}
    seen = {texts[name][i].tobytes() for kind, (texts, order) in kinds.items() for name, i in used(kind, texts, order)}
    own = {}
    for path in args.input:
        chosen, folder = choose(kinds[path.name][0], seen, args), args.output_dir / path.name
        if not chosen:
            raise InputError(f"{path}: expected test documents that no result was made from, found none; leave it out")
        check_place(make_output_dir(folder))
        validation, order = texts_of(path / SPLITS["val"], identity)
        rows = {"val": [(name, i, validation[name][i]) for name, i in order], "test": chosen}
        splits = {"train": info["splits"]["train"]}
        for split, texts in rows.items():
            writer = SequenceWriter(folder / SPLITS[split], size)
            for name, number, ids in texts:
                writer.write(name, number, ids, 0, path.name if info["source"] == "mixed" else None)
            writer.close()
            splits[split] = {"file": SPLITS[split], **writer.statistics()}
        train = folder / SPLITS["train"]
        if train.is_symlink():
            train.unlink()
        train.symlink_to((args.mixture / SPLITS["train"]).resolve())
        about = {"source": info["source"], "max_length": info["max_length"], "tokenizer": info["tokenizer"]}
        write_json(folder / INFO, SCHEMA, args, UNITS, **about, splits=splits)
        documents, tokens = len({name for name, *_ in chosen}), sum(len(ids) for *_, ids in chosen)
        of = f"{documents} of {len(kinds[path.name][0])} test documents"
        print(f"{path.name}: {of}, {len(chosen)} texts, {tokens:,} tokens", flush=True)
        own[path.name] = set().union(*(runs(tokenizer.decode(ids)) for *_, ids in chosen))
    every, train = set().union(*own.values()), load_sequences(args.mixture / SPLITS["train"], identity)
    known = set().union(*(every & runs(tokenizer.decode(ids)) for ids in train))
    for kind, some in own.items():
        print(f"{kind}: {len(some & known)} of {len(some):,} runs of {RUN} words stand in training texts")


if __name__ == "__main__":
    run(main)
