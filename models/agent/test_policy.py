"""Tests of the agent's network: `python models/agent/test_policy.py` or pytest."""

import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium import spaces
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from data.artifacts import InputError
from models.agent.policy import (
    EnhancedTokenCompressionPolicy,
    LocalContext,
    PositionalEncoding,
    TokenCompressionFeaturesExtractor,
    TokenCompressionPolicy,
    TokenImportanceAttention,
)
from models.agent.pretrained import DraftReader, PretrainedLayers
from rl.env import observation_space

V, B, T = 50, 3, 12


def batch(seed=0, lengths=(12, 7, 1)):
    """ids (B, T), valid (B, T) and price (B, 1) of texts of unequal length."""
    torch.manual_seed(seed)
    valid = torch.arange(T) < torch.tensor(lengths)[:, None]
    return torch.randint(0, V, (B, T)), valid, torch.tensor([[0.6], [2.0], [5.0]])


@pytest.fixture
def network():
    torch.manual_seed(0)
    return EnhancedTokenCompressionPolicy(V, embedding_dim=8, width=16, layers=2, heads=2)


@pytest.fixture
def policy():
    torch.manual_seed(0)
    kwargs = {"embedding_dim": 8, "width": 16, "layers": 1, "heads": 2}
    box = spaces.Box(0.0, 1.0, (T,), np.float32)
    return TokenCompressionPolicy(observation_space(V, T, 6.0), box, lambda _: 1e-3, features_extractor_kwargs=kwargs)


def observation(ids, valid, price):
    return {"tokens": ids.float(), "valid": valid.float(), "price": price}


def test_positional_encoding_is_the_published_formula():
    encode = PositionalEncoding(6)
    encode.scale.data.fill_(1.0)
    wave = encode(torch.zeros(1, 300, 6))[0]
    for t in (0, 1, 299):
        for i in range(3):
            angle = t / 10_000 ** (2 * i / 6)  # Vaswani et al. 2017, section 3.5
            assert wave[t, 2 * i].item() == pytest.approx(np.sin(angle), abs=1e-4)
            assert wave[t, 2 * i + 1].item() == pytest.approx(np.cos(angle), abs=1e-4)


def test_importances_are_a_distribution_over_the_text():
    _, valid, _ = batch()
    attention = TokenImportanceAttention(16, 4)
    weights = attention.importances(torch.randn(B, T, 16), valid)
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


def test_padding_changes_nothing(network):
    ids, valid, price = batch()
    together = network(ids, valid, price)
    for row, length in enumerate(valid.sum(1)):
        alone = network(ids[row : row + 1, :length], valid[row : row + 1, :length], price[row : row + 1])
        torch.testing.assert_close(together[row, :length], alone[0], rtol=1e-4, atol=1e-5)


def test_every_parameter_learns(network):
    network(*batch()).square().sum().backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]


def test_every_module_reaches_the_output(network):
    expected = network(*batch())
    for name in ("position", "local", "importance", "gate", "price"):
        changed = EnhancedTokenCompressionPolicy(V, 8, 16, 2, 2)
        changed.load_state_dict(network.state_dict())
        for parameter in getattr(changed, name).parameters():
            parameter.data.mul_(3).add_(0.1)
        assert not torch.allclose(changed(*batch())[batch()[1]], expected[batch()[1]], atol=1e-4), name


def test_parts_can_be_left_out(network):
    """What is left out has no say, and nothing else is missing."""
    ids, valid, price = batch()
    for part in EnhancedTokenCompressionPolicy.PARTS:
        less = EnhancedTokenCompressionPolicy(V, embedding_dim=8, width=16, layers=2, heads=2, without=[part])
        absent, extra = less.load_state_dict(network.state_dict(), strict=False)
        assert absent == [] and {name.split(".")[0] for name in extra} == ({part, "gate"} if part == "importance" else {part})
        assert not torch.allclose(less(ids, valid, price)[valid], network(ids, valid, price)[valid], atol=1e-4), part
    assert less.importances(ids, valid, price) is None, "importance is the last of them"


