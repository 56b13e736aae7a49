"""What a record that is read must look like: the one place where its keys and the kinds of its values are checked.

A shape is a Kind; a dict of shapes by key, of which those that end in "?" may be missing, and which may have others besides; a
dict {ANY_KEY: shape}, all of whose values have one; a list [shape], of any length; [shape, ...], of one or more; or a tuple of
shapes, a list of that length. A reader's shape has the keys that the reader uses.
"""

import math
from typing import Callable, NamedTuple

ANY_KEY = ""  # of a dict whose keys are names: of files, of methods, of tensors
MOST = 1 << 40  # no count in a record is higher: bytes, tokens, texts


class Kind(NamedTuple):
    """A kind of value: what it is called, and the test for it."""

    says: str
    holds: Callable


def count(low=0):
    """A whole number from `low` on."""
    return Kind(f"a whole number from {low} to {MOST}", lambda value: type(value) is int and low <= value <= MOST)


def among(*values):
    """One of some texts."""
    return Kind(f"one of {', '.join(values)}", lambda value: isinstance(value, str) and value in values)


def optional(shape):
    """What has a shape, or null."""
    says = shape.says if isinstance(shape, Kind) else f"{'an object' if isinstance(shape, dict) else 'a list'} as others have it"
    return Kind(f"{says}, or null", lambda value: value is None or not flaw(value, shape))


def is_number(value):
    """Whether a value is a finite float, or an int that machine integers hold."""
    return type(value) is float and math.isfinite(value) or type(value) is int and abs(value) < 1 << 63


TEXT = Kind("text", lambda value: isinstance(value, str))
WORD = Kind("text of a letter or more", lambda value: isinstance(value, str) and bool(value.strip()))
FLAG = Kind("true or false", lambda value: type(value) is bool)
NUMBER = Kind("a finite number", is_number)
POSITIVE = Kind("a finite number above 0", lambda value: is_number(value) and value > 0)
DIGEST = Kind("64 hexadecimal digits", lambda v: isinstance(v, str) and len(v) == 64 and set(v) <= set("0123456789abcdef"))
ANY = Kind("any value", lambda value: True)
OBJECT = {ANY_KEY: ANY}


def beginning(value):
    """The beginning of a value, in one line of ASCII."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def flaw(found, shape, where=""):
    """Where and how a value has not a shape, as "place: expected …, found …"; None if it has."""
    place = f"{where}: " * bool(where)
    if isinstance(shape, Kind):
        return None if shape.holds(found) else f"{place}expected {shape.says}, found {beginning(found)}"
    if not isinstance(found, dict if isinstance(shape, dict) else list):
        return f"{place}expected {'an object' if isinstance(shape, dict) else 'a list'}, found {beginning(found)}"
    if isinstance(shape, tuple) and len(found) != len(shape):
        return f"{place}expected a list of {len(shape)}, found {beginning(found)}"
    if isinstance(shape, list):
        if len(shape) > 1 and not found:
            return f"{place}expected a list of one or more, found none"
        parts = ((i, shape[0]) for i in range(len(found)))
    elif isinstance(shape, tuple):
        parts = enumerate(shape)
    elif ANY_KEY in shape:
        parts = ((key, shape[ANY_KEY]) for key in found)
    else:
        if absent := [key for key in shape if not key.endswith("?") and key not in found]:
            return f"{place}expected {absent[0]}, found none"
        names = {key.removesuffix("?"): part for key, part in shape.items()}
        parts = ((name, part) for name, part in names.items() if name in found)
    at = "{}[{}]" if isinstance(found, list) else "{}.{}"
    flaws = (flaw(found[key], part, at.format(where, key).lstrip(".")) for key, part in parts)
    return next(filter(None, flaws), None)
