"""Plain text from what packages hold: HTML and wiki pages, mail, dictionaries, modules of the SWORD project, R data.

Functions take the bytes of a file, or a str where text is meant, and return str or yield them.
"""

import bz2
import email
import gzip
import html
import re
import struct
import zlib
from xml.etree import ElementTree

BLOCKS = re.compile(r"</?(p|div|h[1-6]|li|ul|ol|dl|dt|dd|tr|table|blockquote|section|br|hr|title|lb|lg|l)\b[^>]*>", re.I)
HIDDEN = re.compile(
    r"<(script|style|head|nav|header|footer|pre|programlisting|screen|svg|table)\b.*?</\1>|<!--.*?-->", re.I | re.S
)
# Of wiki pages: innermost templates and tables, references, what is not text of the article, headings.
INNERMOST = re.compile(r"\{\{[^{}]*\}\}|\{\|(?:(?!\{\||\|\}).)*\|\}", re.S)
NO_TEXT = re.compile(
    r"<ref[^>]*/>|<(ref|math|gallery|timeline|table)\b.*?</\1>|<!--.*?-->|^=+[^\n]*=+\s*$|^[*#:;|!][^\n]*$|__\w+__|"
    r"\[\[(?:file|image|category|[a-z-]{2,12}):(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]",
    re.I | re.S | re.M,
)
SECTIONS_AT_THE_END = re.compile(r"^==\s*(see also|references|notes|further reading|external links|bibliography)\b.*", re.I | re.S | re.M)


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
    """Text that was wrapped into lines, one line for every paragraph; verse, whose lines are short, keeps them."""
    parts = [part for part in re.split(r"\n\s*\n", text.replace("\r", "")) if part.strip()]
    wrapped = [max(len(line) for line in part.split("\n")) > 55 for part in parts]
    return "\n\n".join(re.sub(r"\s*\n\s*", " ", part).strip() if long else part.strip() for part, long in zip(parts, wrapped))


def pieces(paragraphs, size, joint="\n\n", overshoot=False):
    """Join paragraphs to documents of about `size` characters: at most as many, or with `overshoot` just more."""
    piece, length = [], 0
    for part in paragraphs:
        if length and length + len(part) * (not overshoot) > size:
            yield joint.join(piece)
            piece, length = [], 0
        piece.append(part)
        length += len(part) + (0 if overshoot else 2)
    if length:
        yield joint.join(piece)


def dictd(data):
    """The entries of a dictionary in the form of dictd: a headword in column 0, what it means indented."""
    for entry in re.split(r"\n(?=\S)", gzip.decompress(data).decode("utf-8", "replace")):
        yield entry.strip()


def r_strings(data):
    """The strings of an R lazy-load data base, in order: each object is a length and a zlib stream of R's own serialisation."""
    place = 0
    while place < len(data):
        engine = zlib.decompressobj()
        raw = engine.decompress(data[place + 4 :])
        place = len(data) - len(engine.unused_data)
        for match in re.finditer(rb"\x00[\x04\x00]\x00\x09(....)", raw, re.S):
            size = struct.unpack(">i", match.group(1))[0]
            if 0 <= size < 10_000:
                yield raw[match.end() : match.end() + size].decode("utf-8", "replace")


def sword(books, verses, text):
    """The notes of a commentary (zCom or zCom4), each once, but for references (under 200 bytes): files of blocks, of verses, of the text."""
    blocks = [zlib.decompress(text[start : start + size]) for start, size, _ in struct.iter_unpack("<III", books)]
    places = struct.iter_unpack("<IIH" if len(verses) % 12 else "<III", verses)  # zCom4's are longer
    for block, start, size in dict.fromkeys(places):
        note = blocks[block][start : start + size].decode("utf-8", "replace") if size >= 200 else ""
        yield plain(re.sub(r'<div[^>]*type="x-p"[^>]*/>|<div[^>]*eID[^>]*/>|</?title[^>]*>', "\n\n", note))


def wiki_articles(data):
    """(title, text) of the articles in a compressed dump of a wiki, without lists, tables, notes and headings."""
    page = {}
    for _, element in ElementTree.iterparse(bz2.open(data)):
        page[element.tag.rpartition("}")[2]] = element.text
        if element.tag.endswith("}page"):
            if page["ns"] == "0" and page["text"] and not page["text"].lower().startswith("#redirect"):
                yield page["title"], without_wiki_markup(page["text"])
            element.clear()


def without_wiki_markup(text):
    text, found = SECTIONS_AT_THE_END.sub("", text), 1
    while found:
        text, found = INNERMOST.subn("", text)
    text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]]*)\]\]", r"\1", NO_TEXT.sub("", text))
    text = re.sub(r"\[\w+://\S+ ?([^\]]*)\]|'{2,}|<[^>]+>", r"\1", text)
    paragraphs = (re.sub(r"\s+", " ", part).strip() for part in html.unescape(text).split("\n"))
    return "\n\n".join(part for part in paragraphs if part)


def mail(text):
    """What a mail says itself: without headers, quotations and signature; addresses and telephone numbers replaced."""
    parts = (part for part in email.message_from_string(text).walk() if part.get_content_type() == "text/plain")
    body = next((part.get_payload(decode=True).decode("latin-1") for part in parts), "").replace("\r", "")
    body = re.split(r"^-- ?$|^[_=-]{20,}\s*$", body, maxsplit=1, flags=re.M)[0]
    said = "\n".join(line for line in body.split("\n") if not re.match(r"\s*[>|]|Date: ", line))
    said = re.sub(r"[\w.+-]+@[\w-]+\.[\w.-]*\w", "name@example.com", said)
    said = re.sub(r"\(?\b\d{3}\)?[ .-]\d{3}[ .-]\d{4}\b", "555-0100", said)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+", " ", said)).strip()
