"""Tests of the environments and the reward: `python rl/test_env.py` or pytest."""

import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from data.artifacts import InputError
from models.reconstructor.scoring import SUMS
from rl.env import TokenCompressionEnv, TokenCompressionVecEnv, token_rewards

LENGTH = 16


def test_environment_checkers(reconstructor, texts):
    env = TokenCompressionEnv(texts, reconstructor, LENGTH)
    gymnasium_check_env(env, skip_render_check=True)
    sb3_check_env(env)


def test_reward_is_the_hand_computed_J(reconstructor, texts):
    """J = λ (1 - R) - D with D from an independent reference: stock model, full logits."""
    env = TokenCompressionEnv(texts, reconstructor, LENGTH + 4)  # four columns of padding
    tokens = texts[0][:10]
    env.reset(seed=0, options={"tokens": tokens, "price": 1.7})
    action = np.full(LENGTH + 4, 0.9, np.float32)
    action[[1, 4, 5, 18]] = [0.2, 0.5, 0.0, 0.0]  # 0.5 is not above the threshold; 18 is padding
    _, reward, terminated, truncated, info = env.step(action)
    shown = torch.tensor([reconstructor.bos_id, *tokens])
    shown[[2, 5, 6]] = reconstructor.mask_id
    with torch.no_grad():
        logits = reconstructor.model(input_ids=shown[None], attention_mask=torch.zeros(1, 1, 11, 11)).logits[0]
    nats = [-logits[i, : reconstructor.vocab_size].log_softmax(-1)[tokens[i]].item() for i in (1, 4, 5)]
    assert reward == pytest.approx(1.7 * 3 / 10 - sum(nats) / 10, abs=1e-4)
    assert reward == pytest.approx(info["token_rewards"].sum(), abs=1e-6)
    assert info["keep_ratio"] == pytest.approx(0.7) and info["episode"] == {"r": reward, "l": 1}
    sums = dict(zip(SUMS, info["sums"], strict=True))
    restored = sum(int(logits[i, : reconstructor.vocab_size].argmax()) == tokens[i] for i in (1, 4, 5))
    assert (sums["tokens"], sums["masked"], sums["right"], sums["texts"]) == (10, 3, restored, 1)
    assert sums["nats"] == pytest.approx(sum(nats), abs=1e-3) and sums["exact"] == (restored == 3)
    assert terminated and not truncated


def test_token_rewards_are_shares_of_J():
    rng = np.random.default_rng(0)
    valid = np.arange(6) < np.array([6, 4])[:, None]
    keep_mask, nats, price = rng.random((2, 6)) < 0.5, rng.random((2, 6)).astype(np.float32), np.array([0.7, 2.0])
    shares = token_rewards(keep_mask, valid, nats, price)
    for row, length in enumerate((6, 4)):
        masked = ~keep_mask[row, :length]
        J = price[row] * masked.mean() - nats[row, :length][masked].sum() / length
        assert shares[row].sum() == pytest.approx(J, abs=1e-6) and (shares[row, length:] == 0).all()


def test_keeping_everything_pays_nothing_and_masking_everything_pays_a_full_price(reconstructor, texts):
    env = TokenCompressionEnv(texts, reconstructor, LENGTH)
    env.reset(seed=1)
    _, reward, _, _, info = env.step(np.ones(LENGTH, np.float32))
    assert reward == 0 and info["keep_ratio"] == 1 and info["sums"][1] == 0
    env.reset(seed=1, options={"price": 2.0})
    _, reward, _, _, info = env.step(np.zeros(LENGTH, np.float32))
    assert info["keep_ratio"] == 0 and reward == pytest.approx(2.0 - info["sums"][2] / info["sums"][0], abs=1e-5)


