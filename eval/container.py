"""The container `.rltc.json`: what was sent of a text, and what tells whether the original is back.

    {"schema": "rltc.container/1", "mode": "plain" or "lossless", "sha256", "length": of the original bytes,
     "agent": {"name", "sha256"}, "reconstructor": {"name", "sha256", "gap_head"}, "payload": {...}, "checksum"}

`payload`, plain: `text`, what is sent; `tokens` of the original; `kept_tokens`. Lossless: what lossless.encode gives, in which
the kept tokens are ranks. `checksum`: the SHA-256 of everything else, so that an edit is noticed; it is no signature. Whether a
restored text is the original is known by `sha256` alone. What is wrong with a file is one InputError: what was expected, found,
and how to mend it. A restoration asks nothing of the agent: its name and hash say who decided.
"""

import hashlib
import json
from pathlib import Path

from data.artifacts import InputError, check_shape, parse_json, sha256_of
from data.shapes import DIGEST, TEXT, among, beginning, count, optional
from eval.encoding import Encoder
from eval.files import decoded
from eval.lossless import decode
from eval.restoring import restore
from models.agent.files import identity
from models.reconstructor.tokenizer import locate

SCHEMA = "rltc.container/1"
SUFFIX = ".rltc.json"
MADE_BY = "eval/compress.py"
REMEDY = f"make it anew with: python {MADE_BY}"
AGENT = {"name": TEXT, "sha256": DIGEST}
PAYLOADS = {
    "plain": {"text": TEXT, **dict.fromkeys(("tokens", "kept_tokens"), count())},
    "lossless": {**dict.fromkeys(("pieces", "window", "tokens", "kept"), count()), "ranks": TEXT, "bytes": TEXT},
}
FIELDS = {
    "schema": TEXT, "mode": among(*PAYLOADS), "sha256": DIGEST, "length": count(), "checksum": DIGEST,
    "agent": AGENT, "reconstructor": {**AGENT, "gap_head": optional(DIGEST)}, "payload": {},
}


def checksum(record):
    """The SHA-256 of a container's record, its own checksum left out."""
    rest = {name: value for name, value in record.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def weights_and_head(reconstructor):
    """Of the identity of a reconstructor what a container has: a restored text is known by its own hash."""
    known = identity(reconstructor.directory, "found")
    return {name: known[name] for name in ("sha256", "gap_head")}


def weights_of(agent_path, reconstructor):
    """Names and SHA-256 of an agent, a directory or a file, and of its reconstructor, as a container has them."""
    path = Path(locate(agent_path))
    names = {"agent": str(agent_path), "reconstructor": str(reconstructor.directory)}
    digests = {"agent": {"sha256": sha256_of(path)}, "reconstructor": weights_and_head(reconstructor)}
    return {part: {"name": names[part], **digests[part]} for part in names}


def make_container(data, mode, weights, payload):
    """The file of bytes `data`; `weights` as of `weights_of`; `payload`: a `plain_payload`, or what lossless.encode gives."""
    digest = hashlib.sha256(data).hexdigest()
    record = {"schema": SCHEMA, "mode": mode, "sha256": digest, "length": len(data), **weights, "payload": payload}
    record["checksum"] = checksum(record)
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def plain_payload(found):
    """The payload of the plain mode: what was sent, of a Compressed."""
    return {"text": found.text, "tokens": found.tokens, "kept_tokens": found.kept_tokens}


def check_only(where, found, expected):
    """Raises InputError unless an object that has the keys of `expected` has no others."""
    if unknown := sorted(found.keys() - expected.keys()):
        raise InputError(f"{where}: expected {', '.join(expected)}, found {beginning(unknown[0])} besides; {REMEDY}")


def is_container(name, content):
    """Whether a file is a container, by its name or by how its bytes begin."""
    return str(name).endswith(SUFFIX) or content.lstrip()[:40].startswith(f'{{"schema":"{SCHEMA.split("/")[0]}/'.encode())


def read_container(name, content):
    """A container's record from bytes, checked. Raises InputError where it is truncated, edited or something else."""
    record = parse_json(name, content, SCHEMA, MADE_BY, FIELDS)
    shape = {**FIELDS, "payload": PAYLOADS[record["mode"]]}
    check_shape(name, record, shape, REMEDY)
    check_only(name, record, shape)
    for part in ("agent", "reconstructor", "payload"):
        check_only(f"{name}: {part}", record[part], shape[part])
    if (found := checksum(record)) != record["checksum"]:
        expected = f"expected the checksum {record['checksum'][:16]}…, found {found[:16]}…"
        raise InputError(f"{name}: {expected}: it was changed after it was written; bring the file back, or {REMEDY}")
    return record


def check_weights(record, reconstructor, force=False):
    """Raises InputError unless a reconstructor has the weights that a container was made with; `force` lets others through."""
    named, ours = record["reconstructor"], weights_and_head(reconstructor)
    for name, kind in {"sha256": "weights", "gap_head": "gap head"}.items():
        if named[name] != ours[name] and not force:
            raise InputError(
                f"expected the {kind} that it was made with ({beginning(named['name'])}, SHA-256 {named[name][:16]}…), "
                f"found {str(ours[name])[:16]}… in {reconstructor.directory}; name that reconstructor, or try with --force"
            )


def restore_container(record, reconstructor, batch_size=8):
    """The bytes that a container restores to, and whether they are the original, byte for byte. Raises InputError."""
    payload = record["payload"]
    if record["mode"] == "lossless":
        data = decode(payload, reconstructor, record["length"])
    else:
        data = restored_text(payload["text"], reconstructor, batch_size, payload["kept_tokens"] == payload["tokens"])
    return data, len(data) == record["length"] and hashlib.sha256(data).hexdigest() == record["sha256"]


def restored_text(text, reconstructor, batch_size, whole=False):
    """The bytes of the text that `text` was sent of; `whole`: nothing is missing."""
    encoder = Encoder(reconstructor.tokenizer, "token")
    return (text if whole else restore(reconstructor, encoder, text, batch_size)).encode("utf-8")


def restore_file(name, content, reconstructor, force=False, batch_size=8):
    """The bytes that a file restores to, compressed text or a container, and whether they are the original; None: who knows.

    `force`: read what other weights wrote. Raises InputError where the file is none, or where what was promised to be lossless
    is not the original.
    """
    if not is_container(name, content):
        return restored_text(decoded(name, content), reconstructor, batch_size), None
    record = read_container(name, content)
    check_weights(record, reconstructor, force)
    data, identical = restore_container(record, reconstructor, batch_size)
    if record["mode"] == "lossless" and not identical and not force:
        expected = f"expected bytes of SHA-256 {record['sha256'][:16]}…, found others: this machine computes otherwise"
        raise InputError(f"{name}: {expected}; restore on one as it was made on, or have them all the same with --force")
    return data, identical
