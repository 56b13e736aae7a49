"""Keep masks at a price λ found by asking the reconstructor about whole masks: what an agent can be measured against.

None of these is a method for use: each knows the answer and asks dozens to thousands of times per text. Shapes: `T` tokens of
one text, `N` masks. J = λ (1 − R) − D in nats per token, as in rl/env.py.
"""

import numpy as np

from eval.metrics import reward
from models.reconstructor.scoring import score

NEIGHBOURHOOD = 8  # tokens; flips further apart than this are accepted in one round of local search


def score_text(reconstructor, text, keep_masks):
    """The Score of N keep masks (N, T) of one text (T,)."""
    return score(reconstructor, np.repeat(text[None], len(keep_masks), 0), keep_masks, np.ones(keep_masks.shape, dtype=bool))


def verified_mask(reconstructor, text, first, price):
    """Start from a keep mask (T,), send the dearer half of what comes back dearer than λ, and again, until nothing does."""
    keep_mask = first.copy()
    while True:
        nats = score_text(reconstructor, text, keep_mask[None]).nats[0]
        dear = np.flatnonzero(nats > price)
        if not len(dear):
            return keep_mask
        keep_mask[dear[np.argsort(-nats[dear], kind="stable")[: (len(dear) + 1) // 2]]] = True


def local_search(reconstructor, text, first, price, rounds=40):
    """Flip decisions as long as one flip raises J: greedy ascent from a keep mask (T,), to a mask that no single flip betters.

    In a round every flip is tried; those that gain most within their NEIGHBOURHOOD are all made, if together they gain
    more than the best one alone, which is made otherwise.
    """
    T = len(text)

    def J(keep_masks):
        return reward(score_text(reconstructor, text, keep_masks).sums, price)

    keep_mask, current = first.copy(), J(first[None])[0]
    for _ in range(rounds):
        gains = J(keep_mask ^ np.eye(T, dtype=bool)) - current
        if gains.max() <= 1e-7:
            break
        near = [gains[max(0, i - NEIGHBOURHOOD) : i + NEIGHBOURHOOD + 1] for i in range(T)]
        peaks = [i for i in range(T) if gains[i] > 1e-7 and gains[i] == near[i].max()]
        steps = np.repeat(keep_mask[None], 2, 0)
        steps[0, peaks] ^= True
        steps[1, gains.argmax()] ^= True
        found = J(steps)
        keep_mask, current = steps[found.argmax()], found.max()
    return keep_mask
