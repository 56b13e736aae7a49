"""What an agent makes of texts of any length: in windows that overlap, each by what stands in its middle, at one λ a text.

One λ and, later, one threshold serve a whole text, and no token is decided within MARGIN tokens of where a window was cut, so
there is no seam. Shapes: `T` tokens of a text, `B` windows of a batch, `L` tokens of the longest.
"""

from typing import NamedTuple

import numpy as np
import torch

# Tokens that are read together, and, at both ends of a window, that another one decides. Distortion of a long text at .6, by the
# agent that ships: .815, .813, .812, .813 with windows of 128, 256, 512, 1,023; 256 takes the least time.
WINDOW, MARGIN = 256, 16
SAMPLE = 8  # windows of a long text that its λ is looked for in
SMALLEST_SHARE = 0.01  # keep ratio; nothing is gained by looking for the λ of a smaller one


class Task(NamedTuple):
    """A text's ids (T,) int32, and λ, or else the keep ratio that a λ is looked for."""

    ids: np.ndarray
    price: float | None
    share: float | None


class Decided(NamedTuple):
    """logits of keeping (T,), the critic's nats of each token if it is left out and if it is kept, (T,) float32 each; and λ."""

    logits: np.ndarray
    cost: np.ndarray
    keeping: np.ndarray
    price: float


def windows(length):
    """How a text of so many tokens is read: (start, end, first, last), decided from first to last, the ends excluded."""
    if length <= WINDOW:
        return [(0, length, 0, length)]
    found, first = [], 0
    while first < length:
        start = min(max(0, first - MARGIN), length - WINDOW)
        last = length if start + WINDOW == length else start + WINDOW - MARGIN
        found.append((start, start + WINDOW, first, last))
        first = last
    return found


def decide(policy, tasks, batch_size, progress=None):
    """The Decided of every Task, in order. Windows of similar length are read together, `batch_size` at a time.

    progress: called with the number of tokens decided after every batch.
    """
    prices = [long_price(policy, task) for task in tasks]
    found = [np.zeros((3, len(task.ids)), dtype=np.float32) for task in tasks]
    every = [(number, *window) for number, task in enumerate(tasks) for window in windows(len(task.ids))]
    every.sort(key=lambda window: window[2] - window[1])
    for at in range(0, len(every), batch_size):
        batch = every[at : at + batch_size]
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
    every = windows(len(task.ids))
    chosen = [every[i] for i in np.linspace(0, len(every) - 1, min(SAMPLE, len(every))).round().astype(int)]
    ids = np.stack([task.ids[start:end] for start, end, *_ in chosen])
    return float(policy.price_at(ids, ids >= 0, clamped(task.share)).log().mean().exp())


@torch.inference_mode()
def read_windows(policy, rows, prices, shares):
    """Logits, cost and keeping, (3, T) float32, of each of B windows of ids, and their λ: looked for where it is None."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
    for row, found in zip(ids, rows, strict=True):
        row[: len(found)] = torch.from_numpy(found)
    valid = (torch.arange(ids.shape[1]) < lengths[:, None]).to(policy.device)
    ids = ids.to(policy.device)
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
