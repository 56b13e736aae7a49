"""Figures of merit and their uncertainty. Each is implemented once, here.

A *cell* is one method at one keep ratio. Its sums per document, columns SUMS, are all that the figures need: every
figure is a ratio of sums, and the bootstrap draws documents, because sentences of one document are not independent. Sums are
(documents, 6), or (runs, documents, 6) where a method was trained several times: its figures are then means over runs.
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
    """Resampled documents for all cells alike, which makes differences paired by document.

    `counts` (samples, documents): how often each document is drawn, rows summing to `documents`. Two or three training runs
    can't be resampled; what an interval widens by for them is drawn from Student's t with runs − 1 degrees of freedom, `t`
    (samples,), in standard deviations between runs.
    """

    def __init__(self, documents, samples, seed, runs=1):
        rng = np.random.default_rng(seed)
        self.counts = rng.multinomial(documents, np.full(documents, 1 / documents), size=samples)
        self.t = rng.standard_t(runs - 1, samples) / np.sqrt(runs) if runs > 1 else None

    def intervals(self, resampled, by_run):
        """{"interval": [low, high]} of bootstrap values (samples,) of a figure with the values `by_run` (runs,).

        With several runs it allows for what another training would have given, and `interval_over_documents` does not.
        """
        if len(by_run) == 1:
            return {"interval": interval(resampled)}
        return {"interval": interval(resampled + self.t * np.std(by_run, ddof=1)), "interval_over_documents": interval(resampled)}


def interval(values):
    """The central CONFIDENCE percentile interval [low, high] of bootstrap values."""
    tail = (1 - CONFIDENCE) / 2
    return [float(x) for x in np.quantile(values, [tail, 1 - tail])]


def mean_over_runs(sums):
    """Sums (documents, K) from (documents, K) or (runs, documents, K)."""
    return sums if sums.ndim == 2 else sums.mean(0)


def estimates(sums, bootstrap, of=figures):
    """What `of` makes of the totals of a cell: of all, of every bootstrap sample, and of every run."""
    pooled = mean_over_runs(sums)
    return of(pooled.sum(0)), of(bootstrap.counts @ pooled), of(np.reshape(sums, (-1, *pooled.shape)).sum(1))


def with_intervals(sums, bootstrap):
    """{name: {"value", "interval"}} of one cell from its sums."""
    centre, resampled, by_run = estimates(sums, bootstrap)
    return {name: {"value": float(centre[name]), **bootstrap.intervals(resampled[name], by_run[name])} for name in centre}


def difference(first, second, bootstrap):
    """Paired differences first - second of two cells over the same documents, with `significant`: the interval excludes 0."""
    result, (a, b) = {}, (estimates(sums, bootstrap) for sums in (first, second))
    for name in a[0]:
        value, resampled, by_run = (x[name] - y[name] for x, y in zip(a, b, strict=True))
        found = bootstrap.intervals(resampled, by_run)
        low, high = found["interval"]
        result[name] = {"value": float(value), **found, "significant": bool(low > 0 or high < 0) and first.shape[-2] >= MIN_DOCUMENTS}
    return result
