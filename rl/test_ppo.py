"""Tests of PPO with credit per token: `python rl/test_ppo.py` or pytest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import Logger

from data.artifacts import InputError
from models.agent.conftest import V, make_reconstructor
from rl import ppo
from rl.conftest import LENGTH, agent_on
from rl.env import TokenCompressionVecEnv
from rl.ppo import sum_of_neighbours


def collect(agent, steps=1):
    """Fill the agent's buffer with a rollout."""
    agent._setup_learn(steps * agent.env.num_envs)
    assert agent.collect_rollouts(agent.env, agent._init_callback(None), agent.rollout_buffer, steps)
    return agent.rollout_buffer.all()


@pytest.fixture(params=["told", "found"])
def uneven(reconstructor, texts, request):
    """An agent on four texts of unequal length whose second pass sees the first, and its rollout, with λ of their own.

    Found: it decides words, of one to five tokens, and the receiver has to find the gaps.
    """
    if request.param == "found":
        reconstructor, texts = make_reconstructor(found=True), np.random.default_rng(3).integers(1, V, (4, LENGTH))
    short = [texts[i][:n] for i, n in enumerate((16, 5, 11, 3))]
    unit = "word" if request.param == "found" else "token"
    agent = agent_on(TokenCompressionVecEnv(short, reconstructor, LENGTH, 4, (1.0, 4.0), unit=unit), batch_size=4)
    torch.nn.init.normal_(agent.policy.network.draft.weight, std=0.3)
    torch.nn.init.normal_(agent.policy.value_net.weight, std=0.2)
    return agent, collect(agent)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def words_of(starts, length):
    """The words of one text: ranges of its tokens."""
    first = [i for i in range(length) if starts[i]]
    return [range(a, b) for a, b in zip(first, [*first[1:], length])]


def losses_by_loops(samples, found, first, first_cost, first_keeping, logits, cost, keeping, clip_range):
    """The losses and diagnostics of Samples as arrays, word by word and token by token; logits and costs are the policy's."""
    credit, draft, entropy, ratios, of_masked, of_kept = [], [], [], [], [[], []], [[], []]
    for b in range(len(samples.ids)):
        price, length = samples.price[b, 0], int(samples.valid[b].sum())
        masked, returns, gains, costs = samples.masked[b], samples.returns[b], samples.gains[b], samples.keeping[b]
        for word in words_of(samples.starts[b], length):
            i, advantage = word[0], 0.0
            for j in word:
                chance = np.exp(samples.log_probs[b, j])
                masking = chance if masked[j] else 1 - chance
                advantage += returns[j] - masking * gains[j] + (1 - masking) * costs[j]
            for j in (word[0] - 2, word[0] - 1, word[-1] + 1, word[-1] + 2):
                if 0 <= j < length:
                    advantage += returns[j] - (gains[j] if masked[j] else -costs[j])
            credit.append(advantage / price**0.5)
            keep, kept_first = sigmoid(logits[b, i]), sigmoid(first[b, i])
            ratios.append((1 - keep if masked[i] else keep) / np.exp(samples.log_probs[b, i]))
            draft.append(-keep * np.log(kept_first) - (1 - keep) * np.log(1 - kept_first))
            entropy.append(-keep * np.log(keep) - (1 - keep) * np.log(1 - keep))
        for i in range(length):
            for number, estimates in enumerate(((first_cost, first_keeping), (cost, keeping))):
                if masked[i]:
                    of_masked[number].append(estimates[0][b, i] - (price - returns[i]) * np.log(estimates[0][b, i]))
                elif found:
                    estimate = estimates[1][b, i] + 0.01
                    of_kept[number].append(estimate + returns[i] * np.log(estimate))
    credit = (np.array(credit) - np.mean(credit)) / np.std(credit, ddof=1)
    gradient = [min(a * r, a * min(max(r, 1 - clip_range), 1 + clip_range)) for a, r in zip(credit, ratios)]
    clipped = np.mean([abs(r - 1) > clip_range for r in ratios])
    return {
        "policy_gradient_loss": -np.mean(gradient),
        "value_loss": sum(np.mean(errors) for errors in (*of_masked, *of_kept) if errors),
        "draft_loss": np.mean(draft), "entropy": np.mean(entropy), "clip_fraction": clipped,
        "approx_kl": np.mean([r - 1 - np.log(r) for r in ratios]),
    }


