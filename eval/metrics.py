"""Figures of merit and their uncertainty. Each is implemented once, here.

A *cell* is one method at one keep ratio. Its sums per document, columns SUMS, are all that the figures need: every
figure is a ratio of sums. Sums are (documents, 7), or (runs, documents, 7) where a method was trained several times: its
figures are then means over runs.
"""

import warnings

import numpy as np
from scipy import stats

from models.reconstructor.scoring import SUMS

CONFIDENCE, SAMPLES = 0.95, 5000  # of the intervals in results
MIN_DOCUMENTS = 6  # with fewer, resampling documents says nothing: no difference is called significant
INTERVAL = (
    "95 %, BCa bootstrap over documents; with several agents widened by Student's t over them, interval_over_documents is without"
)


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

    Documents are drawn, because sentences of one document are not independent. Intervals are bias-corrected and accelerated
    (BCa; Efron 1987), by SciPy. Two or three training runs can't be drawn from; what an interval widens by for them comes from
    Student's t with runs − 1 degrees of freedom, or as many as in Welch's test where both methods were trained several times.
    """

    def __init__(self, documents, samples, seed):
        self.documents, self.samples, self.seed = documents, samples, seed

    def estimate(self, of, *cells):
        """{name: {"value", "interval"}} of the figures {name: value} that `of` makes of the totals (..., 7) of the cells.

        With several runs the interval allows for what another training would have given, and `interval_over_documents` does not.
        """
        runs = [np.reshape(sums, (-1, *sums.shape[-2:])) for sums in cells]
        means = [each.mean(0) for each in runs]

        def statistic(drawn, axis=-1):  # numbers of documents (..., documents) -> figures (figures, ...)
            counts = count_documents(drawn, self.documents)
            return np.stack(list(of(*(counts @ mean for mean in means)).values()))

        low_high, resampled = self._over_documents(statistic)
        found, values = {}, of(*(mean.sum(0) for mean in means))
        other_runs = self._between_runs(of, [each.sum(1) for each in runs])
        for i, (name, interval, samples) in enumerate(zip(values, low_high, resampled, strict=True)):
            found[name] = {"value": float(values[name]), "interval": interval.tolist()}
            if len(other_runs):
                found[name]["interval_over_documents"] = interval.tolist()
                found[name]["interval"] = (interval + percentiles(samples + other_runs[i]) - percentiles(samples)).tolist()
        return found

    def _between_runs(self, of, totals):
        """What other trainings would have changed, (figures, samples); nothing if every cell, totals (runs, 6), has one run."""
        means, variances, freedom = [each.mean(0) for each in totals], [], []
        for i, each in enumerate(totals):
            if len(each) > 1:
                by_run = of(*means[:i], each, *means[i + 1 :])
                variances.append(np.var(list(by_run.values()), axis=1, ddof=1) / len(each))
                freedom.append(len(each) - 1)
        if not freedom:
            return np.zeros((0, self.samples))
        variances, freedom = np.array(variances), np.array(freedom)[:, None]  # (cells, figures), (cells, 1)
        with np.errstate(invalid="ignore"):  # where all runs are alike
            welch = np.round(variances.sum(0) ** 2 / (variances**2 / freedom).sum(0), 9)
        seeds = [self.seed, int(freedom.max()) + 1]
        t = [np.random.default_rng(seeds).standard_t(df, self.samples) for df in np.where(np.isnan(welch), freedom.min(), welch)]
        return np.array(t) * np.sqrt(variances.sum(0))[:, None]

    def _over_documents(self, statistic):
        """BCa intervals (figures, 2) and bootstrap distributions (figures, samples) of a statistic."""
        every = np.arange(self.documents)
        if self.documents == 1:  # one document can only be drawn as it is
            resampled = np.repeat(statistic(every)[:, None], self.samples, 1)
            return percentiles(resampled), resampled
        with warnings.catch_warnings():
            # Where all documents are alike there is nothing to correct, SciPy warns, and the interval is the point itself.
            warnings.simplefilter("ignore", (stats.DegenerateDataWarning, RuntimeWarning))
            with np.errstate(invalid="ignore", divide="ignore"):
                found = stats.bootstrap(
                    (every,), statistic, n_resamples=self.samples, confidence_level=CONFIDENCE, method="BCa",
                    vectorized=True, rng=self.seed,
                )
        resampled = found.bootstrap_distribution
        bca = np.stack(found.confidence_interval, -1)
        return np.where(np.isnan(bca), percentiles(resampled), bca), resampled


def percentiles(resampled):
    """The central CONFIDENCE percentile intervals (..., 2) of bootstrap values (..., samples)."""
    tail = (1 - CONFIDENCE) / 2
    return np.moveaxis(np.quantile(resampled, [tail, 1 - tail], axis=-1), 0, -1)


def difference(first, second, bootstrap, of=figures):
    """Paired differences first - second of two cells over the same documents, with `significant`: the interval excludes 0.

    `of`: what makes figures of their sums.
    """

    def less(a, b):
        a, b = of(a), of(b)
        return {name: a[name] - b[name] for name in a}

    found = bootstrap.estimate(less, first, second)
    for each in found.values():
        low, high = each["interval"]
        each["significant"] = bool(low > 0 or high < 0) and bootstrap.documents >= MIN_DOCUMENTS
    return found
