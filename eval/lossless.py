"""Lossless: what a receiver needs to have the original back byte for byte, of any byte string.

    payload = encode(data, reconstructor, decide)
    decode(payload, reconstructor) == data

Text becomes windows of at most WINDOW tokens, of which `decide` keeps some; windows are written as ranks (ranks.py). What stays
as bytes, in LZMA: what is no UTF-8; what the tokenizer does not give back exactly; stretches of more tokens per byte than DENSE
(scripts that the model does not know, base64); windows whose ranks are no shorter than the same bytes in LZMA; and everything,
if that is shorter. `encode` decodes what it made before it returns it, and sends as bytes what did not come back.
"""

import base64
import binascii
import lzma
import math
import re
from itertools import pairwise
from typing import NamedTuple

from data.artifacts import InputError
from eval.coder import RangeDecoder, RangeEncoder
from eval.encoding import Encoder
from eval.ranks import Ranker

WINDOW = 256  # tokens; twice as many would save 1 % of the bytes
GROUP = 32  # windows whose kept tokens are read side by side; 70 MB of keys and values for the embedded base
GRAIN = 16  # tokens at which text may turn into something else
DENSE, VERY_DENSE = 0.45, 0.55  # tokens per byte of a window, of a grain: English has .2 to .3, Chinese and base64 .6 and more
REPETITIVE = 0.08  # LZMA's bytes per byte of text, below which no model is asked
SHORT = 12  # characters of text between bytes that are none: not worth a window
LONGEST_REST = 256  # windows that are sent as bytes, unseen, after others that did not pay
ATTEMPTS = 3  # at taking out windows that do not come back
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 22}]
RUN = 40  # bits of the length of a run of bytes
DAMAGED = "the container: expected a payload as eval/compress.py writes it, found"
REMEDY = "compress the text anew"


class Piece(NamedTuple):
    """A stretch of the original: its bytes and, if it is a window of text, its token ids."""

    data: bytes
    ids: tuple = ()


def compressed(data):
    """Bytes in LZMA without a header."""
    return lzma.compress(data, lzma.FORMAT_RAW, filters=FILTERS) if data else b""


def decompressed(packed, length):
    """What `compressed` made `packed` of, `length` bytes, never more. Raises InputError."""
    data, whole, reader = b"", not packed, lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=FILTERS)
    try:
        if packed:
            data = reader.decompress(packed, max_length=length)
            data += b"" if reader.eof else reader.decompress(b"", max_length=1)  # the end's mark may be left
            whole = reader.eof and not reader.unused_data
    except (lzma.LZMAError, EOFError) as error:
        raise InputError(f"{DAMAGED} bytes that LZMA can't read ({error}); {REMEDY}") from None
    if len(data) != length or not whole:
        raise InputError(f"{DAMAGED} another number of bytes than {length}; {REMEDY}")
    return data


def text_pieces(data, encoder, size, vocab_size):
    """Cut bytes into Pieces: windows of up to `size` tokens, and what none can be made of."""
    for part in re.split("([\udc80-\udcff]+)", data.decode("utf-8", "surrogateescape")):
        if len(part) < SHORT and len(part) < len(data) or part and "\udc80" <= part[0] <= "\udcff":
            yield Piece(part.encode("utf-8", "surrogateescape"))
        else:
            yield from part_pieces(part, encoder, size, vocab_size)


def part_pieces(text, encoder, size, vocab_size):
    """As `text_pieces`, of a str. A window ends where text turns dense, or stops being so."""
    ids, bounds, starts = (values.tolist() for values in encoder.encode(text))

    def cut(place):
        """The first place from here on that is not inside a character."""
        while place < len(ids) and not starts[place]:
            place += 1
        return min(place, len(ids))

    between = lambda first, last: text[bounds[first] : bounds[last]]
    cuts = sorted({cut(place) for place in range(0, len(ids) + GRAIN, GRAIN)})
    grains = [(first, last, last - first > VERY_DENSE * len(between(first, last).encode())) for first, last in pairwise(cuts)]
    begin = 0
    for (first, last, dense), following in pairwise([*grains, (len(ids), len(ids) + size + 1, False)]):
        if following[1] - begin <= size and following[2] == dense:
            continue
        window, some = between(begin, last), tuple(ids[begin:last])
        suits = not dense and len(some) <= max(1, DENSE * len(window.encode())) and max(some) < vocab_size and len(some) <= size
        yield Piece(window.encode(), some if suits and as_text(encoder.words.tokenizer, some) == window else ())
        begin = last
    if not ids:
        yield Piece(text.encode())


def as_text(tokenizer, ids):
    return tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def merged(pieces):
    """Pieces without empty ones, and with neighbours that are no windows in one."""
    runs, found = [], []
    for piece in (*pieces, None):
        if piece is not None and not piece.ids:
            runs.append(piece.data)
            continue
        found += [Piece(b"".join(runs))] * any(runs) + [piece] * (piece is not None)
        runs = []
    return found


def paying(pieces, ranker, decide, rate):
    """Pairs of a Piece and its ranks.Window, or None where bytes are no longer; `rate`: LZMA's bytes per byte of text.

    Where windows do not pay, ever more of those that follow are not looked at.
    """
    rest, failed = 0, 0
    for piece in pieces:
        window = None
        if piece.ids and rest:
            rest -= 1
        elif piece.ids:
            window = ranker.window(piece.ids, decide(list(piece.ids)))
            pays = window.nats / math.log(2) / 8 < rate * len(piece.data)
            failed = 0 if pays else failed + 1
            rest = 0 if failed < 2 else min(2**failed, LONGEST_REST)
            window = window if pays else None
        yield (piece, window) if window else (Piece(piece.data), None)


