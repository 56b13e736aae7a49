"""Whole words: which tokens are decided together, so that what is sent stays text.

A word is what stands between white space, with its leading space and punctuation; punctuation at its end is a unit of its own.
"1,000", "well-known" and "don't" are one word each. A word without white space inside, however long, is cut after LONGEST tokens.
Shapes: `B` texts, `T` tokens, `V` vocabulary.
"""

import functools

import numpy as np
import torch

from data.artifacts import InputError
from models.reconstructor.masking import keep_counts, keep_highest

DECIDED = ("word", "token")  # what one decision is about
LONGEST = 16  # tokens of a word; text without spaces would be one decision otherwise
SPACE, BLANK, LETTER = 1, 2, 4  # a token begins with white space; is nothing else; has a letter, a digit or part of a character
ROUNDS = 8  # of adding words until a text reads as it was sent; then everything in doubt is sent


@functools.lru_cache(maxsize=8)
def kinds_of_tokens(tokenizer):
    """(V,) uint8 of flags SPACE, BLANK, LETTER, for every id of a tokenizer."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    marks = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    found = torch.zeros(len(texts), dtype=torch.uint8)
    for i, (text, mark) in enumerate(zip(texts, marks, strict=True)):
        space = text[:1].isspace() or mark.startswith("▁")  # SentencePiece's mark, which decoding takes away
        letter = any(character.isalnum() or character == "\ufffd" for character in text)
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
        first[:, 0] = True
        before = torch.cat([first[:, :1], ~blank[:, :-1]], 1)  # white space belongs to what follows
        chunk = first | ((kind & SPACE) > 0) & before | ~valid
        place = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        number = chunk.cumsum(1) - 1
        letters = torch.where((kind & LETTER) > 0, place, -1)
        last = torch.full_like(place, -1).scatter_reduce(1, number, letters, "amax").gather(1, number)  # letter of the chunk
        starts = chunk | ((place == last + 1) & (last >= 0))
        since = place - torch.where(starts, place, 0).cummax(1).values
        return starts | (since % LONGEST == 0)

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

    def keeps_reading(self, ids, keep_mask):
        """A keep mask (T,) with words added until what is sent, decoded and encoded again, gives the tokens that were sent.

        ids (T,) int64, keep_mask (T,) bool, tensors on the CPU. Where even the whole text does not read as it was, as where a
        text was cut inside a word, the tokens beside each difference are sent and that is all.
        """
        keep_mask, starts = keep_mask.clone(), self.starts(ids[None], torch.ones_like(keep_mask)[None])[0]
        number = starts.cumsum(0) - 1
        for _ in range(ROUNDS):
            sent = keep_mask.nonzero()[:, 0]
            tokens = ids[sent].tolist()
            again = self.tokenizer(self.tokenizer.decode(tokens), add_special_tokens=False)["input_ids"]
            if again == tokens or keep_mask.all():
                break
            differing = next((i for i, (a, b) in enumerate(zip(tokens, again)) if a != b), min(len(tokens), len(again)))
            # What fuses stands beside a gap: the nearest one that ends at or after the difference, else the last before it.
            ends = (sent.diff(prepend=sent.new_tensor([-1])) > 1).nonzero()[:, 0]
            if not len(ends):
                break
            later = ends[ends >= differing]
            at = int(later[0] if len(later) and later[0] - differing <= 1 else ends[(ends - differing).abs().argmin()])
            keep_mask |= number == number[sent[at] - 1]  # the word before it
        return keep_mask


def spread(x, starts, mean=True):
    """The mean, or sum, of x (B, T) over every word, at each of its tokens."""
    number = starts.cumsum(1) - 1
    total = torch.zeros_like(x).scatter_add(1, number, x)
    if mean:
        total = total / torch.zeros_like(x).scatter_add(1, number, torch.ones_like(x)).clamp(min=1)
    return total.gather(1, number)
