import itertools

import numpy as np
import pytest
import torch

from data.artifacts import InputError
from models.agent.worth import WORTH, Worth, best_chains, load_worth, within_budget


def lost(words, pairs, kept):
    return words[~kept].sum() + pairs[~(kept[:-1] & kept[1:])].sum()


@pytest.mark.parametrize("seed", range(8))
def test_chains_are_the_best_of_all(seed):
    """Against all 2^9 ways to send nine words; with pairs that are worth much, a price away from that changes the choice."""
    rng = np.random.default_rng(seed)
    words, pairs, sizes = rng.exponential(size=9), rng.exponential(size=8) * rng.choice([0.1, 1, 5]), rng.integers(1, 4, 9)
    every = [np.array(kept) for kept in itertools.product([False, True], repeat=9)]
    prices = [0.0, 0.1, 0.5, 1.0, 3.0, 100.0]
    for price, kept in zip(prices, best_chains(words, pairs, sizes, prices), strict=True):
        least = min(lost(words, pairs, each) + price * sizes[each].sum() for each in every)
        assert lost(words, pairs, kept) + price * sizes[kept].sum() == pytest.approx(least)
    assert best_chains(words, pairs, sizes, [0.0]).all() and not best_chains(words, pairs, sizes, [100.0]).any()


def test_budgets_are_kept_and_spent():
    rng = np.random.default_rng(0)
    for count in (1, 2, 7, 150):
        words, pairs, sizes = rng.exponential(size=count), rng.exponential(size=count - 1), rng.integers(1, 4, count)
        for budget in (0, 1, sizes.sum() // 2, sizes.sum() - 1, sizes.sum()):
            kept = within_budget(words, pairs, sizes, budget)
            assert sizes[kept].sum() <= budget
            left = budget - sizes[kept].sum()
            assert kept.all() or left < sizes[~kept].min(), "what still fits is sent"


def test_runs_are_sent_where_pairs_are_worth_something_and_scattered_words_where_not():
    words, sizes = np.tile([1.0, 0.9], 20), np.ones(40)
    def runs(pairs):
        kept = within_budget(words, np.full(39, pairs), sizes, 20)
        return int(kept[0]) + int((kept[1:] & ~kept[:-1]).sum())
    assert runs(0.0) == 20 and runs(1.0) == 1


def test_saving_and_loading(tmp_path):
    torch.manual_seed(0)
    worth, states = Worth(8).eval(), torch.randn(5, 8)
    assert load_worth(tmp_path, 8) is None
    (tmp_path / WORTH).write_bytes(worth.pack())
    first, sizes = np.array([0, 2, 3]), np.array([2, 1, 2])
    words, pairs = worth.of(states, first, sizes)
    again = load_worth(tmp_path, 8).of(states, first, sizes)
    assert words.shape == (3,) and pairs.shape == (2,) and (words > 0).all()
    assert (again[0] == words).all() and (again[1] == pairs).all()
    with pytest.raises(InputError, match="expected worths of 9 states"):
        load_worth(tmp_path, 9)
    with torch.no_grad():
        worth.word.bias.fill_(float("nan"))
    (tmp_path / WORTH).write_bytes(worth.pack())
    with pytest.raises(InputError, match="finite"):
        load_worth(tmp_path, 8)
    (tmp_path / WORTH).write_bytes(b"no")
    with pytest.raises(InputError, match="train it anew"):
        load_worth(tmp_path, 8)


def test_what_is_lost_adds_up():
    """Nothing where all is sent; with the sums of `of` where all is left out, or one word."""
    torch.manual_seed(0)
    worth, states, sizes = Worth(8).eval(), torch.randn(4, 8), torch.ones(4)
    words, pairs = (x.detach().numpy() for x in worth(states, sizes))
    found = worth.lost(states, sizes, torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0], [1, 0, 1, 1]])).detach().numpy()
    expected = 1 - np.exp(-np.array([0, words.sum() + pairs.sum(), words[1] + pairs[:2].sum()]))
    assert found == pytest.approx(expected, abs=1e-6)
