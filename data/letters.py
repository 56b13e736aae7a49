"""What a screen, or a file in UTF-8, can't hold, in letters that it can."""

PLAIN = {"λ": "lambda", "−": "-", "–": "-", "—": "-", "±": "+-", "…": "...", "→": "->", "▶": ">", "·": "*", "█": "#"}


def shown(name):
    """A file's name as text: bytes of it that are not UTF-8, which Python has as half surrogate pairs, as in \\xff."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def plain(error):
    """An error handler of encoders: what a screen can't show is written in plain letters, or as a question mark."""
    letters = error.object[error.start : error.end]
    return "".join(PLAIN.get(letter, "?") if shown(letter) == letter else shown(letter) for letter in letters), error.end
