"""Sequence files: what data preparation writes and every later stage reads.

JSON Lines, one object a line: ``{"doc": str, "index": int, "tokens": [int, ...]}``, in a mixture with ``"part": str`` before the
tokens, with ``dataset_info.json`` beside them. Files are streamed out, and read through `datasets`, which memory-maps them as
Arrow: opening 50,000 sequences of 1,024 tokens needs neither minutes nor gigabytes.
"""

import argparse
import functools
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import numpy as np
import pyarrow.compute as pc

from data.artifacts import InputError, command_line, read_json, sha256_of
from data.scratch import make_scratch
from data.shapes import ANY_KEY, TEXT, count

SCHEMA = "rltc.dataset/1"
MADE_BY = "data/prepare.py"
CACHE = ".rltc_cache"  # beside the sequence files: what `datasets` made of them
INFO = "dataset_info.json"  # beside them: what they are
DEFAULT_SHARE = 0.1  # of a split that was left out, in the advice
SPLITS = {"train": "processed_data.json", "val": "val_data.json", "test": "test_data.json"}
ABOUT = {  # what readers of INFO use
    "source?": TEXT, "max_length": count(1), "tokenizer": {"name": TEXT, "fingerprint": TEXT, "vocab_size": count(1)},
    "splits": {ANY_KEY: {"file": TEXT, "sequences": count()}},
}
FEATURES = datasets.Features(
    {"doc": datasets.Value("string"), "index": datasets.Value("int32"), "tokens": datasets.List(datasets.Value("int32"))}
)


class SequenceWriter:
    """Stream the sequences of one split into the file `path` and count them; `state` is that of a writer to go on from."""

    def __init__(self, path, vocab_size, state=None):
        self.path = Path(path)
        self.size = dict.fromkeys(("documents", "characters", "sequences", "tokens", "shortest", "longest"), 0)
        self._used = np.zeros(vocab_size, dtype=bool)  # token ids that occur
        self._file = self.path.open("r+b" if state else "wb")
        if state:
            self.size = state["size"]
            self._used[state["used"]] = True
            self._file.truncate(self._file.seek(state["bytes"]))

    def write(self, doc, index, tokens, characters, part=None):
        """Append one sequence: `tokens`, int32 (T,), is number `index` of document `doc`, which has `characters` characters.

        `part` names the part of the mixture that the document is from.
        """
        row = {"doc": doc, "index": index, **({"part": part} if part else {}), "tokens": tokens.tolist()}
        self._file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
        self._used[tokens] = True
        size, length = self.size, len(tokens)
        size["documents"] += index == 0
        size["characters"] += characters if index == 0 else 0
        size["sequences"] += 1
        size["tokens"] += length
        size["shortest"] = min(size["shortest"] or length, length)
        size["longest"] = max(size["longest"], length)
        if part:
            of_part = size.setdefault("parts", {}).setdefault(part, {"documents": 0, "sequences": 0, "tokens": 0})
            of_part["documents"] += index == 0
            of_part["sequences"] += 1
            of_part["tokens"] += length

    def state(self):
        """What another writer needs to go on from here, JSON-able, once the file's content is safe on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"bytes": self._file.tell(), "used": np.flatnonzero(self._used).tolist(), "size": self.size}

    def statistics(self):
        """The split's part of `dataset_info.json`; lengths of sequences in tokens."""
        mean = round(self.size["tokens"] / max(1, self.size["sequences"]), 2)
        return {**self.size, "mean": mean, "distinct_tokens": int(np.count_nonzero(self._used))}

    def close(self):
        self._file.close()


