"""What every evaluation begins with: its common flags, the texts, and the models, all with one tokenizer."""

import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from data.artifacts import SEED, InputError, bounded, different_setting
from data.limits import BATCH, COUNT
from data.sequences import SPLITS, load_sequences, pad_batch
from data.shapes import OBJECT, TEXT
from eval.methods import AGAINST, OPPONENTS, Agent
from eval.restored import restored_row
from models.agent.files import RELEASED, load_policy, read_agent
from models.reconstructor.causal_lm import RECORD, check_head, load_causal_lm, read_record
from models.reconstructor.gaps import GAPS
from models.reconstructor.loss import check_finite
from models.reconstructor.reconstructor import Reconstructor, find_device
from models.reconstructor.scoring import score
from models.reconstructor.tokenizer import fingerprint, load_tokenizer, locate
from models.reconstructor.words import DECIDED, Words, spread

# Flags in which training runs of one agent may differ.
FREE = ("seed", "output_dir", "device", "quiet", "resume", "checkpoint_freq", "save_total_limit")


def add_model_flags(add, writes):
    """The flags of everything that loads agents and measures them; `writes` names its files."""
    add("--model_path", type=Path, nargs="+", default=[Path(RELEASED)],
        help="agent: a directory, or a file written by rl/train.py; several: training runs of one agent")
    add("--receivers", nargs="+", default=[], metavar="METHOD=DIRECTORY",
        help="reconstructors fine-tuned on a method's own masks, of 'agent', one of --methods, or critic, proposer, against of "
        "--against; others have the agent's")
    add("--base_model", default=None,
        help="causal LM of the surprisal methods; default: the one that the reconstructor was fine-tuned from")
    add("--data_path", type=Path, nargs="+", default=[Path("data/processed/test_data.json")],
        help="held-out sequences of data/prepare.py; several: one evaluation each, in folders named by theirs")
    add("--chosen_on", type=Path, default=None, metavar="FOLDER",
        help="folder of data/prepare.py on whose training texts tokens are counted, and on whose validation texts is chosen what "
        "other methods leave open; default: that of the first --data_path")
    add("--output_dir", type=Path, default=Path("eval/test_output"), help=f"directory for {writes}")
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("--seed", type=SEED, default=42, help="seeds the choice of texts, everything random in it, and the bootstrap")
    add("--quiet", action="store_true", help="no progress bar")


def add_flags(add, writes):
    """The flags of every evaluation on held-out sequences; `writes` names its files."""
    add_model_flags(add, writes)
    add("--against", type=Path, nargs="+", default=[],
        help="agents of other trainings with the same reconstructor: those that were trained alike are one method, named by what "
        "they are, the critic alone, a learned proposer, or another agent")
    add("--gaps", choices=GAPS, default=None,
        help="whether the receiver has to find where tokens are missing, or is told; default: as in the agent's training")
    add("--unit", choices=DECIDED, default=None, help="what one decision is about, of every method; default: as of the agent")
    add("--num_sequences", type=COUNT, default=100, help="texts, drawn at random; all if there are fewer")
    add("--max_length", type=bounded(int, 2, 10**6), default=None,
        help="tokens per text, longer ones are cut into several; default: the agent's training length")
    add("--tune_sequences", type=COUNT, default=24, help="validation texts on which what other methods leave open is chosen")
    add("--batch_size", type=BATCH, default=20, help="texts per forward pass")


