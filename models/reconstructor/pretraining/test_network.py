"""Tests of what pre-training draws and reads: `python models/reconstructor/pretraining/test_network.py` or pytest."""

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from models.reconstructor.pretraining.draws import KEPT, Streams, room_for
from models.reconstructor.pretraining.evaluation import KEPT as KEPT_IN_GAPS
from models.reconstructor.pretraining.evaluation import Base, causal_sums, gap_sums, masked_sums
from models.reconstructor.gaps import CLASSES, GapHead
from models.reconstructor.pretraining.network import read


@pytest.mark.parametrize("causal", [True, False])
def test_reading_without_masks_is_stock_gpt2(causal):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=40, n_embd=32, n_layer=2, n_head=4, bos_token_id=0)).eval()
    ids, positions = torch.randint(50, (3, 30)), 5 + torch.arange(30).expand(3, 30)
    bias = torch.zeros(1, 1, 30, 30) + (torch.full((30, 30), -1e9).triu(1) if causal else 0)
    with torch.no_grad():
        stock = model.transformer(input_ids=ids, position_ids=positions, attention_mask=bias).last_hidden_state
        torch.testing.assert_close(read(model, model.transformer.wte.weight, ids, positions, causal), stock, atol=1e-5, rtol=1e-4)


def test_the_gap_head_is_a_proper_distribution():
    torch.manual_seed(0)
    head, states = GapHead(16), torch.randn(2, 5, 16)
    torch.nn.init.normal_(head.out.weight, std=0.1)
    with torch.no_grad():
        total = sum((-head.nats(states, torch.full((2, 5), gap))).exp() for gap in range(400))
    torch.testing.assert_close(total, torch.ones(2, 5), atol=1e-3, rtol=0)


def a_stream(n=5000, vocab_size=30):
    rng = np.random.default_rng(0)
    joins = np.ones((2, vocab_size), dtype=bool)
    joins[:, :10] = False  # tokens that stand alone
    return Streams({"a": rng.integers(vocab_size, size=n), "b": rng.integers(5, size=n)}, joins, "cpu")


def test_windows_come_from_their_kind_and_masks_are_exact():
    streams, generator = a_stream(), torch.Generator().manual_seed(0)
    places = streams.draw(torch.tensor([0.0, 1.0]), 200, 64, generator)
    assert places.min() >= 5000 and places.max() < 10_000 and (places.diff(dim=1) == 1).all()
    hide = streams.masked(places, generator, 0.25)
    assert (hide.sum(1) == 16).all()
    shares = streams.masked(places, generator).float().mean(1)
    assert 0.03 < shares.min() and shares.max() < 0.57 and shares.std() > 0.1


def test_dropped_texts_add_up():
    """Kept tokens and gaps put every kept token where it was; a text with surprisal drops what is frequent."""
    streams, generator = a_stream(), torch.Generator().manual_seed(1)
    places = streams.draw(torch.tensor([1.0, 0.0]), 50, room_for(40), generator)
    kept, gaps, length = streams.dropped(places, 40, generator)
    assert kept.shape == (50, 40) and gaps.shape == (50, 41) and gaps.min() == 0
    assert torch.equal(gaps.sum(1) + 40, length) and (length <= room_for(40)).all() and (40 / length >= KEPT[0] - 0.02).all()
    where = (gaps[:, :-1] + 1).cumsum(1) - 1
    assert torch.equal(streams.tokens[places.gather(1, where)].long(), kept)
    assert gaps.max() > CLASSES - 3


def test_whole_words_stay_together(monkeypatch):
    from models.reconstructor.pretraining import draws

    monkeypatch.setattr(draws, "UNITS", {"token": 0.0, "span": 0.0, "word": 1.0})
    streams, generator = a_stream(), torch.Generator().manual_seed(2)
    places = streams.draw(torch.tensor([1.0, 0.0]), 20, 60, generator)
    scores, begins = streams.importance(places, generator), streams.begins[places]
    assert (scores[:, 1:] == scores[:, :-1])[~begins[:, 1:]].all() and not (scores[:, 1:] == scores[:, :-1])[begins[:, 1:]].any()


def test_sums_by_document_agree_with_stock_gpt2():
    """Causal nats in one window per document, against the logits of the stock model; an untrained gap head says nothing."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=31, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=29)).eval()
    rng, bos = np.random.default_rng(3), 29
    stream = np.concatenate([[bos, *rng.integers(29, size=31)] for _ in range(4)])
    streams = Streams({"a": stream}, np.ones((2, 30), dtype=bool), "cpu")
    base = Base(model, GapHead(32), model.get_input_embeddings().weight.detach(), bos)
    ids = torch.as_tensor(stream).view(4, 32)
    with torch.no_grad():
        log_p = model(torch.cat([torch.full((4, 1), bos), ids[:, :-1]], 1)).logits[..., :-1].log_softmax(-1)
    nats = -log_p.gather(-1, ids[..., None])[..., 0][:, 1:].sum(1)  # but for BOS, with which each document begins
    found = causal_sums(base, streams, 0, 32, 128)
    torch.testing.assert_close(found, torch.stack([torch.full((4,), 31.0), nats], 1).double(), atol=1e-3, rtol=1e-5)
    masked = masked_sums(base, streams, 0, 32, 128, 0.5)
    assert 56 <= masked[:, 0].sum() <= 64 and (masked[:, 1] > masked[:, 0]).all() and (masked[:, 2] <= masked[:, 0]).all()
    tokens, gaps = gap_sums(base, streams, 0, 32, 128).sum(0).tolist()
    assert gaps == pytest.approx(math.log(CLASSES + 1) * KEPT_IN_GAPS * tokens, rel=0.1)  # as many boundaries as kept tokens


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