def header(coder, size, after_run, window=None, run=None):
    """Write or read what comes next, with a ranks.Window or the length of a run of bytes: (tokens, kept tokens), or (0, bytes).

    After a run there is a window.
    """
    known = window or run
    if not after_run and coder.bit("run", known and bool(run)):
        return 0, 1 + coder.number("bytes", RUN, known and run - 1, 0.02)
    full = coder.bit("full", known and window.length == size)
    length = size if full else coder.uniform(size.bit_length(), known and window.length)
    return length, coder.uniform(length.bit_length(), known and len(window.kept))


def groups(some):
    return (some[i : i + GROUP] for i in range(0, len(some), GROUP))


def packed(pairs, ranker, size):
    """The payload of pairs of a Piece and its ranks.Window or None."""
    windows, runs, after_run, coder = [window for _, window in pairs if window], [], False, RangeEncoder()
    for piece, window in pairs:
        header(coder, size, after_run, window, None if window else len(piece.data))
        runs += [] if window else [piece.data]
        after_run = window is None
    for group in groups(windows):
        ranker.write(coder, group)
    return {
        "pieces": len(pairs), "window": size, "tokens": sum(w.length for w in windows), "kept": sum(len(w.kept) for w in windows),
        "ranks": as_base64(coder.finish() if pairs else b""), "bytes": as_base64(compressed(b"".join(runs))),
    }


def as_base64(data):
    return base64.b64encode(data).decode()


def unpacked(payload, name):
    """The bytes of a payload's base64. Raises InputError."""
    try:
        return base64.b64decode(payload[name], validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{DAMAGED} {name} that are no base64 ({error}); {REMEDY}") from None


def payload_size(payload):
    """Bytes of a payload before they become JSON."""
    return sum(len(unpacked(payload, name)) for name in ("ranks", "bytes"))


def read_pieces(payload, reconstructor, length=None):
    """The pieces' bytes, one after the other. Raises InputError."""
    size, coder = payload["window"], RangeDecoder(unpacked(payload, "ranks"))
    if not 1 <= size <= reconstructor.max_length:
        raise InputError(f"{DAMAGED} windows of {size} tokens, of 1 to {reconstructor.max_length} that can be read; {REMEDY}")
    shapes = []
    for _ in range(payload["pieces"]):
        shapes.append(header(coder, size, bool(shapes) and not shapes[-1][0]))
        tokens, count = shapes[-1]
        if count < 1 and not tokens or tokens > size or tokens and count > tokens:
            raise InputError(f"{DAMAGED} a piece of {tokens} tokens and {count}; {REMEDY}")
    windows = [shape for shape in shapes if shape[0]]
    runs = sum(count for of_window, count in shapes if not of_window)
    tokens, kept = sum(count for count, _ in windows), sum(count for _, count in windows)
    if (tokens, kept) != (payload["tokens"], payload["kept"]) or length is not None and runs + tokens > length:
        found = f"{runs} bytes, {tokens} tokens and {kept} kept ones"
        raise InputError(f"{DAMAGED} {found}, of {length} bytes, {payload['tokens']} and {payload['kept']}; {REMEDY}")
    data, at = decompressed(unpacked(payload, "bytes"), runs), 0
    texts = (ids for group in groups(windows) for ids in Ranker(reconstructor).read(coder, group))
    for tokens, count in shapes:
        if tokens:
            yield as_text(reconstructor.tokenizer, next(texts)).encode("utf-8", "surrogatepass")
        else:
            yield data[at : at + count]
            at += count


def decode(payload, reconstructor, length=None):
    """The bytes that `encode` was given. `length`: how many there are, if known. Raises InputError."""
    found, total = [], 0
    for piece in read_pieces(payload, reconstructor, length):
        found.append(piece)
        total += len(piece)
        if length is not None and total > length:
            raise InputError(f"{DAMAGED} more than {length} bytes; {REMEDY}")
    return b"".join(found)


def first_wrong(payload, pairs, reconstructor):
    """The number of the first pair that does not come back; None if all do."""
    number = 0
    try:
        for (piece, _), found in zip(pairs, read_pieces(payload, reconstructor), strict=True):
            if piece.data != found:
                return number
            number += 1
    except InputError:
        return number
    return None


def encode(data, reconstructor, decide):
    """The payload of bytes, JSON-able, proven to come back.

    `decide(ids)`: the keep mask, a sequence of bool, of a window of token ids, a list.
    """
    ranker, size = Ranker(reconstructor), min(WINDOW, reconstructor.max_length)
    as_bytes = packed([(Piece(data), None)] if data else [], ranker, size)
    pieces = list(text_pieces(data, Encoder(reconstructor.tokenizer, "token"), size, reconstructor.vocab_size))
    text = b"".join(piece.data for piece in pieces if piece.ids)
    rate = len(compressed(text)) / max(1, len(text))
    if rate < REPETITIVE:
        return as_bytes
    pairs = list(paying(pieces, ranker, decide, rate))
    for _ in range(ATTEMPTS):
        pairs = tidy(pairs)
        payload = packed(pairs, ranker, size)
        if payload_size(payload) >= payload_size(as_bytes):
            break
        wrong = first_wrong(payload, pairs, reconstructor)
        if wrong is None:
            return payload
        last = {number for number, (_, window) in enumerate(pairs) if window and wrong <= number < wrong + 2 * GROUP}
        pairs = [(Piece(piece.data), None) if i in last else (piece, window) for i, (piece, window) in enumerate(pairs)]
    return as_bytes


def tidy(pairs):
    """Pairs with runs of bytes merged."""
    windows = iter([window for _, window in pairs if window])
    return [(piece, next(windows) if piece.ids else None) for piece in merged(piece for piece, _ in pairs)]
