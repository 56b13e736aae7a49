"""Hostile cases of what scripts read: files of the wrong kind, spoilt records, spoilt sequences."""

import gzip
import json
import math
import os
import random
import shutil
import zipfile
from pathlib import Path

from hostile_run import Case
from hostile_world import (
    COMPRESS, DRAW, EVALUATE, LOSSLESS, PANEL, PREPARE, PRICE, PROPOSER, READ, READER, RESTORE, TRAIN, TUNE, WORDS, WORTH, inputs,
    line,
)

HTML = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>nginx</body></html>\n"
KINDS = {  # bytes of files that are not what they should be
    "empty": b"", "PNG": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(40), "gzip": gzip.compress(b"{}", mtime=0),
    "random": random.Random(0).randbytes(3000), "UTF-16": '{"text": "a b c"}\n'.encode("utf-16"), "HTML": HTML,
    "null": b"null\n", "deep": b"[" * 100_000, "digits": b"9" * 5000, "NUL": bytes(500), "list": b"[]\n", "lfs":
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
}
UNREAD = (
    "RLTC_SCRATCH.TAG", "training.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "mine.txt",
)
ANY = (COMPRESS,)  # scripts that take any text
VALUES = {"null": None, "a word": "x", "a list": [], "an object": {}, "-1": -1, "NaN": math.nan, "1e400": math.inf, "true": True,
          "half a pair": "\ud800", "a large number": 10**30}
GONE = object()  # in the place of a value: the key is deleted


def replace_by(path, content):
    return lambda world: (world / path).write_bytes(content)


def put(path, make):
    """Spoil: take away what is at `path`, and have `make(path)` put something else there."""

    def spoil(world):
        target = world / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        make(target)

    return spoil


def nothing(path):
    """What `put` makes where a file is to be missing."""


def files(world, rng):
    """Inputs that are missing, of another kind, cut off, unreadable, links to nowhere."""
    for script in WORDS:
        for flag, path in inputs(script, world):
            yield Case("files", script, line(script, **{flag: f"{path}.no"}), note=f"no --{flag}")
            if (script, flag) == (READER, "data_path"):  # which is not read
                continue
            beside = [world / path] if (world / path).is_file() else sorted((world / path).glob("*"))
            if flag == "tokenizer":
                beside = [world / path / "tokenizer.json"]
            if flag == "data_path":
                beside += [world / "data/dataset_info.json"]
                beside += [world / "data/val_data.json"] * (script in (TUNE, TRAIN, PROPOSER))
            for each in (p for p in beside if p.is_file() and not p.name.startswith(".")):
                yield from spoilt_file(script, str(each.relative_to(world)), each.stat().st_size, rng)
            swaps = {"a folder": Path.mkdir, "a file": lambda p: p.write_text("x\n"), "a link to nowhere":
                     lambda p: p.symlink_to("nowhere"), "a link to itself": lambda p: p.symlink_to(p.name)}
            for name, make in swaps.items():
                expect = (0, 2) if script in ANY or (name, flag) == ("a file", "without") else (2,)
                yield Case("files", script, line(script), expect, put(path, make), note=f"{path} is {name}")


def spoilt_file(script, path, size, rng):
    """Cases of one file of other content."""
    text = path.endswith((".txt", ".jsonl"))
    expect = (0, 2) if text or Path(path).name in UNREAD or "events" in path else (2,)
    for kind, content in KINDS.items():
        yield Case("files", script, line(script), expect, replace_by(path, content), note=f"{path} is {kind}")
    for size in (rng.randrange(1, max(2, size - 2)) for _ in range(2)):
        cut = lambda world, size=size: os.truncate(world / path, size)
        yield Case("files", script, line(script), expect, cut, note=f"{path} is cut to {size} bytes")
    locked = lambda world: (world / path).chmod(0)
    yield Case("files", script, line(script), expect, locked, note=f"{path} can't be read")
    needed = (0, 2) if Path(path).name in UNREAD or "gap_head" in path or "events" in path else (2,)
    yield Case("files", script, line(script), needed, put(path, nothing), note=f"{path} is missing")


def places(record, path=(), depth=3):
    """Paths of keys in a record, of rows in it the first."""
    found = []
    rows = record if isinstance(record, list) else ()
    pairs = list(record.items())[:40] if isinstance(record, dict) else list(enumerate(rows))[:1]
    for key, value in pairs:
        found.append((*path, key))
        found += places(value, (*path, key), depth - 1) if depth > 1 and key not in ("vocab", "versions", "units") else []
    return found


def changed(record, keys, value):
    """A copy of a record with another value in the place that `keys` lead to."""
    record = json.loads(json.dumps(record))
    inner = record
    for key in keys[:-1]:
        inner = inner[key]
    if value is GONE:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    return record