def move(policy):
    """A policy that is no longer that of the rollout."""
    with torch.no_grad():
        torch.manual_seed(5)
        policy.action_net.weight.add_(0.2 * torch.randn_like(policy.action_net.weight))
        policy.value_net.weight.add_(0.2 * torch.randn_like(policy.value_net.weight))


def test_the_losses_are_those_of_loops(uneven):
    agent, samples = uneven
    move(agent.policy)
    found, diagnostics = agent.losses(samples, 0.1)
    text, draft = samples.text, samples.draft
    with torch.no_grad():
        decided = agent.policy.decide(*samples.texts, text) + agent.policy.decide(*samples.texts, text, draft)
    arrays = samples._replace(**{name: x.double().numpy() for name, x in samples._asdict().items() if name != "masked"})
    of_policy = [x.double().numpy() for x in decided]
    expected = losses_by_loops(arrays, agent.policy.reader.found, *of_policy, 0.1)
    assert 0.05 < expected["clip_fraction"] < 0.95, "some are clipped, some are not"
    found = {name: value.item() for name, value in {**found, **diagnostics}.items()}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_padding_is_poison_that_nobody_eats(uneven):
    agent, samples = uneven
    move(agent.policy)
    expected = agent.losses(samples, 0.2)[0]
    padding = ~samples.valid
    assert padding.sum() == 64 - 35
    names = ("drafts", "log_probs", "gains", "keeping", "returns")
    poisoned = {name: torch.where(padding, 1e6, getattr(samples, name)) for name in names}
    poisoned |= {name: torch.where(padding[..., None], 1e4, getattr(samples, name)) for name in ("text", "draft")}
    poisoned |= {"ids": torch.where(padding, 9, samples.ids), "masked": padding | samples.masked}
    found = agent.losses(samples._replace(**poisoned), 0.2)[0]
    assert {k: v.item() for k, v in found.items()} == pytest.approx({k: v.item() for k, v in expected.items()}, rel=1e-5)


def test_at_the_rollouts_own_policy_every_ratio_is_1(uneven):
    agent, samples = uneven
    found, diagnostics = agent.losses(samples, 0.2)
    assert found["policy_gradient_loss"].item() == pytest.approx(0, abs=1e-4)  # minus the mean of standardised advantages
    assert diagnostics["clip_fraction"] == 0 and diagnostics["approx_kl"].item() == pytest.approx(0, abs=1e-5)
    masking = torch.where(samples.masked, samples.log_probs.exp(), 1 - samples.log_probs.exp())
    torch.testing.assert_close(samples.values, masking * samples.gains - (1 - masking) * samples.keeping)
    assert bool(samples.keeping.any()) == agent.policy.reader.found


def test_a_rollout_holds_what_was_decided_and_earned(uneven):
    """Returns are nats per token, whose mean over a text is its J."""
    agent, samples = uneven
    ids, valid, price = samples.texts
    logits, gains, keeping, readings = agent.policy.decisions(ids, valid, price)
    keep = logits.sigmoid()
    torch.testing.assert_close(samples.log_probs.exp()[valid], torch.where(samples.masked, 1 - keep, keep)[valid])
    torch.testing.assert_close(samples.gains[valid], gains[valid])
    torch.testing.assert_close(samples.keeping[valid], keeping[valid])
    torch.testing.assert_close(samples.drafts, readings[1][..., 0])
    assert samples.text.dtype == samples.draft.dtype == torch.float16
    torch.testing.assert_close(samples.draft, readings[1].half())
    prediction = agent.env.judge.reconstructor.predict(ids, ~samples.masked, valid)
    J = (samples.masked & valid) * (price - prediction.nats) - prediction.gaps
    assert bool(prediction.gaps.any()) == agent.policy.reader.found
    torch.testing.assert_close(samples.returns, J, rtol=1e-4, atol=1e-4)


def test_words_are_decided_as_one(uneven):
    """One log-probability, one advantage and one decision for all tokens of a word; the rollout tells words from tokens."""
    agent, samples = uneven
    sizes = []
    for b, length in enumerate(samples.valid.sum(1).tolist()):
        for word in words_of(samples.starts[b], length):
            sizes.append(len(word))
            for x in (samples.masked, samples.log_probs, samples.advantages):
                torch.testing.assert_close(x[b, list(word)], x[b, word[0]].expand(len(word)))
    assert len(sizes) == samples.decided.sum() and (max(sizes) > 2) == agent.policy.reader.found
    drawn = agent.policy.sample(torch.zeros_like(samples.gains), *samples.texts[:2])
    within = ~samples.starts & samples.valid
    assert torch.equal(drawn[:, 1:][within[:, 1:]], drawn[:, :-1][within[:, 1:]]) and 0 < drawn[samples.valid].mean() < 1


