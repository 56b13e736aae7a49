"""What is left to choose of the methods that agents are compared with, chosen on validation texts.

At a keep ratio that is the form of a method that has several, `variants`; at a price λ besides how scores become masks.
"""

from typing import NamedTuple

import numpy as np

from eval.inputs import Scores
from eval.metrics import figures, reward

REFERENCE_RATIO = 0.7  # the keep ratio at which methods score at a price whose scores depend on it
RATIOS = np.linspace(0, 1, 21)  # keep ratios among which a rule is looked for
COARSE = 4  # every so many of them first
FACTORS = (0.7, 0.85, 1.0, 1.2)  # of λ: thresholds of costs, which are nats themselves


def best_variant(method, keep_ratio, corpus, reconstructor):
    """The variant of a method with the least distortion at a keep ratio on the texts of a Corpus; itself if it has none."""
    if not hasattr(method, "variants"):
        return method

    def distortion(variant):
        masks = Scores(variant, corpus).masks(keep_ratio)
        return figures(corpus.sums(reconstructor, masks).sum(0))["distortion"]

    return min(method.variants(), key=distortion)


class Rule(NamedTuple):
    """How a method's scores become masks at a price: keep what scores above `threshold`, or keep `keep_ratio` of every text."""

    method: object
    threshold: float | None = None
    keep_ratio: float | None = None

    def __str__(self):
        if self.keep_ratio is not None:
            return f"{self.keep_ratio:.3f} of every text"
        form = f", {self.method}" if hasattr(self.method, "variants") else ""
        known = {-np.inf: "everything kept", np.inf: "nothing kept"}
        return known.get(self.threshold, f"scores above {self.threshold:.3g}{form}")

    def masks(self, scores):
        """Keep masks, one (B, T) per batch, from the Scores of its method on a corpus."""
        if self.keep_ratio is not None:
            return scores.masks(self.keep_ratio)
        batches = zip(scores.at(REFERENCE_RATIO)[0], scores.corpus.batches, strict=True)
        return scores.corpus.sent([(s > self.threshold) | ~valid for s, (_, valid) in batches])


class Rules:
    """The rules that a method's scores allow, each asked about once for all prices, on the texts of a Corpus.

    J hardly changes from one threshold or share of a text to the next, so the best of each kind is looked for among every fourth,
    then beside the best two. To keep everything, or nothing, is among the thresholds. A method with variants scores in nats:
    its best one at the threshold λ is found first, then a threshold near λ.
    """

    def __init__(self, method, corpus, reconstructor):
        self.method, self.corpus, self.reconstructor, self.scores, self.totals = method, corpus, reconstructor, {}, {}
        if not hasattr(method, "variants"):
            batches = zip(self.scores_of(method).at(REFERENCE_RATIO)[0], corpus.batches, strict=True)
            scored = np.concatenate([s[valid] for s, (_, valid) in batches])
            thresholds = [-np.inf, *np.unique(np.quantile(scored, 1 - RATIOS)), np.inf]
            self.kinds = [[Rule(method, threshold=t) for t in thresholds], [Rule(method, keep_ratio=r) for r in RATIOS[1:-1:2]]]

    def scores_of(self, method):
        return self.scores.setdefault(method, Scores(method, self.corpus))

    def J(self, rule, price):
        """J of a rule's masks on the texts."""
        if rule not in self.totals:
            self.totals[rule] = self.corpus.sums(self.reconstructor, rule.masks(self.scores_of(rule.method))).sum(0)
        return reward(self.totals[rule], price)

    def best(self, price):
        """The rule of the highest J at a price."""
        if hasattr(self.method, "variants"):
            first = max((Rule(form, price) for form in self.method.variants(price)), key=lambda rule: self.J(rule, price))
            everything = Rule(first.method, -np.inf)
            near = [everything, *(Rule(first.method, price * factor) for factor in FACTORS)]
            return max(near, key=lambda rule: self.J(rule, price))
        found = {}
        for rules in self.kinds:
            tried = {i: self.J(rules[i], price) for i in sorted({*range(0, len(rules), COARSE), len(rules) - 1})}
            for step in (COARSE // 2, COARSE // 4):
                for best in sorted(tried, key=tried.get)[-2:]:
                    tried |= {i: self.J(rules[i], price) for i in (best - step, best + step) if 0 <= i < len(rules)}
            best = max(tried, key=tried.get)
            found[rules[best]] = tried[best]
        return max(found, key=found.get)
