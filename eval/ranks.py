"""Ranks: a window of tokens as what its receiver would not have guessed, written with a range coder (coder.py) and read again.

The receiver gets the kept tokens in order, each ranked by the model read causally; then at every boundary the rank of the right
gap under the gap head; then, where tokens are missing, the rank of the right one under the reconstructor. A rank is how many
answers are held for likelier (Error-bounded Predictive Coding, arXiv 2510.22207). Deviations: 1. gaps are ranked, not told;
2. all masked tokens of a window are read at one time, not in rounds; 3. ranks have a context, the receiver's certainty.

Writer and reader compute the same logits in another order (a window whole, or many windows side by side, a token at a time; on
one thread or several), so that these differ in their last digits. Nothing is decided by less than TOLERANCE: where other answers'
logits are that near to the right one's, as many of its id's last bits are written as tell it from them, and the rank is that
among the ids with these last bits; where the certainty is that near to the border of two contexts, that is said.

Shapes: `T` tokens of a window, `S` of them kept, `M` rows, `V` answers, `B` windows.
"""

import math
from typing import NamedTuple

import torch
from transformers import DynamicCache

from data.artifacts import InputError
from models.reconstructor.gaps import CLASSES, send
from models.reconstructor.reconstructor import LOGIT_ROWS, read_states

TOLERANCE = 3e-4  # in logits: ten times the largest deviation of a difference that was measured, 2.9e-5 (test_lossless.py)
CERTAINTY = (0.02, 0.07, 0.2, 0.4, 0.7, 1.1, 1.6, 2.3, 3.2)  # borders of contexts, in nats of the likeliest answer
LAST_CONTEXT = 5.0  # nats, about where the context above the last border lies
OPTIMISM = 0.9  # the share of its own certainty that a model is believed before anything was seen
BORDER = len(CERTAINTY) + 1  # the context of a certainty that is too near to a border
RANKS, LONG_GAP, CHECKS = 24, 12, 5  # bits of numbers: ranks, what a gap has beyond CLASSES, how many last bits of an id
DAMAGED = "the container: expected ranks that these weights can read, found"
REMEDY = "compress the text anew, or restore with the weights that it names"


class Symbol(NamedTuple):
    """A right answer as its receiver sees it: context; how many last bits of its id are written, and the id; the rank."""

    context: int
    checks: int
    answer: int
    rank: int


class Window(NamedTuple):
    """What is written of a window: Symbols of kept tokens, gaps and masked tokens; the gaps' lengths; its ideal cost in nats."""

    length: int
    kept: list
    gaps: list
    missing: list
    masked: list
    nats: float


def certainty(logits):
    """Nats (M,) of the likeliest answer, under logits of which the highest is 0."""
    return logits.logsumexp(-1)


def contexts_of(nats):
    """The context of each certainty (M,), a list."""
    return torch.bucketize(nats, nats.new_tensor(CERTAINTY)).tolist()


def near_border(nats):
    """Whether a certainty (M,) is too near to a border: a small one deviates in proportion."""
    borders = nats.new_tensor(CERTAINTY)
    return ((nats[:, None] - borders).abs() < TOLERANCE * borders.clamp(0.1, 1)).any(1)


def symbols(logits, truth):
    """The Symbols of right answers `truth` (M,) under logits (M, V), and their summed nats."""
    nats, true, checks = certainty(logits), logits.gather(1, truth[:, None]), [0] * len(truth)
    ranks, ids = (logits > true).sum(1).tolist(), truth.tolist()
    for row, other in ((logits - true).abs_() < TOLERANCE).nonzero().tolist():
        differing = other ^ ids[row]
        checks[row] = max(checks[row], (differing & -differing).bit_length())  # up to the first bit, from the last, that differs
    for row, count in enumerate(checks):
        if count:
            ranks[row] = int((logits[row, ids[row] % (1 << count) :: 1 << count] > true[row]).sum())
    contexts = torch.where(near_border(nats), BORDER, torch.as_tensor(contexts_of(nats), device=nats.device)).tolist()
    return [Symbol(*row) for row in zip(contexts, checks, ids, ranks, strict=True)], float((nats - true[:, 0]).sum())


def put(coder, kind, context, symbol=None):
    """Write a Symbol, or read one: (checks, last bits, rank). `context`: what the receiver's certainty says."""
    if coder.bit((kind, "border"), symbol and symbol.context == BORDER, 0.005):
        context = BORDER
    checks = coder.number((kind, context, "checks"), CHECKS, symbol and symbol.checks, 0.9)
    last = coder.uniform(checks, symbol and symbol.answer)
    middle = ((0, *CERTAINTY, 1)[context] + (*CERTAINTY, LAST_CONTEXT, 1)[context]) / 2
    unseen = OPTIMISM * math.exp(-middle) if not checks else 0.05
    return checks, last, coder.number((kind, -checks or context), RANKS, symbol and symbol.rank, unseen)


def put_long(coder, beyond=None):
    """Write or read how many tokens more than CLASSES are missing."""
    return coder.number("long gap", LONG_GAP, beyond, 0.2)


def read_symbol(coder, kind, logits, context):
    """Read the answer of one row of logits (V,). Raises InputError."""
    checks, last, rank = put(coder, kind, context)
    among = logits[last :: 1 << max(checks, 0)]
    if not 0 <= checks <= RANKS or not 0 <= rank < len(among):
        raise InputError(f"{DAMAGED} rank {rank} of {len(among)}; {REMEDY}")
    return last + (int(among.kthvalue(len(among) - rank).indices if rank else among.argmax()) << checks)


