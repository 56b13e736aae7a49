"""Tests of the methods that the agent is compared with: `python eval/test_methods.py` or pytest."""

import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest
import torch

from data.artifacts import InputError
from data.sequences import pad_batch
from data.testing.toy import write_base
from eval import evaluate
from eval.methods import (
    Agent,
    CausalSurprisal,
    IterativeSurprisal,
    KeptContext,
    Place,
    Random,
    Sentences,
    TokenFrequency,
)
from eval.metrics import figures
from eval.verified import MeanMaskedNats, Verified
from models.agent.reader import DRAFT_THRESHOLD, Reader
from models.reconstructor.causal_lm import load_causal_lm
from models.reconstructor.masking import budget, keep_highest
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.tokenizer import load_tokenizer
from models.reconstructor.words import Words


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    """A tiny random GPT-2; its BOS is 0."""
    return load_causal_lm(write_base(tmp_path_factory.mktemp("base"))).eval()


@pytest.fixture(scope="module")
def reconstructor(stages):
    """It is told where gaps are."""
    return Reconstructor.load(stages[0] / "tuned")


@pytest.fixture(scope="module")
def finder(stages):
    return Reconstructor.load(stages[0] / "tuned", gaps="found")


@pytest.fixture(scope="module")
def tokens(reconstructor):
    return Words(reconstructor.tokenizer, "token")


def test_causal_surprisal_is_the_models_own_cross_entropy(causal):
    ids, valid = pad_batch([np.arange(2, 14), np.arange(5, 9)], 0)
    found = CausalSurprisal(causal, 0).scores(ids, valid, 0.5)
    for row, length in ((0, 12), (1, 4)):
        text = torch.tensor([[0, *ids[row, :length]]])
        with torch.no_grad():
            expected = -causal(text).logits[0, :-1].log_softmax(-1).gather(1, text[0, 1:, None])[:, 0]
        np.testing.assert_allclose(found[row, :length], expected, rtol=1e-4, atol=1e-4)


def test_frequency_keeps_rare_tokens_and_random_repeats_by_seed():
    ids, valid = np.array([[0, 1, 2, 1]]), np.ones((1, 4), bool)
    scores = TokenFrequency(np.array([100, 5, 0])).scores(ids, valid, 0.5)
    assert keep_highest(scores, valid, 0.5).tolist() == [[False, True, True, False]]
    a, b, c = (Random(seed).scores(ids, valid, 0.5) for seed in (1, 1, 2))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_chance_depends_on_text_and_rate_but_not_on_company():
    ids, valid = pad_batch([np.arange(2, 14), np.arange(5, 9), np.arange(2, 14)], 0)
    method = Random(0)
    together, alone = method.scores(ids, valid, 0.5), method.scores(ids[1:2, :4], valid[1:2, :4], 0.5)
    assert np.array_equal(together[0], together[2]) and np.array_equal(together[1, :4], alone[0])
    rates = method.scores(ids, valid, np.array([0.5, 0.5, 0.6]))
    assert np.array_equal(rates[:2], together[:2]) and not np.array_equal(rates[2], together[2])
    many = method.scores(*pad_batch([np.array([i, i + 1]) for i in range(400)], 0), 0.5)
    assert abs((many[:, 0] > many[:, 1]).mean() - 0.5) < 0.1 and abs(many.mean() - 0.5) < 0.05


def iterative_by_hand(model, segment, ids, valid, keep_ratio):
    """Iterative surprisal without a cache: every context is read anew. The mask, and the nats (B, T) that it came from."""
    lengths, mask, found = valid.sum(1), ~valid, np.zeros(ids.shape)
    for row, length in enumerate(lengths):
        kept = np.empty(0, dtype=np.int64)
        for start in range(0, length, segment):
            end = min(start + segment, length)
            context = np.concatenate([kept, ids[row, start:end]])
            nats = CausalSurprisal(model, 0).scores(context[None], np.ones((1, len(context)), bool), keep_ratio)[0, len(kept) :]
            quota = budget(end, keep_ratio) - budget(start, keep_ratio)
            chosen = start + np.sort(np.argsort(-nats, kind="stable")[:quota])
            found[row, start:end], mask[row, chosen] = nats, True
            kept = np.concatenate([kept, ids[row, chosen]])
    return mask, found


