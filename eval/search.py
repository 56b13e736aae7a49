"""Keep masks at a price λ found by asking the reconstructor about whole masks: what an agent can be measured against.

None of these is a method for use: each knows the answer and asks dozens to thousands of times per text. Shapes: `T` tokens of
one text, `N` masks. J = λ (1 − R) − D in nats per token, as in rl/env.py.
"""

import itertools

import numpy as np

from rl.env import token_rewards

NEIGHBOURHOOD = 8  # tokens; flips further apart than this are accepted in one round of local search


def J_of_masks(reconstructor, text, keep_masks, price):
    """J (N,) of N keep masks (N, T) of one text (T,) at a price λ in nats per token."""
    ids = np.broadcast_to(text, keep_masks.shape)
    valid = np.ones(keep_masks.shape, dtype=bool)
    nats = reconstructor.predict(ids.copy(), keep_masks, valid).nats.cpu().numpy()
    return token_rewards(keep_masks, valid, nats, np.full(len(keep_masks), price)).sum(1)


def verified_mask(reconstructor, text, first, price):
    """Start from a keep mask (T,), send the dearer half of what comes back dearer than λ, and again, until nothing does."""
    keep_mask = first.copy()
    while True:
        nats = reconstructor.predict(text[None], keep_mask[None]).nats[0].cpu().numpy()
        dear = np.flatnonzero(~keep_mask & (nats > price))
        if not len(dear):
            return keep_mask
        keep_mask[dear[np.argsort(-nats[dear], kind="stable")[: (len(dear) + 1) // 2]]] = True


def local_search(reconstructor, text, first, price, rounds=40):
    """Flip decisions as long as one flip raises J: greedy ascent from a keep mask (T,), to a mask that no single flip betters.

    In a round every flip is tried; those that gain most within their NEIGHBOURHOOD are all made, if together they gain
    more than the best one alone, which is made otherwise.
    """
    T = len(text)
    keep_mask, current = first.copy(), J_of_masks(reconstructor, text, first[None], price)[0]
    for _ in range(rounds):
        gains = J_of_masks(reconstructor, text, keep_mask ^ np.eye(T, dtype=bool), price) - current
        if gains.max() <= 1e-7:
            break
        peaks = [i for i in range(T) if gains[i] > 1e-7 and gains[i] == gains[max(0, i - NEIGHBOURHOOD) : i + NEIGHBOURHOOD + 1].max()]
        steps = np.repeat(keep_mask[None], 2, 0)
        steps[0, peaks] ^= True
        steps[1, gains.argmax()] ^= True
        found = J_of_masks(reconstructor, text, steps, price)
        keep_mask, current = steps[found.argmax()], found.max()
    return keep_mask


def all_masks(T):
    """Every keep mask of T tokens, (2^T, T)."""
    return np.array(list(itertools.product([True, False], repeat=T)))


def optima(reconstructor, text, prices):
    """The highest J over all 2^T masks of a short text at each price, [(J, keep_mask (T,)), …]; the reconstructor is asked once."""
    masks = all_masks(len(text))
    kept_all = J_of_masks(reconstructor, text, masks, 0.0)  # at λ = 0 J is −D
    J = [kept_all + price * (1 - masks.mean(1)) for price in prices]
    return [(float(j.max()), masks[j.argmax()]) for j in J]
