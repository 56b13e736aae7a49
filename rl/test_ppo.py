"""Tests of PPO with credit per token: `python rl/test_ppo.py` or pytest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from models.agent.policy import TokenCompressionPolicy
from rl.env import TokenCompressionVecEnv
from rl.ppo import TokenPPO, TokenRolloutBuffer, sum_of_neighbours

LENGTH = 16


def agent_on(env, seed=0, cls=TokenPPO, **kwargs):
    policy_kwargs = {"features_extractor_kwargs": {"embedding_dim": 8, "width": 32, "layers": 1, "heads": 2}, "per_token": cls is TokenPPO}
    settings = {"n_steps": 1, "batch_size": 16, "n_epochs": 4, "learning_rate": 3e-3, "seed": seed, "device": "cpu"} | kwargs
    return cls(TokenCompressionPolicy, env, policy_kwargs=policy_kwargs, **settings)


def sampled_J(agent, reconstructor, texts, price, count=192):
    """Mean J of the policy's own decisions at one price. Sampled: a threshold would make a rule of the faintest bias."""
    env = TokenCompressionVecEnv(texts, reconstructor, LENGTH, count, (price,), shuffle=False)
    actions, _ = agent.predict(env.reset(), deterministic=False)
    return env.step(actions)[1].mean()


def test_on_texts_of_one_token_it_is_stable_baselines3s_ppo(reconstructor, texts):
    single = [texts[i][:1] for i in range(40)]
    weights = []
    for cls in (TokenPPO, PPO):
        env = TokenCompressionVecEnv(single, reconstructor, 1, 8, (0.5, 6.0))
        agent = agent_on(env, cls=cls, n_steps=4, batch_size=8, clip_range_vf=0.2, ent_coef=0.01, max_grad_norm=0.5)
        first = {k: v.clone() for k, v in agent.policy.state_dict().items()}
        agent.learn(96)
        weights.append(agent.policy.state_dict())
    assert any(not torch.equal(first[k], weights[1][k]) for k in first), "nothing was learned"
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-5, msg=name)


def test_on_longer_texts_it_is_not(reconstructor, texts):
    """Negative control of the test above: with more tokens the two must differ."""
    weights = []
    for cls in (TokenPPO, PPO):
        env = TokenCompressionVecEnv(texts, reconstructor, LENGTH, 8, (0.5, 6.0))
        agent = agent_on(env, cls=cls, n_steps=2, batch_size=8)
        agent.learn(16)
        weights.append(agent.policy.state_dict()["action_net.weight"])
    assert not torch.allclose(*weights, rtol=1e-3)


def test_the_loss_is_per_token_and_ignores_padding(reconstructor, texts):
    short = [texts[i][:n] for i, n in enumerate((16, 5, 11, 3))]
    env = TokenCompressionVecEnv(short, reconstructor, LENGTH, 4, (1.0, 2.0))
    agent = agent_on(env, batch_size=4)
    agent._setup_learn(4)
    agent.collect_rollouts(agent.env, agent._init_callback(None), agent.rollout_buffer, 1)
    batch = next(agent.rollout_buffer.get(4))
    losses = agent.minibatch_losses(batch, 0.2, None)
    valid = batch.observations["valid"] > 0
    advantage, returns = batch.advantages[valid], batch.returns[valid]
    # At the rollout's own policy every ratio is 1: the clipped loss is minus the mean of standardised advantages, 0.
    assert losses[0].item() == pytest.approx(0, abs=1e-5) and losses[5] == 0
    assert losses[3] == 0, "there is no draft"
    with torch.no_grad():
        fitted = agent.policy.evaluate_actions(batch.observations, batch.actions)[0][valid]
    assert losses[1].item() == pytest.approx((returns - fitted).square().mean().item(), rel=1e-4)
    torch.testing.assert_close(advantage, returns - batch.old_values[valid])
    assert (batch.returns[~valid] == 0).all() and int(valid.sum()) == 35
    for name in ("advantages", "returns", "old_log_prob", "old_values"):
        getattr(batch, name)[~valid] = 1e6  # poison the padding
    poisoned = agent.minibatch_losses(batch, 0.2, None)
    assert [float(torch.as_tensor(x).detach()) for x in poisoned] == [float(torch.as_tensor(x).detach()) for x in losses]


