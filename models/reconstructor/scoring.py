"""What keep masks cost: the one place where a reconstructor's answers are compared with the truth.

Validation of the reconstructor, the environment, held-out evaluation and every script in `eval/` score masks here. Shapes: `B`
texts, `T` tokens. Only masked tokens are scored: at kept tokens and at padding nothing is asked and nothing counts.
"""

from typing import NamedTuple

import numpy as np

from data.artifacts import InputError

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
    """The Score of keep masks (B, T) bool of texts `ids` (B, T) int64, `valid` (B, T) bool. Raises InputError if nats are NaN."""
    prediction = reconstructor.predict(ids, keep_mask, valid)
    nats, gaps = prediction.nats.cpu().numpy(), prediction.gaps.cpu().numpy()
    if not np.isfinite(nats).all() or not np.isfinite(gaps).all():
        raise InputError("the reconstructor: expected finite nats per token, found NaN or infinity; fine-tune it anew")
    masked = valid & ~keep_mask
    return Score(nats, (prediction.top1.cpu().numpy() == ids) & masked, masked, valid, gaps)
