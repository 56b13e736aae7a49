"""Tests of the range coder: `python eval/test_coder.py` or pytest."""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest

from data.artifacts import InputError
from eval.coder import ESCAPE, RangeDecoder, RangeEncoder


def said(coder, kind, context, value=None):
    """Write or read one thing of a kind."""
    ways = {
        "bit": lambda: coder.bit(context, value, 0.2), "uniform": lambda: coder.uniform(context, value),
        "number": lambda: coder.number(context, 10, value),
    }
    return ways[kind]()


@pytest.mark.parametrize("seed", range(40))
def test_what_was_written_is_read(seed):
    rng = np.random.default_rng(seed)
    draws = {
        "bit": lambda _: int(rng.random() < 0.02), "uniform": lambda bits: int(rng.integers(1 << bits)),
        "number": lambda _: int(rng.choice([ESCAPE, 0, 0, 0, 1, 2, 5, 100, 1022])),
    }
    messages = []
    for _ in range(int(rng.integers(0, 400))):
        kind, context = str(rng.choice([*draws])), int(rng.integers(0, 40))
        messages.append((kind, context, draws[kind](context)))
    encoder = RangeEncoder()
    for kind, context, value in messages:
        assert said(encoder, kind, context, value) == value
    decoder = RangeDecoder(encoder.finish())
    assert [said(decoder, kind, context) for kind, context, _ in messages] == [value for _, _, value in messages]


def test_carries_run_through_what_has_left():
    """By hand: bits that push the range's lower end to just below a power of two, over and over."""
    for value in (0, 1):
        for length in (1, 7, 48, 200, 4000):
            encoder = RangeEncoder()
            bits = [value] * length + [1 - value] * 3
            for bit in bits:
                encoder.bit("one", bit)
            decoder = RangeDecoder(encoder.finish())
            assert [decoder.bit("one") for _ in bits] == bits


def test_a_message_costs_its_entropy():
    rng, size = np.random.default_rng(0), 20_000
    for one in (0.5, 0.9, 0.02):
        encoder, bits = RangeEncoder(), rng.random(size) < one
        for bit in bits:
            encoder.bit("", int(bit))
        entropy = -(one * math.log2(one) + (1 - one) * math.log2(1 - one)) * size / 8
        assert 0.97 * entropy < len(encoder.finish()) < 1.05 * entropy + 8
    chance = RangeEncoder()  # the control: contexts that say nothing learn nothing
    for i, bit in enumerate(rng.random(2000) < 0.02):
        chance.bit(i, int(bit))
    assert len(chance.finish()) > 240


def test_more_than_was_written_is_refused():
    encoder = RangeEncoder()
    encoder.uniform(16, 12345)
    decoder = RangeDecoder(encoder.finish())
    assert decoder.uniform(16) == 12345
    with pytest.raises(InputError, match="found too few"):
        decoder.uniform(200)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
