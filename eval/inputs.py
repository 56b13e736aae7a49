"""What every evaluation begins with: its common flags, the texts, and the models, all with one tokenizer."""

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.artifacts import SEED, InputError, bounded, different_setting, read_json
from data.sequences import load_sequences, pad_batch
from models.agent.files import RELEASED, load_policy
from models.reconstructor.masking import keep_highest
from models.reconstructor.reconstructor import SCHEMA, Reconstructor, check_head, find_device, load_causal_lm
from models.reconstructor.scoring import score
from models.reconstructor.tokenizer import bos_id, fingerprint, load_tokenizer, locate

# Flags in which training runs of one agent may differ.
FREE = ("seed", "output_dir", "device", "quiet", "resume", "checkpoint_freq", "save_total_limit")


def add_model_flags(add, writes):
    """The flags of everything that loads agents and measures them; `writes` names its files."""
    add("--model_path", type=Path, nargs="+", default=[Path(RELEASED)],
        help="agent: a directory, or a file written by rl/train.py; several: training runs of one agent")
    add("--base_model", default=None,
        help="causal LM of the surprisal methods; default: the one that the reconstructor was fine-tuned from")
    add("--data_path", type=Path, default=Path("data/processed/test_data.json"), help="held-out sequences of data/prepare.py")
    add("--output_dir", type=Path, default=Path("eval/test_output"), help=f"directory for {writes}")
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("--seed", type=SEED, default=42, help="seeds the choice of texts, everything random in it, and the bootstrap")
    add("--quiet", action="store_true", help="no progress bar")


def add_flags(add, writes):
    """The flags of every evaluation on held-out sequences; `writes` names its files."""
    positive = bounded(int, 1, 10**9)
    add_model_flags(add, writes)
    add("--num_sequences", type=positive, default=100, help="texts, drawn at random; all if there are fewer")
    add("--max_length", type=bounded(int, 2, 10**6), default=None,
        help="tokens per text, longer ones are cut into several; default: the agent's training length")
    add("--batch_size", type=positive, default=20, help="texts per forward pass")


class Corpus:
    """The texts of an evaluation in padded batches: ids and valid (B, T), and the document number of every text."""

    def __init__(self, texts, docs, batch_size):
        self.names, self.document = np.unique(docs, return_inverse=True)
        self.texts = texts
        self.batches = [pad_batch(texts[i : i + batch_size], 0) for i in range(0, len(texts), batch_size)]
        self.tokens = sum(len(t) for t in texts)

    def by_document(self, rows):
        """Rows (texts, K) added up by document: (documents, K)."""
        sums = np.zeros((len(self.names), rows.shape[1]))
        np.add.at(sums, self.document[: len(rows)], rows)
        return sums

    def sums(self, reconstructor, keep_masks):
        """One row of SUMS per text, (texts, 6), for a list of keep masks, one (B, T) per batch."""
        batches = zip(self.batches, keep_masks, strict=True)
        return np.concatenate([score(reconstructor, ids, keep_mask, valid).sums for (ids, valid), keep_mask in batches])


class Scores:
    """A method's scores of the texts of a corpus at any keep ratio, each computed once."""

    def __init__(self, method, corpus):
        self.method, self.corpus, self.found = method, corpus, {}

    def at(self, keep_ratio):
        """Scores, one (B, T) per batch, the seconds that they took, and language-model passes per text."""
        rate = keep_ratio if self.method.depends_on_rate else None
        if rate not in self.found:
            start = time.monotonic()
            scores = [self.method.scores(ids, valid, keep_ratio) for ids, valid in self.corpus.batches]
            self.found[rate] = scores, time.monotonic() - start, self.method.lm_passes
        return self.found[rate]

    def masks(self, keep_ratio):
        """The keep masks, one (B, T) per batch, that keep `keep_ratio` of every text."""
        batches = zip(self.at(keep_ratio)[0], self.corpus.batches, strict=True)
        return [keep_highest(scores, valid, keep_ratio) for scores, (_, valid) in batches]


def draw_texts(args, reconstructor, longest, path=None, count=None):
    """A Corpus of `count` texts of `path`, by default `--num_sequences` of `--data_path`, drawn with `--seed`.

    Longer ones than `--max_length`, by default `longest`, are cut. Raises InputError if that is more than the reconstructor
    reads, or if it has another tokenizer.
    """
    most = reconstructor.max_length
    if args.max_length and args.max_length > most:
        raise InputError(f"--max_length {args.max_length}: expected at most {most}, the reconstructor's positions less one")
    sequences = load_sequences(path or args.data_path, reconstructor.fingerprint, min(most, args.max_length or longest))
    order = np.random.default_rng(args.seed).permutation(len(sequences))
    chosen = np.sort(order[: count or args.num_sequences])
    return Corpus([sequences[int(i)] for i in chosen], sequences.docs[chosen], args.batch_size)


class Models(NamedTuple):
    """What an evaluation needs: the agents' policies and training length, the reconstructor, and the causal LM for surprisal."""

    policies: list
    length: int
    reconstructor: Reconstructor
    base: object
    base_name: str
    bos: int
    weights: list  # paths of everything that was loaded


def check_trained_alike(paths, settings):
    """Raises InputError unless the agents at `paths`, trained with `settings`, are runs of one training with different seeds."""
    for i, (path, found) in enumerate(zip(paths, settings, strict=True)):
        if name := different_setting(settings[0], found, FREE):
            raise InputError(
                f"{path}: expected an agent trained as {paths[0]} was, with --{name} {settings[0].get(name)}, "
                f"found {found.get(name)}; evaluate it by itself"
            )
        if found["seed"] in [earlier["seed"] for earlier in settings[:i]]:
            raise InputError(f"{path}: expected agents of different seeds, found --seed {found['seed']} twice; leave one away")


def first_base_model(path):
    """The causal LM that the reconstructor in `path` comes from, even if it was fine-tuned several times. Raises InputError."""
    seen = []
    while (Path(path) / "reconstructor.json").is_file():
        seen.append(str(path))
        record = read_json(Path(path) / "reconstructor.json", SCHEMA, "models/reconstructor/train_cpu.py")
        if "data_path" not in record["args"]:  # a base model that reads masked text without having been fine-tuned
            return str(path)
        path = locate(record["args"]["base_model"])
        if path in seen:
            raise InputError(
                f"{path}: expected the causal language model that it was fine-tuned from, found that it was fine-tuned from "
                "itself; name it with --base_model"
            )
    return path


def open_models(args):
    """The models that the command line names, all with one tokenizer. Raises FileNotFoundError or InputError."""
    device = find_device(args.device)
    first = load_policy(args.model_path[0], device)
    policies = [first, *(load_policy(path, device, first.reader.reconstructor) for path in args.model_path[1:])]
    check_trained_alike(args.model_path, [policy.config["args"] for policy in policies])
    reconstructor = first.reader.reconstructor
    name = args.base_model or first_base_model(reconstructor.directory)
    base, tokenizer = load_causal_lm(name), load_tokenizer(name)
    check_head(base)
    if fingerprint(tokenizer) != reconstructor.fingerprint:
        expected, found = f"the reconstructor's tokenizer {reconstructor.fingerprint}", fingerprint(tokenizer)
        raise InputError(f"--base_model {name}: expected {expected}, found {found}; name one with that tokenizer")
    paths = dict.fromkeys(Path(locate(path)) for path in (*args.model_path, reconstructor.directory, name))
    return Models(
        policies, int(first.config["max_length"]), reconstructor, base.to(device), str(name), bos_id(tokenizer),
        weights=[path for path in paths if path.exists()],
    )