class Sequences:
    """The sequences of one file, cut to at most `max_length` tokens; item i is an int64 array (T,).

    A sequence longer than `max_length` becomes several of about equal length, so no text is lost and none is left with
    a token or two. `docs[i]` is the document of item i.
    """

    def __init__(self, dataset, max_length):
        self._tokens = dataset.select_columns("tokens").with_format("numpy")
        lengths = np.asarray(pc.list_value_length(dataset.data.column("tokens")))
        pieces = -(-lengths // max_length)  # rounded up
        self._row = np.repeat(np.arange(len(lengths)), pieces)
        number = np.arange(len(self._row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # 0, 1, ... within a row
        self._start = number * lengths[self._row] // pieces[self._row]
        self.lengths = (number + 1) * lengths[self._row] // pieces[self._row] - self._start
        self._column, self._doc = dataset.data.column("tokens"), dataset.data.column("doc")
        self._part = dataset.data.column("part") if "part" in dataset.column_names else None

    def __len__(self):
        return len(self._row)

    def __getitem__(self, i):
        start = self._start[i]
        return np.asarray(self._tokens[int(self._row[i])]["tokens"][start : start + self.lengths[i]], dtype=np.int64)

    def first(self, count):
        """All tokens of the first `count` items, end to end, int64."""
        lengths = self.lengths[:count]
        rows = self._row[len(lengths) - 1] + 1 if len(lengths) else 0
        return pc.list_flatten(self._column.slice(0, rows)).to_numpy()[: lengths.sum()].astype(np.int64)

    @property
    def docs(self):
        """The document of every item, as an array of str."""
        return np.asarray(self._doc.to_pylist(), dtype=object)[self._row]

    @property
    def parts(self):
        """The part of the mixture that each item is from, as an array of str; None if the data is no mixture."""
        return None if self._part is None else np.asarray(self._part.to_pylist(), dtype=object)[self._row]


def features_of(info):
    """The columns of the files that `info` describes."""
    return datasets.Features({**FEATURES, "part": datasets.Value("string")}) if info.get("source") == "mixed" else FEATURES


def load_info(path):
    """The `dataset_info.json` beside sequence file `path`. Raises FileNotFoundError if either is missing."""
    there = (Path(path).parent / INFO).is_file()
    info = read_json(Path(path).parent / INFO, SCHEMA, MADE_BY, ABOUT) if there or Path(path).is_file() else None
    if not Path(path).is_file():
        remedy = again(path, info) if there else f"make one with: python {MADE_BY} --output_dir {Path(path).parent}"
        raise FileNotFoundError(f"{path} is missing; expected a sequence file; {remedy}")
    return info


def again(path, info, **flags):
    """What to do to have the sequence file `path` anew, for which `info` stands beside it; with these flags, if any."""
    args = info.get("args")
    if not isinstance(args, dict) or "source" not in args:  # another script's
        return "write it again with the command that made it"
    args = {**args, "output_dir": Path(path).parent, **flags}
    return f"write it again with: {command_line(MADE_BY, argparse.Namespace(**args))}"


def read_rows(path, features):
    """The rows of a sequence file, through a cache beside it, which is known by the file's content, whatever its time says.

    Where that fails it is not the file's fault yet: there may be no room or right to write beside it, the cache may be damaged or
    not ours, `datasets` may not like the path. It is read once more, from a link in a folder of its own.
    """
    with path.open("rb") as file:
        if not file.read(2**16).lstrip().startswith(b"{"):  # Arrow crashes on some of the rest
            raise ValueError("no JSON object in the first line")
    read = functools.partial(datasets.Dataset.from_json, features=features)
    try:
        return read(str(path), cache_dir=str(make_scratch(path.parent / CACHE) / sha256_of(path)[:16]))
    except (OSError, ValueError, TypeError, datasets.exceptions.DatasetGenerationError):
        pass
    try:
        with TemporaryDirectory() as folder:
            (plain := Path(folder) / "rows.json").symlink_to(path.resolve())
            return read(str(plain), cache_dir=folder, keep_in_memory=True)
    except datasets.exceptions.DatasetGenerationError as error:
        raise (error.__cause__ if isinstance(error.__cause__, OSError) else error) from None


def load_sequences(path, tokenizer_fingerprint, max_length=None):
    """Open one sequence file for a stage whose tokenizer has `tokenizer_fingerprint`.

    Raises FileNotFoundError if it is missing; InputError if it is empty, truncated, not a sequence file, or was
    made with another tokenizer.
    """
    path = Path(path)
    info = load_info(path)
    remedy = again(path, info)
    if info["tokenizer"]["fingerprint"] != tokenizer_fingerprint:
        raise InputError(
            f"{path} was made with tokenizer {info['tokenizer']['name']} ({info['tokenizer']['fingerprint']}), but this "
            f"stage's tokenizer is {tokenizer_fingerprint}; prepare the data again with --tokenizer, or name the matching model"
        )
    if path.stat().st_size == 0:
        split = next((name for name, file in SPLITS.items() if file == path.name), None)
        if split and not info["splits"].get(split, {}).get("sequences", 1):
            share, args = f"{split}_ratio", info["args"] if isinstance(info.get("args"), dict) else {}
            other = args.get("test_ratio" if split == "val" else "val_ratio")
            left = 1 - other if isinstance(other, (int, float)) and 0 <= other < 1 else 1
            advised = {share: min(DEFAULT_SHARE, float(f"{left / 2:.2g}"))}
            found = f"{path} is empty, as --{share} 0 asked for, but texts of it are needed"
            raise InputError(f"{found}; give --{share} a share and {again(path, info, **advised)}")
        raise InputError(f"{path} is empty; {remedy}")
    try:
        dataset = read_rows(path, features_of(info))
        dataset.data.table.validate(full=True)  # Arrow takes any bytes for text
    except (datasets.exceptions.DatasetGenerationError, ValueError, TypeError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        example = '{"doc": "a", "index": 0, "tokens": [1, 2]}'
        raise InputError(f"{path}: expected lines like {example}, found: {reason}; {remedy}") from None
    expected = next((s["sequences"] for s in info["splits"].values() if s["file"] == path.name), None)
    if expected is not None and expected != len(dataset):
        raise InputError(f"{path}: expected {expected} sequences ({INFO}), found {len(dataset)}; {remedy}")
    check_tokens(dataset, info["tokenizer"]["vocab_size"], path, remedy)
    return Sequences(dataset, max_length or info["max_length"])


def check_tokens(dataset, vocab_size, path, remedy):
    """No field is missing, every sequence has tokens and every token is in the vocabulary. Raises InputError."""
    column = dataset.data.column("tokens")
    fields = {name: dataset.data.column(name) for name in dataset.column_names} | {"token": pc.list_flatten(column)}
    if absent := [name for name, values in fields.items() if values.null_count]:
        names = ", ".join(dataset.column_names)
        raise InputError(f"{path}: expected {names} in each line, found one without {absent[0]}; {remedy}")
    if pc.min(pc.list_value_length(column)).as_py() in (None, 0):
        raise InputError(f"{path}: expected at least one token in each sequence, found an empty one; {remedy}")
    extremes = pc.min_max(fields["token"]).as_py()
    if extremes["min"] is None or extremes["min"] < 0 or extremes["max"] >= vocab_size:
        found = f"{extremes['min']} to {extremes['max']}"
        raise InputError(f"{path}: expected token ids from 0 to {vocab_size - 1}, found {found}; {remedy}")


def pad_batch(sequences, pad_id, length=None):
    """Stack token arrays to ids (B, T) int64 and valid (B, T) bool; `pad_id` fills where valid is False."""
    length = length or max(len(s) for s in sequences)
    ids = np.full((len(sequences), length), pad_id, dtype=np.int64)
    valid = np.zeros((len(sequences), length), dtype=bool)
    for row, tokens in enumerate(sequences):
        ids[row, : len(tokens)] = tokens
        valid[row, : len(tokens)] = True
    return ids, valid
