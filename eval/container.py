"""The container `.rltc.json`: what was sent of a text, and what tells whether the original is back.

    {"schema": "rltc.container/1", "mode": "plain" or "lossless", "sha256", "length": of the original bytes,
     "agent": {"name", "sha256"}, "reconstructor": {"name", "sha256", "gap_head"}, "payload": {...}, "checksum"}

`payload`, plain: `tokens`, how many the original had; `windows`, how many tokens were kept of each; `kept`, their ids (packed).
Lossless: what lossless.encode gives, in which the kept tokens are ranks. `checksum`: the SHA-256 of everything else, so that an
edit is noticed; it is no signature. Whether a restored text is the original is known by `sha256` alone. What is wrong with a file
is one InputError: what was expected, found, and how to mend it.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from data.artifacts import InputError, read_json, sha256_of, write_text
from eval.lossless import as_base64, as_text, compressed, decode, decompressed, unpacked
from models.agent.files import identity
from models.reconstructor.tokenizer import locate

SCHEMA = "rltc.container/1"
SUFFIX = ".rltc.json"
MADE_BY = "eval/compress.py"
REMEDY = f"make it anew with: python {MADE_BY}"
MOST = 1 << 40  # no number in a container is higher: bytes, tokens
DIGEST, COUNT, TEXT = "64 hexadecimal digits", f"a whole number from 0 to {MOST}", "text"
DIGEST_OR_NULL = f"{DIGEST}, or null"
COUNTS = "a list of whole numbers from 0 on"
FIELDS = {"schema": TEXT, "mode": "plain or lossless", "sha256": DIGEST, "length": COUNT, "checksum": DIGEST}
AGENT = {"name": TEXT, "sha256": DIGEST}
WEIGHTS = {"agent": AGENT, "reconstructor": {**AGENT, "gap_head": DIGEST_OR_NULL}}
PAYLOADS = {
    "plain": {"tokens": COUNT, "windows": COUNTS, "kept": TEXT},
    "lossless": {"pieces": COUNT, "window": COUNT, "tokens": COUNT, "kept": COUNT, "ranks": TEXT, "bytes": TEXT},
}
ID_BYTES = 4  # of a kept token's id, before LZMA


def is_count(value):
    return type(value) is int and 0 <= value <= MOST


def is_digest(value):
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


CHECKS = {
    DIGEST: is_digest, DIGEST_OR_NULL: lambda value: value is None or is_digest(value),
    COUNT: is_count, TEXT: lambda value: isinstance(value, str),
    COUNTS: lambda value: isinstance(value, list) and all(map(is_count, value)),
    FIELDS["mode"]: lambda value: value in ("plain", "lossless"),
}


def checksum(record):
    """The SHA-256 of a container's record, its own checksum left out."""
    rest = {name: value for name, value in record.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def weights_of(agent_path, reconstructor):
    """Names and SHA-256 of an agent, a directory or a file, and of its reconstructor, as a container has them."""
    path = Path(locate(agent_path))
    names = {"agent": str(agent_path), "reconstructor": str(reconstructor.directory)}
    digests = {"agent": {"sha256": sha256_of(path)}, "reconstructor": identity(reconstructor.directory, "found")}
    return {part: {"name": names[part], **digests[part]} for part in names}


def plain_payload(windows, tokens):
    """The payload of the plain mode: `windows`, lists of the ids that were kept of each; `tokens`: how many there were in all."""
    ids = np.fromiter((i for window in windows for i in window), dtype=f"<u{ID_BYTES}")
    packed = compressed(np.ascontiguousarray(ids.view(np.uint8).reshape(-1, ID_BYTES).T).tobytes())
    return {"tokens": tokens, "windows": [len(window) for window in windows], "kept": as_base64(packed)}


def kept_windows(payload):
    """The inverse of `plain_payload`: lists of ids. Raises InputError."""
    count = sum(payload["windows"])
    if count > payload["tokens"]:
        raise InputError(f"the container: expected at most {payload['tokens']} kept tokens, found {count}; {REMEDY}")
    octets = np.frombuffer(decompressed(unpacked(payload, "kept"), ID_BYTES * count), dtype=np.uint8)
    ids = np.ascontiguousarray(octets.reshape(ID_BYTES, -1).T).view(f"<u{ID_BYTES}").ravel().tolist()
    ends = np.cumsum(payload["windows"]).tolist()
    return [ids[end - size : end] for end, size in zip(ends, payload["windows"], strict=True)]


def make_container(data, mode, weights, payload):
    """A container's record of bytes `data`; `weights` as of `weights_of`."""
    digest = hashlib.sha256(data).hexdigest()
    record = {"schema": SCHEMA, "mode": mode, "sha256": digest, "length": len(data), **weights, "payload": payload}
    return {**record, "checksum": checksum(record)}


def write_container(path, data, mode, weights, payload):
    """Write a container of bytes `data`, whole or not at all, and return its record. Raises OSError."""
    record = make_container(data, mode, weights, payload)
    write_text(path, json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
    return record


def check_fields(where, found, expected):
    """Raises InputError unless `found` is an object with exactly the keys of `expected`, each of its kind."""
    if not isinstance(found, dict):
        raise InputError(f"{where}: expected an object, found {type(found).__name__}; {REMEDY}")
    if missing := [name for name in expected if name not in found]:
        raise InputError(f"{where}: expected {missing[0]}, found none; {REMEDY}")
    if unknown := sorted(found.keys() - expected.keys()):
        raise InputError(f"{where}: expected {', '.join(expected)}, found {shown(unknown[0])} besides; {REMEDY}")
    for name, kind in expected.items():
        if kind in CHECKS and not CHECKS[kind](found[name]):
            raise InputError(f"{where}: {name}: expected {kind}, found {shown(found[name])}; {REMEDY}")


def shown(value):
    """The beginning of a value, in one line of ASCII."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def read_container(path):
    """A container's record, checked. Raises FileNotFoundError, or InputError where it is truncated, edited or something else."""
    record = read_json(path, SCHEMA, MADE_BY)
    check_fields(path, record, {**FIELDS, **dict.fromkeys((*WEIGHTS, "payload"), "an object")})
    for part, expected in (*WEIGHTS.items(), ("payload", PAYLOADS[record["mode"]])):
        check_fields(f"{path}: {part}", record[part], expected)
    if (found := checksum(record)) != record["checksum"]:
        expected = f"expected the checksum {record['checksum'][:16]}…, found {found[:16]}…"
        raise InputError(f"{path}: {expected}: it was changed after it was written; bring the file back, or {REMEDY}")
    return record


def check_weights(record, reconstructor, force=False):
    """Raises InputError unless a reconstructor has the weights that a container was made with; `force` lets others through."""
    named, ours = record["reconstructor"], identity(reconstructor.directory, "found")
    for name, kind in {"sha256": "weights", "gap_head": "gap head"}.items():
        if named[name] != ours[name] and not force:
            raise InputError(
                f"expected the {kind} that the container was made with ({shown(named['name'])}, SHA-256 {named[name][:16]}…), "
                f"found {str(ours[name])[:16]}… in {reconstructor.directory}; name that reconstructor, or try with --force"
            )


def restore_container(record, reconstructor):
    """The bytes that a container restores to, and whether they are the original, byte for byte. Raises InputError."""
    payload = record["payload"]
    if record["mode"] == "lossless":
        data = decode(payload, reconstructor, record["length"])
    else:
        windows = kept_windows(payload)
        if (highest := max((max(ids, default=0) for ids in windows), default=0)) >= reconstructor.vocab_size:
            raise InputError(f"the container: expected ids below {reconstructor.vocab_size}, found {highest}; {REMEDY}")
        restored = torch.cat([torch.zeros(0, dtype=torch.int64), *(reconstructor.restore(ids) for ids in windows)])
        data = as_text(reconstructor.tokenizer, restored.tolist()).encode("utf-8", "surrogatepass")
    identical = len(data) == record["length"] and hashlib.sha256(data).hexdigest() == record["sha256"]
    return data, identical
