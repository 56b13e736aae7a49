"""What is never touched: numbers, names, negations, patterns, lines, and what stands between markers in the text itself.

    <keep>Invoice 2024-117</keep>

Two markers say that what is between them stays; they themselves are taken out of what is sent. A marker without the other one is
text. Spans are (start, end), in characters, the end excluded.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from data.artifacts import InputError

# Loops over a text begin at every word only, so that a megabyte without a space takes no longer than any other.
NEGATION = re.compile(
    r"\b(?:not|no|never|none|nor|neither|nothing|nobody|nowhere|without|cannot)\b|\b\w*n['’]t\b", re.IGNORECASE
)
CHUNK = re.compile(r"\S+")
CLOSING = ".,;:!?)]}\"'”’"  # punctuation behind a number that is not the number's
LINE = re.compile(r"[^\n]*\n|[^\n]+\Z")
MARKER = re.compile(r"<keep>|</keep>")
UNSPACED = "\u2e80"  # from here on scripts don't put spaces between words: a name may stand inside what looks like one


@dataclass(frozen=True)
class Protection:
    """What stays in every text. Two are equal if they protect alike, and one can be pickled.

    patterns: regular expressions (Python's `re`), everything that they match. numbers: words with a digit. names: phrases, as
    they are written, as whole words. negations: not, no, never, cannot, isn't and their like. first_lines, last_lines: so many
    lines at the beginning and the end. markers: whether `<keep>…</keep>` is read. Raises InputError if a pattern is none.
    """

    patterns: tuple[str, ...] = ()
    numbers: bool = False
    names: tuple[str, ...] = ()
    negations: bool = True
    first_lines: int = 0
    last_lines: int = 0
    markers: bool = True

    def __post_init__(self):
        for name in ("patterns", "names"):  # lists do as well
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for pattern in self.patterns:
            compiled(pattern)

    def spans(self, text):
        """The spans of a text, without markers, that stay: a list in no order, with overlaps."""
        found = [span for pattern in self.patterns for span in matches(compiled(pattern), text)]
        if self.negations:
            found += matches(NEGATION, text)
        if self.numbers:
            found += numbers(text)
        for name in self.names:
            found += occurrences(name, text)
        if self.first_lines or self.last_lines:
            lines = list(matches(LINE, text))
            found += lines[: self.first_lines] + lines[max(0, len(lines) - self.last_lines) :]
        return found


def compiled(pattern):
    """A regular expression, which `re` remembers. Raises InputError."""
    try:
        return re.compile(pattern)
    except (re.error, ValueError, OverflowError, RecursionError) as error:  # numbers too long, too large; too many brackets
        raise InputError(f"keep_pattern '{pattern}': expected a regular expression, found that {error}; mend it") from None


def matches(pattern, text):
    return [found.span() for found in pattern.finditer(text) if found.end() > found.start()]


def numbers(text):
    """Spans of words with a digit, less punctuation behind them: "$1,000", "3.5%", "2024-01-31"."""
    found = []
    for chunk in CHUNK.finditer(text):
        if any(character.isdigit() for character in chunk[0]):
            found.append((chunk.start(), chunk.start() + len(chunk[0].rstrip(CLOSING))))
    return found


def joined(a, b):
    """Whether two neighbouring characters are of one word."""
    return a.isalnum() and b.isalnum() and max(a, b) < UNSPACED


def occurrences(name, text):
    """Spans of a name where it is no part of a longer word."""
    found, at = [], text.find(name) if name else -1
    while at >= 0:
        end = at + len(name)
        if not (at and joined(text[at - 1], name[0]) or end < len(text) and joined(name[-1], text[end])):
            found.append((at, end))
        at = text.find(name, end)
    return found


def read_names(path):
    """The names in a file, one a line. Raises FileNotFoundError or InputError."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected names in UTF-8, one a line, found other bytes; convert it") from None
    return tuple(name for line in lines if (name := line.strip()))


def take_markers(text):
    """A text without its markers, the spans that stood between them, and where markers were: places, lengths taken out.

    Returns (text, spans, cuts); a cut (place, length) says that so many characters are missing before the place in the new text.
    """
    pieces, spans, cuts, last, length, opened = [], [], [], 0, 0, None
    for found in MARKER.finditer(text):
        if found[0] == "<keep>":
            opened = found
        elif opened:
            before, inside = text[last : opened.start()], text[opened.end() : found.start()]
            pieces += before, inside
            start = length + len(before)
            length = start + len(inside)
            spans.append((start, length))
            cuts += (start, len(opened[0])), (length, len(found[0]))
            last, opened = found.end(), None
    return "".join([*pieces, text[last:]]), spans, cuts


def with_markers(spans, cuts):
    """Spans of a text without its markers as spans of the one with them; a span in which a marker stood becomes two."""
    if not cuts:
        return spans
    found, shift, cuts = [], 0, list(cuts)
    for start, end in spans:
        while cuts and cuts[0][0] <= start:
            shift += cuts.pop(0)[1]
        while cuts and cuts[0][0] < end:
            place, length = cuts.pop(0)
            if start < place:
                found.append((start + shift, place + shift))
            start, shift = place, shift + length
        found.append((start + shift, end + shift))
    return found
