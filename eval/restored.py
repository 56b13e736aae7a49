"""What a reader of plain text gets: how near a restored text is to the original, and which words survive in what is sent.

Word error rate is substitutions, insertions and deletions per word of the original (jiwer); chrF is Popović's (2015), by
sacrebleu. Both are of what `Reconstructor.restore` makes of the sent tokens alone. Numbers, names and negations are words whose
loss a language model's answer shows first; each counts as surviving if all of its tokens are sent.
"""

import re

import jiwer
import numpy as np
import torch
from sacrebleu.metrics import CHRF

from eval.protect import NEGATION
from models.reconstructor.words import Words

I = re.compile(r"^\W*I(?:['’]\w+)?\W*$")  # also "I'm": no name
SENTENCE_END = re.compile(r"[.!?:][\"'”’)]*$")
KINDS = ("numbers", "names", "negations")
COLUMNS = ("texts", "words", "errors", "chrf", *KINDS, *(f"{kind} sent" for kind in KINDS))  # of a text's row


def kinds(words):
    """(3, n) bool: whether each of the words of a text, in order, is a number, a name, a negation."""
    stripped = [word.strip() for word in words]
    found = np.zeros((len(KINDS), len(words)), dtype=bool)
    begins = True  # a sentence; its first word is capitalised whatever it is
    for i, word in enumerate(stripped):
        name = not begins and next((c for c in word if c.isalnum()), "").isupper() and not I.search(word)
        found[:, i] = any(c.isdigit() for c in word), name, bool(NEGATION.search(word))
        begins = begins and not any(c.isalnum() for c in word) or bool(SENTENCE_END.search(word))
    return found


def surviving(tokenizer, ids, keep_mask):
    """How many numbers, names and negations a text (T,) has, and how many of each are sent: two arrays (3,)."""
    starts = Words(tokenizer).starts(torch.as_tensor(ids)[None], torch.ones(1, len(ids), dtype=torch.bool))[0].numpy()
    first = np.flatnonzero(starts)
    pieces = [tokenizer.decode(piece) for piece in np.split(ids, first[1:])]
    sent = np.logical_and.reduceat(keep_mask, first)
    found = kinds(pieces)
    return found.sum(1), (found & sent).sum(1)


def restored_row(reconstructor, ids, keep_mask, chrf=CHRF()):
    """A text's row of COLUMNS: ids (T,) int64, keep_mask (T,) bool, arrays."""
    tokenizer = reconstructor.tokenizer
    original, restored = (tokenizer.decode(x) for x in (ids, reconstructor.restore(ids[keep_mask])))
    has, sent = surviving(tokenizer, ids, keep_mask)
    length, errors = len(original.split()), 0
    if length:
        compared = jiwer.process_words(original, restored)
        errors = compared.substitutions + compared.deletions + compared.insertions
    return np.array([1, length, errors, chrf.sentence_score(restored, [original]).score / 100, *has, *sent], dtype=float)


def restored_figures(sums):
    """{name: value} of sums (..., COLUMNS): word error rate, chrF (mean over texts, 0 to 1), shares that survive."""
    texts, words, errors, chrf, *counts = np.moveaxis(np.asarray(sums, dtype=float), -1, 0)
    found = {"word_error_rate": errors / words, "chrf": chrf / texts}
    with np.errstate(invalid="ignore", divide="ignore"):
        return found | {
            f"{kind}_sent": np.where(has > 0, sent / has, 1.0) for kind, has, sent in zip(KINDS, counts[:3], counts[3:])
        }