def test_single_and_batched_environments_pay_the_same(reconstructor, texts):
    lengths = [16, 5, 11, 1]
    short = [texts[i][:n] for i, n in enumerate(lengths)]
    many = TokenCompressionVecEnv(short, reconstructor, LENGTH + 3, 4, (1.3,), shuffle=False)
    actions = np.random.default_rng(0).random((4, LENGTH + 3)).astype(np.float32)
    observation = many.reset()
    _, rewards, dones, infos = many.step(actions)
    one = TokenCompressionEnv(short, reconstructor, LENGTH + 3)
    for i in range(4):
        seen, _ = one.reset(options={"tokens": short[i], "price": 1.3})
        assert all(np.array_equal(seen[k], observation[k][i]) for k in seen)
        _, reward, *_, info = one.step(actions[i])
        assert reward == pytest.approx(rewards[i], abs=1e-4)
        np.testing.assert_allclose(info["token_rewards"], infos[i]["token_rewards"], atol=1e-4)
    assert dones.all()


def test_every_text_comes_once_per_epoch_with_log_uniform_prices(reconstructor, texts):
    env = TokenCompressionVecEnv([np.array([2 + i]) for i in range(20)], reconstructor, 1, 20, (0.5, 6.0))
    env.seed(3)
    observation = env.reset()
    assert sorted(observation["tokens"][:, 0]) == list(range(2, 22))
    prices = np.concatenate([np.log(env.step(np.ones((20, 1)))[0]["price"][:, 0]) for _ in range(100)])
    low, high = np.log(0.5), np.log(6.0)
    # Uniform in log λ: standard error of the mean over 2,000 draws is (high - low) / sqrt(12 * 2000) = 0.016.
    assert prices.min() >= low - 1e-6 and prices.max() <= high + 1e-6
    assert prices.mean() == pytest.approx((low + high) / 2, abs=0.06)


def test_bad_actions_and_lengths_are_refused(reconstructor, texts):
    env = TokenCompressionEnv(texts, reconstructor, LENGTH)
    env.reset(seed=0)
    for action in (np.full(LENGTH, np.nan), np.ones(3)):
        with pytest.raises(ValueError, match="expected finite numbers of shape"):
            env.step(action)
    long = TokenCompressionEnv([np.full(32, 5)], reconstructor, 32)
    long.reset(seed=0)
    with pytest.raises(InputError, match="expected at most 31"):
        long.step(np.zeros(32))
    with pytest.raises(InputError, match="at least one text"):
        TokenCompressionEnv([], reconstructor, LENGTH)


def test_a_reconstructor_that_says_nan_is_named(reconstructor, texts, monkeypatch):
    env, predict = TokenCompressionEnv(texts, reconstructor, LENGTH), reconstructor.predict
    env.reset(seed=0)
    says_nan = lambda *args: predict(*args)._replace(nats=torch.full((1, LENGTH), torch.nan))
    monkeypatch.setattr(reconstructor, "predict", says_nan)
    with pytest.raises(InputError, match="reconstructor: expected finite nats"):
        env.step(np.zeros(LENGTH))


def test_observations_are_small(reconstructor, texts):
    """A rollout of 2,048 texts of 128 tokens is a few megabytes, whatever the reconstructor's width."""
    env = TokenCompressionVecEnv(texts, reconstructor, reconstructor.max_length, 2, (0.5, 6.0))
    size = sum(np.prod(s.shape) * s.dtype.itemsize for s in env.observation_space.spaces.values())
    assert size / env.action_space.shape[0] * 128 * 2048 < 2e6


def test_a_stream_goes_on_from_where_it_stood(reconstructor, texts):
    """The batched environment's state is all that its future depends on, in random order and in a fixed one."""
    texts, actions = [texts[i] for i in range(10)], np.zeros((4, LENGTH))
    for shuffle in (True, False):
        env = TokenCompressionVecEnv(texts, reconstructor, LENGTH, 4, (0.5, 6.0), shuffle)
        env.seed(1)
        env.reset()
        env.step(actions)
        state = copy.deepcopy(env.state())
        expected = [env.step(actions)[:2] for _ in range(8)]  # across the end of an epoch
        other = TokenCompressionVecEnv(texts, reconstructor, LENGTH, 4, (0.5, 6.0), shuffle)
        other.restore(state)
        for observation, rewards in expected:
            seen, earned, *_ = other.step(actions)
            assert all(np.array_equal(seen[k], observation[k]) for k in seen) and np.array_equal(earned, rewards)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
