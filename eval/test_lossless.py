"""Tests of lossless payloads: `python eval/test_lossless.py` or pytest."""

import base64
import json
import sys
import time
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from data.artifacts import InputError
from data.sources import SotuDocuments
from data.testing.toy import write_byte_base
from eval import lossless
from eval.encoding import Encoder
from eval.lossless import Piece, as_text, decode, encode, merged, packed, payload_size, text_pieces
from eval.ranks import TOLERANCE, Ranker
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.tokenizer import BASE_MODEL

ENGLISH = (
    "The committee met in the old town hall on Thursday evening. Members of the public were invited to speak about the new "
    "bridge, and about forty of them did. Most of those who spoke said that the bridge was needed, but that it should not be "
    "built before the road on the other side of the river had been repaired. The chairman thanked them for their patience.\n"
)
CODE = "def area(width, height):\n    if width < 0:\n        raise ValueError(width)\n    return width * height\n"
BYTES = {
    "empty": b"", "one byte": b"a", "one byte that is no text": b"\xff", "a newline": b"\n", "hello": b"hello",
    "a NUL": b"a\x00b", "English": ENGLISH.encode(), "code": CODE.encode() * 3,
    "JSON": json.dumps({"a": [1, 2.5, None], "b": {"c": "d"}}, indent=2).encode(),
    "table": b"| a | b |\n|---|---|\n| 1 | 2 |\n", "CRLF": ENGLISH.replace(". ", ".\r\n").encode(),
    "Chinese": "委员会星期四晚上在旧市政厅开会。".encode() * 4, "Arabic": "اجتمعت اللجنة مساء الخميس في قاعة المدينة القديمة.".encode() * 3,
    "Korean and Japanese": "위원회는 목요일 저녁에 만났다. 委員会は木曜日の夕方に開かれた。".encode(),
    "emoji": "👨‍👩‍👧‍👦🇩🇪🏳️‍🌈 flags and a family".encode() * 2,
    "control characters": bytes(range(32)) * 2, "every byte": bytes(range(256)) * 3,
    "a lone surrogate": b"a sentence \xed\xa0\x80 and another sentence",
    "text with bytes in it": ENGLISH.encode()[:200] + b"\xff\xfe\x80" + ENGLISH.encode()[200:],
    "a path and a key": f"Open /srv/data/run-07/config.yaml, of {uuid.UUID(int=7)}, and read it.".encode(),
    "a warning": b"Do not restart the server, and never delete the logs.",
    "English, then Chinese": ENGLISH.encode() + "委员会星期四晚上在旧市政厅开会。".encode() * 30, "a word 5,000 times": b"word " * 5000,
    "no end": "the same 🙂".encode()[:-1], "a byte order mark": "\ufeffThe committee met in the old town hall.".encode("utf-16"),
}


WORDS = "do not restart the server and never delete \n é 🙂 \x00".split(" ")


def longer_words(tokenizer):
    """A keep mask that any text has: tokens of more than four bytes are kept, and a few others."""
    return lambda ids: [len(tokenizer.decode([i])) > 4 or i % 5 == 0 for i in ids]