def test_advantages_are_weighed_by_the_price(reconstructor, texts):
    """Standardised (R - V) / λ^0.5, by hand, under a policy that has moved since the rollout."""
    agent = agent_on(TokenCompressionVecEnv(texts, reconstructor, LENGTH, 8, (0.5, 6.0)), batch_size=8, price_exponent=0.5)
    agent._setup_learn(8)
    agent.collect_rollouts(agent.env, agent._init_callback(None), agent.rollout_buffer, 1)
    batch = next(agent.rollout_buffer.get(8))
    batch.old_log_prob.add_(torch.linspace(-0.1, 0.1, batch.old_log_prob.numel()).view_as(batch.old_log_prob))
    loss = agent.minibatch_losses(batch, 10.0, None)[0].item()
    valid, price = (batch.observations[name].numpy() for name in ("valid", "price"))
    with torch.no_grad():
        ratio = (agent.policy.evaluate_actions(batch.observations, batch.actions)[1] - batch.old_log_prob).exp().numpy()[valid > 0]
    weighed = ((batch.returns - batch.old_values).numpy() / price**0.5)[valid > 0]
    assert loss == pytest.approx(-((weighed - weighed.mean()) / weighed.std(ddof=1) * ratio).mean(), rel=1e-3)
    agent.price_exponent = 0.0
    assert abs(agent.minibatch_losses(batch, 10.0, None)[0].item() - loss) > 1e-4


def test_the_critics_poisson_loss_is_lowest_at_the_mean_and_forgets_kept_tokens(reconstructor, texts):
    agent = agent_on(TokenCompressionVecEnv(texts, reconstructor, LENGTH, 8, (0.5, 6.0)), critic_loss="poisson")
    price, nats, masked = torch.tensor([2.0, 2, 5, 5]), torch.tensor([0.5, 2.5, 9.0, 0.0]), torch.tensor([True, True, False, True])
    estimate = torch.tensor([1.0, 2.0, 4.0, 3.0], requires_grad=True)
    loss = agent.critic_error(price - estimate, price - nats, masked, price)
    expected = sum(e - n * np.log(e) for e, n in ((1, 0.5), (2, 2.5), (3, 0.0))) / 3
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert estimate.grad[2] == 0 and estimate.grad[0].item() == pytest.approx((1 - 0.5 / 1) / 3, rel=1e-4)
    at = {e: agent.critic_error(price - e, price - nats, masked, price).item() for e in (0.9, 1.0, 1.1)}
    assert min(at, key=at.get) == 1.0, "the mean of the masked tokens' nats"
    assert agent.critic_error(price - 1, price - nats, ~masked & False, price) == 0, "nothing masked"
    with pytest.raises(ValueError, match="expected no clip_range_vf"):
        agent_on(agent.env, critic_loss="poisson", clip_range_vf=0.2)


def test_drafts_are_fitted_to_what_is_decided(reconstructor, texts):
    """Their critic to the same decisions, their probabilities to those of the last pass, which is the target."""
    env = TokenCompressionVecEnv(texts, reconstructor, LENGTH, 4, (1.0, 2.0))
    torch.manual_seed(0)
    settings = {"embedding_dim": 8, "width": 32, "layers": 1, "heads": 2, "passes": 2}
    agent = TokenPPO(TokenCompressionPolicy, env, n_steps=1, batch_size=4, device="cpu", policy_kwargs={"features_extractor_kwargs": settings})
    torch.nn.init.normal_(agent.policy.features_extractor.network.draft.weight)
    agent._setup_learn(4)
    agent.collect_rollouts(agent.env, agent._init_callback(None), agent.rollout_buffer, 1)
    batch = next(agent.rollout_buffer.get(4))
    valid, masked = batch.observations["valid"] > 0, batch.actions <= 0.5
    _, value_loss, _, draft_loss, *_ = agent.minibatch_losses(batch, 0.2, None)
    ((first, gain), (last, last_gain)), _ = agent.policy.decisions(batch.observations)
    p, q = last.sigmoid()[valid], first.sigmoid()[valid]
    assert draft_loss.item() == pytest.approx(-(p * q.log() + (1 - p) * (1 - q).log()).mean().item(), rel=1e-4)
    errors = [(torch.where(masked, g, 0) - batch.returns)[valid].square().mean().item() for g in (gain, last_gain)]
    assert value_loss.item() == pytest.approx(sum(errors), rel=1e-4)
    draft_loss.backward()
    assert agent.policy.features_extractor.network.draft.weight.grad is None, "the last pass is the target"


