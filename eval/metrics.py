"""Figures of merit and their uncertainty. Each is implemented once, here.

A *cell* is one method at one keep ratio. Its sums per document, columns SUMS, are all that the figures need: every
figure is a ratio of sums. Sums are (documents, 7), or (runs, documents, 7) where a method was trained several times: its
figures are then means over runs.
"""

import numpy as np
from scipy import stats

from models.reconstructor.scoring import SUMS

ALPHA, SAMPLES = 0.05, 10000  # intervals in results cover 1 − ALPHA; p is resolved down to 2 / SAMPLES
MIN_DOCUMENTS = 6  # with fewer, resampling documents says nothing: no difference is called significant
LEAST_ERROR = 0.25  # of a resample's standard error, by the one observed: where all that was drawn is alike it would be 0
STEP = 1e-4  # of a column's total, by which slopes are found
ROUNDING = 1e-12  # no difference
INTERVAL = (
    "95 %, bootstrap-t over documents; with several agents widened by Student's t over them, interval_over_documents is without"
)
TEST = "p: the least level at which the interval excludes 0; p_holm: Holm's, over all differences of the file in what is judged"

# What methods are judged by, the figure's digits, and whether more of it is better: where gaps are told, where they are found,
# at a price, by a reader.
JUDGED = {
    "told": {"top1": (3, True), "nats": (2, False)},
    "found": {"distortion": (3, False), "word_error_rate": (3, False)},
    "price": {"J": (4, True)},
    "reader": {"recovered": (3, True)},
}


def binary_entropy(rate):
    """H_b(R) in bits per original token: at most this much is needed to say where the gaps are."""
    if rate in (0.0, 1.0):
        return 0.0
    return float(-rate * np.log2(rate) - (1 - rate) * np.log2(1 - rate))


def figures(sums):
    """{name: value} from sums (..., 7) in the order of SUMS; arrays if `sums` has leading dimensions.

    top1: share of masked tokens restored. nats: per masked token. distortion: nats per original token, of masked tokens and of
    gaps; gaps: of these alone. exact_text: share of texts restored without an error.
    """
    tokens, masked, nats, right, exact, texts, gaps = columns(sums)
    found = {"top1": right / masked, "nats": nats / masked, "distortion": (nats + gaps) / tokens, "gaps": gaps / tokens}
    return found | {"exact_text": exact / texts}


def reward(sums, price):
    """J = λ (1 − R) − D in nats per original token from sums (..., 7), at `price` λ in nats per token saved."""
    tokens, masked, nats, *_, gaps = columns(sums)
    return (price * masked - nats - gaps) / tokens


def columns(sums):
    """Seven arrays (...) from sums (..., 7), in the order of SUMS."""
    assert SUMS == ("tokens", "masked", "nats", "right", "exact", "texts", "gaps")
    return np.moveaxis(np.asarray(sums, dtype=float), -1, 0)


def count_documents(drawn, documents):
    """How often each document is among the drawn ones: (..., documents) from document numbers (..., any)."""
    rows = drawn.reshape(-1, drawn.shape[-1])
    numbers = rows + documents * np.arange(len(rows))[:, None]
    return np.bincount(numbers.ravel(), minlength=documents * len(rows)).reshape(*drawn.shape[:-1], documents)