def read_record(path):
    """A JSON record, of a file or of an agent's."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as file:
            return json.loads(file.read("config.json"))
    return json.loads(path.read_text())


def write_record(path, record):
    content = json.dumps(record)
    if path.suffix == ".zip":
        rewrite_zip(path, lambda name, old: content.encode() if name == "config.json" else old)
    else:
        path.write_text(content)


def rewrite_zip(path, content_of):
    """Write an agent's file anew with `content_of(name, old content)`."""
    with zipfile.ZipFile(path) as file:
        parts = {name: content_of(name, file.read(name)) for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in parts.items():
            file.writestr(name, content)


RECORDS = {  # records, and who reads them
    "data/dataset_info.json": (TUNE, TRAIN, PROPOSER, EVALUATE, READ, LOSSLESS), "base/config.json": (TUNE, READER),
    "base/tokenizer_config.json": (PREPARE, TUNE), "base/tokenizer.json": (PREPARE, TUNE),
    "tuned/reconstructor.json": (TRAIN, EVALUATE, COMPRESS, PROPOSER), "tuned/config.json": (TRAIN, COMPRESS),
    "agent/best_model.zip": (EVALUATE, PRICE, COMPRESS, READER, WORTH), "results/evaluation_results.json": (DRAW,),
    "results/reader_results.json": (PANEL,), "note.rltc.json": (RESTORE,), "half/.rltc_partial/state.json": (PREPARE,),
    "taught/config.json": (COMPRESS,),
}


def records(world, rng):
    """Records of which a key is missing or has another value."""
    for path, scripts in RECORDS.items():
        record = read_record(world / path)
        for script in dict.fromkeys(scripts):
            more = {"output_dir": "half", "resume": True} if path.startswith("half") else {}
            more |= {"model_path": "taught"} if path.startswith("taught") else {}
            for keys in places(record):
                for name, value in {"gone": GONE, **VALUES}.items():
                    spoil = lambda world, p=path, k=keys, v=value, r=record: write_record(world / p, changed(r, k, v))
                    where = ".".join(map(str, keys))
                    yield Case("records", script, line(script, **more), (0, 2), spoil, note=f"{path}: {where} is {name}")


ROWS = {  # lines of a sequence file in the place of a good one, and the statuses that are right
    "a null token": {"tokens": [1, None, 3]}, "null for tokens": {"tokens": None}, "a negative id": {"tokens": [1, -2, 3]},
    "a large id": {"tokens": [1, 300, 3]}, "a huge id": {"tokens": [1, 2**31, 3]}, "an endless id": {"tokens": [1, 10**30]},
    "halves": {"tokens": [1.5, 2.5]}, "words": {"tokens": ["a", "b"]}, "lists in lists": {"tokens": [[1, 2], [3]]},
    "no tokens": {"tokens": []}, "a text for tokens": {"tokens": "1 2 3"}, "an object for tokens": {"tokens": {"a": 1}},
    "NaN": {"tokens": [math.nan, 1]}, "true": {"tokens": [True, False, True]}, "a number for tokens": {"tokens": 7},
    "tokens gone": {"tokens": GONE}, "a text for index": {"index": "a"},
}
MILD = {"doc gone": {"doc": GONE}, "null for doc": {"doc": None}, "a number for doc": {"doc": 5}, "index gone": {"index": GONE},
        "null for index": {"index": None}, "more fields": {"more": [1]}, "a huge index": {"index": 2**40},
        "an empty doc": {"doc": ""}, "half a pair": {"doc": "\ud800"}, "NUL in doc": {"doc": "a\0b"},
        "a list for doc": {"doc": [1]}}
LINES = {"no JSON": b"tokens: 1 2 3\n", "a list": b"[1, 2, 3]\n", "a number": b"5\n", "half a line": b'{"doc": "a", "ind\n',
         "no UTF-8": b'{"doc": "\xff", "index": 0, "tokens": [1, 2]}\n', "null": b"null\n", "a Boolean": b"true\n"}
SOFT = {"a blank line": b"\n", "a BOM": b"\xef\xbb\xbf", "a return": b"\r\n",
        "twice the same key": b'{"tokens": [1], "tokens": 2}\n'}
READS = {TUNE: "processed_data.json val_data.json", TRAIN: "processed_data.json val_data.json", PROPOSER: "processed_data.json",
         READ: "processed_data.json", EVALUATE: "test_data.json processed_data.json", PRICE: "test_data.json",
         LOSSLESS: "test_data.json"}


def with_row(path, content, place):
    """Spoil: another line in the place of one of a sequence file; a dict changes its fields."""

    def spoil(world):
        rows = (world / path).read_bytes().splitlines(keepends=True)
        number = place % len(rows)
        if isinstance(content, bytes):
            rows[number] = content
        else:
            row = {**json.loads(rows[number]), **content}
            rows[number] = json.dumps({k: v for k, v in row.items() if v is not GONE}).encode() + b"\n"
        (world / path).write_bytes(b"".join(rows))

    return spoil


def sequences(world, rng):
    """Sequence files with a line that is none."""
    for script, names in READS.items():
        for name in names.split():
            for kinds, expect in ((ROWS, (2,)), (MILD, (0, 2)), (LINES, (2,)), (SOFT, (0, 2))):
                for kind, content in kinds.items():
                    spoil = with_row(f"data/{name}", content, rng.choice([0, 1, -1]))
                    yield Case("sequences", script, line(script), expect, spoil, note=f"data/{name}: {kind}")
