"""What a screen, or a file in UTF-8, can't hold, in letters that it can."""

import re

PLAIN = {"λ": "lambda", "−": "-", "–": "-", "—": "-", "±": "+-", "…": "...", "→": "->", "▶": ">", "·": "*", "█": "#"}
HALVES = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # of surrogate pairs, those apart that stand for bytes


def shown(name):
    """A file's name as text: bytes of it that are not UTF-8, which Python has as half surrogate pairs, as in \\xff.

    Halves that stand for no byte, which JSON may have, too: as in \\ud800.
    """
    name = HALVES.sub(lambda half: f"\\u{ord(half[0]):x}", str(name))
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def plain(error):
    """An error handler of encoders: what a screen can't show is written in plain letters, or as a question mark."""
    letters = error.object[error.start : error.end]
    return "".join(PLAIN.get(letter, "?") if shown(letter) == letter else shown(letter) for letter in letters), error.end