class Corpus:
    """The texts of an evaluation in padded batches: ids and valid (B, T), and the document number of every text.

    `words`: what is decided together. `as_text`: whether what is sent must read, as text, as the tokens that it is: where gaps
    are to be found, nothing but text is sent.
    """

    def __init__(self, texts, docs, batch_size, words, as_text):
        self.names, self.document = np.unique(docs, return_inverse=True)
        self.texts, self.words, self.as_text = texts, words, as_text
        self.batches = [pad_batch(texts[i : i + batch_size], 0) for i in range(0, len(texts), batch_size)]
        self.tokens = sum(len(t) for t in texts)

    def some(self, count):
        """A Corpus of `count` of the texts, at equal distances, one in a batch."""
        chosen = np.arange(0, len(self.texts), max(1, len(self.texts) // max(count, 1)))[:count]
        return Corpus([self.texts[i] for i in chosen], self.names[self.document[chosen]], 1, self.words, self.as_text)

    def by_word(self, scores, mean=True):
        """Scores of tokens, one (B, T) per batch, as scores of words, their tokens' mean or sum, at every token."""
        if self.words.unit == "token":
            return scores
        tensors = [tuple(map(torch.as_tensor, batch)) for batch in self.batches]
        of = lambda score: torch.as_tensor(score, dtype=torch.float64)
        pairs = zip(scores, tensors, strict=True)
        return [spread(of(score), self.words.starts(*batch), mean).numpy() for score, batch in pairs]

    def keep_highest(self, scores, keep_ratio):
        """The masks, one (B, T) per batch, that send the highest-scored `keep_ratio` of every text."""
        pairs = zip(scores, self.batches, strict=True)
        return self.sent([self.words.keep_highest(some, *batch, keep_ratio) for some, batch in pairs])

    def sent(self, masks):
        """Keep masks, one (B, T) per batch, with what must be added so that they can be sent as text."""
        if not self.as_text:
            return masks
        masks = [mask.copy() for mask in masks]
        for mask, (ids, valid) in zip(masks, self.batches, strict=True):
            for row, length in enumerate(valid.sum(1)):
                text = torch.as_tensor(ids[row, :length]), torch.as_tensor(mask[row, :length])
                mask[row, :length] = self.words.keeps_reading(*text).numpy()
        return masks

    def by_document(self, rows):
        """Rows (texts, K) added up by document: (documents, K)."""
        sums = np.zeros((len(self.names), rows.shape[1]))
        np.add.at(sums, self.document[: len(rows)], rows)
        return sums

    def restored(self, reconstructor, keep_masks):
        """One row per text of what is restored from what the masks send, and of what survives in it (eval/restored.py)."""
        masks = [mask for batch in keep_masks for mask in batch]
        pairs = zip(self.texts, masks, strict=True)
        return np.stack([restored_row(reconstructor, text, mask[: len(text)]) for text, mask in pairs])

    def sums(self, reconstructor, keep_masks):
        """One row of SUMS per text, (texts, 7), for a list of keep masks, one (B, T) per batch."""
        batches = zip(self.batches, keep_masks, strict=True)
        return np.concatenate([score(reconstructor, ids, keep_mask, valid).sums for (ids, valid), keep_mask in batches])


class Scores:
    """A method's scores of the texts of a corpus at any keep ratio, each computed once."""

    def __init__(self, method, corpus):
        self.method, self.corpus, self.found = method, corpus, {}

    def at(self, keep_ratio):
        """Scores of words, one (B, T) per batch, the seconds that they took, and language-model passes per text."""
        rate = keep_ratio if self.method.depends_on_rate else None
        if rate not in self.found:
            start = time.monotonic()
            scores, passes = [], []
            for ids, valid in self.corpus.batches:
                scores.append(self.method.scores(ids, valid, keep_ratio))
                check_finite(f"the scores of {self.method.name}", scores[-1][valid])
                passes += [self.method.lm_passes] * len(ids)
            seconds = time.monotonic() - start
            self.found[rate] = self.corpus.by_word(scores, self.method.mean), seconds, float(np.mean(passes)) if passes else 0.0
        return self.found[rate]

    def masks(self, keep_ratio):
        """The keep masks, one (B, T) per batch, that keep `keep_ratio` of every text."""
        return self.corpus.keep_highest(self.at(keep_ratio)[0], keep_ratio)


def output_dirs(args):
    """{sequence file: where its results go}: `--output_dir`, or a folder in it named by the file's. Raises InputError."""
    if len(args.data_path) == 1:
        return {args.data_path[0]: args.output_dir}
    found = {path: args.output_dir / Path(os.path.realpath(path)).parent.name for path in args.data_path}
    if len(set(found.values())) < len(args.data_path):
        raise InputError("--data_path: expected files in folders of different names, found two alike; evaluate them one by one")
    return found


def draw_validation(args, models):
    """The Corpus of `--tune_sequences` validation texts on which what other methods leave open is chosen."""
    folder = args.chosen_on or args.data_path[0].parent
    return draw_texts(args, models, folder / SPLITS["val"], args.tune_sequences)


def draw_texts(args, models, path, count=None):
    """A Corpus of `count` texts of `path`, by default `--num_sequences`, drawn with `--seed`.

    Longer ones than `--max_length`, by default the agent's training length, are cut. Raises InputError if that is more than the
    reconstructor reads, or if it has another tokenizer.
    """
    reconstructor, longest, most = models.reconstructor, models.length, models.reconstructor.max_length
    if args.max_length and args.max_length > most:
        raise InputError(f"--max_length {args.max_length}: expected at most {most}, the reconstructor's positions less one")
    sequences = load_sequences(path, reconstructor.fingerprint, min(most, args.max_length or longest))
    order = np.random.default_rng(args.seed).permutation(len(sequences))
    chosen = np.sort(order[: count or args.num_sequences])
    texts = [sequences[int(i)] for i in chosen]
    return Corpus(texts, sequences.docs[chosen], args.batch_size, models.words, reconstructor.found)


class Models(NamedTuple):
    """What an evaluation needs: the agents' policies and training length, the reconstructor, and the causal LM for surprisal."""

    policies: list
    against: dict  # {kind: runs of one training, as methods} of `--against`
    length: int
    words: Words
    reconstructor: Reconstructor  # the agents'
    receivers: dict  # {method: its own reconstructor}
    base: object
    base_name: str
    weights: list  # paths of everything that was loaded

    def receiver(self, name):
        """Who restores what the method of this name masks."""
        return self.receivers.get(name, self.reconstructor)


def check_trained_alike(paths, settings):
    """Raises InputError unless the agents at `paths`, trained with `settings`, are runs of one training with different seeds."""
    for i, (path, found) in enumerate(zip(paths, settings, strict=True)):
        if name := different_setting(settings[0], found, FREE) or different_setting(found, settings[0], FREE):
            raise InputError(
                f"{path}: expected an agent trained as {paths[0]} was, with --{name} {settings[0].get(name)}, "
                f"found {found.get(name)}; evaluate it by itself"
            )
        if found["seed"] in [earlier["seed"] for earlier in settings[:i]]:
            raise InputError(f"{path}: expected agents of different seeds, found --seed {found['seed']} twice; leave one away")


def first_base_model(path):
    """The causal LM that the reconstructor in `path` comes from, even if it was fine-tuned several times. Raises InputError."""
    seen = []
    while (Path(path) / RECORD).is_file():
        seen.append(str(path))
        if "data_path" not in read_record(path, {"args": OBJECT})["args"]:
            return str(path)  # a base model that reads masked text without having been fine-tuned
        path = locate(read_record(path, {"args": {"base_model": TEXT}})["args"]["base_model"])
        if path in seen:
            raise InputError(
                f"{path}: expected the causal language model that it was fine-tuned from, found that it was fine-tuned from "
                "itself; name it with --base_model"
            )
    return path


def load_policies(paths, device, reconstructor):
    """The policies of the agents at `paths`, runs of one training with `reconstructor`. Raises InputError if they are not."""
    policies = [load_policy(path, device, reconstructor) for path in paths]
    check_trained_alike(paths, [policy.config["args"] for policy in policies])
    return policies


def open_against(paths, device, reconstructor):
    """{kind: runs, as methods} of the agents at `paths`: those that were trained alike are runs of one method.

    Kinds and names are those of AGAINST; from the second of a kind on both have a number. Raises InputError if runs of one
    training have the same seed.
    """
    trainings, found = [], {}  # of each training (path, policy)
    for path in paths:
        policy = load_policy(path, device, reconstructor)
        alike = (some for some in trainings if not different_setting(some[0][1].config["args"], policy.config["args"], FREE))
        if (training := next(alike, None)) is None:
            trainings.append(training := [])
        training.append((path, policy))
    for training in trainings:
        check_trained_alike([path for path, _ in training], [policy.config["args"] for _, policy in training])
        config = training[0][1].config
        kind = "critic" if config["critic_only"] else "proposer" if config["supervised"] else "against"
        number = sum(name.partition("-")[0] == kind for name in found) + 1
        key, name = (kind, AGAINST[kind]) if number == 1 else (f"{kind}-{number}", f"{AGAINST[kind]} {number}")
        found[key] = [Agent(policy, name) for _, policy in training]
    return found


def open_models(args):
    """The models that the command line names, all with one tokenizer. Raises FileNotFoundError or InputError."""
    device = find_device(args.device)
    config, _ = read_agent(args.model_path[0])
    gaps, unit = args.gaps or config["gaps"], args.unit or config["unit"]
    reconstructor = Reconstructor.load(config["reconstructor"]["path"], device, gaps)
    policies, against = load_policies(args.model_path, device, reconstructor), open_against(args.against, device, reconstructor)
    receivers = open_receivers(args, reconstructor, device, gaps, against)
    name = args.base_model or first_base_model(reconstructor.directory)
    base, tokenizer = load_causal_lm(name), load_tokenizer(name)
    check_head(base)
    if fingerprint(tokenizer) != reconstructor.fingerprint:
        expected, found = f"the reconstructor's tokenizer {reconstructor.fingerprint}", fingerprint(tokenizer)
        raise InputError(f"--base_model {name}: expected {expected}, found {found}; name one with that tokenizer")
    theirs = [receiver.directory for receiver in receivers.values()]
    others = [run.policy for runs in against.values() for run in runs]
    readers = [policy.reader.reconstructor.directory for policy in policies + others]
    paths = (*args.model_path, *args.against, reconstructor.directory, *readers, name, *theirs)
    paths = dict.fromkeys(Path(locate(path)) for path in paths)
    return Models(
        policies, against, int(config["max_length"]), Words(reconstructor.tokenizer, unit), reconstructor, receivers,
        base.to(device), str(name), weights=[path for path in paths if path.exists()],
    )


def open_receivers(args, reconstructor, device, gaps, against):
    """{method: Reconstructor} of `--receivers`. Raises FileNotFoundError or InputError."""
    receivers, evaluated = {}, ["agent", *against, *(name for name in args.methods if name in OPPONENTS)]
    for word in args.receivers:
        method, _, directory = word.partition("=")
        if method not in evaluated or not directory:
            raise InputError(
                f"--receivers {word}: expected METHOD=DIRECTORY with a method of {', '.join(evaluated)}; name one of them"
            )
        receivers[method] = Reconstructor.load(directory, device, gaps)
        if (found := receivers[method].fingerprint) != reconstructor.fingerprint:
            expected = f"expected the agent's tokenizer {reconstructor.fingerprint}, found {found}"
            raise InputError(f"--receivers {word}: {expected}; fine-tune one with that tokenizer")
    return receivers
