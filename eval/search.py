"""Local search at a price λ: how much room there is above what was decided.

It is no method for use. It knows the text, and asks the receiver about every single flip of a decision, thousands of times per
text. What is flipped are words (`--unit`), with what must be added so that the rest can be sent as text where gaps are found;
what counts is J = λ (1 − R) − D, gaps included. Shapes: `T` tokens of one text, `W` words, `N` masks.
"""

import copy
from argparse import Namespace
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from eval.inputs import Corpus
from eval.metrics import SAMPLES, Bootstrap, reward
from models.reconstructor.scoring import score

LOCAL, LOCAL_SEARCH = "search", "local search"  # of --methods, and its result
DOCUMENTS = 20  # of which it searches one text each
ROUNDS = 60  # sweeps over the flips of a text, at most
APART = (1, 3, 8)  # words between flips that are made in one round
NEAR = 5  # words from a change to those that are asked about again next
LEAST = 1e-6  # nats per token: a smaller gain is rounding


class Climbed(NamedTuple):
    """Where local search ended: a keep mask (T,) bool, after how many sweeps, and whether no single flip betters it."""

    keep_mask: np.ndarray
    sweeps: int
    optimal: bool


def J_of_masks(receiver, text, keep_masks, price):
    """J (N,) of keep masks (N, T) of one text (T,), in nats per token."""
    ids = np.repeat(text[None], len(keep_masks), 0)
    return reward(score(receiver, ids, keep_masks, np.ones_like(keep_masks)).sums, price)


def local_search(receiver, words, text, first, price, rounds=ROUNDS):
    """From a keep mask (T,) of a text upwards, until no flip of a word raises J, or for `rounds` sweeps.

    In a sweep flips are asked about: all of them first and last, in between those that gained and what is NEAR a change. Those
    that gain are made together, the best first, as far as there are as many words between them as one of APART says, if that
    gains more than the best flip alone, which is made otherwise.
    """
    ids = torch.as_tensor(text)
    number = words.starts(ids[None], torch.ones(1, len(text), dtype=torch.bool))[0].cumsum(0).numpy() - 1
    flips = number == np.arange(number[-1] + 1)[:, None]  # (W, T)

    def sent(masks):  # as Corpus.sent
        return np.stack([words.keeps_reading(ids, torch.as_tensor(mask)).numpy() for mask in masks]) if receiver.found else masks

    keep_mask, J = first, J_of_masks(receiver, text, first[None], price)[0]
    gains, asked = np.zeros(len(flips)), np.ones(len(flips), dtype=bool)
    for sweep in range(1, rounds + 1):
        gains[asked] = J_of_masks(receiver, text, sent(keep_mask ^ flips[asked]), price) - J
        order = np.argsort(-gains, kind="stable")
        order = order[gains[order] > LEAST]
        if not len(order):
            if asked.all():
                return Climbed(keep_mask, sweep, True)
            asked[:] = True
            continue
        tried = [keep_mask ^ flips[far_apart(order, words_between)].any(0) for words_between in (len(flips), *APART)]
        tried = sent(np.stack(tried))
        found = J_of_masks(receiver, text, tried, price)
        best, changed = tried[found.argmax()], number[tried[found.argmax()] != keep_mask]
        keep_mask, J = best, found.max()
        asked = (gains > LEAST) | (np.abs(np.arange(len(flips))[:, None] - changed).min(1) <= NEAR)
    return Climbed(keep_mask, rounds, False)


def far_apart(order, words_between):
    """Of word numbers, best first, those that have at least so many words between them and every better one that is taken."""
    taken = []
    for word in order:
        if all(abs(word - other) > words_between for other in taken):
            taken.append(word)
    return taken


def on_some_texts(evaluation):
    """The Evaluation on one text, the first, of each of DOCUMENTS documents at equal distances, with verified masks."""
    corpus, args = evaluation.corpus, evaluation.args
    documents = np.unique(np.linspace(0, len(corpus.names) - 1, DOCUMENTS).round().astype(int))
    chosen = [int(np.flatnonzero(corpus.document == document)[0]) for document in documents]
    texts, few = [corpus.texts[i] for i in chosen], copy.copy(evaluation)
    few.args = Namespace(**vars(args) | {"methods": [*args.methods, "verified"]})
    few.corpus = Corpus(texts, corpus.names[documents], args.batch_size, corpus.words, corpus.as_text)
    few.scores = {}
    few.bootstrap = Bootstrap(len(documents), SAMPLES, args.seed)
    return few


def room(evaluation, price):
    """What there is above the agent, on some texts: all results on these, and local search's, each text from its best start."""
    few = on_some_texts(evaluation)
    corpus, receiver = few.corpus, few.models.receiver("agent")
    results, starts, agents = few.measured(price)
    J = [reward(corpus.sums(receiver, masks), price) for masks in starts]  # one (texts,) per start
    starts, masks = [[row for mask in masks for row in mask] for masks in starts], [~valid for _, valid in corpus.batches]
    rows, ends = (row for mask in masks for row in mask), []
    progress = tqdm(enumerate(corpus.texts), desc=LOCAL_SEARCH, total=len(corpus.texts), unit="text", disable=few.args.quiet)
    for (i, text), row in zip(progress, rows, strict=True):
        first = starts[int(np.argmax([each[i] for each in J]))][i][: len(text)]
        ends.append(local_search(receiver, corpus.words, text, first, price))
        row[: len(text)] = ends[-1].keep_mask
    optimal, sweeps = sum(end.optimal for end in ends), [end.sweeps for end in ends]
    searched, rule = corpus.sums(receiver, corpus.sent(masks)), f"no flip helps in {optimal} of {len(ends)} texts"
    results.append(few.summary(LOCAL_SEARCH, rule, searched[None], price, agents))
    counts = {"texts": len(ends), "documents": len(corpus.names), "local_optima": optimal, "most_sweeps": ROUNDS}
    return {"price": price, **counts, "sweeps": sweeps, "results": results}
