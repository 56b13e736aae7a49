"""Tests of p(x | c) where the gaps have to be found: `python models/reconstructor/test_found.py` or pytest."""

import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pytest
import torch

from models.reconstructor.conftest import some_masks, tiny
from models.reconstructor.gaps import CLASSES, send


def alignments(c, vocabulary, bound):
    """All (text, keep mask) with the tokens c kept and at most `bound` missing at each boundary, but for the empty text."""
    fillings = [list(product(range(vocabulary), repeat=g)) for g in range(bound + 1)]
    for first, *later in product(sum(fillings, []), repeat=len(c) + 1):
        text, kept = list(first), [False] * len(first)
        for token, filling in zip(c, later, strict=True):
            text, kept = [*text, token, *filling], [*kept, True, *[False] * len(filling)]
        if text:
            yield text, kept


def probabilities(reconstructor, c, vocabulary, bound):
    """p(g, missing tokens | c) of all alignments, float64."""
    texts, masks = zip(*alignments(c, vocabulary, bound), strict=True)
    longest = max(map(len, texts))
    pad = lambda rows, value: torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])
    valid = torch.arange(longest) < torch.tensor([len(text) for text in texts])[:, None]
    found = reconstructor.predict(pad(texts, 0), pad(masks, True), valid)
    return (-(found.nats.double() + found.gaps.double()).sum(1)).exp()


def mass_of_gaps(reconstructor, c, bound):
    """1 less the tails: the probability that no boundary of c misses more than `bound` tokens, by the head alone."""
    ids = torch.tensor([c], dtype=torch.long).view(1, len(c))
    with torch.no_grad():
        states = reconstructor.gap_states(send(ids, torch.ones_like(ids) > 0, torch.ones_like(ids) > 0))
        log_p, end = (x.double() for x in reconstructor.gap_head(states))
    if bound < CLASSES:
        within = log_p[0, :, : bound + 1].exp().sum(-1)
    else:
        within = 1 - log_p[0, :, -1].exp() * (1 - end[0].sigmoid()) ** (bound - CLASSES + 1)
    empty = 0.0 if c else float(log_p[0, 0, 0].exp())
    return float(within.prod()) - empty


@pytest.mark.parametrize(
    "vocabulary, c, bound", [(3, [1], 2), (4, [2], 1), (3, [1, 1], 1), (4, [3, 0], 1), (3, [2, 1, 1], 1), (3, [], 4), (2, [], 10)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_all_texts_that_hold_what_was_sent_share_one_probability(vocabulary, c, bound, seed):
    """Brute force: all texts that could have been meant, in every alignment, up to a bound on gaps. Nothing is left unpaid."""
    expected = mass_of_gaps(tiny(vocabulary, seed), c, bound)
    assert 1e-4 < expected < 1
    found = probabilities(tiny(vocabulary, seed), c, vocabulary, bound)
    assert found.sum().item() == pytest.approx(expected, rel=1e-4)
    assert found.max() > 2 * found.median(), "they are not all alike"
    told = probabilities(tiny(vocabulary, seed, found=False), c, vocabulary, bound)
    # The control: who is told where tokens are missing has one distribution for each way in which they can be.
    assert told.sum().item() == pytest.approx((bound + 1) ** (len(c) + 1) - (not c), rel=1e-4)


def test_padding_company_and_masked_tokens_change_nothing():
    reconstructor, (ids, keep_mask, valid) = tiny(), some_masks(1)
    together = reconstructor.predict(ids, keep_mask, valid)
    for row, length in enumerate(valid.sum(1)):
        alone = reconstructor.predict(*(x[row : row + 1, :length] for x in (ids, keep_mask)))
        torch.testing.assert_close(together.gaps[row, :length], alone.gaps[0], rtol=1e-4, atol=1e-5)
    assert not together.gaps[~valid].any() and (together.gaps[valid & ~keep_mask] > 0).all()
    other = torch.where(keep_mask & valid, ids, (ids + 1) % 3)
    torch.testing.assert_close(reconstructor.predict(other, keep_mask & valid, valid).gaps, together.gaps)
    other = torch.where(keep_mask & valid, (ids + 1) % 3, ids)  # the control: what was sent counts
    assert not torch.allclose(reconstructor.predict(other, keep_mask, valid).gaps, together.gaps, atol=0.01)


def test_the_training_loss_is_what_predictions_add_up_to_and_reaches_the_head():
    batch, sums = some_masks(2), {}
    for found in (True, False):
        reconstructor = tiny(found=found)
        loss, prediction = reconstructor(*batch), reconstructor.predict(*batch)
        sums[found] = loss.item()
        assert loss.item() == pytest.approx(float(prediction.nats.sum() + prediction.gaps.sum()), rel=1e-4)
        loss.backward()
        assert all((p.grad is not None) == found for p in reconstructor.gap_head.parameters())
        assert bool(prediction.gaps.any()) == found
    assert sums[True] > sums[False]

if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