def test_neighbours_are_the_tokens_within_the_window():
    row, single = torch.tensor([[1.0, 2, 4, 8]]), torch.ones(1, 4, dtype=torch.bool)
    assert sum_of_neighbours(row, single, 1).tolist() == [[2, 5, 10, 4]]
    assert sum_of_neighbours(row, single, 9).tolist() == [[14, 13, 11, 7]]
    assert sum_of_neighbours(row, torch.tensor([[True, True, False, True]]), 1).tolist() == [[2, 9, 9, 4]]
    torch.manual_seed(0)
    x = torch.randn(20, 12)
    for share, window in ((0.0, 2), (0.4, 1), (0.4, 2), (0.9, 4)):
        starts = torch.rand(x.shape) >= share
        starts[:, 0] = True
        by_loops = torch.zeros(x.shape)
        for b, word in ((b, word) for b in range(20) for word in words_of(starts[b], 12)):
            near = [j for j in range(word[0] - window, word[-1] + window + 1) if 0 <= j < 12 and j not in word]
            by_loops[b, list(word)] = sum(float(x[b, j]) for j in near)
        torch.testing.assert_close(sum_of_neighbours(x, starts, window), by_loops, rtol=1e-4, atol=1e-5)


def test_minibatches_deal_out_every_text_once_and_are_cut_to_the_longest(reconstructor, texts):
    short = [texts[i][: 1 + i % 7] for i in range(24)]
    agent = agent_on(TokenCompressionVecEnv(short, reconstructor, LENGTH, 8, (1.0, 2.0)))
    everything = collect(agent, steps=3)
    seen = []
    for batch in agent.rollout_buffer.get(5):
        longest = int(batch.valid.sum(1).max())
        assert {x.shape[1] for name, x in batch._asdict().items() if name != "price"} == {longest} and batch.price.shape[1] == 1
        seen += [round(float(price), 6) for price in batch.price]
    assert sorted(seen) == sorted(round(float(price), 6) for price in everything.price) and len(set(seen)) == 24


@pytest.mark.parametrize("uneven", ["told"], indirect=True)
def test_the_critics_poisson_loss_is_lowest_at_the_mean_and_forgets_kept_tokens(uneven):
    agent, samples = uneven
    price, nats = torch.tensor([[2.0], [5.0]]), torch.tensor([[0.5, 2.5, 9.0], [0.0, 7.0, 1.0]])
    masked, valid = torch.tensor([[True, True, False], [True, False, True]]), torch.tensor([[True] * 3, [True, True, False]])
    samples = samples._replace(price=price, returns=price - nats, masked=masked, valid=valid)
    estimate = torch.tensor([[1.0, 2.0, 4.0], [3.0, 5.0, 5.0]], requires_grad=True)
    nothing = torch.zeros_like(estimate)
    loss = agent.critic_error(estimate, nothing, samples)
    expected = sum(e - n * np.log(e) for e, n in ((1, 0.5), (2, 2.5), (3, 0.0))) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert estimate.grad[0, 2] == estimate.grad[1, 1] == estimate.grad[1, 2] == 0
    assert estimate.grad[0, 0].item() == pytest.approx((1 - 0.5 / 1) / 3, rel=1e-4)
    at = {e: agent.critic_error(torch.full((2, 3), e), nothing, samples).item() for e in (0.9, 1.0, 1.1)}
    assert min(at, key=at.get) == 1.0, "the mean of the masked tokens' nats"
    assert agent.critic_error(estimate, nothing, samples._replace(masked=masked & False)) == 0, "nothing masked"


