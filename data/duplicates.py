"""Near duplicates: texts that share most of their runs of five words, found with MinHash and banding.

A text's sketch holds, for each of 128 random permutations of all runs of five words, the smallest of its own; two sketches agree
in a place with probability equal to the Jaccard similarity of the two sets (Broder 1997, "On the resemblance and containment of
documents"). Sketches that agree in a whole band of places are compared in full (Leskovec, Rajaraman and Ullman, "Mining of Massive
Datasets", chapter 3). `datasketch` makes the sketches and chooses the bands; they are kept in the SQLite file of the run, so
that memory does not grow with the corpus and an interrupted run can go on.
"""

from itertools import islice

import numpy as np

SHINGLE = 5  # words
PERMUTATIONS = 128  # the standard error of a similarity of 0.8 is 0.035
CHUNK = 10_000  # runs of words hashed at a time
WEIGHTS = (0.2, 0.8)  # of false and of missed candidates when the bands are chosen: the false ones are weeded out, the missed ones are lost


def shingles(text):
    """The runs of SHINGLE words of `text`, as bytes; all its words if it has fewer."""
    words = text.split()
    return (" ".join(words[i : i + SHINGLE]).encode() for i in range(max(1, len(words) - SHINGLE + 1)))


class NearDuplicates:
    """Tells whether a text is nearly one that was kept before. `threshold` is a Jaccard similarity, `database` that of the run."""

    def __init__(self, database, threshold):
        from datasketch import MinHash, MinHashLSH  # takes half a second, and most runs don't need it

        self.database = database
        self.threshold = threshold
        self.empty = MinHash(num_perm=PERMUTATIONS)
        bands = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=WEIGHTS)
        self.ranges = [slice(i * bands.r, (i + 1) * bands.r) for i in range(bands.b)]
        self.documents = database.execute("SELECT coalesce(max(document), 0) FROM sketches").fetchone()[0]

    def sketch(self, text):
        """The MinHash of a text, uint32 (PERMUTATIONS,)."""
        minhash, runs = self.empty.copy(), shingles(text)
        while chunk := list(islice(runs, CHUNK)):
            minhash.update_batch(chunk)
        return minhash.hashvalues

    def is_new(self, text, batch):
        """Whether no text kept before is as similar as the threshold; if so this one is kept, since batch number `batch`."""
        sketch = self.sketch(text)
        bands = [bytes([number]) + sketch[places].tobytes() for number, places in enumerate(self.ranges)]
        alike = f"SELECT DISTINCT document FROM bands WHERE band IN ({', '.join('?' * len(bands))})"
        for (other,) in self.database.execute(f"SELECT sketch FROM sketches WHERE document IN ({alike})", bands):
            if np.mean(np.frombuffer(other, dtype=sketch.dtype) == sketch) >= self.threshold:
                return False
        self.documents += 1
        self.database.execute("INSERT INTO sketches VALUES (?, ?, ?)", (self.documents, batch, sketch.tobytes()))
        self.database.executemany("INSERT INTO bands VALUES (?, ?, ?)", [(band, self.documents, batch) for band in bands])
        return True