def of_threads(count, function):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return function()
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base():
    return Reconstructor.load(BASE_MODEL, gaps="found")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A random reconstructor whose windows have 63 tokens."""
    return Reconstructor.from_base(write_byte_base(tmp_path_factory.mktemp("bytes")), gaps="found").eval()


@pytest.mark.parametrize("name", BYTES)
def test_every_byte_string_comes_back(base, name):
    payload = encode(BYTES[name], base, longer_words(base.tokenizer))
    assert decode(json.loads(json.dumps(payload)), base, len(BYTES[name])) == BYTES[name]
    assert payload_size(payload) <= len(BYTES[name]) + 12


@pytest.mark.parametrize("tokens", [50, 511, 513, 1053, 2515])
def test_texts_of_any_length_come_back(base, tokens):
    prose = next(text for _, text in SotuDocuments(0))
    data = as_text(base.tokenizer, base.tokenizer(prose, add_special_tokens=False)["input_ids"][:tokens]).encode()
    payload = encode(data, base, longer_words(base.tokenizer))  # which decodes it
    assert payload["tokens"] == tokens and payload_size(payload) < len(lossless.compressed(data))


def test_names_of_special_tokens_are_text_and_need_no_bytes(base):
    data = ENGLISH[:120].encode() + b"<|endoftext|> and then <|mask|>" + ENGLISH[120:].encode()
    payload = encode(data, base, longer_words(base.tokenizer))
    assert decode(payload, base, len(data)) == data and payload["bytes"] == "" and payload["tokens"]


def test_payloads_of_one_thread_and_of_two_are_read_on_both(base):
    data, decide = ENGLISH[:75].encode(), longer_words(base.tokenizer)
    payloads = [of_threads(count, lambda: encode(data, base, decide)) for count in (1, 2)]
    assert payloads[0]["tokens"] and [of_threads(3 - i, lambda: decode(payloads[i - 1], base)) for i in (1, 2)] == [data, data]


def test_ranks_pay_on_text_that_the_model_knows_and_nowhere_else(base):
    size = lambda data: 8 * payload_size(encode(data, base, longer_words(base.tokenizer))) / len(data)
    english = encode(ENGLISH.encode(), base, longer_words(base.tokenizer))
    assert size(ENGLISH.encode()) < 0.6 * 8 * len(lossless.compressed(ENGLISH.encode())) / len(ENGLISH)
    assert 0 < english["kept"] < english["tokens"]
    both = ENGLISH.encode() + "委员会星期四晚上在旧市政厅开会。".encode() * 60
    mixed = encode(both, base, longer_words(base.tokenizer))
    assert mixed["tokens"] and mixed["bytes"] and payload_size(mixed) < len(lossless.compressed(both))
    for name in ("Chinese", "every byte", "a word 5,000 times"):
        assert encode(BYTES[name], base, longer_words(base.tokenizer))["tokens"] == 0


def test_a_megabyte_that_ranks_do_not_suit_takes_seconds(base):
    chance = base64.b64encode(np.random.default_rng(0).bytes(3 << 18))
    asked = []
    for data in (chance, np.random.default_rng(1).bytes(1 << 20), "委员会星期四晚上在旧市政厅开会。".encode() * 20_000):
        start = time.monotonic()
        payload = encode(data, base, lambda ids: asked.append(ids) or [True] * len(ids))
        assert decode(payload, base, len(data)) == data
        assert time.monotonic() - start < 30 and payload_size(payload) < len(data) + 100
    assert len(asked) < 3, "the agent need not look at them, but for stray characters"


@settings(max_examples=1000, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.one_of(st.binary(max_size=300), st.text(max_size=120).map(lambda text: text.encode("utf-8", "surrogatepass"))))
def test_any_bytes_come_back(small, data):
    assert decode(encode(data, small, longer_words(small.tokenizer)), small, len(data)) == data


@settings(max_examples=60, deadline=None, database=None)
@given(words=st.lists(st.sampled_from(WORDS), max_size=120), seed=st.integers(0, 9))
def test_windows_come_back_whatever_is_kept(small, words, seed):
    """Not by way of `encode`, which may take bytes: the windows themselves, with gaps of any length."""
    data, ranker, encoder = " ".join(words).encode(), Ranker(small), Encoder(small.tokenizer, "token")
    rng = np.random.default_rng(seed)
    pieces = merged(text_pieces(data, encoder, 63, small.vocab_size))
    masks = [rng.random(len(piece.ids)) < rng.random() * bool(seed) for piece in pieces]  # nothing is kept where the seed is 0
    pairs = [(piece, ranker.window(piece.ids, mask) if piece.ids else None) for piece, mask in zip(pieces, masks, strict=True)]
    assert decode(packed(pairs, ranker, 63), small, len(data)) == data


def test_windows_are_cut_between_characters_and_hold_all_bytes(small):
    encoder = Encoder(small.tokenizer, "token")
    data = ("the 🙂 server " * 60).encode() + b"\xff" + b"never delete the logs there " * 9 + b"\xfe"
    pieces = list(text_pieces(data, encoder, 63, small.vocab_size))
    assert b"".join(piece.data for piece in pieces) == data
    windows = [piece for piece in pieces if piece.ids]
    assert len(windows) > 4 and max(len(piece.ids) for piece in windows) <= 63
    assert merged(pieces) == merged(merged(pieces)) and Piece(b"\xff") in pieces
    unknown = text_pieces(data, encoder, 63, vocab_size=1)
    assert not any(piece.ids for piece in unknown), "tokens that are none of the model's"


def test_a_receiver_that_answers_otherwise_gets_bytes(tmp_path):
    """With dropout the model never says the same twice: nothing comes back from ranks, and `encode` sees it."""
    shaky = Reconstructor.from_base(write_byte_base(tmp_path / "shaky", dropout=0.3), gaps="found").train()
    data = b"do not restart the server, and never delete the logs there; delete the server and restart the logs, or do not"
    decide = longer_words(shaky.tokenizer)
    payload = encode(data, shaky, decide)
    assert payload["tokens"] == 0 and decode(payload, shaky, len(data)) == data
    assert encode(data, shaky.eval(), decide)["tokens"] > 0, "the control: without dropout ranks do it"


def test_other_weights_do_not_read_it(base, tmp_path):
    decide = longer_words(base.tokenizer)
    payload = encode(ENGLISH.encode(), base, decide)
    other = Reconstructor.load(BASE_MODEL, gaps="found")
    with torch.no_grad():
        other.model.get_input_embeddings().weight.add_(0.02 * torch.randn(other.model.get_input_embeddings().weight.shape))
    try:
        assert decode(payload, other, len(ENGLISH)) != ENGLISH.encode()
    except InputError as error:
        assert "expected" in str(error) and "\n" not in str(error)


@torch.inference_mode()
def test_the_tolerance_is_ten_times_what_the_order_of_sums_does(base):
    """Logits of the same kept tokens, read whole and step by step, alone and side by side, on one thread and on two."""
    ids = base.tokenizer(ENGLISH, add_special_tokens=False)["input_ids"][:64]
    windows = [torch.as_tensor(ids[i : i + 16]) for i in range(0, 64, 16)]
    ranker, weight = Ranker(base), base.output_weight()

    def whole(window):
        return base.model.base_model(torch.cat([torch.tensor([base.bos_id]), window[:-1]])[None]).last_hidden_state[0] @ weight.T

    def steps(rows):
        cache, inputs, found = DynamicCache(), torch.full((len(rows), 1), base.bos_id), []
        for step in range(len(rows[0])):
            states = base.model.base_model(input_ids=inputs, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
            found.append(states @ weight.T)
            inputs = torch.stack([row[step] for row in rows])[:, None]
        return torch.stack(found, 1)

    def masked(rows):
        keep_mask = torch.arange(16).expand(len(rows), 16) % 3 > 0
        return base.hidden(torch.stack(rows), keep_mask, torch.ones_like(keep_mask)) @ weight.T

    def deviation(a, b):
        difference = a - b
        return float((difference.amax(-1) - difference.amin(-1)).max())  # of differences of two logits

    reference, one = torch.stack([whole(window) for window in windows]), masked(windows[:1])
    found = [deviation(reference, of_threads(count, lambda: steps(windows))) for count in (1, 2)]
    found += [deviation(reference[:1], steps(windows[:1])), deviation(one, of_threads(2, lambda: masked(windows))[: len(one)])]
    gaps = [of_threads(count, lambda: ranker.gap_logits(windows[0])) for count in (1, 2)]
    found.append(deviation(*gaps))
    assert 0 < max(found) <= TOLERANCE / 10, found


@pytest.mark.parametrize("change, expect", [
    ({"pieces": 7}, "expected"), ({"window": 0}, "windows of 0 tokens"), ({"window": 9999}, "windows of 9999 tokens"),
    ({"tokens": 1}, "tokens and"), ({"ranks": "AAAA"}, "expected"), ({"ranks": "%"}, "no base64"),
    ({"bytes": "AAAA"}, "another number of bytes than 0"),
    ({"pieces": 1 << 40}, "a piece of|found too few"),
])
def test_what_is_damaged_is_refused_in_one_line(base, change, expect):
    payload = encode(ENGLISH.encode(), base, longer_words(base.tokenizer))
    with pytest.raises(InputError, match=expect) as refused:
        decode(payload | change, base, len(ENGLISH))
    assert "\n" not in str(refused.value)


def test_bytes_do_not_outgrow_what_is_announced(small):
    bomb = lossless.compressed(bytes(1 << 22))
    for length in (0, 10, 1 << 22 - 1, 1 << 39):
        with pytest.raises(InputError, match="another number of bytes"):
            lossless.decompressed(bomb, length)
    assert lossless.decompressed(bomb, 1 << 22) == bytes(1 << 22)


def test_who_cannot_find_gaps_says_so(small):
    head, small.gap_head = small.gap_head, None
    with pytest.raises(InputError, match="expected a reconstructor that finds gaps"):
        encode(b"text", small, None)
    small.gap_head = head


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
