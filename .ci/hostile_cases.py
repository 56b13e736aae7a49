"""Hostile cases of what scripts read: files of the wrong kind, spoilt records, sequences, weights, and names."""

import gzip
import json
import math
import os
import random
import shutil
import time
import zipfile
from pathlib import Path

import hostile_places
import torch
from hostile_run import Case
from hostile_world import (
    COMPRESS, DRAW, EVALUATE, LOSSLESS, PANEL, PREPARE, PRICE, PROPOSER, READ, READER, RESTORE, TRAIN, TUNE, WORDS, WORTH, inputs, line,
    module_of, value_of,
)
from safetensors.torch import load_file, save_file

HTML = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>nginx</body></html>\n"
KINDS = {  # bytes of files that are not what they should be
    "empty": b"", "PNG": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(40), "gzip": gzip.compress(b"{}", mtime=0),
    "random": random.Random(0).randbytes(3000), "UTF-16": '{"text": "a b c"}\n'.encode("utf-16"), "HTML": HTML,
    "null": b"null\n", "deep": b"[" * 100_000, "digits": b"9" * 5000, "NUL": bytes(500), "list": b"[]\n", "lfs":
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
}
UNREAD = ("training.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "mine.txt")
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
                beside += [world / "data/dataset_info.json", *[world / "data/val_data.json"] * (script in (TUNE, TRAIN, PROPOSER))]
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
    pairs = list(record.items())[:40] if isinstance(record, dict) else [(0, record[0])] if isinstance(record, list) and record else []
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
        "an empty doc": {"doc": ""}, "half a pair": {"doc": "\ud800"}, "NUL in doc": {"doc": "a\0b"}, "a list for doc": {"doc": [1]}}
LINES = {"no JSON": b"tokens: 1 2 3\n", "a list": b"[1, 2, 3]\n", "a number": b"5\n", "half a line": b'{"doc": "a", "ind\n',
         "no UTF-8": b'{"doc": "\xff", "index": 0, "tokens": [1, 2]}\n', "null": b"null\n", "a Boolean": b"true\n"}
SOFT = {"a blank line": b"\n", "a BOM": b"\xef\xbb\xbf", "a return": b"\r\n", "twice the same key": b'{"tokens": [1], "tokens": 2}\n'}
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


def tensors_of(path):
    """Tensors of a file of weights, or of an agent's."""
    if path.suffix != ".zip":
        return load_file(path)
    with zipfile.ZipFile(path) as file:
        Path(f"{path}.tensors").write_bytes(file.read("model.safetensors"))
    found = load_file(f"{path}.tensors")
    os.unlink(f"{path}.tensors")
    return found


def save_tensors(path, tensors):
    if path.suffix != ".zip":
        return save_file(tensors, path, metadata={"format": "pt"})
    save_file(tensors, f"{path}.tensors")
    content = Path(f"{path}.tensors").read_bytes()
    os.unlink(f"{path}.tensors")
    rewrite_zip(path, lambda name, old: content if name == "model.safetensors" else old)


def filled(value):
    def change(tensors, name):
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[-1] = value

    return change


def other(make):
    def change(tensors, name):
        tensors[name] = make(tensors[name]).contiguous()

    return change


CHANGES = {  # of tensors, and the statuses that are right
    "is missing": (lambda tensors, name: tensors.pop(name), (2,)), "is NaN": (filled(math.nan), (2,)), "is inf": (filled(math.inf), (2,)),
    "has another name": (lambda tensors, name: tensors.update({f"{name}x": tensors.pop(name)}), (2,)),
    "has a row more": (other(lambda t: torch.cat([t, t[:1]])), (2,)), "has another shape": (other(lambda t: t.flatten()[:-1]), (2,)),
    "has no elements": (other(lambda t: t[:0]), (2,)), "is of integers": (other(lambda t: t.long()), (0, 2)),
    "is complex": (other(lambda t: t.to(torch.complex64)), (0, 2)), "is of Booleans": (other(lambda t: t > 0), (0, 2)),
    "is in 16 bit": (other(lambda t: t.half()), (0, 2)), "is huge": (other(lambda t: t * 0 + 1e38), (0, 2)),
    "is a number": (other(lambda t: t.sum()), (2,)), "has a stranger beside it": (
        lambda tensors, name: tensors.update({"stranger": torch.ones(3)}), (0, 2)),
}
WEIGHTS = {"base/model.safetensors": (TUNE, READER), "tuned/model.safetensors": (TRAIN, PROPOSER), "tuned/gap_head.safetensors":
           (TRAIN, PROPOSER), "agent/best_model.zip": (EVALUATE, COMPRESS, WORTH), "taught/worth.safetensors": (COMPRESS,),
           "taught/model.safetensors": (COMPRESS,)}
FOREIGN = {  # entries of an agent's file that are not the agent's
    "a pickle alone": {"data.pkl": b"cposix\nsystem\n(S'touch owned'\ntR."}, "a name that climbs": {"../../owned.txt": b"x"},
    "no config": {"model.safetensors": b""}, "of an older library": {"policy.pth": b"\x80\x02}q\0.", "data": b"{}"},
    "an empty config": {"config.json": b"", "model.safetensors": b""}, "a header that lies":
    {"config.json": b"{}", "model.safetensors": (2**62).to_bytes(8, "little") + b"{}"}, "nothing": {},
}


