"""Figures of merit and their uncertainty. Each is implemented once, here.

A *cell* is one method at one keep ratio. Its sums per document, columns SUMS, are all that the figures need: every
figure is a ratio of sums, and the bootstrap draws documents, because sentences of one document are not independent.
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


def bootstrap_weights(documents, samples, seed):
    """How often each document is drawn in each bootstrap sample: (samples, documents), rows summing to `documents`."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(documents, np.full(documents, 1 / documents), size=samples)


def interval(values):
    """The central CONFIDENCE percentile interval [low, high] of bootstrap values."""
    tail = (1 - CONFIDENCE) / 2
    return [float(x) for x in np.quantile(values, [tail, 1 - tail])]


def with_intervals(sums, weights):
    """{name: {"value", "interval"}} of one cell from its sums per document (documents, 6)."""
    centre, resampled = figures(sums.sum(0)), figures(weights @ sums)
    return {name: {"value": float(centre[name]), "interval": interval(resampled[name])} for name in centre}


def difference(first, second, weights):
    """Paired differences first - second of two cells over the same documents, with `significant`: the interval excludes 0."""
    centre = {n: float(v - figures(second.sum(0))[n]) for n, v in figures(first.sum(0)).items()}
    a, b = figures(weights @ first), figures(weights @ second)
    result = {}
    for name, value in centre.items():
        low, high = interval(a[name] - b[name])
        result[name] = {"value": value, "interval": [low, high], "significant": bool(low > 0 or high < 0) and len(first) >= MIN_DOCUMENTS}
    return result
