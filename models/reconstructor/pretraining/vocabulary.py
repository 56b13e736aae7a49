"""The cut vocabulary of pre-training: of GPT-2's 50,257 tokens (`V`) those of the training text; `D` model width."""

import numpy as np
import torch

ROWS = 64  # the rows of the output layer come in multiples of it, as matrix units of accelerators like


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