@pytest.mark.parametrize("keep_ratio", [0.9, 0.5, 0.12])  # of a segment of 4 tokens the last keeps none, or one
def test_iterative_surprisal_with_a_cache_is_that_of_contexts_read_anew(causal, tokens, monkeypatch, keep_ratio):
    rng, seen = np.random.default_rng(0), []
    ids, valid = pad_batch([rng.integers(2, 20, length) for length in (23, 5, 16, 1, 12)], 0)
    surprisal = KeptContext.surprisal
    monkeypatch.setattr(KeptContext, "surprisal", lambda *args: seen.append(surprisal(*args)) or seen[-1])
    for segment in (4, 6, 32):
        seen.clear()
        mask, nats = iterative_by_hand(causal, segment, ids, valid, keep_ratio)
        method = IterativeSurprisal(causal, 0, tokens, segment)
        assert np.array_equal(keep_highest(method.scores(ids, valid, keep_ratio), valid, keep_ratio), mask)
        assert method.lm_passes == len(seen) == -(-23 // segment)
        for start, found in zip(range(0, 23, segment), seen, strict=True):
            rows = np.flatnonzero(valid.sum(1) > start)
            there = valid[rows, start : start + segment]
            np.testing.assert_allclose(found[there], nats[rows, start : start + segment][there], atol=1e-4)
    with pytest.raises(InputError, match="expected at most 32"):
        method.scores(np.ones((1, 33), int), np.ones((1, 33), bool), keep_ratio)


def test_ratios_of_their_own_are_scored_as_alone(causal, tokens):
    """Also in a text that ends whole segments before the longest one."""
    lengths, ratios = np.array([23, 3]), np.array([0.6, 0.4])
    valid = np.arange(23) < lengths[:, None]
    ids = np.where(valid, np.random.default_rng(1).integers(1, 20, valid.shape), 0)
    method = IterativeSurprisal(causal, 0, tokens, 4)
    together = method.scores(ids, valid, ratios)
    for row, length in enumerate(lengths):
        alone = method.scores(ids[row : row + 1, :length], valid[row : row + 1, :length], float(ratios[row]))
        assert np.array_equal(together[row, :length], alone[0]) and alone.any()


@pytest.mark.parametrize("gaps", ["told", "found"])
def test_asking_the_reconstructor_beats_chance(opened, request, tokens, gaps):
    """At 0.6 most that is masked has to be echoes."""
    reconstructor = request.getfixturevalue({"told": "reconstructor", "found": "finder"}[gaps])
    reader = Reader(reconstructor, np.arange(20), found=reconstructor.found)
    methods = {"random": Random(0), "asked": MeanMaskedNats(reconstructor, tokens, 0)}
    methods |= {name: Verified(reader, [Random(0)], readings) for name, readings in (("once", 1), ("twice", 2))}
    found = {
        name: evaluate.evaluate_method(lambda _, m=method: [m], [0.6], opened[1], reconstructor)[0.6]
        for name, method in methods.items()
    }
    sums = {name: by_document[0].sum(0) for name, (by_document, *_) in found.items()}
    nats = {name: figures(s)["distortion"] for name, s in sums.items()}
    assert max(nats["asked"], nats["once"]) < 0.8 * nats["random"] and nats["twice"] < nats["once"] + 0.02, nats
    assert len({s[1] for s in sums.values()}) == 1, "all mask equally many"


def test_mean_nats_are_those_of_random_masks_of_the_rate(reconstructor, tokens):
    """Every mask is exact to the token, every token is hidden equally often, and a text's scores are no other's business."""
    asked = []

    class Spy:
        found = False

        def predict(self, ids, keep_mask, valid):
            asked.append(valid & ~keep_mask)
            return reconstructor.predict(ids, keep_mask, valid)

    ids, valid = pad_batch([np.arange(2, 12)], 0)
    for keep_ratio, each, masks in ((0.7, 3, 20), (0.6, 4, 15), (0.9, 1, 60)):
        asked.clear()
        method = MeanMaskedNats(Spy(), tokens, 0, views=6)
        found = method.scores(ids, valid, keep_ratio)
        hidden = np.array(asked)
        assert (hidden[:, 0].sum(1) == each).all() and (hidden[:, 0].sum(0) == 6).all()
        assert len(hidden) == method.lm_passes == masks
        nats = sum(reconstructor.predict(ids, ~mask & valid | ~valid, valid).nats.numpy() for mask in asked)
        np.testing.assert_allclose(found[0], nats[0] / 6, rtol=1e-4)


@pytest.fixture
def proposer():
    """Of 10 tokens it ranks the first, third, fifth, seventh and ninth highest."""
    scores = lambda *_: np.array([[5, 1, 9, 2, 8, 3, 7, 0, 6, 4]])
    return type("Proposer", (), {"lm_passes": 1, "mean": True, "name": "a proposer", "scores": scores})()


def test_verified_once_sends_what_came_back_dearest(reconstructor, finder, proposer):
    """By hand: 10 tokens at 0.6, of which those that the proposer ranks highest are sent before the reading, 0.36 of them."""
    ids, proposed, valid = np.arange(2, 12)[None], proposer.scores(), np.ones((1, 10), bool)
    for receiver, passes in ((reconstructor, 2), (finder, 2.4)):  # who looks for gaps reads what is sent, too
        reader = Reader(receiver, np.arange(receiver.vocab_size), found=receiver.found)
        (method,) = [form for form in Verified(reader, [proposer]).variants() if form.power == 2]
        sent = proposed >= 6
        prediction = receiver.predict(ids, sent)
        dearest = np.argsort(-np.where(sent, 0, prediction.nats + prediction.gaps)[0])[:2]
        found = keep_highest(method.scores(ids, valid, 0.6), valid, 0.6)
        assert sorted(np.flatnonzero(found[0])) == sorted([*np.flatnonzero(sent[0]), *dearest])
        assert method.lm_passes == pytest.approx(passes)


def test_a_second_reading_sees_what_the_first_one_sent(reconstructor, proposer):
    """At a ratio half of what is left to send; at a price the dearer half of what is dearer; then all is read again."""
    ids, valid = np.arange(2, 12)[None], np.ones((1, 10), bool)
    reader = Reader(reconstructor, np.arange(reconstructor.vocab_size))
    (method,) = [form for form in Verified(reader, [proposer], 2).variants() if form.power == 2]
    costs = lambda sent: np.where(sent, 1e3, reconstructor.predict(ids, sent).nats)
    first = keep_highest(costs(proposer.scores() >= 6), valid, 0.48)
    np.testing.assert_allclose(method.scores(ids, valid, 0.6), costs(first), rtol=1e-3)
    (method,) = [form for form in Verified(reader, [proposer], 2).variants(2.0) if form.floor == 0.2]
    unread = proposer.scores() >= 8
    dear = np.flatnonzero((costs(unread) > 2.0) & ~unread)
    dearest = dear[np.argsort(-costs(unread)[0, dear])[: (len(dear) + 1) // 2]]
    expected = unread.copy()
    expected[0, dearest] = True
    assert 0 < len(dearest) < 8
    np.testing.assert_allclose(method.scores(ids, valid, 0.6), costs(expected), rtol=1e-3)


def test_parts_of_a_text():
    """The head, the tail, and the sentence of the rarest tokens."""
    tokenizer = load_tokenizer("models/reconstructor/base")
    ids = np.array([tokenizer("The first one is short. Dr. Who? A 3.5 percent tail is the last one")["input_ids"]])
    valid, pieces = np.ones(ids.shape, bool), [tokenizer.decode([i]) for i in ids[0]]
    for name, part in (("head", slice(0, 4)), ("tail", slice(-4, None))):
        kept = keep_highest(Place(name).scores(ids, valid, 0.5), valid, 4 / ids.size)
        assert kept[0, part].all() and kept.sum() == 4
    counts = np.full(len(tokenizer), 50)
    counts[ids[0, pieces.index(" Who")]] = 0
    scores = Sentences(TokenFrequency(counts), tokenizer).scores(ids, valid, 0.5)[0]
    sentences = [list(group) for _, group in itertools.groupby(zip(scores, pieces, strict=True), key=lambda pair: pair[0])]
    assert ["".join(piece for _, piece in each) for each in sentences][1:] == [" Who?", " A 3.5 percent tail is the last one"]
    assert max(scores) == sentences[1][0][0], "3.5 ends no sentence, Dr. does"


def test_who_looks_for_gaps_reads_what_is_sent_too(finder, tokens, opened):
    """Passes beside those of a told receiver: what is sent of a text, by every mask or by the last draft."""
    ids, valid = pad_batch([np.arange(2, 12)] * 2, 0)
    method = MeanMaskedNats(finder, tokens, 0, views=6)
    method.scores(ids, valid, 0.7)
    assert method.lm_passes == pytest.approx(20 * 1.7)
    agent, (ids, valid) = Agent(opened[0].policies[0]), opened[1].batches[0]
    passes = []
    for price in (1.2, 12):
        batch = torch.as_tensor(ids), torch.as_tensor(valid), torch.full((len(ids), 1), float(price))
        draft = agent.policy.read(*batch)[1][..., 0]
        passes.append(agent.lm_passes)
        assert passes[-1] == pytest.approx(1.5 + float((draft > DRAFT_THRESHOLD)[batch[1]].float().mean()))
    assert 1.5 <= passes[1] < passes[0] < 2.5


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
