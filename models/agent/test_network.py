"""Tests of the agent's network: `python models/agent/test_network.py` or pytest."""

import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pytest
import torch

from models.agent.conftest import T, V, observation
from models.agent.policy import (
    EnhancedTokenCompressionPolicy,
    LocalContext,
    PositionalEncoding,
    TokenCompressionFeaturesExtractor,
    TokenImportanceAttention,
    observation_space,
)
from models.agent.reader import EVIDENCE, Reader

B, S = 3, 32  # texts, and states of a reading


def new_network():
    return EnhancedTokenCompressionPolicy(V, S, embedding_dim=8, width=16, layers=2, heads=2)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return new_network()


@pytest.fixture
def readings():
    """Some text (B, T, S) and draft (B, T, 1 + S + EVIDENCE)."""
    torch.manual_seed(1)
    return torch.randn(B, T, S), torch.randn(B, T, 1 + S + EVIDENCE)


def test_positional_encoding_is_the_published_formula():
    encode = PositionalEncoding(6)
    encode.scale.data.fill_(1.0)
    wave = encode(torch.zeros(1, 300, 6))[0]
    for t in (0, 1, 299):
        for i in range(3):
            angle = t / 10_000 ** (2 * i / 6)  # Vaswani et al. 2017, section 3.5
            assert wave[t, 2 * i].item() == pytest.approx(np.sin(angle), abs=1e-4)
            assert wave[t, 2 * i + 1].item() == pytest.approx(np.cos(angle), abs=1e-4)


def test_importances_are_a_distribution_over_the_text(texts):
    valid = texts[1]
    weights = TokenImportanceAttention(16, 4).importances(torch.randn(B, T, 16), valid)
    torch.testing.assert_close(weights.sum(-1), torch.ones(B, 4))
    assert (weights[~valid[:, None].expand_as(weights)] == 0).all()


def test_uniform_attention_is_the_mean_of_the_text():
    attention = TokenImportanceAttention(4, 2)
    for layer in (attention.value, attention.out):
        layer.weight.data.copy_(torch.eye(4))
        layer.bias.data.zero_()
    attention.score.weight.data.zero_()
    x, valid = torch.randn(1, 5, 4), torch.tensor([[True, True, True, False, False]])
    torch.testing.assert_close(attention(x, valid)[0, 0], x[0, :3].mean(0))


def test_local_context_reaches_its_kernel_and_no_further():
    torch.manual_seed(0)
    layer, x, valid = LocalContext(8, kernel=5), torch.randn(1, 20, 8), torch.ones(1, 20, dtype=torch.bool)
    changed = x.clone()
    changed[0, 10, 0] += 1
    moved = (layer(x, valid) - layer(changed, valid)).abs().sum(-1)[0] > 1e-6
    assert moved.nonzero().flatten().tolist() == [8, 9, 10, 11, 12]


def test_padding_changes_nothing(network, texts, readings):
    """Neither its number nor what stands there."""
    ids, valid, price = texts
    together = network(ids, valid, price, *readings)
    for row, length in enumerate(valid.sum(1)):
        cut = (slice(row, row + 1), slice(length))
        alone = network(ids[cut], valid[cut], price[row : row + 1], *(x[cut] for x in readings))
        torch.testing.assert_close(together[row, :length], alone[0], rtol=1e-4, atol=1e-5)
    poisoned = network(torch.where(valid, ids, 7), valid, price, *(torch.where(valid[..., None], x, 1e6) for x in readings))
    torch.testing.assert_close(poisoned[valid], together[valid])


def test_every_parameter_learns(network, texts, readings):
    network(*texts, *readings).square().sum().backward()
    idle = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    assert idle == set()


def test_every_module_reaches_the_output(network, texts, readings):
    expected = network(*texts, *readings)[texts[1]]
    for name, _ in network.named_children():
        changed = new_network()
        changed.load_state_dict(network.state_dict())
        for parameter in getattr(changed, name).parameters():
            parameter.data.mul_(3).add_(torch.randn_like(parameter))  # not alike everywhere: a normalisation would take that out
        assert not torch.allclose(changed(*texts, *readings)[texts[1]], expected, atol=1e-4), name


def test_a_second_pass_begins_as_the_first(network, texts, readings):
    text, draft = readings
    first = network(*texts, text)
    torch.testing.assert_close(network(*texts, text, draft), first)
    torch.nn.init.normal_(network.evidence.weight)
    assert not torch.allclose(network(*texts, text, draft), first, atol=1e-3)


def test_far_context_price_and_readings_matter(network, texts, readings):
    ids, valid, price = texts[0], torch.ones_like(texts[1]), texts[2]
    text = readings[0]
    out = network(ids, valid, price, text)
    other = ids.clone()
    other[:, 11] = (other[:, 11] + 1) % V
    assert not torch.allclose(network(other, valid, price, text)[:, 0], out[:, 0], atol=1e-6)
    assert not torch.allclose(network(ids, valid, price * 2, text), out, atol=1e-4)
    assert not torch.allclose(network(ids, valid, price, text.flip(1)), out, atol=1e-4)


def test_start_is_the_truncated_svd_and_the_log_frequency(network):
    torch.manual_seed(1)
    embeddings, counts = torch.randn(V + 1, 8) @ torch.randn(8, 24), np.arange(V + 1)
    network.start_from(SimpleNamespace(get_input_embeddings=lambda: torch.nn.Embedding.from_pretrained(embeddings)), counts)
    # 8 dimensions hold all of a matrix of rank 8: inner products of the centred rows survive, up to one scale.
    centred = embeddings[:V] - embeddings[:V].mean(0)
    mine, theirs = network.embedding.weight @ network.embedding.weight.T, centred @ centred.T
    torch.testing.assert_close(mine / mine.norm(), theirs / theirs.norm(), rtol=1e-3, atol=1e-4)
    assert network.log_frequency.mean().item() == pytest.approx(0, abs=1e-5) and network.log_frequency.diff().min() > 0


def test_extractor_gives_one_vector_per_token(reconstructor, texts):
    reader = Reader(reconstructor, np.arange(V))
    sizes = {"embedding_dim": 4, "width": 8, "layers": 1, "heads": 2}
    extractor = TokenCompressionFeaturesExtractor(observation_space(V, T, 6.0), reader, **sizes)
    assert extractor(observation(*texts)).shape == (B, T, 8) and extractor.features_dim == 8


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
