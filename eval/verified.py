"""Methods that ask the reconstructor about whole masks: what a reading of a draft is worth without training.

The interface is that of eval/methods.py. Shapes: `B` texts, `T` tokens.
"""

import copy
import itertools

import numpy as np
import torch

from models.agent.reader import EVIDENCE
from models.reconstructor.masking import keep_counts
from models.reconstructor.scoring import score

SENT = 1e3  # nats, more than any token costs: a score of tokens that are sent in any case
POWERS = (1.25, 1.5, 2.0, 3.0)  # of the keep ratio: what is sent before the first reading, so that too much is hidden in it
FLOORS = (0.2, 0.35, 0.5, 0.65)  # the same at a price, where no ratio is given: shares of a text
VIEWS = 10  # how often every token is hidden
PATIENCE = 2  # times as many masks as that takes, where whole words are hidden, of which some fit in beside any others
NAMES = {1: "verified once", 2: "verified twice"}


class Verified:
    """Mask too much by a score per token, have the reconstructor read that, and send what comes back dearest.

    It reads as the agent reads its draft, with the logits of common tokens (models/agent/reader.py), and a token's cost has its
    share of a gap's. With two readings half of what is still to be sent, or at a price the dearer half of what is dearer, goes
    before the second. Whose scores propose and how much is sent unread is chosen on validation texts, among `variants`.
    """

    depends_on_rate, mean = True, True

    def __init__(self, reader, proposers, readings=1):
        self.reader, self.proposers, self.readings, self.name = reader, proposers, readings, NAMES[readings]
        self.proposer, self.power, self.floor, self.price, self.lm_passes = proposers[0], 1.5, None, None, None

    def variants(self, price=None):
        """This method in all forms: at a keep ratio, or at a price."""
        pairs = itertools.product(self.proposers, POWERS if price is None else FLOORS)
        return [self._with(proposer, share, price) for proposer, share in pairs]

    def _with(self, proposer, share, price):
        found = copy.copy(self)
        found.proposer, found.price = proposer, price
        found.power, found.floor = (share, None) if price is None else (None, share)
        return found

    def __str__(self):
        first = f"the keep ratio to the power of {self.power:g}" if self.price is None else f"{self.floor:g}"
        return f"{first} by {self.proposer.name} unread"

    def read(self, ids, valid, sent):
        """What the tokens that a mask (B, T) hides cost, with their shares of gaps, (B, T); of what it sends SENT."""
        batch = (torch.as_tensor(x, device=self.reader.common.device) for x in (ids, valid, sent.astype(np.float32)))
        found = self.reader.reread(*batch)[..., 1 + self.reader.states :].cpu().numpy()
        cost = found[..., 1] + (found[..., EVIDENCE] if self.reader.found else 0)
        share = float((sent & valid).sum() / valid.sum())
        self.lm_passes += 1 + share * self.reader.found
        return np.where(sent, SENT, cost)

    def dearer(self, cost, ids, valid, sent, share):
        """A mask that sends, of what `sent` hides, up to `share` of the text by cost; at a price, what is dearer, half of it."""
        if self.price is None:
            return self.reader.words.keep_highest(cost, ids, valid, share)
        dear = valid & ~sent & (cost > self.price)
        halves = ((sent & valid).sum(1) + (dear.sum(1) + 1) // 2) / np.maximum(valid.sum(1), 1)
        return self.reader.words.keep_highest(cost, ids, valid, halves)

    def scores(self, ids, valid, keep_ratio):
        words, proposed = self.reader.words, self.proposer.scores(ids, valid, keep_ratio)
        self.lm_passes = self.proposer.lm_passes
        first = np.asarray(keep_ratio, dtype=float) ** self.power if self.price is None else self.floor
        sent = words.keep_highest(proposed, ids, valid, first, self.proposer.mean)
        for left in range(self.readings - 1, 0, -1):
            share = first + (keep_ratio - first) / (left + 1)
            sent = self.dearer(self.read(ids, valid, sent), ids, valid, sent, share)
        return self.read(ids, valid, sent)


class MeanMaskedNats:
    """What the reconstructor itself says: a token's mean nats under random masks of the rate asked for, VIEWS of every token.

    Every mask hides the tokens that were hidden least often so far, in random order, so that all are hidden equally often. Where
    gaps are to be found, what was sent is read once more each time.
    """

    name, depends_on_rate, mean = "mean nats under random masks", True, True

    def __init__(self, reconstructor, words, seed, views=VIEWS):
        self.reconstructor, self.words, self.seed, self.views, self.lm_passes = reconstructor, words, seed, views, None

    def scores(self, ids, valid, keep_ratio):
        rng, times, total = np.random.default_rng(self.seed), np.zeros(ids.shape), np.zeros(ids.shape)
        lengths = valid.sum(1)
        keep_ratio = np.minimum(keep_ratio, 1 - 1 / np.maximum(lengths, 1))  # something is hidden each time
        masks = np.ceil(self.views * lengths / np.maximum(lengths - keep_counts(valid, keep_ratio), 1)).max()
        self.lm_passes, left = 0.0, np.flatnonzero(lengths)
        for _ in range(PATIENCE * int(masks)):
            some, there = ids[left], valid[left]
            keep_mask = self.words.keep_highest(times[left] + rng.random(some.shape), some, there, keep_ratio[left])
            times[left] += ~keep_mask
            found = score(self.reconstructor, some, keep_mask, there)
            total[left] += (found.nats + found.gaps) * ~keep_mask
            self.lm_passes += float((there.sum() + (keep_mask & there).sum() * self.reconstructor.found) / valid.sum())
            left = left[((times[left] < self.views) & there).any(1)]
            if not left.size:
                break
        return total / np.maximum(times, 1)
