"""A text on its way through a Compressor, and what comes of it. Shapes: `T` tokens of a text, `U` units of it."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from eval.deciding import Decided, Task, unit_means, unit_sizes
from eval.encoding import Encoded
from models.agent.worth import with_pairs


@dataclass(frozen=True)
class Reason:
    """Why a unit stayed or went. cost: nats that the critic expects of its tokens if they are left out; keeping: nats that it
    costs to find out that nothing is missing there; price: λ. It is worth keeping if cost > price + keeping, per token. Where a
    reader is the goal, cost: percent of a reader's answers that are lost without the word alone; keeping and price: 0."""

    text: str
    kept: bool
    protected: bool
    cost: float
    keeping: float
    price: float


@dataclass(frozen=True)
class Compressed:
    """A compressed text. `text` is what is sent: the original's characters at `spans`, (start, end), end excluded, in order.

    tokens, kept_tokens: of the original without its markers and of `text`, as the agent's tokenizer encodes them; ratio: their
    quotient, 1 for an empty text; asked: the most tokens that `text` could have, None at a price; note: one line if the text
    passed through whole or protection was more than was asked for, else empty; reasons: with `explain`, one per unit.
    """

    text: str
    tokens: int
    kept_tokens: int
    ratio: float
    spans: tuple[tuple[int, int], ...]
    asked: int | None = None
    note: str = ""
    reasons: tuple[Reason, ...] = ()


class Job(NamedTuple):
    """A text on its way, without its markers: where they were, its tokens, the units that stay (U,), and what was asked for."""

    text: str
    cuts: list
    encoded: Encoded
    protected: np.ndarray
    budget: int | None
    price: float | None
    note: str  # why it passes through whole, or empty

    @property
    def task(self):
        length = len(self.encoded.ids)
        return Task(self.encoded.ids, self.encoded.starts, self.price, None if self.budget is None else self.budget / length)

    def spans(self, kept):
        """The characters of kept units (U,), neighbours in one span."""
        bounds = np.append(self.encoded.bounds[:-1][self.encoded.starts], len(self.text))
        edges = np.flatnonzero(np.diff(np.concatenate([[False], kept, [False]]).astype(np.int8)))
        return [(start, end) for start, end in bounds[edges].reshape(-1, 2).tolist() if start < end]

    def sent(self, kept):
        return "".join(self.text[start:end] for start, end in self.spans(kept))

    def covered(self, spans):
        """The units (U,) that have a character of one of the spans."""
        first, found = self.encoded.bounds[:-1][self.encoded.starts], np.zeros(len(self.protected), dtype=bool)
        for start, end in spans:
            if start < end:
                found[np.searchsorted(first, start, "right") - 1 : np.searchsorted(first, end, "left")] = True
        return found

    @property
    def size(self):
        """Tokens of units, (U,)."""
        return unit_sizes(self.encoded.starts)[1]

    def reasons(self, kept, decided):
        """The Reason of every unit, of what was decided: a Decided, or worths of units and of pairs."""
        firsts = self.encoded.bounds[:-1][self.encoded.starts].tolist()
        texts = [self.text[start:end] for start, end in zip(firsts, [*firsts[1:], len(self.text)], strict=True)]
        if isinstance(decided, Decided):
            price, costs = decided.price, [unit_means(values, self.encoded.starts) for values in (decided.cost, decided.keeping)]
        else:
            price, costs = 0.0, [-100 * np.expm1(-with_pairs(*decided)), np.zeros(len(kept))]
        rows = zip(texts, kept.tolist(), self.protected.tolist(), *(each.tolist() for each in costs), strict=True)
        return tuple(Reason(*row, price) for row in rows)
