"""Texts of any length from what was sent of them alone, which comes back in them character for character. `S` tokens sent."""

import numpy as np

from eval.encoding import windows

SENT, MARGIN = 384, 32  # sent tokens of a window, which has room for 639 missing ones; those at an end that another one restores


def missing(reconstructor, ids, batch_size):
    """What is missing behind each of the sent tokens ids (S,), and before the first: S + 1 lists of ids."""
    found = [[] for _ in range(len(ids) + 1)]
    every = windows(len(ids), SENT, MARGIN)
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


def pieces(reconstructor, encoder, text, batch_size=8):
    """What `text` was sent of, in pieces: (piece, whether it was sent). By a Reconstructor and the Encoder of its tokenizer."""
    ids, bounds, _ = encoder.encode(text)
    decode = reconstructor.tokenizer.decode
    for i, gap in enumerate(missing(reconstructor, ids, batch_size) if len(ids) else ()):
        if i:
            yield text[bounds[i - 1] : bounds[i]], True
        inside = 0 < i < len(ids) and bounds[i - 1] == bounds[i]  # between pieces of one character
        if gap and not inside:
            before = [int(ids[i - 1])] if i else []  # some tokenizers drop a space at the beginning of a text
            yield decode(before + gap)[len(decode(before)) if before else 0 :].replace("\ufffd", ""), False


def restore(reconstructor, encoder, text, batch_size=8):
    """The text that `text` was sent of."""
    return "".join(piece for piece, _ in pieces(reconstructor, encoder, text, batch_size))
