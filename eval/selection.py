"""Which units of a text stay, never more tokens than were asked for. Shapes: `T` tokens of a text, `U` units of it."""

import numpy as np

from data.artifacts import InputError

DEFAULT_RATIO = 0.7
TRIES = 6  # of coming nearer to the budget, where a shortened text encodes to more or fewer tokens than were kept
ROUNDING = 1e-9  # .7 of 10 tokens is 7


def check_ask(keep_ratio=None, target_tokens=None, price=None):
    """(keep_ratio, target_tokens, price), at most one of them not None. Raises InputError."""
    given = keep_ratio, target_tokens, price
    if sum(value is not None for value in given) > 1:
        raise InputError("expected one of keep_ratio, target_tokens and price, found more; leave the others away")
    if keep_ratio is not None and not 0 < keep_ratio <= 1:
        raise InputError(f"keep_ratio: expected a share above 0 and at most 1, found {keep_ratio}")
    if target_tokens is not None and not target_tokens >= 0:
        raise InputError(f"target_tokens: expected a number of tokens, 0 or more, found {target_tokens}")
    if price is not None and not 0 < price < float("inf"):
        raise InputError(f"price: expected λ above 0, in nats per token, found {price}")
    return given


def budget_of(length, ask):
    """The most tokens that may be kept of `length`, and λ: one of them is None."""
    keep_ratio, target_tokens, price = ask
    if price is not None:
        return None, price
    if target_tokens is not None:
        return min(int(target_tokens), length), None
    return int((DEFAULT_RATIO if keep_ratio is None else keep_ratio) * length + ROUNDING), None


def unit_sizes(starts):
    """First tokens and sizes of units, (U,) each, that begin at starts (T,) bool."""
    first = np.flatnonzero(starts)
    return first, np.diff(np.append(first, len(starts)))


def unit_means(values, starts):
    """The mean of values (T,) over each unit, (U,) float64."""
    first, size = unit_sizes(starts)
    return np.add.reduceat(np.asarray(values, dtype=np.float64), first) / size if len(first) else np.zeros(0)


def select(scores, size, protected, budget):
    """The units (U,) bool that stay: those that are protected and, as long as `budget` tokens last, those of the highest scores.

    Of units that don't fit any more, smaller ones are tried.
    """
    kept = protected.copy()
    order = np.argsort(np.where(protected, np.inf, -scores), kind="stable")[: int((~protected).sum())]
    left = budget - int(size[protected].sum())
    count = int(np.searchsorted(size[order].cumsum(), left, "right")) if left > 0 else 0
    kept[order[:count]] = True
    left, order = left - int(size[order[:count]].sum()), order[count:]
    while left > 0 and (fits := size[order] <= left).any():
        at = int(fits.argmax())
        kept[order[at]], left, order = True, left - int(size[order[at]]), order[at + 1 :]
    return kept


def fit(scores, size, protected, budget, count):
    """The units (U,) bool that stay, and what `count` says that they have as text, in tokens: at most `budget`, or, where it is
    None, those with scores above 0. Where what is protected has more, only that stays.

    A text that lost words may encode to another number of tokens than were kept, so the number kept is moved until it fits.
    """
    if budget is None:
        kept = (scores > 0) | protected
        return kept, count(kept)
    best, most, tried, aim = None, -1, set(), budget
    while aim > 0 and aim not in tried and len(tried) < TRIES:
        tried.add(aim)
        kept = select(scores, size, protected, aim)
        found = count(kept)
        if most < found <= budget:
            best, most = kept, found
        if found == budget:
            break
        aim += budget - found
    shrinking = min(tried, default=0)
    while best is None and shrinking > int(size[protected].sum()):  # only where every try was above it
        shrinking = int(shrinking * 0.95) - 1
        kept = select(scores, size, protected, shrinking)
        if (found := count(kept)) <= budget:
            best, most = kept, found
    return (best, most) if best is not None else (protected.copy(), count(protected))