def test_neighbours_are_credited_with_their_surprise(reconstructor, texts):
    """With a window of one, token i's advantage grows by the surprise of tokens i - 1 and i + 1 if they are masked; by loops."""
    assert sum_of_neighbours(np.array([[1.0, 2, 4, 8]]), 1).tolist() == [[2, 5, 10, 4]]
    assert sum_of_neighbours(np.array([[1.0, 2, 4, 8]]), 9).tolist() == [[14, 13, 11, 7]]
    short = [texts[i][:n] for i, n in enumerate((16, 5, 11, 3))]
    agent = agent_on(TokenCompressionVecEnv(short, reconstructor, LENGTH, 4, (1.0, 2.0)), rollout_buffer_kwargs={"credit_window": 1})
    agent._setup_learn(4)
    agent.collect_rollouts(agent.env, agent._init_callback(None), agent.rollout_buffer, 1)
    b = agent.rollout_buffer
    with torch.no_grad():
        observation = {k: torch.as_tensor(v[0]) for k, v in b.observations.items()}
        gain = agent.policy.evaluate_actions(observation, torch.zeros(4, LENGTH))[0].numpy()
    for row, length in enumerate(b.observations["valid"][0].sum(1)):
        for i in range(length):
            expected = b.returns[0, row, i] - b.values[0, row, i]
            for j in (i - 1, i + 1):
                if 0 <= j < length and b.actions[0, row, j] <= 0.5:
                    expected += b.returns[0, row, j] - gain[row, j]
            assert b.advantages[0, row, i] == pytest.approx(expected, abs=1e-4), (row, i)


def test_the_value_of_a_text_is_in_the_units_of_its_reward(reconstructor, texts):
    """For Stable-Baselines3's PPO: a critic that knows every token's nats values the decisions taken at the reward itself."""
    short = [texts[i][:n] for i, n in enumerate((16, 5, 11, 3))]
    env = TokenCompressionVecEnv(short, reconstructor, LENGTH, 4, (1.3,), shuffle=False)
    agent = agent_on(env, cls=PPO)
    observation, actions = env.reset(), np.zeros((4, LENGTH), np.float32)
    _, rewards, _, infos = env.step(actions)
    valid = torch.as_tensor(observation["valid"] > 0)
    gain = torch.as_tensor(np.stack([info["token_rewards"] for info in infos])) * valid.sum(1, keepdim=True)
    np.testing.assert_allclose(agent.policy._value(gain, valid).numpy(), rewards, atol=1e-5)


def test_returns_are_nats_per_token(reconstructor, texts):
    env = TokenCompressionVecEnv(texts, reconstructor, LENGTH, 4, (1.0, 2.0))
    agent = agent_on(env)
    agent._setup_learn(4)
    agent.collect_rollouts(agent.env, agent._init_callback(None), agent.rollout_buffer, 1)
    assert isinstance(agent.rollout_buffer, TokenRolloutBuffer)
    J = [episode["r"] for episode in agent.ep_info_buffer]
    np.testing.assert_allclose(agent.rollout_buffer.returns[0].mean(1), J, atol=1e-5)


class ShuffledRewards(TokenCompressionVecEnv):
    """Negative control: every text's shares of J are dealt out to its tokens at random. The sum, and so J, stays."""

    control = np.random.default_rng(0)

    def step_wait(self):
        observation, rewards, dones, infos = super().step_wait()
        for info in infos:
            info["token_rewards"] = self.control.permutation(info["token_rewards"])
        return observation, rewards, dones, infos


def test_agent_learns_the_planted_redundancy_and_the_control_does_not(reconstructor, texts):
    """At λ = 1.2 the best mask drops the echoes, which cost nothing: J = 1.2 / 2 = 0.6. Keeping all pays 0."""
    J = {}
    for cls in (TokenCompressionVecEnv, ShuffledRewards):
        agent = agent_on(cls(texts, reconstructor, LENGTH, 64, (1.2, 1.200001)), batch_size=16)
        agent.learn(64 * 40)
        J[cls] = sampled_J(agent, reconstructor, texts, 1.2)
    assert J[TokenCompressionVecEnv] > 0.45, J
    assert J[ShuffledRewards] < 0.2, J


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