class Bootstrap:
    """Intervals over `documents` documents, drawn `samples` times, the same ones for every cell.

    Documents are drawn, because sentences of one document are not independent. Intervals are bootstrap-t (Efron and Tibshirani
    1993, 12.5): how many standard errors the estimate may lie from the truth is read off how many of its own each resample lies
    from the estimate. The resamples' errors are linearised, the observed one is the jackknife's, which does not fall short
    with few documents of unequal size: so intervals cover more of what they say (eval/test_metrics.py) than percentiles and BCa.
    Two or three training runs can't be drawn from: their part of an interval is Student's t with runs − 1 degrees of freedom, or
    as many as in Welch's test where both methods were trained several times. Both parts are joined as the sides of a right angle
    (MOVER; Zou and Donner 2008).
    """

    def __init__(self, documents, samples, seed):
        self.documents, self.samples = documents, samples
        drawn = np.random.default_rng(seed).integers(0, documents, (samples, documents))
        self.counts = count_documents(drawn, documents).astype(float)
        self.levels = np.unique([*np.geomspace(min(2 / samples, ALPHA), 1, 300), ALPHA])  # at which intervals are asked for

    def estimate(self, of, *cells):
        """{name: {"value", "interval"}} of the figures {name: value} that `of` makes of the totals (..., 7) of the cells.

        With several runs the interval allows for what another training would have given, and `interval_over_documents` does not.
        Of several cells the figures are differences, with `p`, the least level at which the interval excludes 0, 2 / samples or
        more; 1 with fewer than MIN_DOCUMENTS documents.
        """
        runs = [np.reshape(sums, (-1, *sums.shape[-2:])) for sums in cells]
        totals, rows = [each.mean(0).sum(0) for each in runs], np.concatenate([each.mean(0) for each in runs], -1)
        splits = np.cumsum([len(total) for total in totals])[:-1]
        with np.errstate(invalid="ignore", divide="ignore"):
            values = of(*totals)
            estimates = np.array(list(values.values()))
            over_documents = self._over_documents(lambda sums: np.stack(list(of(*np.split(sums, splits, -1)).values())), rows)
            other_runs = self._between_runs(of, [each.sum(1) for each in runs])
        at, found = int(np.searchsorted(self.levels, ALPHA)), {}
        both = over_documents if other_runs is None else np.hypot(over_documents, other_runs[:, None])
        for i, (name, value) in enumerate(zip(values, estimates, strict=True)):
            ends = lambda widths: [float(value - widths[i, 0, at]), float(value + widths[i, 1, at])]
            found[name] = {"value": float(value), "interval": ends(both)}
            if other_runs is not None:
                found[name]["interval_over_documents"] = ends(over_documents)
            if len(cells) > 1:
                excluded = abs(value) > both[i, 0 if value > 0 else 1] + ROUNDING
                enough = self.documents >= MIN_DOCUMENTS and excluded.any()
                found[name]["p"] = float(self.levels[np.argmax(excluded)]) if enough else 1.0
        return found

    def _between_runs(self, of, totals):
        """How far other trainings reach, (figures, levels); None if every cell, totals (runs, 7), has one run."""
        means, variances, freedom = [each.mean(0) for each in totals], [], []
        for i, each in enumerate(totals):
            if len(each) > 1:
                by_run = of(*means[:i], each, *means[i + 1 :])
                variances.append(np.var(list(by_run.values()), axis=1, ddof=1) / len(each))
                freedom.append(len(each) - 1)
        if not freedom:
            return None
        variances, freedom = np.array(variances), np.array(freedom)[:, None]  # (cells, figures), (cells, 1)
        welch = variances.sum(0) ** 2 / (variances**2 / freedom).sum(0)
        welch = np.where(np.isnan(welch), freedom.min(), welch)  # where all runs are alike
        return np.sqrt(variances.sum(0))[:, None] * stats.t.isf(self.levels / 2, welch[:, None])

    def _over_documents(self, statistic, rows):
        """How far other documents reach below and above, (figures, 2, levels).

        `statistic`: makes figures (figures, ...) of totals (..., columns), which are sums of rows (documents, columns).
        """
        estimates, total = statistic(rows.sum(0)), rows.sum(0)
        if self.documents == 1:  # one document can only be drawn as it is
            return np.zeros((len(estimates), 2, len(self.levels)))
        without = statistic(total - rows)
        error = np.sqrt(((without - without.mean(1, keepdims=True)) ** 2).sum(1) * (1 - 1 / self.documents))[:, None]
        resampled = self.counts @ rows
        away, errors = statistic(resampled) - estimates[:, None], self._errors(statistic, rows, resampled)
        t = away / np.fmax(errors, LEAST_ERROR * error)
        t = np.nan_to_num(t, nan=0, posinf=0, neginf=0)  # where all documents are alike
        high, low = (np.quantile(t, tail, axis=1).T for tail in (1 - self.levels / 2, self.levels / 2))
        return np.maximum(np.stack([high, -low], 1), 0) * error[:, :, None]

    def _errors(self, statistic, rows, resampled):
        """Linearised standard errors (figures, samples) of a statistic of the resampled totals (samples, columns)."""
        slopes = []
        for column in range(rows.shape[1]):
            step = np.zeros_like(resampled)
            step[:, column] = STEP * np.maximum(np.abs(resampled[:, column]), 1)
            slopes.append((statistic(resampled + step) - statistic(resampled - step)) / (2 * step[:, column]))
        slopes = np.moveaxis(slopes, 0, -1)  # (figures, samples, columns)
        products = (rows[:, :, None] * rows[:, None]).reshape(self.documents, -1)
        spread = (self.counts @ products).reshape(self.samples, rows.shape[1], -1)
        return np.sqrt(np.maximum(((slopes[..., None, :] @ spread)[..., 0, :] * slopes).sum(-1), 0))


def difference(first, second, bootstrap, of=figures):
    """Paired differences first - second of two cells over the same documents, with `p` of each.

    `of`: what makes figures of their sums.
    """

    def less(a, b):
        a, b = of(a), of(b)
        return {name: a[name] - b[name] for name in a}

    return bootstrap.estimate(less, first, second)


def correct(family):
    """Holm's step-down (1979) over a family of differences: each gets `p_holm` and `significant`, p_holm at most ALPHA.

    Whatever the differences have to do with one another, the chance that one that is none is called significant is ALPHA.
    """
    p_holm = 0.0
    for still, each in zip(range(len(family), 0, -1), sorted(family, key=lambda each: each["p"])):
        p_holm = max(p_holm, min(1.0, still * each["p"]))
        each |= {"p_holm": p_holm, "significant": p_holm <= ALPHA}
