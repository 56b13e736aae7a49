"""Tests of the container: `python eval/test_container.py` or pytest."""

import copy
import json
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.artifacts import InputError
from data.testing.toy import write_byte_base
from eval import lossless
from eval.compressor import Compressed
from eval.container import checksum, make_container, plain_payload, read_container, restore_file, weights_of
from models.reconstructor.reconstructor import Reconstructor

TEXT = b"do not restart the server, and never delete the logs there; \xff or delete the server and never restart the logs"
SCALE = HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A random reconstructor, saved and loaded."""
    folder = tmp_path_factory.mktemp("small")
    made = Reconstructor.from_base(write_byte_base(folder / "base"), gaps="found")
    with torch.no_grad():
        made.gap_head.out.bias[0] = 3.0  # it expects hardly any gaps, so that texts stay short
    made.save(folder / "tuned", args=Namespace())
    return Reconstructor.load(folder / "tuned", gaps="found")


@pytest.fixture(scope="module")
def records(small):
    """A container of each mode, of the same bytes."""
    weights = weights_of(small.directory, small)
    decide = lambda ids: [i % 3 > 0 for i in ids]
    sent = Compressed("do not restart server, never delete logs there", 60, 40, 40 / 60, ())
    payloads = {"plain": plain_payload(sent), "lossless": lossless.encode(TEXT, small, decide)}
    assert payloads["lossless"]["tokens"] and payloads["lossless"]["bytes"], "both ways are in it"
    return {mode: json.loads(make_container(TEXT, mode, weights, payload)) for mode, payload in payloads.items()}


def refusal(call):
    """What an InputError says, one line with a remedy."""
    with pytest.raises(InputError) as refused:
        call()
    message = str(refused.value)
    assert "\n" not in message and ("expected" in message or "is not JSON" in message) and ";" in message
    return message


def content_of(record):
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass") + b"\n"


def restored(content, small, force=False):
    """What `--restore` makes of a file of these bytes that is called a container."""
    return restore_file("text.rltc.json", content, small, force)


def test_a_container_is_read_and_restored(small, records):
    for mode, record in records.items():
        content = make_container(TEXT, mode, {part: record[part] for part in ("agent", "reconstructor")}, record["payload"])
        assert content == content_of(record) and read_container("it", content) == record
        data, identical = restored(content, small)
        assert identical == (mode == "lossless") == (data == TEXT)
        assert restore_file("stdin", content, small) == (data, identical), "known by its beginning, too"
    assert restore_file("notes.txt", b"do not restart", small)[1] is None, "plain text alone: nobody knows"


def test_what_was_sent_whole_is_the_original(small):
    weights, text = weights_of(small.directory, small), "never delete the logs"
    payload = plain_payload(Compressed(text, 9, 9, 1.0, ()))
    assert restored(make_container(text.encode(), "plain", weights, payload), small) == (text.encode(), True)
    assert restored(make_container(b"never", "plain", weights, payload), small) == (text.encode(), False), "the control"


def test_other_weights_are_refused_unless_forced(small, records, tmp_path):
    folder, content = tmp_path / "other", content_of(records["lossless"])
    Reconstructor.from_base(write_byte_base(tmp_path / "base", seed=1), gaps="found").save(folder, args=Namespace())
    other = Reconstructor.load(folder, gaps="found")
    message = refusal(lambda: restored(content, other))
    assert "--force" in message and records["lossless"]["reconstructor"]["sha256"][:16] in message
    try:
        assert not restored(content, other, force=True)[1]
    except InputError as error:
        assert "\n" not in str(error)


def test_lossless_bytes_that_are_not_the_original_are_refused_unless_forced(small, records):
    record = copy.deepcopy(records["lossless"])
    record["sha256"] = "0" * 64
    record["checksum"] = checksum(record)
    assert "--force" in refusal(lambda: restored(content_of(record), small))
    assert restored(content_of(record), small, force=True) == (TEXT, False)


@pytest.mark.parametrize("change, expect", [
    (lambda r: r.update(schema="rltc.container/2"), "expected schema 'rltc.container/1', found 'rltc.container/2'"),
    (lambda r: r.update(mode="whole"), "mode: expected one of plain, lossless, found 'whole'"),
    (lambda r: r.update(mode="plain"), "payload: expected text, found none"),
    (lambda r: r.update(mode=[]), "mode: expected one of plain, lossless"),
    (lambda r: r.update(length=-1), "length: expected a whole number"),
    (lambda r: r.update(length=True), "length: expected a whole number"),
    (lambda r: r.update(length=1e9), "length: expected a whole number"),
    (lambda r: r.update(length=r["length"] + 1), "expected the checksum"),
    (lambda r: r.update(sha256="0" * 63), "sha256: expected 64 hexadecimal digits"),
    (lambda r: r.update(sha256="0" * 64), "expected the checksum"),
    (lambda r: r.update(more=1), "found 'more' besides"),
    (lambda r: r.pop("agent"), "expected agent, found none"),
    (lambda r: r.update(reconstructor=[]), "reconstructor: expected an object, found []"),
    (lambda r: r["reconstructor"].pop("gap_head"), "reconstructor: expected gap_head, found none"),
    (lambda r: r["payload"].update(ranks=1), "ranks: expected text, found 1"),
    (lambda r: r["payload"].update(pieces=1 << 41), "pieces: expected a whole number"),
    (lambda r: r["payload"].update(ranks=r["payload"]["ranks"][:-4]), "expected the checksum"),
])
def test_what_was_changed_is_named(records, change, expect):
    record = copy.deepcopy(records["lossless"])
    change(record)
    message = refusal(lambda: read_container("it", content_of(record)))
    assert expect in message, message


def test_files_that_are_no_containers_are_named(records):
    whole, number = content_of(records["lossless"]), b'{"schema": ' + b"1" * 5000 + b"}"
    for content in (b"", whole[:-2], whole[: len(whole) // 2], b"[" * 100_000, number, b"\xff\xfe", b"null"):
        refusal(lambda: read_container("it", content))


def try_restoring(content, small, name="text.rltc.json", force=False):
    """What came of a file: None if it was refused in words, or the bytes and whether they are said to be the original."""
    try:
        return restore_file(name, content, small, force)
    except InputError as error:
        assert "expected" in str(error) or "is not JSON" in str(error)
        return None


ANYTHING = st.one_of(st.binary(max_size=400), st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))


@settings(max_examples=1000, deadline=None, database=None, suppress_health_check=SCALE)
@given(content=ANYTHING)
def test_random_bytes_are_refused_as_containers_and_restored_only_as_text(small, content):
    assert try_restoring(content, small) is None
    found = try_restoring(content, small, "notes.txt")
    assert found is None or found[1] is None


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 300), st.integers(), st.floats(), st.text(max_size=20), st.builds(list),
    st.builds(dict),
    st.lists(st.integers(0, 2**41), max_size=5), st.just("A" * 64), st.just("0" * 64),
)


def mutate(draw, record):
    """Change a value, or a few characters of one, somewhere in a record; a key is left out or added at times."""
    place = record
    while isinstance(place, dict) and place:
        name = draw(st.sampled_from(sorted(place)))
        if not isinstance(place[name], dict) or draw(st.integers(0, 9)) == 0:
            break
        place = place[name]
    if not place:
        place["new"] = draw(VALUES)
        return
    value, way = place[name], draw(st.integers(0, 9))
    if way == 0:
        del place[name]
    elif way == 1:
        place[draw(st.text(max_size=5))] = value
    elif isinstance(value, str) and way < 8 and value:
        at, put = draw(st.integers(0, len(value) - 1)), draw(st.text("ABCDabcdef0123456789+/=", max_size=3))
        place[name] = value[:at] + put + value[at + draw(st.integers(0, 3)) :]
    elif isinstance(value, int) and way < 8:
        place[name] = value + draw(st.integers(-3, 3))
    else:
        place[name] = draw(VALUES)


@settings(max_examples=1000, deadline=None, database=None, suppress_health_check=SCALE)
@given(data=st.data())
def test_mutated_containers_are_refused_or_come_back_as_what_they_say(small, records, data):
    """Half of them with a checksum made anew, as by somebody who edits with care: then the payload itself must hold."""
    record = copy.deepcopy(records[data.draw(st.sampled_from(["plain", "lossless"]))])
    for _ in range(data.draw(st.integers(1, 3))):
        mutate(data.draw, record)
    signed = data.draw(st.booleans())
    if signed:
        record["checksum"] = checksum(record)
    found = try_restoring(content_of(record), small, force=True)
    if found and found[1]:
        assert found[0] == TEXT, "said to be the original"
    if found and not signed:
        assert record in records.values(), "an edit went unnoticed"


def test_the_fuzz_reaches_the_payload(small, records):
    """The control of the test above: damaged payloads with a right checksum are read, and are not the original."""
    reached = 0
    for at in range(0, 40, 4):  # from the end, where ranks of masked tokens are
        record = copy.deepcopy(records["lossless"])
        ranks = record["payload"]["ranks"]
        record["payload"]["ranks"] = ranks[: -9 - at] + ("A" if ranks[-9 - at] != "A" else "B") + ranks[len(ranks) - 8 - at :]
        record["checksum"] = checksum(record)
        found = try_restoring(content_of(record), small, force=True)
        reached += found is not None
        assert not (found and found[1])
    assert reached


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
