"""Tests of figures of merit and their intervals: `python eval/test_metrics.py` or pytest."""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest
from scipy import stats

from eval.metrics import Bootstrap, binary_entropy, correct, count_documents, difference, figures, reward
from eval.report import markdown
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


def ratio(sums):
    return {"ratio": sums[..., 1] / sums[..., 0]}


def test_the_interval_is_bootstrap_t_by_hand():
    """Errors of a ratio and of a paired difference of ratios in closed form, document by document, from the same counts."""
    rng = np.random.default_rng(1)
    size = rng.lognormal(0, 0.5, 30)
    first, second = (np.stack([size, size * rng.gamma(4.0, 0.5, 30)], 1) for _ in range(2))
    bootstrap = Bootstrap(30, 2000, 7)

    def by_hand(nats):
        ratios = (bootstrap.counts @ nats) / (bootstrap.counts @ size)
        off = nats - ratios[:, None] * size  # (samples, documents)
        errors = np.sqrt((bootstrap.counts * off**2).sum(1)) / (bootstrap.counts @ size)
        value = nats.sum() / size.sum()
        without = (nats.sum() - nats) / (size.sum() - size)
        high, low = np.quantile((ratios - value) / errors, [0.975, 0.025]) * np.std(without) * 29**0.5
        return value - high, value - low

    one, lead = bootstrap.estimate(ratio, first)["ratio"], difference(first, second, bootstrap, ratio)["ratio"]
    np.testing.assert_allclose(one["interval"], by_hand(first[:, 1]), rtol=1e-6)
    np.testing.assert_allclose(lead["interval"], by_hand(first[:, 1] - second[:, 1]), rtol=1e-5)
    assert "p" not in one and lead["value"] == pytest.approx(ratio(first.sum(0))["ratio"] - ratio(second.sum(0))["ratio"])


def test_bootstrap_interval_covers_the_truth_95_percent_of_the_time():
    """200 experiments with 40 documents each: the true mean nats, 2.0, lies inside about 190 of the intervals."""
    rng, inside = np.random.default_rng(0), 0
    bootstrap = Bootstrap(40, 1000, 0)
    for _ in range(200):
        nats = rng.gamma(4.0, 0.5, 40) * 20  # mean 2.0 for each of 20 masked tokens
        low, high = bootstrap.estimate(figures, cell(nats))["nats"]["interval"]
        inside += low <= 2.0 <= high
    assert 180 <= inside <= 199, inside  # binomial standard deviation 3; a bootstrap of 40 skewed values covers a little less


def documents(rng, number, skew):
    """Documents of unequal size, and what one method has less than another there: columns (number,) in truth 0 in the mean.

    Sizes are lognormal; effects are gamma distributed, of skewness 1 or 2.
    """
    shape = 4 / skew**2
    return rng.lognormal(0, 0.5 * skew, number), rng.gamma(shape, shape**-0.5, number) - shape**0.5


def other_intervals(counts, size, nats):
    """Ends of 95 % intervals {name: (low, high)} by other ways, of many experiments (documents, experiments) at once."""
    number, value = len(size), nats.sum(0) / size.sum(0)
    resampled = (counts @ nats) / (counts @ size)
    without = (nats.sum(0) - nats) / (size.sum(0) - size)
    off = without.mean(0) - without
    bent, bias = (off**3).sum(0) / 6 / (off**2).sum(0) ** 1.5, stats.norm.ppf((resampled < value).mean(0))
    found, expanded = {}, (number / (number - 1)) ** 0.5 * stats.t.isf(0.025, number - 1)  # Hesterberg 2015
    for name, z in (("", stats.norm.isf(0.025)), (", expanded", expanded)):
        bca = [bias + (bias + sign * z) / (1 - bent * (bias + sign * z)) for sign in (-1, 1)]
        for way, at in (("percentile", np.array([[-z], [z]]) + 0 * bent), ("BCa", np.array(bca))):
            quantiles = [np.quantile(some, ends) for some, ends in zip(resampled.T, stats.norm.cdf(at).T, strict=True)]
            found[way + name] = np.transpose(quantiles)
    return found


