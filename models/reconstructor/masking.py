"""Keep masks: which tokens of a text are sent (True) and which must be reconstructed (False).

Shapes: `B` texts, `T` tokens. `valid` (B, T) bool is False at padding. Padding counts as kept, so that no loss,
rate or reward ever sees it.
"""

import numpy as np

KEEP_THRESHOLD = 0.5  # an action, or a probability, above it keeps the token
MEAN_SPAN = 3.0  # tokens, the mean length of a masked span; SpanBERT (Joshi et al. 2020, section 3.1) uses 3.8


def budget(length, keep_ratio):
    """How many of `length` tokens are kept, rounded to the nearest token; numbers or arrays, int64."""
    return np.floor(np.asarray(length) * keep_ratio + 0.5).astype(np.int64)


def keep_counts(valid, keep_ratio):
    """How many tokens of each text are kept: `keep_ratio` of its length. (B,) int."""
    return budget(valid.sum(1), keep_ratio)


def keep_highest(scores, valid, keep_ratio):
    """The keep mask (B, T) that keeps the highest-scored `keep_ratio` of each text, exact to the token.

    `scores` (B, T) float: importance, higher is kept first; among equals, the earlier token. `keep_ratio`: a number
    or one number per text (B,), from 0 to 1.
    """
    order = np.argsort(np.where(valid, -np.asarray(scores, dtype=np.float64), np.inf), axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(order.shape[1])[None], axis=1)
    return (rank < keep_counts(valid, keep_ratio)[:, None]) | ~valid


def random_keep_mask(valid, mask_ratio, rng, span_share=0.0):
    """Mask `mask_ratio` (a number or (B,)) of each text at random, exact to the token.

    In `span_share` of the texts whole spans are masked (geometric lengths, mean MEAN_SPAN), in the others single
    tokens. A text is cut into random segments, each segment draws one score, and the highest scores are kept: with
    segments of one token this is a uniformly random subset.
    """
    in_spans = rng.random((len(valid), 1)) < span_share
    starts = rng.random(valid.shape) < np.where(in_spans, 1 / MEAN_SPAN, 1.0)
    starts[:, 0] = True
    segment = np.cumsum(starts, axis=1) - 1
    scores = np.take_along_axis(rng.random(valid.shape), segment, axis=1)
    return keep_highest(scores, valid, 1 - np.asarray(mask_ratio))


def draw_mask_ratios(count, mask_ratio, spread, rng):
    """Mask ratios (count,) uniform in `mask_ratio` ± `spread`, clipped to [0.01, 0.99]: one model serves every rate."""
    return np.clip(rng.uniform(mask_ratio - spread, mask_ratio + spread, count), 0.01, 0.99)
