"""What an agent makes of texts of any length, and which units of a text stay: never more tokens than were asked for.

One λ and one threshold serve a whole text, or one chain of words, and no token is decided within MARGIN tokens of where a window
was cut, so there is no seam. Shapes: `T` tokens of a text, `U` units of it, `B` windows of a batch, `L` tokens of the longest.
"""

from typing import NamedTuple

import numpy as np
import torch

from data.artifacts import InputError
from eval.encoding import windows
from models.agent.worth import with_pairs, within_budget

DEFAULT_RATIO = 0.7
# Tokens that are read together, and, at both ends of a window, that another one decides. Distortion of a long text at .6, by the
# agent that ships: .815, .813, .812, .813 with windows of 128, 256, 512, 1,023; 256 takes the least time.
WINDOW, MARGIN = 256, 16
SAMPLE = 8  # windows of a long text that its λ is looked for in
SMALLEST_SHARE = 0.01  # keep ratio; nothing is gained by looking for the λ of a smaller one
TRIES = 6  # of coming nearer to the budget, where a shortened text encodes to more or fewer tokens than were kept
ROUNDING = 1e-9  # .7 of 10 tokens is 7


class Task(NamedTuple):
    """A text's ids (T,) int32, where its units begin, (T,) bool, and λ, or else the keep ratio that a λ is looked for."""

    ids: np.ndarray
    starts: np.ndarray
    price: float | None
    share: float | None


class Decided(NamedTuple):
    """logits of keeping (T,), the critic's nats of each token if it is left out and if it is kept, (T,) float32 each; and λ."""

    logits: np.ndarray
    cost: np.ndarray
    keeping: np.ndarray
    price: float


def batches_of(tasks, batch_size):
    """Lists of windows (number of the task, start, end, first, last) of Tasks, of similar length, `batch_size` at a time."""
    every = [(number, *window) for number, task in enumerate(tasks) for window in windows(len(task.ids), WINDOW, MARGIN)]
    every.sort(key=lambda window: window[2] - window[1])
    return [every[at : at + batch_size] for at in range(0, len(every), batch_size)]


def padded(rows, device):
    """ids (B, L) int64 and valid (B, L) bool of windows of ids."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for row, found in zip(ids, rows, strict=True):
        row[: len(found)] = torch.from_numpy(found)
    return ids.to(device), (torch.arange(ids.shape[1]) < lengths[:, None]).to(device)


@torch.inference_mode()
def worths(policy, tasks, batch_size, progress=None):
    """Of every Task what its units, and every two neighbours, are worth to a reader, (U,) and (U - 1,) float64, in order.

    Arguments as of `decide`.
    """
    units = [unit_sizes(task.starts) for task in tasks]
    found = [(np.zeros(len(first)), np.zeros(len(first))) for first, _ in units]
    for batch in batches_of(tasks, batch_size):
        ids, valid = padded([tasks[number].ids[start:end] for number, start, end, *_ in batch], policy.device)
        for (number, start, end, first, last), states in zip(batch, policy.reader.read(ids, valid), strict=True):
            begins, size = units[number]
            a, b = np.searchsorted(begins, [first, last])  # units of this window; the next one, too, for the pair
            some = slice(a, b + (b < len(begins) and begins[min(b, len(begins) - 1)] < end))
            place = np.arange(some.start, some.stop) / max(1, len(begins) - 1)
            if b > a:
                words, pairs = policy.reader.worth.of(states[: end - start], begins[some] - start, size[some], place)
                found[number][0][a:b], found[number][1][a : a + len(pairs)] = words[: b - a], pairs
        if progress:
            progress(sum(last - first for *_, first, last in batch))
    return [(words, pairs[:-1]) for words, pairs in found]


def decide(policy, tasks, batch_size, progress=None):
    """The Decided of every Task, in order. Windows of similar length are read together, `batch_size` at a time.

    progress: called with the number of tokens decided after every batch.
    """
    prices = [long_price(policy, task) for task in tasks]
    found = [np.zeros((3, len(task.ids)), dtype=np.float32) for task in tasks]
    for batch in batches_of(tasks, batch_size):
        rows = [tasks[number].ids[start:end] for number, start, end, *_ in batch]
        numbers = [number for number, *_ in batch]
        read = read_windows(policy, rows, [prices[i] for i in numbers], [tasks[i].share for i in numbers])
        for (number, start, _, first, last), row, price in zip(batch, *read, strict=True):
            found[number][:, first:last], prices[number] = row[:, first - start : last - start], price
        if progress:
            progress(sum(last - first for *_, first, last in batch))
    return [Decided(*values, price) for values, price in zip(found, prices, strict=True)]


@torch.inference_mode()
def long_price(policy, task):
    """λ of a Task, if it is to be known before its windows are read; None where the only window finds it for itself."""
    if task.price is not None or len(task.ids) <= WINDOW:
        return task.price
    every = windows(len(task.ids), WINDOW, MARGIN)
    chosen = [every[i] for i in np.linspace(0, len(every) - 1, min(SAMPLE, len(every))).round().astype(int)]
    ids = np.stack([task.ids[start:end] for start, end, *_ in chosen])
    return float(policy.price_at(ids, ids >= 0, clamped(task.share)).log().mean().exp())


@torch.inference_mode()
def read_windows(policy, rows, prices, shares):
    """Logits, cost and keeping, (3, T) float32, of each of B windows of ids, and their λ: looked for where it is None."""
    ids, valid = padded(rows, policy.device)
    text = policy.reader.read(ids, valid)
    unknown = [i for i, price in enumerate(prices) if price is None]
    prices = torch.tensor([price or 1.0 for price in prices], device=ids.device)
    if unknown:
        share = torch.tensor([clamped(shares[i]) for i in unknown], device=ids.device)
        prices[unknown] = policy.price_at(ids[unknown], valid[unknown], share, text[unknown])
    batch = ids, valid, prices[:, None]
    decided = torch.stack(policy.decide(*batch, *policy.read(*batch, text)), 1).float().cpu().numpy()
    return [found[:, : len(row)] for found, row in zip(decided, rows, strict=True)], prices.tolist()


def clamped(share):
    """A keep ratio that a λ can be looked for."""
    return min(1.0, max(SMALLEST_SHARE, share))


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


def select_chain(words, pairs, size, protected, budget):
    """The units (U,) bool that stay: the chain that is worth most, of worths of units (U,) and of pairs (U - 1,), and what is
    protected."""
    if size[protected].sum() >= budget:
        return protected.copy()
    dear = 2 * with_pairs(words, pairs).max() * size.max()  # more than any other
    return within_budget(words + dear * protected, pairs, size, budget) | protected


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


def fit(choose, size, protected, budget, count):
    """The units (U,) bool that stay, and what `count` says that they have as text, in tokens: at most `budget`. Where what is
    protected has more, only that stays. choose: the units that stay for a number of tokens.

    A text that lost words may encode to another number of tokens than were kept, so the number kept is moved until it fits.
    """
    best, most, tried, aim = None, -1, set(), budget
    while aim > 0 and aim not in tried and len(tried) < TRIES:
        tried.add(aim)
        kept = choose(aim)
        found = count(kept)
        if most < found <= budget:
            best, most = kept, found
        if found == budget:
            break
        aim += budget - found
    shrinking = min(tried, default=0)
    while best is None and shrinking > int(size[protected].sum()):  # only where every try was above it
        shrinking = int(shrinking * 0.95) - 1
        kept = choose(shrinking)
        if (found := count(kept)) <= budget:
            best, most = kept, found
    return (best, most) if best is not None else (protected.copy(), count(protected))