def weights(world, rng):
    """Weights that are cut off, renamed, of other shapes, not finite, or another program's."""
    for path, scripts in WEIGHTS.items():
        floating = [name for name, t in tensors_of(world / path).items() if t.is_floating_point() and t.ndim and t.numel() > 1]
        for script in scripts:
            words = line(script, **({"model_path": "taught", "goal": "read"} if path.startswith("taught") else {}))
            for kind, (change, expect) in CHANGES.items():
                for name in rng.sample(floating, 2):
                    spoil = lambda world, p=path, c=change, n=name: (lambda t: (c(t, n), save_tensors(world / p, t)))(
                        tensors_of(world / p))
                    yield Case("weights", script, words, expect, spoil, note=f"{path}: {name} {kind}")
            for _ in range(4):
                size = rng.randrange(1, (world / path).stat().st_size - 1)
                cut = lambda world, p=path, size=size: os.truncate(world / p, size)
                yield Case("weights", script, words, (2,), cut, note=f"{path} is cut to {size} bytes")
            for kind in ("random", "PNG", "empty", "lfs"):
                yield Case("weights", script, words, (2,), replace_by(path, KINDS[kind]), note=f"{path} is {kind}")
            for kind, parts in FOREIGN.items() if path.endswith(".zip") else ():
                spoil = lambda world, p=path, parts=parts: write_zip(world / p, parts)
                yield Case("weights", script, words, (2,), spoil, note=f"{path}: {kind}")


def write_zip(path, parts):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in parts.items():
            file.writestr(name, content)


NAMES = {  # names that a file system takes, and whether they must work
    "spaces": ("a b  c", (0,)), "letters": ("naïve 文 🙂", (0,)), "quotes": ("it's \"a\"", (0,)), "a pattern": ("a[0-9]*?", (0,)),
    "braces": ("{x}%s%20$HOME~", (0,)), "a colon": ("a:b=c,d;e", (0,)), "a backslash": ("a\\b", (0,)), "dots": ("...", (0,)),
    "a newline": ("a\nb", (0, 2)), "no UTF-8": (os.fsdecode(b"a\xff\xfeb"), (0, 2)), "a dash": ("-x", (0,)), "long": ("n" * 235, (0, 2)),
    "too long": ("n" * 256, (2,)), "too deep": ("d/" * 2100 + "x", (2,)), "a hash": ("a#b?c&d", (0,)), "two colons": ("a::b", (0,)),
    "a scheme": ("file:", (0,)), "a control": ("a\x1b[31m\x07", (0, 2)), "tabs": ("a\tb", (0,)), "a train": ("train", (0,)),
}


def names(world, rng):
    """Inputs and outputs of unusual names."""
    for script in WORDS:
        for kind, (name, expect) in NAMES.items():
            for flag, path in inputs(script, world):
                folder, last = (os.path.dirname(path), os.path.basename(path)) if flag in ("data_path", "results_path") else ("", path)
                suffix = "" if folder or "." not in last else "." + last.split(".", 1)[1]
                new = f"{name}/{last}" if folder else f"{name}{suffix}"
                if kind in ("too long", "too deep"):
                    spoil = lambda world: None
                else:
                    copy = shutil.copytree if (world / (folder or path)).is_dir() else shutil.copyfile
                    spoil = lambda world, c=copy, s=folder or path, n=name if folder else new: c(world / s, world / n)
                yield Case("names", script, line(script, **{flag: new}), expect, spoil, note=f"--{flag}: {kind}")
            out = "output_dir" if "--output_dir" in WORDS[script] else "output"
            suffix = "" if out == "output_dir" else ".rltc.json" if "rltc" in (value_of(WORDS[script].split(), "--output") or "") else ".x"
            yield Case("names", script, line(script, **{out: name + suffix}), expect, note=f"--{out}: {kind}")


def control(world, rng):
    """What must be found out: a case for every kind of what can go wrong, named by it."""
    good, bad = line(DRAW), line(DRAW, dpi="no")
    fail = lambda: setattr(module_of(DRAW), "main", lambda: 1 / 0)
    meddle = lambda: Path("toy.jsonl").write_text("")
    yield from (
        Case("control", DRAW, good, within=fail, note="traceback"), Case("control", DRAW, bad, (0,), note="status"),
        Case("control", DRAW, good, (0,), within=meddle, note="damage"),
        Case("control", DRAW, good, within=lambda: time.sleep(60), patience=0.5, note="hang"),
        Case("control", DRAW, bad, within=lambda: os.write(2, b"more\n"), note="message"),
        Case("control", DRAW, bad, within=lambda: Path(".x.1.tmp").write_text(""), note="left"),
    )


FAMILIES = (control, files, records, sequences, weights, names, *hostile_places.FAMILIES)


def all_cases(world, seed, most):
    """The cases, up to `most` of each family, and {family: how many there are}."""
    cases, every = [], {}
    for family in FAMILIES:
        rng = random.Random(f"{seed} {family.__name__}")
        some = list(family(world, rng))
        every[family.__name__] = len(some)
        cases += rng.sample(some, most) if len(some) > most else some
    return cases, every
