"""The cut vocabulary of pre-training: of GPT-2's 50,257 tokens those of the training text, and a sample of them per step.

`K` tokens of the full vocabulary's `V` stand in the training text; `N` targets, `D` model width.
"""

import math

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from models.reconstructor.loss import summed_nats

FREQUENT, RARE_SAMPLE = 6000, 2000  # outputs that every step normalises over, and the sample of the others


class Vocabulary:
    """The cut vocabulary: the training tokens, most frequent first, then the mask token.

    `tokens` (K,) are their ids in the full vocabulary and `small` (V,) maps the other way; `mask` = K is the id of the
    mask token in the cut vocabulary.
    """

    def __init__(self, streams, vocab_size):
        self.counts = sum(np.bincount(stream, minlength=vocab_size) for stream in streams)
        order = np.argsort(-self.counts, kind="stable")
        self.tokens = order[: int((self.counts > 0).sum())]
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


def expand(model, vocabulary, vocab_size, eos):
    """A GPT2LMHeadModel over all `vocab_size` tokens and the mask token from one over the cut vocabulary."""
    config = GPT2Config(**{**model.config.to_dict(), "vocab_size": vocab_size + 1, "bos_token_id": eos, "eos_token_id": eos})
    full = GPT2LMHeadModel(config)
    state = {k: v for k, v in model.state_dict().items() if k not in ("transformer.wte.weight", "lm_head.weight")}
    full.load_state_dict(state, strict=False)
    cut = model.transformer.wte.weight.detach()
    once = cut[:-1][torch.as_tensor(vocabulary.counts[vocabulary.tokens] == 1)]
    with torch.no_grad():
        full.transformer.wte.weight[:] = once.mean(0) if len(once) else cut[:-1].mean(0)
        full.transformer.wte.weight[torch.as_tensor(vocabulary.tokens)] = cut[:-1]
        full.transformer.wte.weight[-1] = cut[-1]
    return full.eval()
