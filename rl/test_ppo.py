"""Tests of PPO with credit per token: `python rl/test_ppo.py` or pytest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import Logger

from data.artifacts import InputError
from models.agent.actor_critic import TokenCompressionPolicy
from models.agent.reader import Reader
from rl import ppo
from rl.env import TokenCompressionVecEnv
from rl.ppo import TokenPPO, sum_of_neighbours

LENGTH = 16


def agent_on(env, seed=0, critic_only=False, **kwargs):
    reconstructor = env.judge.reconstructor
    reader = Reader(reconstructor, np.arange(reconstructor.vocab_size))
    sizes = {"embedding_dim": 8, "width": 32, "layers": 1, "heads": 2}
    policy_kwargs = {"critic_only": critic_only, "features_extractor_kwargs": {"reader": reader, **sizes}}
    settings = {"n_steps": 1, "batch_size": 8, "n_epochs": 4, "learning_rate": 3e-3, "seed": seed, "device": "cpu"} | kwargs
    return TokenPPO(TokenCompressionPolicy, env, policy_kwargs=policy_kwargs, **settings)


def collect(agent, steps=1):
    """Fill the agent's buffer with a rollout."""
    agent._setup_learn(steps * agent.env.num_envs)
    assert agent.collect_rollouts(agent.env, agent._init_callback(None), agent.rollout_buffer, steps)
    return agent.rollout_buffer.all()


@pytest.fixture
def uneven(reconstructor, texts):
    """An agent on four texts of unequal length whose second pass sees the first, and its rollout, with λ of their own."""
    short = [texts[i][:n] for i, n in enumerate((16, 5, 11, 3))]
    agent = agent_on(TokenCompressionVecEnv(short, reconstructor, LENGTH, 4, (1.0, 4.0)), batch_size=4)
    torch.nn.init.normal_(agent.policy.network.draft.weight, std=0.3)
    return agent, collect(agent)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def losses_by_loops(samples, first, first_cost, logits, cost, clip_range):
    """The losses and diagnostics of Samples as arrays, token by token; logits and costs are the policy's."""
    credit, value, draft, entropy, ratios = [], [[], []], [], [], []
    rows = [(b, i) for b in range(len(samples.ids)) for i in range(int(samples.valid[b].sum()))]
    for b, i in rows:
        price, length = samples.price[b, 0], int(samples.valid[b].sum())
        chance = np.exp(samples.log_probs[b, i])
        masking = chance if samples.masked[b, i] else 1 - chance
        advantage = samples.returns[b, i] - masking * samples.gains[b, i]
        for j in range(max(0, i - 2), min(length, i + 3)):
            if j != i and samples.masked[b, j]:
                advantage += samples.returns[b, j] - samples.gains[b, j]
        credit.append(advantage / price**0.5)
        keep, kept_first = sigmoid(logits[b, i]), sigmoid(first[b, i])
        ratios.append((1 - keep if samples.masked[b, i] else keep) / chance)
        draft.append(-keep * np.log(kept_first) - (1 - keep) * np.log(1 - kept_first))
        entropy.append(-keep * np.log(keep) - (1 - keep) * np.log(1 - keep))
        if samples.masked[b, i]:
            nats = price - samples.returns[b, i]
            for estimate, errors in zip((first_cost[b, i], cost[b, i]), value):
                errors.append(estimate - nats * np.log(estimate))
    credit = (np.array(credit) - np.mean(credit)) / np.std(credit, ddof=1)
    gradient = [min(a * r, a * min(max(r, 1 - clip_range), 1 + clip_range)) for a, r in zip(credit, ratios)]
    clipped = np.mean([abs(r - 1) > clip_range for r in ratios])
    return {
        "policy_gradient_loss": -np.mean(gradient), "value_loss": sum(np.mean(errors) for errors in value),
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
    expected = losses_by_loops(arrays, *(x.double().numpy() for x in decided), 0.1)
    assert 0.05 < expected["clip_fraction"] < 0.95, "some are clipped, some are not"
    found = {name: value.item() for name, value in {**found, **diagnostics}.items()}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_padding_is_poison_that_nobody_eats(uneven):
    agent, samples = uneven
    move(agent.policy)
    expected = agent.losses(samples, 0.2)[0]
    padding = ~samples.valid
    assert padding.sum() == 64 - 35
    poisoned = {name: torch.where(padding, 1e6, getattr(samples, name)) for name in ("drafts", "log_probs", "gains", "returns")}
    poisoned |= {name: torch.where(padding[..., None], 1e4, getattr(samples, name)) for name in ("text", "draft")}
    poisoned |= {"ids": torch.where(padding, 9, samples.ids), "masked": padding | samples.masked}
    found = agent.losses(samples._replace(**poisoned), 0.2)[0]
    assert {k: v.item() for k, v in found.items()} == pytest.approx({k: v.item() for k, v in expected.items()}, rel=1e-5)


def test_at_the_rollouts_own_policy_every_ratio_is_1(uneven):
    agent, samples = uneven
    found, diagnostics = agent.losses(samples, 0.2)
    assert found["policy_gradient_loss"].item() == pytest.approx(0, abs=1e-4)  # minus the mean of standardised advantages
    assert diagnostics["clip_fraction"] == 0 and diagnostics["approx_kl"].item() == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(samples.values[samples.masked], (samples.log_probs.exp() * samples.gains)[samples.masked])


def test_a_rollout_holds_what_was_decided_and_earned(uneven):
    """Returns are nats per token, whose mean over a text is its J."""
    agent, samples = uneven
    ids, valid, price = samples.texts
    logits, gains, readings = agent.policy.decisions(ids, valid, price)
    keep = logits.sigmoid()
    torch.testing.assert_close(samples.log_probs.exp()[valid], torch.where(samples.masked, 1 - keep, keep)[valid])
    torch.testing.assert_close(samples.gains[valid], gains[valid])
    torch.testing.assert_close(samples.drafts, readings[1][..., 0])
    assert samples.text.dtype == samples.draft.dtype == torch.float16
    torch.testing.assert_close(samples.draft, readings[1].half())
    nats = agent.env.judge.reconstructor.predict(ids, ~samples.masked, valid).nats
    J = (samples.masked & valid) * (price - nats)
    torch.testing.assert_close(samples.returns, J, rtol=1e-4, atol=1e-4)


def test_neighbours_are_the_tokens_within_the_window():
    row = torch.tensor([[1.0, 2, 4, 8]])
    assert sum_of_neighbours(row, 1).tolist() == [[2, 5, 10, 4]] and sum_of_neighbours(row, 9).tolist() == [[14, 13, 11, 7]]
    x = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))
    by_loops = [[sum(float(r[j]) for j in range(12) if 0 < abs(i - j) <= 2) for i in range(12)] for r in x]
    torch.testing.assert_close(sum_of_neighbours(x, 2), torch.tensor(by_loops))


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


