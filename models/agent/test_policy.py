"""Tests of the agent: its network, actor and critic; with its folder: `python models/agent/test_policy.py` or pytest."""

import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pytest
import torch

from data.artifacts import InputError
from models.agent.conftest import T, V, make_policy
from models.agent.policy import (
    EnhancedTokenCompressionPolicy,
    LocalContext,
    PositionalEncoding,
    TokenCompressionFeaturesExtractor,
    TokenImportanceAttention,
)
from models.agent.reader import EVIDENCE, Reader
from rl.env import observation_space

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


def observation(ids, valid, price):
    return {"tokens": ids.float(), "valid": valid.float(), "price": price}


def decide_by_hand(policy, ids, valid, price, *readings):
    """Probability of keeping by equation (1), and ĉ."""
    features = policy.network(ids, valid, price, *readings)
    cost = torch.log1p(policy.value_net(features)[..., 0].exp()) + 0.01
    return torch.sigmoid(policy.sharpness * (cost / price).log() + policy.action_net(features)[..., 0]), cost


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


def test_a_decision_is_equation_1_after_two_readings(policy, texts):
    ids, valid, price = texts
    for layer in (policy.network.draft, policy.network.evidence):
        torch.nn.init.normal_(layer.weight)
    text = policy.reader.read(ids, valid)
    first, _ = decide_by_hand(policy, ids, valid, price, text)
    second, cost = decide_by_hand(policy, ids, valid, price, text, policy.reader.reread(ids, valid, first))
    found = policy.keep_probability(ids, valid, price[:, 0])
    torch.testing.assert_close(found[valid], second[valid])
    assert not torch.allclose(found[valid], first[valid], atol=1e-3), "what came of the draft counts"
    _, gain, keeping, readings = policy.decisions(ids, valid, price)
    assert not keeping.any(), "the receiver is told where gaps are"
    torch.testing.assert_close(gain[valid], (price - cost)[valid])
    torch.testing.assert_close(readings[1][..., 0][valid], first[valid])
    torch.testing.assert_close(policy.read(ids, valid, price, draft=first)[1], readings[1])


def test_gradients_of_actor_and_critic_do_not_cross_and_nothing_of_the_reconstructor_learns(policy, texts):
    readings = policy.read(*texts)
    logits, cost, _ = policy.decide(*texts, *readings)
    logits.sum().backward(retain_graph=True)
    assert policy.value_net.weight.grad is None and policy.action_net.weight.grad.any() and policy.sharpness.grad.any()
    policy.zero_grad()
    cost.sum().backward()
    assert policy.action_net.weight.grad is None and policy.value_net.weight.grad.any()
    of_the_reader = [*policy.reader.reconstructor.parameters(), *policy.reader.first.parameters()]
    assert all(p.grad is None for p in of_the_reader)


def test_an_agent_owns_its_network_and_heads_alone(policy):
    """The optimiser trains them all, and the file holds them: nothing is the reconstructor's."""
    trained = {id(p) for group in policy.optimizer.param_groups for p in group["params"]}
    own = {name for name, p in policy.named_parameters() if id(p) in trained}
    assert own == {name for name in policy.own_state() if not name.endswith("log_frequency")}
    own = {name.split(".")[0] for name in policy.own_state()}
    assert own == {"features_extractor", "action_net", "value_net", "sharpness"}
    assert {name.split(".")[1] for name in policy.own_state() if name.startswith("features")} == {"network"}


def test_a_policy_is_used_at_any_length(policy):
    ids = torch.randint(0, V, (2, 5 * T))
    keep = policy.keep_probability(ids, torch.ones_like(ids, dtype=torch.bool), 2.0)
    assert keep.shape == (2, 5 * T) and ((keep > 0) & (keep < 1)).all()


def test_actions_are_the_keep_probability_or_drawn_by_it(policy, texts):
    ids, valid, price = texts
    obs = {name: part.numpy() for name, part in observation(ids, valid, price).items()}
    expected = policy.keep_probability(ids, valid, price[:, 0])
    found = torch.as_tensor(policy.predict(obs, deterministic=True)[0])
    torch.testing.assert_close(found[valid], expected[valid], rtol=1e-4, atol=1e-5)
    drawn = torch.as_tensor(np.stack([policy.predict(obs)[0] for _ in range(500)]))
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(drawn.mean(0)[valid], expected[valid], rtol=0, atol=0.1)  # 4.5 standard errors


def test_the_critic_alone_keeps_what_it_expects_to_cost_more_than_the_price(reconstructor, texts):
    policy = make_policy(reconstructor, critic_only=True)
    torch.nn.init.normal_(policy.value_net.weight, std=3.0)
    ids, valid, price = texts
    _, gain, *_ = policy.decisions(ids, valid, price)
    kept = policy.keep_probability(ids, valid, price[:, 0]) > 0.5
    assert torch.equal(kept[valid], (gain < 0)[valid]) and 0 < kept[valid].float().mean() < 1
    trained = {id(p) for group in policy.optimizer.param_groups for p in group["params"]}
    assert not {id(p) for p in [*policy.action_net.parameters(), policy.sharpness]} & trained


def test_a_text_is_decided_at_the_price_at_which_it_keeps_what_is_asked(policy, texts):
    ids, valid, _ = texts
    policy.prices = (0.05, 60.0)
    for asked in (0.3, 0.6, np.array([0.2, 0.5, 0.8])):
        prices = policy.price_at(ids, valid, asked)
        kept = (policy.keep_probability(ids, valid, prices) * valid).sum(1) / valid.sum(1)
        torch.testing.assert_close(kept, torch.as_tensor(asked).expand(B).float(), atol=0.05, rtol=0)
        found = policy.keep_probability_at(ids, valid, asked)
        torch.testing.assert_close(found, policy.keep_probability(ids, valid, prices))
    assert policy.price_at(ids, valid, 0.9999) == pytest.approx(0.05, rel=0.1), "beyond the range of λ: its end"


def test_importances_can_be_read_out(policy, texts):
    """Those of the pass that decides."""
    ids, valid, price = texts
    torch.nn.init.normal_(policy.network.draft.weight)
    found = policy.importances(ids, valid, price[:, 0])
    torch.testing.assert_close(found.sum(1), torch.ones(B))
    assert (found[~valid] == 0).all()
    first = policy.network.before_pooling(ids, valid, price, policy.reader.read(ids, valid))
    assert not torch.allclose(found, policy.network.importance.importances(first, valid).mean(1), atol=1e-4)


def test_impossible_prices_ratios_and_texts_are_refused(policy, texts):
    ids, valid, _ = texts
    for price in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="expected λ above 0"):
            policy.keep_probability(ids, valid, price)
    for keep_ratio in (0.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="expected a share above 0 and at most 1"):
            policy.keep_probability_at(ids, valid, keep_ratio)
    with pytest.raises(InputError, match="a text of 0 tokens"):
        policy.keep_probability(ids[:, :0], valid[:, :0], 1.0)


if __name__ == "__main__":
    sys.exit(pytest.main([str(Path(__file__).parent), "-v"]))