@pytest.mark.parametrize("uneven", ["found"], indirect=True)
def test_the_critic_learns_what_keeping_costs_from_kept_tokens(uneven):
    agent, samples = uneven
    price, masked = torch.tensor([[2.0], [5.0]]), torch.tensor([[True, False, False], [False, True, True]])
    valid, paid = torch.tensor([[True] * 3, [True, True, False]]), torch.tensor([[0.5, 0.1, 0.4], [0.7, 3.0, 9.0]])
    samples = samples._replace(price=price, returns=torch.where(masked, price - paid, -paid), masked=masked, valid=valid)
    cost, keeping = (torch.full((2, 3), e, requires_grad=True) for e in (2.0, 0.3))
    loss = agent.critic_error(cost, keeping, samples)
    of_masked = sum(2 - n * np.log(2) for n in (0.5, 3.0)) / 2
    of_kept = sum(0.31 - n * np.log(0.31) for n in (0.1, 0.4, 0.7)) / 3
    assert loss.item() == pytest.approx(of_masked + of_kept, rel=1e-5)
    loss.backward()
    assert torch.equal(keeping.grad != 0, valid & ~masked) and torch.equal(cost.grad != 0, valid & masked)
    at = {e: agent.critic_error(cost, torch.full((2, 3), e), samples).item() for e in (0.37, 0.39, 0.41)}
    assert min(at, key=at.get) == 0.39, "and .01 is the mean of what the kept tokens paid, .4"


def test_the_last_pass_is_the_target_of_the_draft(uneven):
    agent, samples = uneven
    agent.losses(samples, 0.2)[0]["draft_loss"].backward()
    assert agent.policy.network.draft.weight.grad is None and agent.policy.action_net.weight.grad.any()


def trained(reconstructor, texts, **kwargs):
    agent = agent_on(TokenCompressionVecEnv(texts, reconstructor, LENGTH, 8, (0.5, 6.0)), n_steps=4, n_epochs=3, **kwargs)
    return agent, agent.learn(64).policy.own_state()


def test_readings_that_are_kept_and_that_are_read_again_train_alike(reconstructor, texts, monkeypatch):
    """The same weights but for what 16 bit round off, which is far less than what training changes."""
    kept_agent, kept = trained(reconstructor, texts)
    first = {name: x.clone() for name, x in agent_on(kept_agent.env).policy.own_state().items()}
    monkeypatch.setattr(ppo, "READINGS_BYTES", 0)
    agent, again = trained(reconstructor, texts)
    rollout = agent.rollout_buffer.all()
    assert rollout.text is None and rollout.draft is None and kept_agent.rollout_buffer.all().text is not None
    names = [name for name, x in first.items() if x.is_floating_point() and not torch.equal(x, kept[name])]
    flat = lambda state: torch.cat([state[name].flatten() for name in names])
    apart, moved = (flat(kept) - flat(again)).norm(), (flat(kept) - flat(first)).norm()
    assert 0 < apart < 0.05 * moved, (apart, moved)
    text, draft = agent.policy.read(*rollout.texts, draft=rollout.drafts)
    losses = [agent.losses(rollout._replace(**parts), 0.2)[0] for parts in ({}, {"text": text, "draft": draft})]
    assert losses[0] == losses[1]
    torch.testing.assert_close(draft[..., 0], rollout.drafts)


def test_the_critic_alone_has_no_policy_gradient_and_its_actor_stays(reconstructor, texts):
    agent = agent_on(TokenCompressionVecEnv(texts, reconstructor, LENGTH, 8, (0.5, 6.0)), critic_only=True)
    losses, diagnostics = agent.losses(collect(agent), 0.2)
    assert set(losses) == {"value_loss"} and set(diagnostics) == {"entropy", "approx_kl", "clip_fraction"}
    agent, state = trained(reconstructor, texts, critic_only=True)
    assert not state["action_net.weight"].any() and not state["action_net.bias"].any() and state["sharpness"] == 2.0
    observation = agent.env.reset()
    ids, valid, price = agent.policy.features_extractor.unpack({k: torch.as_tensor(v) for k, v in observation.items()})
    kept = agent.predict(observation, deterministic=True)[0] > 0.5
    cost = price - agent.policy.decisions(ids, valid, price)[1]
    assert np.array_equal(kept[valid], (cost > price)[valid].numpy()) and 0 < kept[valid].mean() < 1


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_ends_training_in_one_line(uneven, where):
    agent, _ = uneven
    if where == "loss":
        agent.policy.value_net.bias.data.fill_(torch.nan)
    else:
        agent.policy.action_net.weight.register_hook(lambda gradient: gradient * torch.nan)
    agent._setup_learn(4)
    agent.set_logger(Logger(None, []))
    with pytest.raises(InputError, match="expected a finite loss and gradient.*lower --learning_rate"):
        agent.train()
    assert torch.isfinite(agent.policy.action_net.weight).all()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
