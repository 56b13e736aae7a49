"""Figures of merit and their uncertainty. Each is implemented once, here.

A *cell* is one method at one keep ratio. Its sums per document, columns SUMS, are all that the figures need: every
figure is a ratio of sums. Sums are (documents, 6), or (runs, documents, 6) where a method was trained several times: its
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
    """{name: value} from sums (..., 6) in the order of SUMS; arrays if `sums` has leading dimensions.

    top1: share of masked tokens restored. nats: per masked token. distortion: nats per original token.
    exact_text: share of texts restored without an error.
    """
    tokens, masked, nats, right, exact, texts = columns(sums)
    return {"top1": right / masked, "nats": nats / masked, "distortion": nats / tokens, "exact_text": exact / texts}


def reward(sums, price):
    """J = λ (1 − R) − D in nats per original token from sums (..., 6), at `price` λ in nats per token saved."""
    tokens, masked, nats, *_ = columns(sums)
    return (price * masked - nats) / tokens


def columns(sums):
    """Six arrays (...) from sums (..., 6), in the order of SUMS."""
    assert SUMS == ("tokens", "masked", "nats", "right", "exact", "texts")
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
    Student's t with runs − 1 degrees of freedom.
    """

    def __init__(self, documents, samples, seed, runs=1):
        self.documents, self.samples, self.seed = documents, samples, seed
        rng = np.random.default_rng([seed, runs])
        self.t = rng.standard_t(runs - 1, samples) / np.sqrt(runs) if runs > 1 else None  # in standard deviations between runs

    def estimate(self, of, *cells):
        """{name: {"value", "interval"}} of the figures {name: value} that `of` makes of the totals (..., 6) of the cells.

        With several runs the interval allows for what another training would have given, and `interval_over_documents` does not.
        """
        runs = [np.reshape(sums, (-1, *sums.shape[-2:])) for sums in cells]
        means = [each.mean(0) for each in runs]

        def statistic(drawn, axis=-1):  # numbers of documents (..., documents) -> figures (figures, ...)
            counts = count_documents(drawn, self.documents)
            return np.stack(list(of(*(counts @ mean for mean in means)).values()))

        low_high, resampled = self._over_documents(statistic)
        found = {}
        values, by_run = of(*(mean.sum(0) for mean in means)), of(*(each.sum(1) for each in runs))
        for name, interval, samples in zip(values, low_high, resampled, strict=True):
            found[name] = {"value": float(values[name]), "interval": interval.tolist()}
            if np.size(by_run[name]) > 1:
                wider = samples + self.t * np.std(by_run[name], ddof=1)
                found[name]["interval_over_documents"] = interval.tolist()
                found[name]["interval"] = (interval + percentiles(wider) - percentiles(samples)).tolist()
        return found

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

    `of` makes figures {name: value} of totals, as for `Bootstrap.estimate`.
    """

    def less(a, b):
        a, b = of(a), of(b)
        return {name: a[name] - b[name] for name in a}

    found = bootstrap.estimate(less, first, second)
    for each in found.values():
        low, high = each["interval"]
        each["significant"] = bool(low > 0 or high < 0) and bootstrap.documents >= MIN_DOCUMENTS
    return found
