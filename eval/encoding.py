"""Texts as tokens and back, exactly: which characters each token stands for, in texts of any length.

A tokenizer of its own, which no other thread sets, and which reads `<|endoftext|>` as the text that it is. Long texts are encoded
in parts, cut where every tokenizer cuts: before a space between two letters. `T` tokens.
"""

import re
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, pre_tokenizers, processors

from data.artifacts import InputError
from models.reconstructor.words import Words

PART = 65_536  # characters that are encoded at one time
SAFE = re.compile(r"(?<=[A-Za-z]) (?=[A-Za-z])")


def windows(length, size, margin):
    """How so many tokens are read, `size` at one time: (start, end, first, last), used from first to last, the ends excluded.

    What is used stands `margin` tokens away from where a window was cut.
    """
    found, first = [], 0
    while first < length:
        start = max(0, min(first - margin, length - size))
        end = min(length, start + size)
        last = length if end == length else end - margin
        found.append((start, end, first, last))
        first = last
    return found


class Encoded(NamedTuple):
    """A text's tokens. Token i stands for the characters from bounds[i] to bounds[i + 1]: of pieces of one character, the last.

    ids (T,) int32; bounds (T + 1,) int64; starts (T,) bool, where a unit begins, which is kept or dropped as a whole: a word or a
    token, and never a part of a character.
    """

    ids: np.ndarray
    bounds: np.ndarray
    starts: np.ndarray


class Encoder:
    """Encodes texts for a Hugging Face tokenizer; `unit`: what is decided together, "word" or "token".

    Raises InputError if the tokenizer does not know which characters its tokens stand for.
    """

    def __init__(self, tokenizer, unit):
        if not getattr(tokenizer, "backend_tokenizer", None):
            raise InputError("expected a fast tokenizer, which knows the characters of its tokens; convert it to tokenizer.json")
        self.words, self.backend = Words(tokenizer, unit), Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.backend.encode_special_tokens = True
        self.backend.no_truncation()
        self.backend.no_padding()
        self.in_parts = isinstance(self.backend.pre_tokenizer, pre_tokenizers.ByteLevel) and self.backend.normalizer is None
        if self.in_parts:
            self.backend.post_processor = processors.ByteLevel(trim_offsets=False)  # a space belongs to the word behind it

    def parts(self, text):
        """A text in parts of about PART characters, which encode as they do together: (place, part)."""
        first = 0
        while first < len(text):
            cut = SAFE.search(text, first + PART) if self.in_parts and len(text) - first > PART else None
            end = cut.start() if cut else len(text)
            yield first, text[first:end]
            first = end

    def read(self, text):
        """What the tokenizer makes of a short text. Raises InputError at half a surrogate pair, which is no character."""
        try:
            return self.backend.encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):  # the binding says TypeError of a str that is no UTF-8
            raise InputError("expected text, found half of a surrogate pair, which UTF-8 has no bytes for; take it out") from None

    def count(self, text):
        """How many tokens a text has."""
        return sum(len(self.read(part)) for _, part in self.parts(text))

    def tokens(self, text):
        """The characters of each token; those of pieces of one character are one."""
        bounds = self.encode(text).bounds.tolist()
        return [text[start:end] for start, end in pairwise(bounds) if start < end]

    def encode(self, text):
        """The Encoded of a text."""
        found = [self.encode_part(part, place) for place, part in self.parts(text)]
        if not found:
            return Encoded(np.zeros(0, np.int32), np.zeros(1, np.int64), np.zeros(0, bool))
        ids, bounds, starts = zip(*found, strict=True)
        return Encoded(np.concatenate(ids), np.concatenate([[0], *bounds]), np.concatenate(starts))

    def encode_part(self, text, place):
        """ids, ends of the tokens, and starts of units, of a part at a place."""
        read = self.read(text)
        ids, offsets = np.array(read.ids, dtype=np.int32), np.array(read.offsets, dtype=np.int64).reshape(-1, 2)
        if not len(ids):  # a tokenizer that drops what it does not know
            return ids, np.zeros(0, np.int64), np.zeros(0, bool)
        ends = np.maximum.accumulate(offsets[:, 1])
        ends[-1] = len(text)
        inside = np.zeros(len(ids), dtype=bool)
        inside[1:] = offsets[1:, 0] < ends[:-1]  # goes on with a character of the token before
        known = torch.from_numpy(ids.astype(np.int64))[None]
        starts = self.words.starts(known, torch.ones_like(known, dtype=torch.bool))[0].numpy() & ~inside
        starts[0] = True
        # Of a character that several tokens stand for, all but the last stand for nothing: bounds tile the text.
        following = np.append(inside[1:], False)
        begins = np.where(inside, 0, np.append(0, ends[:-1]))
        begins = np.maximum.accumulate(begins)
        return ids, place + np.where(following, begins, ends), starts
