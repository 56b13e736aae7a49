"""Figures of merit and their uncertainty. Each is implemented once, here.

A *cell* is one method at one keep ratio. Its sums per document, columns SUMS, are all that the figures need: every
figure is a ratio of sums, and the bootstrap draws documents, because sentences of one document are not independent. Sums are
(documents, 6), or (runs, documents, 6) where a method was trained several times: runs are then drawn, too.
"""

import numpy as np

SUMS = ("tokens", "masked", "nats", "right", "exact", "texts")  # summed over the texts of a document
CONFIDENCE = 0.95
MIN_DOCUMENTS = 6  # with fewer, resampling documents says nothing: no difference is called significant


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
    tokens, masked, nats, right, exact, texts = np.moveaxis(np.asarray(sums, dtype=float), -1, 0)
    return {"top1": right / masked, "nats": nats / masked, "distortion": nats / tokens, "exact_text": exact / texts}


class Bootstrap:
    """How often each document, and each of a method's training runs, is drawn in each of `samples` samples.

    `documents` (samples, documents) and `runs` (samples, runs) have rows summing to the number of columns. One Bootstrap serves
    all cells, which makes differences paired by document; cells of a single run are drawn by document alone.
    """

    def __init__(self, documents, samples, seed, runs=1):
        rng = np.random.default_rng(seed)
        self.documents, self.runs = (rng.multinomial(n, np.full(n, 1 / n), size=samples) for n in (documents, runs))

    def totals(self, sums):
        """Totals (samples, K) of sums (documents, K) or (runs, documents, K); the mean over runs."""
        if sums.ndim == 2 or len(sums) == 1:
            return self.documents @ sums.reshape(sums.shape[-2:])
        by_run = np.einsum("sd,rdk->srk", self.documents, sums)
        return np.einsum("sr,srk->sk", self.runs, by_run) / len(sums)


def total(sums):
    """Totals (K,) of sums (documents, K) or (runs, documents, K); the mean over runs."""
    return sums.sum(-2).reshape(-1, sums.shape[-1]).mean(0)


def interval(values):
    """The central CONFIDENCE percentile interval [low, high] of bootstrap values."""
    tail = (1 - CONFIDENCE) / 2
    return [float(x) for x in np.quantile(values, [tail, 1 - tail])]


def with_intervals(sums, bootstrap):
    """{name: {"value", "interval"}} of one cell from its sums."""
    centre, resampled = figures(total(sums)), figures(bootstrap.totals(sums))
    return {name: {"value": float(centre[name]), "interval": interval(resampled[name])} for name in centre}


def difference(first, second, bootstrap):
    """Paired differences first - second of two cells over the same documents, with `significant`: the interval excludes 0."""
    centre = {n: float(v - figures(total(second))[n]) for n, v in figures(total(first)).items()}
    a, b = figures(bootstrap.totals(first)), figures(bootstrap.totals(second))
    result = {}
    for name, value in centre.items():
        low, high = interval(a[name] - b[name])
        result[name] = {"value": value, "interval": [low, high], "significant": bool(low > 0 or high < 0) and first.shape[-2] >= MIN_DOCUMENTS}
    return result
