"""Texts of any length from what was sent of them alone, which comes back in them character for character. `S` tokens sent."""

import numpy as np

SENT, SHARED = 384, 64  # sent tokens of a window, which has room for 639 missing ones; tokens that two windows share


def windows(length):
    """How so many sent tokens are read: (start, end, first, last), taken from first to last, the ends excluded."""
    found, first = [], 0
    while first < length:
        start = max(0, first - SHARED // 2)
        end = min(length, start + SENT)
        last = length if end == length else end - SHARED // 2
        found.append((start, end, first, last))
        first = last
    return found


def missing(reconstructor, ids, batch_size):
    """What is missing behind each of the sent tokens ids (S,), and before the first: S + 1 lists of ids."""
    found = [[] for _ in range(len(ids) + 1)]
    every = windows(len(ids))
    for at in range(0, len(every), batch_size):
        batch = every[at : at + batch_size]
        filled = reconstructor.fill([ids[start:end] for start, end, *_ in batch])
        for (start, end, first, last), (restored, sent) in zip(batch, filled, strict=True):
            restored, sent = restored.tolist(), sent.numpy()
            number = np.cumsum(sent) - 1 + start  # the sent token that stands before each, or is it
            for i in np.flatnonzero(~sent):
                before = int(number[i])
                if first <= before < last or (before == -1 and first == 0):
                    found[before + 1].append(restored[i])
    return found


def restore(reconstructor, encoder, text, batch_size=8):
    """The text that `text` was sent of, by a Reconstructor and the Encoder of its tokenizer."""
    encoded = encoder.encode(text)
    pieces, tokenizer = [], reconstructor.tokenizer
    if not len(encoded.ids):
        return text
    for i, gap in enumerate(missing(reconstructor, encoded.ids, batch_size)):
        if i:
            pieces.append(text[encoded.bounds[i - 1] : encoded.bounds[i]])
        inside = 0 < i < len(encoded.ids) and encoded.bounds[i - 1] == encoded.bounds[i]  # between pieces of one character
        if gap and not inside:
            before = [int(encoded.ids[i - 1])] if i else []  # some tokenizers drop a space at the beginning of a text
            pieces.append(tokenizer.decode(before + gap)[len(tokenizer.decode(before)) if before else 0 :].replace("\ufffd", ""))
    return "".join(pieces)