def test_a_second_pass_begins_as_the_first_and_then_sees_the_decisions(policy):
    ids, valid, price = batch()
    first = policy.keep_probability(ids, valid, price[:, 0])
    network = policy.features_extractor.network
    network.passes, network.draft = 2, torch.nn.Linear(1, 16)
    for parameter in network.draft.parameters():
        torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(policy.keep_probability(ids, valid, price[:, 0]), first)
    obs = observation(ids, valid, price)
    policy.evaluate_actions(obs, torch.zeros(B, T))[1][valid].sum().backward()
    assert network.draft.weight.grad.abs().max() > 0
    torch.nn.init.normal_(network.draft.weight)
    by_hand = policy._logits_and_cost(ids, valid, price)[0].sigmoid()
    features = network(ids, valid, price, first)
    cost = torch.nn.functional.softplus(policy.value_net(features)[..., 0]) + 0.01
    expected = (policy.sharpness * (cost / price).log() + policy.action_net(features)[..., 0]).sigmoid()
    torch.testing.assert_close(by_hand[valid], expected[valid])
    assert not torch.allclose(by_hand[valid], first[valid], atol=1e-3)
    assert not torch.allclose(policy.importances(ids, valid, price[:, 0]), network.importances(ids, valid, price)), "those of the pass that decides"


def test_importances_can_be_read_out(network):
    ids, valid, price = batch()
    found = network.importances(ids, valid, price)
    torch.testing.assert_close(found.sum(1), torch.ones(B))
    assert (found[~valid] == 0).all()


def test_far_context_and_price_matter(network):
    ids, valid, price = batch(lengths=(12, 12, 12))
    out = network(ids, valid, price)
    other = ids.clone()
    other[:, 11] = (other[:, 11] + 1) % V
    assert not torch.allclose(network(other, valid, price)[:, 0], out[:, 0], atol=1e-6)
    assert not torch.allclose(network(ids, valid, price * 2), out, atol=1e-4)


def test_start_is_the_truncated_svd_and_the_log_frequency(network):
    torch.manual_seed(1)
    embeddings, counts = torch.randn(V + 1, 8) @ torch.randn(8, 24), np.arange(V + 1)
    network.start_from(SimpleNamespace(get_input_embeddings=lambda: torch.nn.Embedding.from_pretrained(embeddings)), counts)
    # 8 dimensions hold all of a matrix of rank 8: inner products of the centred rows survive, up to one scale.
    centred = embeddings[:V] - embeddings[:V].mean(0)
    mine, theirs = network.embedding.weight @ network.embedding.weight.T, centred @ centred.T
    torch.testing.assert_close(mine / mine.norm(), theirs / theirs.norm(), rtol=1e-3, atol=1e-4)
    assert network.log_frequency.mean().item() == pytest.approx(0, abs=1e-5) and network.log_frequency.diff().min() > 0