def test_intervals_cover_what_they_say():
    """600 experiments with 8, 22 and 40 documents, effects hardly and clearly skewed: prints how many intervals cover the truth.

    The percentile bootstrap and BCa, which cover clearly less, are the negative control.
    """
    covered, rng = {}, np.random.default_rng(0)
    for skew in (1, 2):
        for number in (8, 22, 40):
            bootstrap = Bootstrap(number, 1000, 0)
            size, effect = np.moveaxis([documents(rng, number, skew) for _ in range(600)], 0, -1)
            found, ours = other_intervals(bootstrap.counts, size, size * effect), []
            for x, y in zip(size.T, (size * effect).T, strict=True):
                level = x * rng.gamma(4.0, 0.5, number)  # of both methods
                lead = difference(np.stack([x, level + y], 1), np.stack([x, level], 1), bootstrap, ratio)
                ours.append(lead["ratio"]["interval"])
            for name, (low, high) in {**found, "here": np.transpose(ours)}.items():
                covered[skew, number, name] = np.mean((low <= 0) & (high >= 0))
    names = list(dict.fromkeys(name for *_, name in covered))
    rows = [["skewness", "documents", *names]]
    rows += [[str(s), str(n), *(f"{covered[s, n, name]:.1%}" for name in names)] for s in (1, 2) for n in (8, 22, 40)]
    print("", markdown(rows), sep="\n")
    for skew, least in ((1, 0.93), (2, 0.91)):
        for number in (8, 22, 40):
            here = covered[skew, number, "here"]
            assert least <= here <= 0.97, (skew, number, here)
            by = 0.015 if number == 22 else 0.0
            assert all(here > covered[skew, number, name] + by for name in ("percentile", "BCa")), (skew, number)


def test_paired_differences_see_what_unpaired_intervals_miss():
    rng, bootstrap = np.random.default_rng(0), Bootstrap(30, 2000, 0)
    level = rng.uniform(5, 50, 30)  # documents differ much, methods by a constant share
    a, b = cell(level * 0.97), cell(level)
    theirs, ours = (bootstrap.estimate(figures, sums)["nats"]["interval"] for sums in (b, a))
    assert ours[1] > theirs[0], "the intervals overlap"
    found = difference(a, b, bootstrap)
    assert found["nats"]["p"] == 0.001 and found["nats"]["value"] < 0 and found["top1"]["p"] == 1
    assert difference(a, a, bootstrap)["nats"]["p"] == 1
    runs = np.stack([a] * 3) + 1e-14  # alike but for rounding
    assert difference(runs, a, bootstrap)["nats"]["p"] == 1
    few = difference(a[:3], b[:3] * 2, Bootstrap(3, 500, 0))
    assert few["nats"]["p"] == 1, "three documents prove nothing"


def test_p_is_where_the_interval_begins_to_exclude_0(monkeypatch):
    """Of one training and of three: at the level p the interval excludes 0, a little below it does not."""
    rng, bootstrap = np.random.default_rng(0), Bootstrap(30, 2000, 0)
    first = cell(rng.gamma(4.0, 10.0, 30) + rng.normal(0, 1, (3, 30)))
    for runs, sign in ((1, 1), (3, 1), (1, -1)):
        pair = [first[:runs], first[:1] + sign * cell(rng.normal(3, 7, 30), 0, 0)]  # nats alone
        p = difference(*pair, bootstrap)["nats"]["p"]
        assert 0.001 < p < 0.5
        for level, excludes in ((p, True), (bootstrap.levels[np.searchsorted(bootstrap.levels, p) - 1], False)):
            monkeypatch.setattr("eval.metrics.ALPHA", level)
            low, high = difference(*pair, bootstrap)["nats"]["interval"]
            assert (low > 0 or high < 0) == excludes, (runs, sign, level)
        monkeypatch.undo()


def test_holm_is_a_closed_form():
    family = [{"p": p} for p in (0.03, 0.005, 0.9, 0.011)]
    correct(family)
    assert [each["p_holm"] for each in family] == pytest.approx([0.06, 0.02, 0.9, 0.033])
    assert [each["significant"] for each in family] == [False, True, False, True]


def test_a_planted_difference_is_found_and_copies_are_not_told_apart():
    """100 tables of an agent beside four methods at two keep ratios, 22 documents. Three methods are as good as the agent, in
    truth, and the fourth is worse: in at most one table in twenty, but for chance, is one of the three told from it.
    Without the correction one of them is in many more: the negative control.
    """
    rng, bootstrap, found, told_apart, uncorrected = np.random.default_rng(0), Bootstrap(22, 2000, 0), 0, 0, 0
    for _ in range(100):
        size = rng.lognormal(0, 0.5, 22)
        level = rng.gamma(4.0, 0.5, 22)  # of a document, whatever the method
        own = lambda worse: np.stack([size, size * (level * worse + rng.gamma(4.0, 0.1, 22))], 1)
        leads = []
        for _ in range(2):
            agent = own(1.0)
            leads.append([difference(agent, own(worse), bootstrap, ratio)["ratio"] for worse in (1.0, 1.0, 1.0, 1.4)])
            leads[-1].append(difference(agent, agent.copy(), bootstrap, ratio)["ratio"])
        family = [lead for each in leads for lead in each]
        correct(family)
        alike = [lead for each in leads for lead in each[:3]]
        found += all(each[3]["significant"] and each[3]["value"] < 0 for each in leads)
        told_apart += any(lead["significant"] for lead in alike)
        uncorrected += any(lead["p"] <= 0.05 for lead in alike)
        assert not any(each[4]["significant"] for each in leads)
    assert found > 90 and told_apart <= 9 and uncorrected > 20, (found, told_apart, uncorrected)


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
        inside += lead["p"] > 0.05
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
