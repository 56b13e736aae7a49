"""Texts that were there before: exact duplicates by their SHA-256, near duplicates by MinHash.

A text's sketch holds, for each of 128 random permutations of all runs of five words, the smallest of its own; two sketches agree
in a place with probability equal to the Jaccard similarity of the two sets (Broder 1997, "On the resemblance and containment of
documents"). Sketches that agree in a whole band of places (`datasketch.MinHashLSH`; Leskovec, Rajaraman and Ullman, "Mining of
Massive Datasets", chapter 3) are compared in full.
"""

from itertools import islice

import numpy as np

SHINGLE = 5  # words
PERMUTATIONS = 128  # the standard error of a similarity of 0.8 is 0.035
CHUNK = 10_000  # runs of words hashed at a time
WEIGHTS = (0.2, 0.8)  # of false and missed candidates when bands are chosen: the false ones are weeded out, the missed are lost
DIGEST = 16  # bytes of a SHA-256 that tell texts apart


def shingles(text):
    """The runs of SHINGLE words of `text`, as bytes; all its words if it has fewer."""
    words = text.split()
    return (" ".join(words[i : i + SHINGLE]).encode() for i in range(max(1, len(words) - SHINGLE + 1)))


class Seen:
    """The texts kept so far. `near` is the Jaccard similarity from which a text is a near duplicate, None for exact ones only."""

    def __init__(self, near=None):
        self.near, self.digests = near, set()
        if near:
            from datasketch import MinHash, MinHashLSH  # takes half a second, and most runs don't need it

            self.empty = MinHash(num_perm=PERMUTATIONS)
            self.bands = MinHashLSH(threshold=near, num_perm=PERMUTATIONS, weights=WEIGHTS)

    def fault(self, text, digest):
        """The count under which a text with SHA-256 `digest` is dropped; None if it is kept, from now on among those seen."""
        if text is None:
            return "other_subreddits"
        if not text.strip():
            return "blank"
        if digest[:DIGEST] in self.digests:
            return "duplicates"
        self.digests.add(digest[:DIGEST])
        return "near_duplicates" if self.near and self.is_near(text) else None

    def is_near(self, text):
        """Whether a text kept before is as similar as `near`; if none is, this one is kept."""
        sketch, runs = self.empty.copy(), shingles(text)
        while chunk := list(islice(runs, CHUNK)):
            sketch.update_batch(chunk)
        for other in self.bands.query(sketch):  # each is known by its own sketch
            if np.mean(np.frombuffer(other, dtype=sketch.hashvalues.dtype) == sketch.hashvalues) >= self.near:
                return True
        self.bands.insert(sketch.hashvalues.tobytes(), sketch)
        return False
