"""What a word is worth to a language model that reads what is sent, and which words to send it.

A reader loses an answer in two ways: a word of it is missing, or the words are there and what held them together is not. So a
text has a worth for every word, and one for every two neighbours that are both sent; learned from what a reader lost under
masks of many kinds (rl/read.py, rl/train_worth.py), which is how LLMLingua-2 (Pan et al. 2024) learns from a larger model. What
is sent is the best chain of words that a budget pays for. Shapes: `T` tokens, `W` words, `S` states of a token
(models/agent/reader.py).
"""

from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional as F

from data.artifacts import InputError, reason_of

SCHEMA = "rltc.worth/1"
WORTH = "worth.safetensors"  # beside the weights of an agent that has one
WIDTH, PAIRS, DROPOUT = 64, 32, 0.2
FIRST, FIRST_PAIR = -5.0, -6.0  # before softplus: what the untrained expect, a thousandth of an answer
PRICES, ROUNDS = 16, 6  # prices of a token that are tried at one time, and how often nearer ones are


class Worth(nn.Module):
    """Worths of words and of neighbouring pairs, as shares of a reader's answers. `states`: S."""

    def __init__(self, states):
        super().__init__()
        self.norm, self.state, self.known = nn.LayerNorm(states), nn.Linear(states, WIDTH), nn.Linear(2, WIDTH)
        self.word, self.before, self.after = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, PAIRS), nn.Linear(WIDTH, PAIRS)
        self.pair, self.dropout = nn.Linear(PAIRS, 1), nn.Dropout(DROPOUT)
        nn.init.constant_(self.word.bias, FIRST)
        nn.init.constant_(self.pair.bias, FIRST_PAIR)

    def forward(self, states, sizes, place=None):
        """states (W, S), means over the words' tokens; sizes (W,), their tokens; to worths (W,) of words, (W - 1,) of pairs.

        place (W,): where the words stand in their text, from 0 to 1; default: these are all.
        """
        place = torch.linspace(0, 1, len(sizes), device=sizes.device) if place is None else place
        x = self.dropout(self.state(self.norm(states))) + self.known(torch.stack([sizes, place], -1))
        x = F.gelu(x)
        pairs = self.pair(F.gelu(self.before(x[:-1]) + self.after(x[1:])))
        return F.softplus(self.word(x)[:, 0]) * sizes, F.softplus(pairs[:, 0])

    def lost(self, states, sizes, masks):
        """The share of its answers that a reader is expected to lose under masks (M, W), 1 where a word is sent: (M,)."""
        words, pairs = self(states, sizes)
        return -torch.expm1(-((1 - masks) @ words + (1 - masks[:, 1:] * masks[:, :-1]) @ pairs))

    @torch.inference_mode()
    def of(self, states, first, sizes, place=None):
        """Worths (W,) and (W - 1,) as float64 arrays: of words that begin at tokens first (W,) of a text's states (T, S).

        sizes (W,): their tokens; place (W,): as of `forward`. A word has the mean state of its tokens, up to the next word's.
        """
        ends = np.append(first[1:], len(states))
        pooled = torch.stack([states[a : max(b, a + 1)].mean(0) for a, b in zip(first, ends, strict=True)]).cpu()
        known = (None if x is None else torch.as_tensor(x, dtype=torch.float32) for x in (sizes, place))
        return tuple(found.double().numpy() for found in self(pooled, *known))

    def pack(self):
        """The bytes of its file."""
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        return safetensors.torch.save(tensors, {"schema": SCHEMA})


def load_worth(directory, states):
    """The Worth of the agent in a directory, for a reader's `states`; None if there is none. Raises InputError."""
    path, remedy = Path(directory) / WORTH, "train it anew with: python rl/train_worth.py"
    if not path.is_file():
        return None
    worth = Worth(states)
    try:
        with safe_open(path, "pt") as file:
            schema = (file.metadata() or {}).get("schema")
        worth.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{path}: expected worths of {states} states, found: {reason_of(error)}; {remedy}") from None
    if schema != SCHEMA:
        raise InputError(f"{path}: expected schema '{SCHEMA}', found '{schema}'; {remedy}")
    if not all(tensor.isfinite().all() for tensor in worth.state_dict().values()):
        raise InputError(f"{path}: expected finite weights, found NaN or infinity; {remedy}")
    return worth.eval()


def with_pairs(words, pairs):
    """What goes with each word, (W,): its worth, and that of the pairs that it is in, of worths (W,) and (W - 1,)."""
    return words + np.append(pairs, 0) + np.append(0, pairs)


def best_chains(words, pairs, sizes, prices):
    """Which words to send at each of prices (P,) of a token: (P, W) bool.

    Exact: the least of what is lost, words (W,) that are not sent and pairs (W - 1,) that are not both sent, and of the price of
    sizes (W,) that are, by dynamic programming from word to word.
    """
    prices = np.asarray(prices, dtype=float)
    sent, left_out = prices * sizes[0], np.full(len(prices), words[0])
    from_left_out = np.zeros((len(words), 2, len(prices)), dtype=bool)  # of a word that is sent, and of one that is not
    for i in range(1, len(words)):
        broken = pairs[i - 1]
        from_left_out[i] = left_out + broken < sent, left_out < sent
        of_both = np.minimum(sent, left_out) + broken
        sent, left_out = np.minimum(sent, left_out + broken) + prices * sizes[i], of_both + words[i]
    found = np.zeros((len(prices), len(words)), dtype=bool)
    found[:, -1] = sent <= left_out
    for i in range(len(words) - 2, -1, -1):
        found[:, i] = ~np.where(found[:, i + 1], *from_left_out[i + 1])
    return found


def within_budget(words, pairs, sizes, budget):
    """The words to send, (W,) bool, of arrays as of `best_chains`, whose sizes add up to at most `budget`.

    The chain of the lowest price that the budget pays for; what it leaves goes word by word to where it gains most.
    """
    sizes = np.asarray(sizes, dtype=float)
    if sizes.sum() <= budget:
        return np.ones(len(words), dtype=bool)
    low, high = 0.0, float(with_pairs(words, pairs).max() / sizes.min()) + 1.0
    kept = np.zeros(len(words), dtype=bool)
    for _ in range(ROUNDS):
        prices = np.linspace(low, high, PRICES)
        chains = best_chains(words, pairs, sizes, prices)
        fits = np.flatnonzero(chains @ sizes <= budget)
        if not len(fits):
            break
        kept, high = chains[fits[0]], prices[fits[0]]
        low = prices[max(0, fits[0] - 1)]
    left, edge = budget - sizes[kept].sum(), np.zeros(1)
    while len(fits := np.flatnonzero(~kept & (sizes <= left))):
        whole = np.concatenate([edge, np.where(kept[:-1] | kept[1:], pairs, 0), edge])  # pairs that a word makes whole
        best = fits[np.argmax(((words + whole[:-1] + whole[1:]) / sizes)[fits])]
        kept[best], left = True, left - sizes[best]
    return kept
