"""Plain text from what packages hold: HTML pages, dictionaries, modules of the SWORD project, R data, game scripts."""

import gzip
import html
import re
import struct
import zlib

PIECE = 8000  # characters; longer texts are cut between paragraphs into documents of about this length
SHORTEST = 300  # characters of a document

BLOCKS = re.compile(r"</?(p|div|h[1-6]|li|ul|ol|dl|dt|dd|tr|table|blockquote|section|br|hr|title|lb|lg|l)\b[^>]*>", re.I)
HIDDEN = re.compile(r"<(script|style|head|nav|header|footer|pre|programlisting|screen|svg|table)\b.*?</\1>|<!--.*?-->", re.I | re.S)


def plain(markup):
    """The text of HTML or of other markup: a line for every paragraph, without code, tables and navigation."""
    text = BLOCKS.sub("\n\n", HIDDEN.sub("\n\n", markup))
    text = html.unescape(re.sub(r"<[^>]+>", "", text)).replace("\xa0", " ")
    paragraphs = (re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", text))
    return "\n\n".join(part for part in paragraphs if part)


def prose_only(text, fewest_words=6):
    """`text` without paragraphs that are short or hardly words: headings, links, tables, code."""
    kept = []
    for part in text.split("\n\n"):
        letters = sum(character.isalpha() or character == " " for character in part)
        if len(part.split()) >= fewest_words and letters > 0.85 * len(part):
            kept.append(part)
    return "\n\n".join(kept)


def reflow(text):
    """Text that was wrapped into lines, one line for every paragraph; verse, whose lines are indented or short, keeps them."""
    paragraphs = re.split(r"\n\s*\n", text.replace("\r", ""))
    return "\n\n".join(re.sub(r"\s*\n\s*", " ", part).strip() if longest(part) > 55 else part.strip() for part in paragraphs if part.strip())


def longest(part):
    return max(len(line) for line in part.split("\n"))


def pieces(text, size=PIECE):
    """Cut a long text between paragraphs into documents of about `size` characters."""
    piece, length = [], 0
    for part in text.split("\n\n"):
        if length + len(part) > size and length:
            yield "\n\n".join(piece)
            piece, length = [], 0
        piece.append(part)
        length += len(part) + 2
    if length:
        yield "\n\n".join(piece)


def dictd(path):
    """The entries of a dictionary in the form of dictd: a headword in column 0, what it means indented."""
    text = gzip.open(path, "rt", encoding="utf-8", errors="replace").read()
    for entry in re.split(r"\n(?=\S)", text):
        yield entry.strip()


def r_strings(path):
    """The strings of an R lazy-load data base, in order: each object is a length and a zlib stream of R's own serialisation."""
    data, place = path.read_bytes(), 0
    while place < len(data):
        engine = zlib.decompressobj()
        raw = engine.decompress(data[place + 4 :])
        place = len(data) - len(engine.unused_data)
        for match in re.finditer(rb"\x00[\x04\x00]\x00\x09(....)", raw, re.S):
            size = struct.unpack(">i", match.group(1))[0]
            if 0 <= size < 10_000:
                yield raw[match.end() : match.end() + size].decode("utf-8", "replace")


def game_speech(script):
    """What is said in a campaign of Battle for Wesnoth, one speech a paragraph."""
    for match in re.finditer(r'\b(?:message|story|description|text|note)\s*=\s*_\s*"((?:[^"]|"")*)"', script):
        said = re.sub(r"<[^>]+>", "", match.group(1).replace('""', '"'))
        yield re.sub(r"\s+", " ", said).strip()
