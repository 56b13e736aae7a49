"""Tests of actor and critic; with its folder: `python models/agent/test_policy.py` or pytest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pytest
import torch

from data.artifacts import InputError
from models.agent.conftest import T, V, make_policy, observation

B = 3  # texts


def decide_by_hand(policy, ids, valid, price, *readings):
    """Probability of keeping by equation (1), and ĉ."""
    features = policy.network(ids, valid, price, *readings)
    cost = torch.log1p(policy.value_net(features)[..., 0].exp()) + 0.01
    return torch.sigmoid(policy.sharpness * (cost / price).log() + policy.action_net(features)[..., 0]), cost


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


def test_a_word_is_decided_by_equation_1_from_the_means_of_its_tokens(by_word, texts):
    """Where gaps have to be found, what keeping costs is added to λ."""
    ids, valid, price = texts
    readings = by_word.read(ids, valid, price)
    starts = by_word.reader.words.starts(ids, valid)
    features = by_word.network(ids, valid, price, *readings)
    cost, keeping = torch.log1p(by_word.value_net(features).exp()).unbind(-1)
    cost, residual = cost + 0.01, by_word.action_net(features)[..., 0]
    expected = torch.zeros(B, T)
    for row, length in enumerate(valid.sum(1)):
        first = [*starts[row, :length].nonzero()[:, 0].tolist(), int(length)]
        for word in (slice(a, b) for a, b in zip(first, first[1:])):
            c, e, r = (x[row, word].mean() for x in (cost, keeping, residual))
            expected[row, word] = torch.sigmoid(by_word.sharpness * (c / (price[row] + e)).log() + r)
    found = by_word.keep_probability(ids, valid, price[:, 0])
    torch.testing.assert_close(found[valid], expected[valid], rtol=1e-4, atol=1e-5)
    assert (~starts & valid).sum() > 3 and (cost[valid].std() > 0.01) and len(found[valid].unique()) > 3
    logits, gains, of_kept, _ = by_word.decisions(ids, valid, price)
    torch.testing.assert_close(gains, price - cost)
    torch.testing.assert_close(of_kept, keeping)
    alone = make_policy(by_word.reader.reconstructor, unit="token")  # the control: tokens by themselves
    alone.load_state_dict(by_word.own_state(), strict=False)
    apart = alone.keep_probability(ids, valid, price[:, 0])
    within = (~starts & valid)[:, 1:]
    assert not torch.allclose(apart[:, 1:][within], apart[:, :-1][within], atol=1e-2)
    assert torch.equal(found[:, 1:][within], found[:, :-1][within])
    drawn = torch.as_tensor(by_word.predict({k: x.numpy() for k, x in observation(ids, valid, price).items()})[0])
    assert torch.equal(drawn[:, 1:][within], drawn[:, :-1][within])


def test_padding_changes_no_word(by_word, texts):
    ids, valid, price = texts
    together = by_word.keep_probability(ids, valid, price[:, 0])
    for row, length in enumerate(valid.sum(1)):
        alone = by_word.keep_probability(ids[row : row + 1, :length], valid[row : row + 1, :length], price[row, 0])
        torch.testing.assert_close(together[row, :length], alone[0], rtol=1e-4, atol=1e-5)
    for token in (3, 4):  # one that goes on with a word, and one that begins one
        other = by_word.keep_probability(torch.where(valid, ids, token), valid, price[:, 0])
        torch.testing.assert_close(other[valid], together[valid])


@pytest.mark.parametrize("name", ["policy", "by_word"])
def test_gradients_of_actor_and_critic_do_not_cross_and_nothing_of_the_reconstructor_learns(request, name, texts):
    policy = request.getfixturevalue(name)
    readings = policy.read(*texts)
    logits, cost, keeping = policy.decide(*texts, *readings)
    logits.sum().backward(retain_graph=True)
    assert policy.value_net.weight.grad is None and policy.action_net.weight.grad.any() and policy.sharpness.grad.any()
    policy.zero_grad()
    (cost + keeping).sum().backward()
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
