"""The cut vocabulary of pre-training: of GPT-2's 50,257 tokens those of the training text, and a sample of them per step.

`K` tokens of the full vocabulary's `V` stand in the training text; `N` targets, `D` model width.
"""

import math

import numpy as np
import torch

from models.reconstructor.loss import summed_nats

ROWS = 64  # the rows of the output layer come in multiples of it, as matrix units of accelerators like
FREQUENT, RARE_SAMPLE = 6000, 2000  # outputs that every step normalises over, and the sample of the others


class Vocabulary:
    """The cut vocabulary: the training tokens, most frequent first, then the mask token.

    `tokens` (K,) are their ids in the full vocabulary and `small` (V,) maps the other way; `mask` = K is the id of the
    mask token in the cut vocabulary. Tokens that were never seen fill K + 1 up to a multiple of ROWS.
    """

    def __init__(self, streams, vocab_size):
        self.counts = sum(np.bincount(stream, minlength=vocab_size) for stream in streams)
        order = np.argsort(-self.counts, kind="stable")
        seen = int((self.counts > 0).sum())
        self.tokens = order[: seen + (-seen - 1) % ROWS]
        self.mask = len(self.tokens)
        self.small = torch.zeros(vocab_size, dtype=torch.long)
        self.small[torch.as_tensor(self.tokens)] = torch.arange(len(self.tokens))

    def __len__(self):
        return len(self.tokens) + 1


class OutputSample:
    """The outputs that a step normalises over: the FREQUENT ones, the rare targets, and a sample of the other rare ones.

    The n sampled out of m get ln(m / n) added to their logits: the sum of exponentials is then an unbiased estimate of the
    partition function. Of a causal step's targets nineteen in twenty are among the frequent.
    """

    def __init__(self, targets, vocab_size, rng):
        first, rare = torch.arange(FREQUENT), targets[targets >= FREQUENT].unique()
        others = np.setdiff1d(np.arange(FREQUENT, vocab_size), rare.numpy(), assume_unique=True)
        sample = torch.as_tensor(rng.choice(others, min(RARE_SAMPLE, len(others)), replace=False))
        self.ids = torch.cat([first, rare, sample])
        self.bias = torch.zeros(len(self.ids), 1)
        self.bias[len(first) + len(rare) :] = math.log(max(1, len(others)) / max(1, len(sample)))
        self.place = torch.zeros(vocab_size, dtype=torch.long)
        self.place[self.ids] = torch.arange(len(self.ids))

    def summed_nats(self, hidden, weight, targets):
        """As loss.summed_nats; the bias is one more column of the weight against a column of ones."""
        hidden = torch.cat([hidden, hidden.new_ones(len(hidden), 1)], 1)
        return summed_nats(hidden, torch.cat([weight[self.ids], self.bias], 1), self.place[targets])


def full_embedding(cut, vocabulary, vocab_size):
    """The embedding (vocab_size + 1, D) over all tokens and the mask token, from that over the cut vocabulary.

    A token that was never seen gets the mean of those seen once, which makes it as unlikely as those.
    """
    cut = cut.detach()
    counts = torch.as_tensor(vocabulary.counts[vocabulary.tokens], device=cut.device)
    rare = cut[:-1][counts == 1] if (counts == 1).any() else cut[:-1][counts > 0]
    full = rare.mean(0).repeat(vocab_size + 1, 1)
    full[torch.as_tensor(vocabulary.tokens, device=cut.device)[counts > 0]] = cut[:-1][counts > 0]
    full[-1] = cut[-1]
    return full
