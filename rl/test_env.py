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
from data.testing.toy import overflow
from models.agent.conftest import V, make_reconstructor
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
    gaps = rng.random((2, 6)).astype(np.float32) * valid
    shares = token_rewards(keep_mask, valid, nats, price, gaps)
    for row, length in enumerate((6, 4)):
        masked = ~keep_mask[row, :length]
        J = price[row] * masked.mean() - (nats[row, :length][masked].sum() + gaps[row].sum()) / length
        assert shares[row].sum() == pytest.approx(J, abs=1e-6) and (shares[row, length:] == 0).all()


def test_keeping_everything_pays_nothing_and_masking_everything_pays_a_full_price(reconstructor, texts):
    env = TokenCompressionEnv(texts, reconstructor, LENGTH)
    env.reset(seed=1)
    _, reward, _, _, info = env.step(np.ones(LENGTH, np.float32))
    assert reward == 0 and info["keep_ratio"] == 1 and info["sums"][1] == 0
    env.reset(seed=1, options={"price": 2.0})
    _, reward, _, _, info = env.step(np.zeros(LENGTH, np.float32))
    assert info["keep_ratio"] == 0 and reward == pytest.approx(2.0 - info["sums"][2] / info["sums"][0], abs=1e-5)


def test_finding_the_gaps_is_paid_for(texts):
    """By hand: the stock model reads what was sent and nothing else, the head says what each gap costs, its tokens share that."""
    reconstructor = make_reconstructor(found=True)
    tokens, price, kept = np.array([7, 1, 30, 2, 5, 5, 8]), 1.7, [1, 2, 5]
    env = TokenCompressionEnv([tokens], reconstructor, 10)  # three columns of padding
    env.reset(seed=0, options={"price": price})
    action = np.zeros(10, np.float32)
    action[kept] = 1
    *_, info = env.step(action)
    sent, gaps = torch.tensor([[0, *tokens[kept]]]), torch.tensor([[1, 0, 2, 1]])
    with torch.no_grad():
        states = reconstructor.model.transformer(input_ids=sent, attention_mask=torch.zeros(1, 1, 4, 4)).last_hidden_state
        head = reconstructor.gap_head
        paid = []
        for j, gap in enumerate(gaps[0]):
            later = head.after(states[0, j + 1]) if j < 3 else 0.0
            scores = head.out(torch.nn.functional.gelu(head.before(states[0, j]) + later))
            paid.append(-scores[:-1].log_softmax(0)[gap].item())
    told = reconstructor.predict(tokens[None], np.isin(np.arange(7), kept)[None]).nats[0]
    shares = [paid[0], paid[1] / 2, paid[1] / 2, paid[2] / 2, paid[2] / 2, 0, paid[3]]
    expected = [((i not in kept) * (price - told[i].item()) - shares[i]) / 7 for i in range(7)]
    np.testing.assert_allclose(info["token_rewards"], [*expected, 0, 0, 0], atol=1e-5)
    sums = dict(zip(SUMS, info["sums"], strict=True))
    assert sums["gaps"] == pytest.approx(sum(paid), rel=1e-4) and min(paid) > 0.05
    J = price * 4 / 7 - (sums["nats"] + sums["gaps"]) / 7
    assert info["episode"]["r"] == pytest.approx(J, abs=1e-5) == pytest.approx(info["token_rewards"].sum(), abs=1e-5)
    env.judge.reconstructor = make_reconstructor()  # the control: told
    *_, info = env.step(action)
    assert dict(zip(SUMS, info["sums"]))["gaps"] == 0


def test_all_tokens_of_a_word_do_what_its_mean_action_says():
    reconstructor = make_reconstructor(found=True)
    tokens = np.array([7, 3, 6, 8, 9, 10])  # of the toy tokenizer 3, 6 and 9 go on with the word before them
    action, kept = np.array([0.9, 0.0, 0.5, 0.2, 0.9, 0.5, 1.0]), {}
    for unit in ("word", "token"):
        env = TokenCompressionEnv([tokens], reconstructor, 7, unit=unit)
        env.reset(seed=0, options={"price": 30.0})
        *_, info = env.step(action)
        kept[unit] = (info["token_rewards"] <= 0).tolist()
    assert kept["word"] == [False, False, False, True, True, False, True]  # means .47, .55 and .5, which is not above it
    assert kept["token"] == [True, False, False, False, True, False, True]


@pytest.mark.parametrize("unit", ["token", "word"])
def test_single_and_batched_environments_pay_the_same(reconstructor, texts, unit):
    if unit == "word":
        reconstructor, texts = make_reconstructor(found=True), np.random.default_rng(1).integers(1, V, (4, LENGTH))
    lengths = [16, 5, 11, 1]
    short = [texts[i][:n] for i, n in enumerate(lengths)]
    many = TokenCompressionVecEnv(short, reconstructor, LENGTH + 3, 4, (1.3,), False, unit)
    actions = np.random.default_rng(0).random((4, LENGTH + 3)).astype(np.float32)
    observation = many.reset()
    _, rewards, dones, infos = many.step(actions)
    one = TokenCompressionEnv(short, reconstructor, LENGTH + 3, unit=unit)
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


def test_a_reconstructor_that_says_nan_is_named(reconstructor, texts):
    env = TokenCompressionEnv(texts, copy.deepcopy(reconstructor), LENGTH)
    overflow(env.judge.reconstructor.model, 5)
    env.reset(seed=0)
    with pytest.raises(InputError, match="the reconstructor .*tuned: expected finite numbers"):
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
