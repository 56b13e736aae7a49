"""Whole words: which tokens are decided together, so that what is sent stays text.

A word is what stands between white space, with its leading space and punctuation; punctuation at its end is a unit of its own.
"1,000", "well-known" and "don't" are one word each. A word without white space inside, however long, is cut after LONGEST tokens.
Shapes: `B` texts, `T` tokens, `V` vocabulary.
"""

import functools
import re
from difflib import SequenceMatcher

import numpy as np
import torch

from data.artifacts import InputError
from models.reconstructor.masking import keep_counts, keep_highest

DECIDED = ("word", "token")  # what one decision is about
LONGEST = 16  # tokens of a word; text without spaces would be one decision otherwise
SPACE, BLANK, LETTER = 1, 2, 4  # a token begins with white space; is nothing else; has a letter, a digit or part of a character
LETTERS = re.compile(r"[^\W_]|\ufffd")  # a letter, a digit, or what part of a character is decoded to
NEAR = 3  # tokens before a gap that may read otherwise because of it: a character has up to 4
ROUNDS = 32  # of adding a word at every gap where a text does not read as it was sent


@functools.lru_cache(maxsize=8)
def kinds_of_tokens(tokenizer):
    """(V,) uint8 of flags SPACE, BLANK, LETTER, for every id of a tokenizer."""
    every = [[i] for i in range(len(tokenizer))]
    backend = getattr(tokenizer, "backend_tokenizer", None)  # which decodes them in a fifth of the time
    texts = backend.decode_batch(every, skip_special_tokens=False) if backend else tokenizer.batch_decode(every)
    marks = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    found = torch.zeros(len(texts), dtype=torch.uint8)
    for i, (text, mark) in enumerate(zip(texts, marks, strict=True)):
        space = text[:1].isspace() or mark.startswith("▁")  # SentencePiece's mark, which decoding takes away
        letter = LETTERS.search(text) is not None
        found[i] = SPACE * space | BLANK * (not text.strip()) | LETTER * letter
    if not (found & SPACE & ~(found >> 1)).any():  # tokens are words without their space, but for WordPiece's "##"
        found |= torch.tensor([SPACE * (not mark.startswith("##")) for mark in marks], dtype=torch.uint8)
    return found


class Words:
    """Finds the words of texts of one tokenizer; with `unit` "token" every token is one."""

    def __init__(self, tokenizer, unit="word"):
        if unit not in DECIDED:
            raise InputError(f"unit: expected one of {', '.join(DECIDED)}, found '{unit}'")
        self.tokenizer, self.unit = tokenizer, unit

    def starts(self, ids, valid):
        """Where a word begins, (B, T) bool, in ids (B, T) int64, valid (B, T) bool, tensors; padding tokens are words."""
        if self.unit == "token":
            return torch.ones_like(valid)
        kind = kinds_of_tokens(self.tokenizer).to(ids.device)[ids]
        kind = torch.where(valid, kind, torch.full_like(kind, SPACE | LETTER))
        blank, first = (kind & BLANK) > 0, torch.zeros_like(valid)
        first[:, :1] = True
        before = torch.cat([first[:, :1], ~blank[:, :-1]], 1)  # white space belongs to what follows
        chunk = first | ((kind & SPACE) > 0) & before | ~valid
        place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        number = chunk.cumsum(1) - 1
        letters = torch.where((kind & LETTER) > 0, place, -1)
        last = torch.full_like(place, -1).scatter_reduce(1, number, letters, "amax").gather(1, number)  # letter of the chunk
        starts = chunk | ((place == last + 1) & (last >= 0))
        since = place - torch.where(starts, place, 0).cummax(1).values
        return starts | (since % LONGEST == 0)

    def first_of(self, tokens):
        """Where the words of one text begin, (W,) int64, in its list of ids."""
        ids = torch.as_tensor(tokens, dtype=torch.int64)[None]
        return self.starts(ids, torch.ones_like(ids, dtype=torch.bool))[0].nonzero()[:, 0].numpy()

    def keep_highest(self, scores, ids, valid, keep_ratio, mean=True):
        """The keep mask (B, T) bool that keeps the highest-scored words of each text, `keep_ratio` of its tokens and no more.

        scores (B, T) float: importance of tokens; a word has their mean, or sum. ids (B, T) int64, valid (B, T) bool, arrays;
        keep_ratio: a number or (B,). Of words that don't fit any more, smaller ones are tried. Exact with single tokens.
        """
        if self.unit == "token":
            return keep_highest(scores, valid, keep_ratio)
        starts = self.starts(torch.as_tensor(ids), torch.as_tensor(valid)).numpy()
        keep_mask = ~valid
        for row, budget in enumerate(keep_counts(valid, keep_ratio)):
            length = int(valid[row].sum())
            first = np.flatnonzero(starts[row, :length])
            total, size = np.add.reduceat(np.asarray(scores[row, :length], dtype=np.float64), first), np.diff([*first, length])
            order = np.argsort(-(total / size if mean else total), kind="stable")
            kept = np.zeros(len(first), dtype=bool)
            left = budget
            for word in order:
                if size[word] <= left:
                    kept[word], left = True, left - size[word]
                if not left:
                    break
            keep_mask[row, :length] = np.repeat(kept, size)
        return keep_mask

    def differing(self, tokens):
        """Where a list of ids, decoded and encoded again, is another: its spans (first, last), last excluded, maybe empty."""
        again = self.tokenizer(self.tokenizer.decode(tokens), add_special_tokens=False)["input_ids"]
        codes = [] if again == tokens else SequenceMatcher(None, tokens, again, autojunk=False).get_opcodes()
        return [(first, last) for kind, first, last, *_ in codes if kind != "equal"]

    def keeps_reading(self, ids, keep_mask):
        """A keep mask (T,) with words added until what is sent, decoded and encoded again, gives the tokens that were sent.

        ids (T,) int64, keep_mask (T,) bool, tensors on the CPU. Where even the whole text does not read as it was, as where a
        text was cut inside a character, nothing is added.
        """
        keep_mask, starts = keep_mask.clone(), self.starts(ids[None], torch.ones_like(keep_mask)[None])[0]
        number = starts.cumsum(0) - 1
        hopeless = {i for first, last in self.differing(ids.tolist()) for i in range(first, last + 1)}
        for _ in range(ROUNDS):
            sent = [-1, *keep_mask.nonzero()[:, 0].tolist(), len(ids)]
            gaps = [i for i in range(len(sent) - 1) if sent[i + 1] - sent[i] > 1]  # before the i-th token that is sent
            fused = set()
            for first, last in self.differing(ids[sent[1:-1]].tolist()):
                near = [i for i in gaps if first <= i <= last + NEAR]
                if near and not hopeless.issuperset(sent[first + 1 : max(first, last - 1) + 2]):
                    fused.add(min(near, key=lambda i: abs(2 * i - first - last)))
            if not fused:
                break
            for i in fused:
                keep_mask |= number == number[sent[i] + 1]  # the first word that is missing
        return keep_mask


def spread(x, starts, mean=True):
    """The mean, or sum, of x (B, T) over every word, at each of its tokens."""
    number = starts.cumsum(1) - 1
    total = torch.zeros_like(x).scatter_add(1, number, x)
    if mean:
        total = total / torch.zeros_like(x).scatter_add(1, number, torch.ones_like(x)).clamp(min=1)
    return total.gather(1, number)
