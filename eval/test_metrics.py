"""Tests of figures of merit and their intervals: `python eval/test_metrics.py` or pytest."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest

from eval.metrics import Bootstrap, binary_entropy, count_documents, difference, figures, percentiles, reward
from rl.env import token_rewards


def cell(nats, masked=20.0, right=5.0, exact=0.0, gaps=0.0):
    """Sums of documents with 100 tokens and the nats (..., documents)."""
    columns = (100.0, masked, nats, right, exact, 1.0, gaps)
    return np.stack(np.broadcast_arrays(*columns), -1).astype(float)


def test_figures_and_side_information_are_closed_forms():
    found = figures(np.array([[100, 20, 30.0, 15, 1, 4, 8.0]]))
    expected = {"top1": 0.75, "nats": 1.5, "distortion": 0.38, "gaps": 0.08, "exact_text": 0.25}
    assert {k: float(v[0]) for k, v in found.items()} == expected
    assert binary_entropy(0.5) == 1.0 and binary_entropy(1.0) == 0.0 and binary_entropy(0.9) == pytest.approx(0.469, abs=1e-3)


def test_the_reward_of_sums_is_that_of_the_environment():
    rng = np.random.default_rng(0)
    valid = np.arange(9) < np.array([[9], [5]])
    masked = (rng.random((2, 9)) < 0.5) & valid
    nats = np.where(masked, rng.exponential(2.0, (2, 9)), 0)
    gaps = np.where(valid, rng.exponential(0.3, (2, 9)), 0)
    for gaps in (0 * gaps, gaps):
        sums = np.stack([valid.sum(1), masked.sum(1), nats.sum(1), *np.ones((3, 2)), gaps.sum(1)], 1)
        earned = token_rewards(~masked, valid, nats, [1.5, 1.5], gaps).sum(1)
        np.testing.assert_allclose(reward(sums, 1.5), earned, rtol=1e-5)
        np.testing.assert_allclose(1.5 * masked.sum(1) / valid.sum(1) - figures(sums)["distortion"], earned, rtol=1e-5)


def test_bootstrap_draws_the_counts_that_it_reports():
    drawn = np.array([[0, 0, 2], [1, 2, 2]])
    assert count_documents(drawn, 3).tolist() == [[2, 0, 1], [0, 1, 2]] and count_documents(drawn[0], 3).tolist() == [2, 0, 1]


def test_bca_is_near_the_percentiles_of_the_same_counts():
    """The same resampled counts give the distribution of a percentile bootstrap by hand, for figures and differences."""
    rng = np.random.default_rng(1)
    first, second = (cell(rng.gamma(4.0, 10.0, 30), right=rng.integers(5, 15, 30)) for _ in range(2))
    bootstrap, seen = Bootstrap(30, 4000, 7), []

    class Spy(Bootstrap):
        def _over_documents(self, statistic):
            def spied(drawn, axis=-1):
                seen.append(drawn)
                return statistic(drawn)

            self.low_high, self.resampled = super()._over_documents(spied)
            return self.low_high, self.resampled

    spy = Spy(30, 4000, 7)
    low, high = spy.estimate(figures, first)["nats"]["interval"]
    counts = np.array([np.bincount(drawn, minlength=30) for drawn in next(s for s in seen if s.shape == (4000, 30))])
    values = figures(counts @ first)["nats"]
    np.testing.assert_allclose(spy.resampled[1], values, rtol=1e-12)  # the second figure is nats
    by_hand = np.quantile(values, [0.025, 0.975])
    np.testing.assert_allclose(percentiles(spy.resampled)[1], by_hand, rtol=1e-12)
    assert 0 < high - by_hand[1] < 0.2 * np.ptp(by_hand), "the values are skewed to the right, and BCa follows them"
    assert abs(low - by_hand[0]) < 0.2 * np.ptp(by_hand)
    lead = difference(first, second, bootstrap)["nats"]["interval"]
    by_hand = np.quantile(values - figures(counts @ second)["nats"], [0.025, 0.975])
    np.testing.assert_allclose(lead, by_hand, atol=0.1 * np.ptp(by_hand))  # the same documents, paired


def test_bootstrap_interval_covers_the_truth_95_percent_of_the_time():
    """200 experiments with 40 documents each: the true mean nats, 2.0, lies inside about 190 of the intervals."""
    rng, inside = np.random.default_rng(0), 0
    bootstrap = Bootstrap(40, 1000, 0)
    for _ in range(200):
        nats = rng.gamma(4.0, 0.5, 40) * 20  # mean 2.0 for each of 20 masked tokens
        low, high = bootstrap.estimate(figures, cell(nats))["nats"]["interval"]
        inside += low <= 2.0 <= high
    assert 180 <= inside <= 199, inside  # binomial standard deviation 3; a bootstrap of 40 skewed values covers a little less


def test_paired_differences_see_what_unpaired_intervals_miss():
    rng, bootstrap = np.random.default_rng(0), Bootstrap(30, 2000, 0)
    level = rng.uniform(5, 50, 30)  # documents differ much, methods by a constant share
    a, b = cell(level * 0.97), cell(level)
    theirs, ours = (bootstrap.estimate(figures, sums)["nats"]["interval"] for sums in (b, a))
    assert ours[1] > theirs[0], "the intervals overlap"
    found = difference(a, b, bootstrap)
    assert found["nats"]["significant"] and found["nats"]["value"] < 0 and not found["top1"]["significant"]
    assert not difference(a, a, bootstrap)["nats"]["significant"]
    few = difference(a[:3], b[:3] * 2, Bootstrap(3, 500, 0))
    assert not few["nats"]["significant"], "three documents prove nothing"


def test_documents_that_are_all_alike_have_an_interval_of_one_point():
    found = Bootstrap(8, 500, 0).estimate(figures, cell(np.full(8, 30.0)))
    assert found["nats"]["interval"] == [1.5, 1.5] and found["exact_text"]["interval"] == [0, 0]
    assert Bootstrap(1, 500, 0).estimate(figures, cell(np.array([30.0])))["nats"]["interval"] == [1.5, 1.5]


def test_intervals_of_several_runs_cover_the_mean_of_all_runs():
    """Trainings give 2.0 nats in the mean, with a standard deviation of 0.2; three of them are seen, on 40 documents."""
    rng, inside, over_documents = np.random.default_rng(0), 0, 0
    bootstrap = Bootstrap(40, 1000, 0)
    for _ in range(200):
        nats = (rng.gamma(4.0, 0.5, 40) + rng.normal(0, 0.2, (3, 1))) * 20
        found = bootstrap.estimate(figures, cell(nats))["nats"]
        inside += found["interval"][0] <= 2.0 <= found["interval"][1]
        over_documents += found["interval_over_documents"][0] <= 2.0 <= found["interval_over_documents"][1]
        assert found["value"] == pytest.approx(nats.mean() / 20)
    assert 180 <= inside and over_documents < inside - 5, (inside, over_documents)
    one = Bootstrap(40, 1000, 0).estimate(figures, cell(nats[0]))["nats"]
    alike = bootstrap.estimate(figures, cell(np.stack([nats[0]] * 3)))["nats"]
    assert alike["interval"] == pytest.approx(one["interval"]) and "interval_over_documents" not in one
    lead = difference(cell(nats), cell(nats[:1]) * 0.5, bootstrap)["nats"]
    assert lead["value"] == pytest.approx(found["value"] - one["value"])
    assert np.diff(lead["interval"]) > 2 * np.diff(lead["interval_over_documents"])


def test_two_trainings_differ_by_chance_in_19_of_20_intervals_at_most():
    """Three runs of each of two trainings that are alike in truth: 0 lies inside about 190 of 200 intervals of the difference."""
    rng, inside, over_documents, bootstrap = np.random.default_rng(0), 0, 0, Bootstrap(40, 1000, 0)
    for _ in range(200):
        level = rng.gamma(4.0, 0.5, 40)
        a, b = (cell((level + rng.normal(0, 0.2, (3, 1)) + rng.normal(0, 0.1, (3, 40))) * 20) for _ in range(2))
        lead = difference(a, b, bootstrap)["nats"]
        inside += not lead["significant"]
        over_documents += lead["interval_over_documents"][0] <= 0 <= lead["interval_over_documents"][1]
    assert 180 <= inside and over_documents < inside - 50, (inside, over_documents)
    one = bootstrap.estimate(figures, a[:1])["nats"]
    by_agents, by_others = (difference(*pair, bootstrap)["nats"]["interval"] for pair in ((a, b[:1]), (b[:1], a)))
    assert np.ptp(by_agents) == pytest.approx(np.ptp(by_others), rel=0.1) and np.ptp(by_agents) > 2 * np.ptp(one["interval"])


def test_a_whole_table_takes_seconds():
    """8 methods at 6 keep ratios, figures and differences, 5,000 samples of 200 documents: 15 s at most, here an eighth of it."""
    rng, bootstrap = np.random.default_rng(0), Bootstrap(200, 5000, 0)
    cells, start = [cell(rng.gamma(4.0, 10.0, 200)) for _ in range(7)], time.process_time()
    for sums in cells[1:]:
        bootstrap.estimate(figures, sums)
        difference(cells[0], sums, bootstrap)
    assert time.process_time() - start < 15 / 8


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
