"""Several sources in one data set, in proportions that the user gives, the source of every document known."""

import argparse
import glob
import os
from pathlib import Path

from data.artifacts import InputError
from data.letters import shown
from data.limits import WEIGHT
from data.sources import SotuDocuments, TextDocuments, WikiDocuments

EMBEDDED = {"sotu": SotuDocuments, "wiki": WikiDocuments}


class MixedDocuments:
    """Yields `(name, text)` from several parts, always from the one that is furthest behind its weight, in characters.

    So the parts keep their proportions wherever --max_sequences cuts; a part that has ended leaves the place to the others.
    `words` are PART or PART=WEIGHT: an embedded corpus, or files; a part of files is named by its file without the endings.
    `part` is the name of the part that the last document came from. Raises InputError or FileNotFoundError.
    """

    def __init__(self, words, text_column, seed):
        self.parts, self.part = {}, None
        for word in words or []:
            what, weight = parse_part(word)
            name = what if what in EMBEDDED else shown(Path(what).name.split(".")[0])
            if name in self.parts:
                raise InputError(f"--input {word}: expected each part once, found two named '{name}'; leave one out or rename it")
            source = EMBEDDED[what](seed) if what in EMBEDDED else TextDocuments([what], text_column)
            self.parts[name] = source, weight
        if len(self.parts) < 2:
            raise InputError("--source mixed: expected --input with two parts or more, say sotu wiki=2 notes.jsonl; found fewer")
        self.stamp = {name: source.stamp for name, (source, _) in self.parts.items()}

    def __iter__(self):
        streams = {name: iter(source) for name, (source, _) in self.parts.items()}
        taken = dict.fromkeys(streams, 0.0)  # characters, divided by the part's weight
        while streams:
            self.part = min(streams, key=taken.get)
            document = next(streams[self.part], None)
            if document is None:
                del streams[self.part]
            else:
                taken[self.part] += len(document[1]) / self.parts[self.part][1]
                yield document


def parse_part(word):
    """The part and its weight, 1 if none is given. Raises InputError."""
    what, equals, number = word.rpartition("=")
    if not equals:
        return word, 1.0
    try:
        return what, WEIGHT(number)
    except argparse.ArgumentTypeError:
        name = os.path.expanduser(word)
        there = os.path.lexists(name) or glob.glob(name)  # so the = is of a file's name
        advised = f"{word}=1" if there else f"{what}=2"
        expected = f"expected a number from {WEIGHT.low:g} to {WEIGHT.high:,.0f} as weight, found '{number}'"
        raise InputError(f"--input {word}: {expected}; write, say, {advised}") from None