def causal_lm(family, layers):
    """A small random causal LM for V tokens and a BOS."""
    torch.manual_seed(0)
    if family == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=V + 1, n_positions=80, n_embd=16, n_layer=layers, n_head=2)).eval()
    return LlamaForCausalLM(LlamaConfig(vocab_size=V + 1, hidden_size=16, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2, num_key_value_heads=1)).eval()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_pretrained_layers_are_the_first_blocks_of_the_model(family):
    ids, valid, price = batch()
    model, shorter = causal_lm(family, 3), causal_lm(family, 2)
    network = EnhancedTokenCompressionPolicy(V, 8, 16, 1, 2, pretrained={"config": model.config.to_dict(), "blocks": 2, "bos_id": V, "rate": 0})
    assert network.pretrained.share == pytest.approx(2 / 3)
    network.start_from(model, np.ones(V))
    shorter.load_state_dict({name: model.state_dict()[name] for name in shorter.state_dict()})
    for row, length in enumerate(valid.sum(1)):
        text = torch.cat([torch.tensor([V]), ids[row, :length]])[None]
        everything = torch.zeros(1, 1, length + 1, length + 1)  # an additive mask that hides nothing
        states = shorter.base_model(input_ids=text, attention_mask=everything).last_hidden_state[0]
        found = network.train().read(ids, valid)[row, :length, -32:]  # training or not: there is no dropout
        torch.testing.assert_close(found, torch.cat([states[1:], states[:-1]], -1), rtol=1e-2, atol=5e-3)  # embeddings in 16 bit
    together = network(ids, valid, price)
    torch.testing.assert_close(together[1, :7], network(ids[1:2, :7], valid[1:2, :7], price[1:2])[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rate", [0, 0.1])
def test_pretrained_layers_learn_at_their_own_rate(rate):
    config = causal_lm("gpt2", 1).config.to_dict()
    kwargs = {"embedding_dim": 8, "width": 16, "layers": 1, "heads": 2, "pretrained": {"config": config, "blocks": 1, "bos_id": V, "rate": rate}}
    policy = TokenCompressionPolicy(observation_space(V, T, 6.0), spaces.Box(0.0, 1.0, (T,), np.float32), lambda _: 1e-3, features_extractor_kwargs=kwargs)
    obs = observation(*batch())
    policy.evaluate_actions(obs, torch.zeros(B, T))[1].sum().backward()
    pretrained = policy.features_extractor.network.pretrained
    learns = {n for n, p in pretrained.named_parameters() if p.grad is not None and p.grad.any()}
    assert learns == ({n for n, p in pretrained.named_parameters() if not any(word in n for word in ("wte", "wpe", "embedding"))} if rate else set())
    groups = policy.optimizer.param_groups
    assert [g.get("share_of_rate") for g in groups] == ([None, rate] if rate else [None])
    assert [g["lr"] for g in groups] == pytest.approx([1e-3, rate * 1e-3] if rate else [1e-3])
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in policy.parameters() if p.requires_grad}


def test_pretrained_layers_name_texts_that_are_too_long():
    pretrained = PretrainedLayers(causal_lm("gpt2", 1).config.to_dict(), 1, V, 0)
    with pytest.raises(InputError, match="at most 79"):
        pretrained(torch.zeros(1, 80, dtype=torch.long), torch.ones(1, 80, dtype=torch.bool))


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_pretrained_layers_read_as_the_reconstructor_does(attention):
    layers = PretrainedLayers(causal_lm("gpt2", 1).config.to_dict(), 1, V, 0, attention)
    ids, valid = torch.randint(0, V, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    read = layers(ids, valid)
    changed = layers(torch.cat([ids[:, :8], (ids[:, 8:] + 1) % V], 1), valid)
    assert torch.equal(read[:, :7], changed[:, :7]) == (attention == "causal"), "later tokens count, or don't"
    padded = layers(F.pad(ids, (0, 3), value=5), F.pad(valid, (0, 3)))
    torch.testing.assert_close(padded[:, :9], read)
    assert padded.shape == (2, 12, layers.width) and not padded[:, 9:].any()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_draft_is_read_as_the_reconstructor_reads_what_is_sent(family):
    """With all tokens among the common ones the evidence is the reconstructor's own nats; with fewer it is a lower bound."""
    ids, valid, _ = batch()
    model = causal_lm(family, 2)
    keep_mask = torch.rand(B, T) > 0.4
    masked = valid & ~keep_mask
    states = torch.stack([sent_states(model, *row) for row in zip(ids, valid, keep_mask, strict=True)])  # (B, T + 1, 16)
    logits = states[:, :-1] @ model.get_output_embeddings().weight[:V].T
    nats = F.cross_entropy(logits.transpose(1, 2), ids, reduction="none").detach()
    for common in (V, 20):
        reader = DraftReader(PretrainedLayers(model.config.to_dict(), 1, V, 0), model.config.to_dict(), V, common)
        reader.start_from(model, np.arange(V))
        assert sorted(reader.common.tolist()) == list(range(V - common, V)), "the most frequent ones"
        read, evidence = reader(ids, valid, keep_mask).split([32, 4], -1)
        torch.testing.assert_close(read[..., 16:][masked], states[:, :-1][masked], rtol=1e-2, atol=5e-3)
        torch.testing.assert_close(read[..., :16][masked], states[:, 1:][masked], rtol=1e-2, atol=5e-3)
        assert not evidence[~masked].any() and (evidence[..., 0][masked] == 1).all()
        if common == V:
            torch.testing.assert_close(evidence[..., 1][masked], nats[masked], rtol=1e-2, atol=1e-2)
            restored = (logits.argmax(-1) == ids)[masked]
            assert torch.equal(evidence[..., 3][masked] >= 0, restored)
        else:
            assert (evidence[..., 1] <= nats + 1e-2)[masked].all() and (evidence[..., 1] < nats - 0.1)[masked].any()
        torch.testing.assert_close(evidence[..., 2][masked], (evidence[..., 1][masked] + 0.01).log())


def sent_states(model, ids, valid, keep_mask):
    """Last hidden states (T + 1, D') of one text behind its BOS, as sent: V stands for BOS and for what is masked; zeros at padding."""
    length = int(valid.sum())
    sent = torch.cat([torch.tensor([V]), torch.where(keep_mask, ids, V)[:length]])[None]
    everything = torch.zeros(1, 1, length + 1, length + 1)
    return F.pad(model.base_model(input_ids=sent, attention_mask=everything).last_hidden_state[0], (0, 0, 0, len(ids) - length)).detach()


def test_a_draft_that_is_read_again_changes_the_decision_and_nothing_frozen_learns():
    config = causal_lm("gpt2", 2).config.to_dict()
    kwargs = {"embedding_dim": 8, "width": 16, "layers": 1, "heads": 2, "passes": 2, "pretrained": {"config": config, "blocks": 1, "bos_id": V, "mask_id": V, "rate": 0.5}}
    torch.manual_seed(0)
    policy = TokenCompressionPolicy(observation_space(V, T, 6.0), spaces.Box(0.0, 1.0, (T,), np.float32), lambda _: 1e-3, features_extractor_kwargs=kwargs)
    network = policy.features_extractor.network
    network.start_from(causal_lm("gpt2", 2), np.ones(V))
    ids, valid, price = batch()
    obs = observation(ids, valid, price)
    ((first, _), (second, _)), there = policy.decisions(obs)
    assert torch.equal(there, valid)
    torch.testing.assert_close(first[valid], second[valid])  # a decision that is reconsidered begins as it was
    torch.nn.init.normal_(network.evidence.weight)
    network.draft_threshold = first[valid].sigmoid().sort().values[9:11].mean().item()  # well between two tokens
    ((first, _), (second, _)), _ = policy.decisions(obs)
    drafted = valid & (first.sigmoid() <= network.draft_threshold)
    assert drafted.sum() == 10 and not torch.isclose(first[drafted], second[drafted], atol=1e-3).any()
    torch.testing.assert_close(first[valid & ~drafted], second[valid & ~drafted])
    alone = policy.keep_probability(ids[1:2, :7], valid[1:2, :7], price[1])
    torch.testing.assert_close(policy.keep_probability(ids, valid, price[:, 0])[1, :7], alone[0], rtol=1e-4, atol=1e-5)
    second[valid].square().sum().backward()
    assert not [name for name, p in network.reader.named_parameters() if p.grad is not None]
    assert network.draft.weight.grad.any() and network.evidence.weight.grad.any()


def test_a_policy_is_used_at_any_length(policy):
    ids = torch.randint(0, V, (2, 5 * T))
    keep = policy.keep_probability(ids, torch.ones_like(ids, dtype=torch.bool), 2.0)
    assert keep.shape == (2, 5 * T) and ((keep > 0) & (keep < 1)).all()


def test_deterministic_action_is_the_keep_probability(policy):
    ids, valid, price = batch()
    obs = observation(ids, valid, price)
    actions, values, log_prob = policy(obs, deterministic=True)
    expected = policy.keep_probability(ids, valid, price[:, 0])
    torch.testing.assert_close(actions[valid], expected[valid], rtol=1e-4, atol=1e-5)
    assert values.shape == (B, T)
    sampled, _, log_prob = policy(obs)
    assert set(sampled.unique().tolist()) <= {0.0, 1.0}
    torch.testing.assert_close(log_prob.exp()[valid], torch.where(sampled == 1, expected, 1 - expected)[valid], rtol=1e-3, atol=1e-4)


def test_evaluate_actions_agrees_with_forward_and_with_closed_forms(policy):
    ids, valid, price = batch()
    obs = observation(ids, valid, price)
    actions, values, log_prob = policy(obs)
    taken, log_prob2, entropy = policy.evaluate_actions(obs, actions)
    torch.testing.assert_close(log_prob, log_prob2)
    p = policy.keep_probability(ids, valid, price[:, 0])
    # The value of a state is the mean over both decisions: p * 0 + (1 - p) * gain of masking.
    gain = policy.evaluate_actions(obs, torch.zeros_like(actions))[0]
    assert (policy.evaluate_actions(obs, torch.ones_like(actions))[0] == 0).all()
    torch.testing.assert_close(taken, torch.where(actions == 1, 0.0, gain))
    torch.testing.assert_close(values[valid], ((1 - p) * gain)[valid], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(policy.predict_values(obs)[valid], values[valid])
    torch.testing.assert_close(entropy[valid], (-p * p.log() - (1 - p) * (1 - p).log())[valid], rtol=1e-3, atol=1e-4)
    policy.per_token = False
    torch.testing.assert_close(policy.evaluate_actions(obs, actions)[1], (log_prob * valid).sum(1))


def test_extractor_gives_one_vector_per_token():
    extractor = TokenCompressionFeaturesExtractor(observation_space(V, T, 6.0), embedding_dim=4, width=8, layers=1, heads=2)
    assert extractor(observation(*batch())).shape == (B, T, 8) and extractor.features_dim == 8


def test_a_text_is_decided_at_the_price_at_which_it_keeps_what_is_asked(policy):
    ids, valid, _ = batch()
    with pytest.raises(ValueError, match="never calibrated"):
        policy.price_at(ids, valid, 0.5)
    policy.calibrate(ids, valid, 0.05, 60.0)
    for asked in (0.3, 0.6, np.array([0.2, 0.5, 0.8])):
        prices = policy.price_at(ids, valid, asked)
        kept = (policy.keep_probability(ids, valid, prices) * valid).sum(1) / valid.sum(1)
        torch.testing.assert_close(kept, torch.as_tensor(asked).expand(B).float(), atol=0.05, rtol=0)
        found = policy.keep_probability_at(ids, valid, asked)
        torch.testing.assert_close(found, policy.keep_probability(ids, valid, prices))
    assert policy.price_at(ids, valid, 0.9999) == pytest.approx(0.05, rel=0.1), "beyond the range of λ: its end"


def test_price_for_inverts_the_calibration(policy):
    with pytest.raises(ValueError, match="never calibrated"):
        policy.price_for(0.5)
    prices = np.geomspace(0.5, 6.0, len(policy.calibration))
    policy.calibration.copy_(torch.tensor(np.stack([prices, np.linspace(0.95, 0.35, len(prices))], 1)))
    assert policy.price_for(0.95) == pytest.approx(0.5, rel=1e-3) and policy.price_for(0.35) == pytest.approx(6.0, rel=1e-3)
    assert policy.price_for(0.65) == pytest.approx(np.sqrt(0.5 * 6.0), rel=1e-3)  # half way in log λ
    assert policy.price_for(0.99) == pytest.approx(0.5, rel=1e-3), "beyond the calibrated range: its end"


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
