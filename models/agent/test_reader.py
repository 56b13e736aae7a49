"""Tests of what the agent takes from the reconstructor: `python models/agent/test_reader.py` or pytest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data.artifacts import InputError
from models.agent.conftest import T, V, causal_lm, make_reconstructor
from models.agent.reader import EVIDENCE_ROWS, Reader, first_blocks

BOS, MASK = 0, V


def states_of(model, ids, shown):
    """Last hidden states (T + 1, D') of one text behind its BOS, `shown` (T,) bool or masked, under attention to everything."""
    sent = torch.cat([torch.tensor([BOS]), torch.where(shown, ids, MASK)])[None]
    everything = torch.zeros(1, 1, len(ids) + 1, len(ids) + 1)  # an additive mask that hides nothing
    return model.base_model(input_ids=sent, attention_mask=everything).last_hidden_state[0].detach()


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_a_text_is_read_by_the_first_blocks_of_the_reconstructor(family, texts):
    ids, valid, _ = texts
    reconstructor, shorter = make_reconstructor(family, 3), causal_lm(family, 2)
    shorter.load_state_dict({name: reconstructor.model.state_dict()[name] for name in shorter.state_dict()})
    reader = Reader(reconstructor, np.arange(V), blocks=2)
    assert reader.passes == pytest.approx(1 + 2 / 3) and reader.states == 32 and Reader(reconstructor, np.arange(V)).blocks == 1
    read = reader.read(ids, valid)
    assert not read.requires_grad
    for row, length in enumerate(valid.sum(1)):
        states = states_of(shorter.eval(), ids[row, :length], torch.ones(length, dtype=torch.bool))
        torch.testing.assert_close(read[row, :length], torch.cat([states[1:], states[:-1]], -1), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="blocks 4: expected at most 3"):
        Reader(reconstructor, np.arange(V), blocks=4)


def test_the_first_blocks_take_no_memory_of_their_own(reconstructor):
    whole = {p.data_ptr() for p in reconstructor.model.parameters()}
    assert {p.data_ptr() for p in first_blocks(reconstructor.model, 1).parameters()} <= whole


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_a_text_is_read_under_the_reconstructors_attention(attention):
    reader = Reader(make_reconstructor(attention=attention), np.arange(V))
    ids, valid = torch.randint(0, V, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    read = reader.read(ids, valid)
    changed = reader.read(torch.cat([ids[:, :8], (ids[:, 8:] + 1) % V], 1), valid)
    assert torch.equal(read[:, :7], changed[:, :7]) == (attention == "causal"), "later tokens count, or don't"
    padded = reader.read(F.pad(ids, (0, 3), value=5), F.pad(valid, (0, 3)))
    torch.testing.assert_close(padded[:, :9], read)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_draft_is_read_as_the_receiver_reads_what_is_sent(family, texts):
    """With all tokens among the common ones the evidence is the reconstructor's own nats; with fewer it is a lower bound."""
    ids, valid, _ = texts
    reconstructor = make_reconstructor(family)
    draft = torch.rand(3, T)
    shown = draft > 0.85
    hidden = valid & ~shown
    prediction = reconstructor.predict(ids, shown, valid)
    for common in (range(V), range(20)):
        reader = Reader(reconstructor, np.array(common))
        found, states, evidence = reader.reread(ids, valid, draft).split([1, 32, 4], -1)
        assert torch.equal(found[..., 0], draft)
        for row, length in enumerate(valid.sum(1)):
            expected = states_of(reconstructor.model, ids[row, :length], shown[row, :length])
            torch.testing.assert_close(states[row, :length], torch.cat([expected[1:], expected[:-1]], -1), rtol=1e-4, atol=1e-5)
        assert not evidence[~hidden].any() and (evidence[..., 0][hidden] == 1).all()
        nats, said = prediction.nats[hidden], evidence[hidden][:, 1]
        if len(common) == V:
            torch.testing.assert_close(said, nats, rtol=1e-4, atol=1e-4)
            assert torch.equal(evidence[..., 3][hidden] > -1e-5, (prediction.top1 == ids)[hidden])
        else:
            assert (said <= nats + 1e-4).all() and (said < nats - 0.1).any()
        torch.testing.assert_close(evidence[..., 2][hidden], (said + 0.01).log())


def test_what_finding_a_drafts_gaps_costs_is_evidence(finder, texts):
    """Each token's share of the nats of the gaps that the draft leaves, and its logarithm; who is told has none."""
    ids, valid, _ = texts
    draft = torch.rand(3, T)
    finding, told = (Reader(finder, np.arange(V), found=found) for found in (True, False))
    assert (finding.evidence, told.evidence) == (6, 4) and finding.passes == told.passes + 1, "at most, before it has read"
    found = finding.reread(ids, valid, draft)
    torch.testing.assert_close(found[..., :-2], told.reread(ids, valid, draft))
    sent = (draft > 0.85)[valid].float().mean().item()
    assert 0 < sent < 0.5 and finding.passes == pytest.approx(told.passes + sent), "what the draft sends is read once more"
    gaps = finder.predict(ids, draft > 0.85, valid).gaps
    torch.testing.assert_close(found[..., -2], gaps.clamp(max=12), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[..., -1][valid], (gaps.clamp(max=12) + 0.01).log()[valid], rtol=1e-4, atol=1e-4)
    assert gaps[valid].min() >= 0 and gaps[valid].std() > 0.1


def test_a_draft_that_hides_nothing_or_very_much_is_read(reconstructor):
    reader = Reader(reconstructor, np.arange(V))
    ids = torch.randint(0, V, (2 * EVIDENCE_ROWS // 64, 64))  # more hidden tokens than are dealt with at one time
    valid = torch.ones_like(ids, dtype=torch.bool)
    assert not reader.reread(ids, valid, torch.ones(ids.shape))[..., -4:].any()
    hidden = reader.reread(ids, valid, torch.zeros(ids.shape))[..., -3]
    torch.testing.assert_close(hidden, reconstructor.predict(ids, ~valid, valid).nats, rtol=1e-4, atol=1e-4)


def test_the_common_tokens_are_the_most_frequent(monkeypatch):
    monkeypatch.setattr("models.agent.reader.COMMON_TOKENS", 3)
    assert Reader.common_tokens(np.array([5, 1, 9, 7, 0])).tolist() == [2, 3, 0]


def test_texts_that_are_too_long_are_refused(reconstructor):
    reader = Reader(reconstructor, np.arange(V))
    with pytest.raises(InputError, match="expected at most 79"):
        reader.read(torch.zeros(1, 80, dtype=torch.long), torch.ones(1, 80, dtype=torch.bool))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