def test_the_critics_poisson_loss_is_lowest_at_the_mean_and_forgets_kept_tokens(uneven):
    agent, samples = uneven
    price, nats = torch.tensor([[2.0], [5.0]]), torch.tensor([[0.5, 2.5, 9.0], [0.0, 7.0, 1.0]])
    masked, valid = torch.tensor([[True, True, False], [True, False, True]]), torch.tensor([[True] * 3, [True, True, False]])
    samples = samples._replace(price=price, returns=price - nats, masked=masked, valid=valid)
    estimate = torch.tensor([[1.0, 2.0, 4.0], [3.0, 5.0, 5.0]], requires_grad=True)
    loss = agent.critic_error(estimate, samples)
    expected = sum(e - n * np.log(e) for e, n in ((1, 0.5), (2, 2.5), (3, 0.0))) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert estimate.grad[0, 2] == estimate.grad[1, 1] == estimate.grad[1, 2] == 0
    assert estimate.grad[0, 0].item() == pytest.approx((1 - 0.5 / 1) / 3, rel=1e-4)
    at = {e: agent.critic_error(torch.full((2, 3), e), samples).item() for e in (0.9, 1.0, 1.1)}
    assert min(at, key=at.get) == 1.0, "the mean of the masked tokens' nats"
    assert agent.critic_error(estimate, samples._replace(masked=masked & False)) == 0, "nothing masked"


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


class ShuffledRewards(TokenCompressionVecEnv):
    """Negative control: the shares of J are dealt out at random among all tokens of the texts decided at one time."""

    control = np.random.default_rng(0)

    def step_wait(self):
        observation, rewards, dones, infos = super().step_wait()
        shares = self.control.permutation(np.concatenate([info["token_rewards"] for info in infos]))
        for info, row in zip(infos, shares.reshape(len(infos), -1), strict=True):
            info["token_rewards"] = row
        return observation, rewards, dones, infos


@pytest.mark.parametrize("critic_only", [False, True])
def test_agent_learns_the_planted_redundancy_and_the_control_does_not(reconstructor, texts, critic_only):
    """At λ = 1.2 the best mask drops the echoes, which cost nothing: J = 1.2 / 2 = 0.6. Keeping all pays 0.

    PPO's decisions are sampled, because a threshold would make a rule of the faintest bias; those of the critic alone are not.
    """
    J = {}
    for cls in (TokenCompressionVecEnv, ShuffledRewards):
        agent = agent_on(cls(texts, reconstructor, LENGTH, 64, (1.2, 1.200001)), batch_size=16, critic_only=critic_only)
        agent.learn(64 * 8)
        env = TokenCompressionVecEnv(texts, reconstructor, LENGTH, 192, (1.2,), shuffle=False)
        J[cls] = env.step(agent.predict(env.reset(), deterministic=critic_only)[0])[1].mean()
    assert J[TokenCompressionVecEnv] > 0.55 and J[ShuffledRewards] < 0.2, J


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
