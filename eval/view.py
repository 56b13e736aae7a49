"""A page that shows a text as it is compressed and as it comes back, at several keep ratios, with nothing from outside.

The text is what the receiver restores from what was sent alone: kept tokens, tokens that came back as they were, tokens that came
back otherwise, and, struck out, tokens of the original in their place.
"""

from difflib import SequenceMatcher
from itertools import groupby
from pathlib import Path

import jinja2

from eval.protect import MARKER
from eval.restoring import pieces

RATIOS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
FIRST = 2  # of RATIOS, that the page opens with
TEMPLATE = Path(__file__).with_name("view.html")


def compared(encoder, original, restored):
    """A gap, token by token: [(kind, token), …] of what is missing and of what came back in its place."""
    ours, theirs = encoder.tokens(original), encoder.tokens(restored)
    found = []
    for kind, a, b, c, d in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
        if kind == "equal":
            found += [("restored", token) for token in theirs[c:d]]
        else:
            found += [("wrong", token) for token in theirs[c:d]] + [("lost", token) for token in ours[a:b]]
    return found


def shown(compressor, text, keep_ratio):
    """What the page says of a keep ratio: counts of tokens, and runs (kind, text) of one kind each."""
    found = compressor.compress(text, keep_ratio=keep_ratio)
    sent, gaps, missing, at, before = found.text, {}, {}, 0, 0
    for start, end in found.spans:
        missing[at] = missing.get(at, "") + text[before:start]
        at, before = at + end - start, end
    missing[at] = missing.get(at, "") + text[before:]
    at = 0
    for piece, was_sent in pieces(compressor.reconstructor, compressor.encoder, sent) if found.kept_tokens < found.tokens else ():
        if not was_sent:
            gaps[at] = piece
        at += len(piece) * was_sent
    places, tokens = sorted({*missing, *gaps, len(sent)}), []
    for place, following in zip(places, [*places[1:], len(sent)], strict=True):
        tokens += compared(compressor.encoder, MARKER.sub("", missing.get(place, "")), gaps.get(place, ""))
        tokens.append(("kept", sent[place:following]))
    count = lambda wanted: sum(kind == wanted for kind, _ in tokens)
    runs = [(kind, "".join(token for _, token in run)) for kind, run in groupby(tokens, key=lambda token: token[0])]
    return {
        "asked": f"{keep_ratio:g}", "tokens": f"{found.tokens:,}", "kept": f"{found.kept_tokens:,}", "note": found.note,
        "runs": [run for run in runs if run[1]], **{kind: f"{count(kind):,}" for kind in ("restored", "wrong", "lost")},
    }


def page(compressor, name, text):
    """The page of a text that is called `name`, as HTML; everything of the text is escaped."""
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(TEMPLATE.read_text("utf-8"))
    return template.render(name=name, first=FIRST, shown=[shown(compressor, text, ratio) for ratio in RATIOS])