class Ranker:
    """Both ends' use of a reconstructor. Raises InputError if it finds no gaps."""

    def __init__(self, reconstructor):
        if reconstructor.gap_head is None:
            expected = "expected a reconstructor that finds gaps, found no gap head beside its weights"
            raise InputError(f"{reconstructor.directory}: {expected}; load another")
        self.model = reconstructor

    def logits(self, states):
        """Logits (m, V), the highest 0, of LOGIT_ROWS rows of states (M, D) at one time."""
        weight = self.model.output_weight()
        found = ((some @ weight.T).float() for some in states.split(LOGIT_ROWS) if len(some))
        return (logits.sub_(logits.amax(1, keepdim=True)) for logits in found)

    def gap_logits(self, kept):
        """Logits (S + 1, CLASSES + 1), the highest 0, of the gaps around kept tokens (S,)."""
        everything = torch.ones(1, len(kept), dtype=torch.bool, device=kept.device)
        logits = self.model.gap_head(self.model.gap_states(send(kept[None], everything, everything)))[0][0]
        return logits - logits.amax(1, keepdim=True)

    @torch.inference_mode()
    def window(self, ids, keep_mask):
        """The Window of token ids (T,), some of which are kept; sequences."""
        ids = torch.as_tensor(ids, device=self.model.device)
        keep_mask = torch.as_tensor(keep_mask, dtype=torch.bool, device=ids.device)
        valid, kept, model = torch.ones_like(keep_mask)[None], ids[keep_mask], self.model
        whole = valid[:, : len(kept)]
        causal = read_states(model.model.base_model, kept[None], whole, whole, model.bos_id, model.mask_id, "causal")[0, :-1]
        masked = model.hidden(ids[None], keep_mask[None], valid)
        found, nats = [], 0.0
        for states, truth in ((causal, kept), (masked, ids[~keep_mask])):
            parts = [symbols(*part) for part in zip(self.logits(states), truth.split(LOGIT_ROWS))]
            found.append([symbol for some, _ in parts for symbol in some])
            nats += sum(cost for _, cost in parts)
        missing = send(ids[None], keep_mask[None], valid).gaps[0]
        gaps, cost = symbols(self.gap_logits(kept), missing.clamp(max=CLASSES))
        return Window(len(ids), found[0], gaps, missing.tolist(), found[1], nats + cost)

    def write(self, coder, windows):
        """Write Windows that are read side by side."""
        for step in range(max(len(window.kept) for window in windows)):
            for symbol in (window.kept[step] for window in windows if step < len(window.kept)):
                put(coder, "kept", symbol.context, symbol)
        for window in windows:
            for symbol, missing in zip(window.gaps, window.missing, strict=True):
                put(coder, "gap", symbol.context, symbol)
                if missing >= CLASSES:
                    put_long(coder, missing - CLASSES)
            for symbol in window.masked:
                put(coder, "masked", symbol.context, symbol)

    @torch.inference_mode()
    def read(self, coder, shapes):
        """Read windows of `shapes` (T, S): their token ids, lists. Raises InputError."""
        kept = self.read_kept(coder, [count for _, count in shapes])
        return [self.read_missing(coder, length, some) for (length, _), some in zip(shapes, kept, strict=True)]

    def read_kept(self, coder, counts):
        """Kept tokens of windows, lists of `counts`, one token of each at a time, with what the model made of earlier ones."""
        cache, kept = DynamicCache(), [[] for _ in counts]
        inputs = torch.full((len(counts), 1), self.model.bos_id, device=self.model.device)
        for step in range(max(counts)):
            states = self.model.model.base_model(input_ids=inputs, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
            rows = [row for row, count in enumerate(counts) if step < count]
            logits = torch.cat(list(self.logits(states[rows])))
            for row, some, context in zip(rows, logits, contexts_of(certainty(logits)), strict=True):
                kept[row].append(read_symbol(coder, "kept", some, context))
                inputs[row] = kept[row][-1]
        return kept

    def read_missing(self, coder, length, kept):
        """All tokens of a window of `length` tokens of which `kept`, a list, are known."""
        kept = torch.as_tensor(kept, dtype=torch.int64, device=self.model.device)
        logits, gaps = self.gap_logits(kept), []
        for row, context in zip(logits, contexts_of(certainty(logits)), strict=True):
            gaps.append(read_symbol(coder, "gap", row, context))
            if gaps[-1] == CLASSES:
                gaps[-1] += put_long(coder)
        if sum(gaps) != length - len(kept) or min(gaps) < 0:
            raise InputError(f"{DAMAGED} gaps of {sum(gaps)} tokens where {length - len(kept)} are missing; {REMEDY}")
        place = torch.arange(len(kept), device=kept.device) + kept.new_tensor(gaps[:-1]).cumsum(0)
        ids, keep_mask = kept.new_full((length,), self.model.bos_id), torch.zeros(length, dtype=torch.bool, device=kept.device)
        ids[place], keep_mask[place] = kept, True
        found = []
        for logits in self.logits(self.model.hidden(ids[None], keep_mask[None], torch.ones_like(keep_mask)[None])):
            pairs = zip(logits, contexts_of(certainty(logits)), strict=True)
            found += [read_symbol(coder, "masked", row, context) for row, context in pairs]
        ids[~keep_mask] = torch.as_tensor(found, dtype=torch.int64, device=ids.device)
        return ids.tolist()
