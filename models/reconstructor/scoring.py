"""What keep masks cost: the one place where a reconstructor's answers are compared with the truth.

Validation of the reconstructor, the environment, held-out evaluation and every script in `eval/` score masks here. Shapes: `B`
texts, `T` tokens. Only masked tokens are scored: at kept tokens and at padding nothing is asked and nothing counts.
"""

from typing import NamedTuple

import numpy as np
import torch

from models.reconstructor.words import spread

SUMS = ("tokens", "masked", "nats", "right", "exact", "texts", "gaps")  # columns of Score.sums


class Score(NamedTuple):
    """Arrays (B, T): nats, float32, -ln p of a masked token, 0 elsewhere; `right`: masked and restored; `masked`; `valid`; and
    `gaps`, float32, each token's share of what it costs to find the gaps, 0 where the receiver is told."""

    nats: np.ndarray
    right: np.ndarray
    masked: np.ndarray
    valid: np.ndarray
    gaps: np.ndarray

    @property
    def sums(self):
        """What figures of merit are made of, float64 (B, 7) in the order of SUMS."""
        masked, right = self.masked.sum(1), self.right.sum(1)
        nats, gaps = (x.sum(1, dtype=np.float64) for x in (self.nats, self.gaps))
        columns = [self.valid.sum(1), masked, nats, right, masked == right, np.ones(len(masked)), gaps]
        return np.stack(columns, 1).astype(np.float64)


def score(reconstructor, ids, keep_mask, valid):
    """The Score of keep masks (B, T) bool of texts `ids` (B, T) int64, `valid` (B, T) bool. Raises InputError as `predict`."""
    prediction = reconstructor.predict(ids, keep_mask, valid)
    nats, gaps = prediction.nats.cpu().numpy(), prediction.gaps.cpu().numpy()
    masked = valid & ~keep_mask
    return Score(nats, (prediction.top1.cpu().numpy() == ids) & masked, masked, valid, gaps)


def verify(reconstructor, words, text, first, price):
    """Start from a keep mask (T,) of a text, send the dearer half of what is dearer than λ, and again, until nothing is.

    What costs are whole words, in the mean of their tokens, with their shares of a gap. Returns the Score of the last mask: of
    all that it masks, nothing costs more than λ.
    """
    keep_mask, valid = first[None].copy(), np.ones((1, len(text)), dtype=bool)
    starts = words.starts(torch.as_tensor(text[None]), torch.as_tensor(valid))
    number = (starts.cumsum(1) - 1)[0].numpy()
    while True:
        found = score(reconstructor, text[None], keep_mask, valid)
        cost = spread(torch.as_tensor(found.nats + found.gaps), starts)[0].numpy()
        dear = np.flatnonzero(found.masked[0] & (cost > price) & starts[0].numpy())
        if not len(dear):
            return found
        dearest = dear[np.argsort(-cost[dear], kind="stable")[: (len(dear) + 1) // 2]]
        keep_mask[0] |= np.isin(number, number[dearest])
