"""Tests of environment, PPO and agent training: `python rl/test_train.py` or pytest."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.artifacts import InputError
from data.sequences import load_sequences
from data.toy import REPOSITORY, check_refusal, write_toy
from models.agent.policy import TokenCompressionPolicy
from models.reconstructor import train_cpu
from models.reconstructor.reconstructor import Reconstructor, find_device
from rl import benchmark, compare, train
from rl.callbacks import mean_figures
from rl.env import TokenCompressionEnv, TokenCompressionVecEnv, token_rewards
from rl.ppo import TokenPPO, TokenRolloutBuffer, load_policy, sum_of_neighbours, warm_start

LENGTH = 16


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder with toy data in `data` and a toy reconstructor that knows the echo in `tuned`."""
    folder = write_toy(tmp_path_factory.mktemp("toy"))
    command = f"--data_path {folder / 'data/processed_data.json'} --base_model {folder / 'base'} --output_dir {folder / 'tuned'}"
    train_cpu.main([*command.split(), *"--quiet --learning_rate 3e-3 --max_steps 400 --batch_size 32 --mask_ratio 0.5 --mask_spread 0.4 --eval_steps 400".split()])
    return folder


@pytest.fixture(scope="module")
def reconstructor(toy):
    return Reconstructor.load(toy / "tuned")


@pytest.fixture(scope="module")
def texts(toy, reconstructor):
    return load_sequences(toy / "data/processed_data.json", reconstructor.fingerprint)


def agent_on(env, seed=0, cls=TokenPPO, **kwargs):
    policy_kwargs = {"features_extractor_kwargs": {"embedding_dim": 8, "width": 32, "layers": 1, "heads": 2}, "per_token": cls is TokenPPO}
    settings = {"n_steps": 1, "batch_size": 16, "n_epochs": 4, "learning_rate": 3e-3, "seed": seed, "device": "cpu"} | kwargs
    return cls(TokenCompressionPolicy, env, policy_kwargs=policy_kwargs, **settings)


def sampled_J(agent, reconstructor, texts, price, count=192):
    """Mean J of the policy's own decisions at one price. Sampled: a threshold would make a rule of the faintest bias."""
    env = TokenCompressionVecEnv(texts, reconstructor, LENGTH, count, (price,), shuffle=False)
    actions, _ = agent.predict(env.reset(), deterministic=False)
    return env.step(actions)[1].mean()


# --- environment and reward


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
        logits = reconstructor.model(input_ids=shown[None], attention_mask=torch.zeros(1, 1, 11, 11)).logits[0, :, : reconstructor.vocab_size]
    nats = [-logits[i].log_softmax(-1)[tokens[i]].item() for i in (1, 4, 5)]
    assert reward == pytest.approx(1.7 * 3 / 10 - sum(nats) / 10, abs=1e-4)
    assert reward == pytest.approx(info["token_rewards"].sum(), abs=1e-6)
    assert info["keep_ratio"] == pytest.approx(0.7) and info["nats"] == pytest.approx(sum(nats) / 3, abs=1e-4)
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
    assert reward == 0 and info["keep_ratio"] == 1 and np.isnan(info["top1"])
    env.reset(seed=1, options={"price": 2.0})
    _, reward, _, _, info = env.step(np.zeros(LENGTH, np.float32))
    assert info["keep_ratio"] == 0 and reward == pytest.approx(2.0 - info["distortion"], abs=1e-5)


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
    assert prices.min() >= low - 1e-6 and prices.max() <= high + 1e-6 and prices.mean() == pytest.approx((low + high) / 2, abs=0.06)


def test_bad_actions_and_lengths_are_refused(reconstructor, texts):
    env = TokenCompressionEnv(texts, reconstructor, LENGTH)
    env.reset(seed=0)
    for action in (np.full(LENGTH, np.nan), np.ones(3)):
        with pytest.raises(ValueError, match="expected finite numbers of shape"):
            env.step(action)
    with pytest.raises(InputError, match="expected at most 31"):
        TokenCompressionEnv(texts, reconstructor, 500)
    with pytest.raises(InputError, match="at least one text"):
        TokenCompressionEnv([], reconstructor, LENGTH)


def test_observations_are_small(reconstructor, texts):
    """A rollout of 2,048 texts of 128 tokens is a few megabytes, whatever the reconstructor's width."""
    env = TokenCompressionVecEnv(texts, reconstructor, 128 if reconstructor.max_length >= 128 else 31, 2, (0.5, 6.0))
    per_token = sum(np.prod(s.shape) * s.dtype.itemsize for s in env.observation_space.spaces.values()) / env.action_space.shape[0]
    assert per_token * 128 * 2048 < 2e6


# --- PPO


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
    assert losses[0].item() == pytest.approx(0, abs=1e-5) and losses[4] == 0
    with torch.no_grad():
        fitted = agent.policy.evaluate_actions(batch.observations, batch.actions)[0][valid]
    assert losses[1].item() == pytest.approx((returns - fitted).square().mean().item(), rel=1e-4)
    torch.testing.assert_close(advantage, returns - batch.old_values[valid])
    assert (batch.returns[~valid] == 0).all() and int(valid.sum()) == 35
    for name in ("advantages", "returns", "old_log_prob", "old_values"):
        getattr(batch, name)[~valid] = 1e6  # poison the padding
    poisoned = agent.minibatch_losses(batch, 0.2, None)
    assert [float(torch.as_tensor(x).detach()) for x in poisoned] == [float(torch.as_tensor(x).detach()) for x in losses]


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


def test_a_groups_baseline_is_the_mean_of_the_other_masks(reconstructor, texts):
    env = TokenCompressionVecEnv(texts, reconstructor, LENGTH, 6, (1.0, 2.0), group_size=3)
    agent = agent_on(env, batch_size=6, rollout_buffer_kwargs={"group_size": 3})
    agent._setup_learn(6)
    agent.collect_rollouts(agent.env, agent._init_callback(None), agent.rollout_buffer, 1)
    b = agent.rollout_buffer
    tokens, price = b.observations["tokens"][0], b.observations["price"][0]
    for first in (0, 3):
        assert (tokens[first : first + 3] == tokens[first]).all() and (price[first : first + 3] == price[first]).all()
        for i in range(3):
            others = [first + j for j in range(3) if j != i]
            np.testing.assert_allclose(b.advantages[0, first + i], b.rewards[0, first + i] - b.rewards[0, others].mean(0), atol=1e-5)
    assert (tokens[0] != tokens[3]).any()


def test_flips_are_judged_exactly(reconstructor, texts):
    """The advantage of a decision is what J changes by taking it instead of drawing it again, all others as they are."""
    short = [texts[i][:n] for i, n in enumerate((16, 5, 11, 3))]
    env = TokenCompressionVecEnv(short, reconstructor, LENGTH, 4, (1.0, 2.0), flips=4)
    agent = agent_on(env, batch_size=4)
    agent._setup_learn(4)
    agent.collect_rollouts(agent.env, agent._init_callback(None), agent.rollout_buffer, 1)
    b = agent.rollout_buffer
    observation = {key: value[0] for key, value in b.observations.items()}
    lengths = observation["valid"].sum(1)
    judged = ~np.isnan(b.advantages[0])
    assert judged.sum(1).tolist() == np.minimum(lengths, 4).tolist() and not judged[observation["valid"] == 0].any()
    J = env.judge.pay(observation, b.actions[0])[0]
    for row, i in np.argwhere(judged):
        other = b.actions[0].copy()
        other[row, i] = 1 - other[row, i]
        difference = J[row] - env.judge.pay(observation, other)[0][row]
        assert b.advantages[0, row, i] == pytest.approx((1 - np.exp(b.log_probs[0, row, i])) * difference * lengths[row], abs=1e-4)
    batch = next(b.get(4))
    before = agent.minibatch_losses(batch, 0.2, None)
    batch.old_log_prob[batch.advantages.isnan()] -= 3  # decisions that were not judged have no say
    assert [float(torch.as_tensor(x).detach()) for x in before] == [float(torch.as_tensor(x).detach()) for x in agent.minibatch_losses(batch, 0.2, None)]


def test_a_warm_start_teaches_the_critic_what_tokens_cost(reconstructor, texts):
    env = TokenCompressionVecEnv(texts, reconstructor, LENGTH, 32, (1.0, 2.0))
    agent = agent_on(env)
    observation = {key: torch.as_tensor(value) for key, value in env.reset().items()}
    echoes = torch.arange(LENGTH).expand(32, LENGTH) % 2 == 1

    def expected_costs():
        with torch.no_grad():
            gain = agent.policy.evaluate_actions(observation, torch.zeros(32, LENGTH))[0]
        cost = observation["price"] - gain
        return cost[echoes].mean().item(), cost[~echoes].mean().item()

    cold = expected_costs()
    warm_start(agent, 32 * 60, seed=0)
    warm = expected_costs()
    assert warm[1] - warm[0] > 0.5 > abs(cold[1] - cold[0]), (cold, warm)


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


def test_a_run_without_a_warm_start_begins_with_the_first_texts(toy, tmp_path, monkeypatch):
    """The seed alone says which texts are seen: nothing is drawn before training."""
    drawn = []
    monkeypatch.setattr(train, "TokenCompressionVecEnv", type("Watched", (TokenCompressionVecEnv,), {"reset": lambda self: drawn.append(self.stream.shuffle) or TokenCompressionVecEnv.reset(self)}))
    train_agent(toy, tmp_path, "--num_timesteps", 32)
    assert drawn.count(True) == 1


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


# --- the script


def agent_words(toy, output):
    command = f"--data_path {toy / 'data/processed_data.json'} --reconstructor_path {toy / 'tuned'} --output_dir {output} --quiet --device cpu"
    return f"{command} --width 16 --layers 1 --heads 2 --embedding_dim 8 --n_steps 32 --n_envs 16 --batch_size 16 --eval_sequences 8".split()


def train_agent(toy, output, *words):
    train.main([*agent_words(toy, output), *(str(w) for w in words)])


def test_training_writes_models_logs_and_a_record(toy, tmp_path):
    flags = "--num_timesteps 96 --eval_freq 32 --checkpoint_freq 64 --n_epochs 2 --gamma 0.5 --learning_rate 2e-3 --final_learning_rate 1e-4 --clip_range 0.3 --credit_window 2 --ent_coef 0.001 --vf_coef 0.4"
    flags += " --max_grad_norm 1 --target_kl 0.5 --min_price 0.7 --max_price 4 --max_length 12 --eval_prices 1 2 --seed 3"
    train_agent(toy, tmp_path, *flags.split())
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["schema"] == "rltc.agent/1" and record["seed"] == 3 and record["texts"] == 96 and record["max_length"] == 12
    assert [row["texts"] for row in record["evaluations"]] == [0, 32, 64, 96]
    agent = TokenPPO.load(tmp_path / "final_model.zip")
    assert (agent.clip_range(1), agent.ent_coef, agent.vf_coef, agent.max_grad_norm, agent.target_kl, agent.n_epochs, agent.gamma) == (0.3, 0.001, 0.4, 1, 0.5, 2, 0.5)
    assert agent.rollout_buffer.credit_window == 2
    assert agent.lr_schedule(1.0) == pytest.approx(2e-3) and agent.lr_schedule(0.0) == pytest.approx(1e-4)
    assert record["best_J"] == max(row["J"] for row in record["evaluations"])
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {f"agent_{n}_steps.{kind}" for n in (64, 96) for kind in ("zip", "pt")}
    assert list((tmp_path / "tb_logs").glob("events*"))
    for name in ("best_model.zip", "final_model.zip"):
        policy = load_policy(tmp_path / name)
        assert 0.7 <= policy.price_for(0.6) <= 4.0
        assert policy.features_extractor.tokenizer_fingerprint == record["tokenizer_fingerprint"]


def test_a_seed_repeats_a_run(toy, tmp_path):
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_agent(toy, tmp_path / name, "--num_timesteps", 64, "--seed", seed)
        weights.append(load_policy(tmp_path / name / "final_model.zip").state_dict())
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert any(not torch.equal(weights[0][k], weights[2][k]) for k in weights[0])


def test_a_killed_run_goes_on_to_the_same_weights(toy, tmp_path):
    """kill -9 after the first checkpoint, then --resume: the same weights, evaluations and log as a run that was left alone."""
    flags = "--num_timesteps 320 --checkpoint_freq 64 --eval_freq 96 --save_total_limit 2 --seed 5"
    train_agent(toy, tmp_path / "whole", *flags.split())
    command = [sys.executable, REPOSITORY / "rl/train.py", *agent_words(toy, tmp_path / "cut"), *flags.split()]
    running = subprocess.Popen([str(w) for w in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None and not list((tmp_path / "cut/checkpoints").glob("agent_*.pt")):
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "cut/final_model.zip").exists(), "killed too late"
    time.sleep(1.1)  # TensorBoard orders log files by the second
    train_agent(toy, tmp_path / "cut", *flags.split(), "--resume")
    for name in ("final_model.zip", "best_model.zip"):
        weights = [load_policy(tmp_path / run / name).state_dict() for run in ("whole", "cut")]
        assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0]), name
    records = [json.loads((tmp_path / run / "training.json").read_text()) for run in ("whole", "cut")]
    evaluations = [[{k: v for k, v in row.items() if k != "seconds"} for row in record["evaluations"]] for record in records]
    assert evaluations[0] == evaluations[1] and len(evaluations[0]) == 5
    seconds = [row["seconds"] for row in records[1]["evaluations"]]
    assert seconds == sorted(seconds) and seconds[-1] <= records[1]["seconds"]
    curves = [[(p.step, p.value) for p in EventAccumulator(str(tmp_path / run / "tb_logs")).Reload().Scalars("rollout/J")] for run in ("whole", "cut")]
    assert curves[0] == curves[1] and [step for step, _ in curves[0]] == list(range(32, 321, 32))
    assert sorted(p.name for p in (tmp_path / "cut/checkpoints").glob("agent_*.pt")) == ["agent_256_steps.pt", "agent_320_steps.pt"]


def test_a_finished_run_trains_on_and_other_flags_or_damage_are_refused(toy, tmp_path, capsys):
    train_agent(toy, tmp_path, "--num_timesteps", 64)
    train_agent(toy, tmp_path, "--num_timesteps", 96, "--resume")
    assert json.loads((tmp_path / "training.json").read_text())["texts"] == 96
    with pytest.raises(InputError, match="with --learning_rate 0.001, found --learning_rate 0.01"):
        train_agent(toy, tmp_path, "--num_timesteps", 128, "--resume", "--learning_rate", 0.01)
    newest = tmp_path / "checkpoints/agent_96_steps.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    capsys.readouterr()
    train_agent(toy, tmp_path, "--num_timesteps", 96, "--resume")
    assert "skipped agent_96_steps" in capsys.readouterr().out
    for path in (tmp_path / "checkpoints").glob("agent_*.zip"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="found only damaged ones"):
        train_agent(toy, tmp_path, "--num_timesteps", 128, "--resume")
    with pytest.raises(FileNotFoundError, match="leave --resume away"):
        train_agent(toy, tmp_path / "none", "--num_timesteps", 64, "--resume")


def test_training_stops_when_patience_ends(toy, tmp_path):
    """A learning rate of almost nothing: no evaluation beats the first, and the second without a new best ends it."""
    train_agent(toy, tmp_path, "--num_timesteps", 640, "--eval_freq", 32, "--patience", 2, "--learning_rate", 1e-12, "--final_learning_rate", 0)
    record = json.loads((tmp_path / "training.json").read_text())
    assert [row["texts"] for row in record["evaluations"]] == [0, 32, 64] and (tmp_path / "final_model.zip").exists()


@pytest.mark.parametrize("words", ["--credit text", "--group_size 4", "--flips 2", "--warm_start 64 --passes 2", "--without local importance", "--min_price 2 --max_price 2"])
def test_every_variant_trains_goes_on_and_decides(toy, tmp_path, words):
    """And going on gives the weights of a run that was not cut."""
    flags = [*words.split(), "--final_learning_rate", "1e-3"]  # the learning rate knows how long a run is meant to be
    train_agent(toy, tmp_path / "whole", "--num_timesteps", 96, *flags)
    train_agent(toy, tmp_path, "--num_timesteps", 64, *flags)
    train_agent(toy, tmp_path, "--num_timesteps", 96, "--resume", *flags)
    weights = [load_policy(folder / "final_model.zip").state_dict() for folder in (tmp_path / "whole", tmp_path)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0] if k != "calibration")
    keep = load_policy(tmp_path / "best_model.zip").keep_probability(np.array([[2, 3, 4]]), np.ones((1, 3), bool), 1.5)
    assert keep.shape == (1, 3) and np.isfinite(keep.numpy()).all()
    assert json.loads((tmp_path / "training.json").read_text())["texts"] == 96


def test_training_goes_on_from_another_agent(toy, tmp_path):
    """At a learning rate of nothing the new agent is the old one; one that was built otherwise is refused."""
    train_agent(toy, tmp_path / "first", "--num_timesteps", 64)
    best = tmp_path / "first/best_model.zip"
    train_agent(toy, tmp_path / "second", "--num_timesteps", 64, "--init_from", best, "--learning_rate", 1e-12, "--final_learning_rate", 0)
    first, second = (load_policy(path).state_dict() for path in (best, tmp_path / "second/final_model.zip"))
    for name in first:
        torch.testing.assert_close(first[name], second[name], msg=name)
    J = [json.loads((tmp_path / run / "training.json").read_text())["evaluations"] for run in ("first", "second")]
    assert J[1][0]["J"] == pytest.approx(max(row["J"] for row in J[0]), abs=1e-6)
    for words, said in ((("--passes", 2), "passes 2, found 1"), (("--credit", "text"), "credit text, found token")):
        with pytest.raises(InputError, match=f"--init_from .*expected a policy with {said}"):
            train_agent(toy, tmp_path / "third", "--num_timesteps", 64, "--init_from", best, *words)
    with pytest.raises(FileNotFoundError, match="nowhere.zip is missing"):
        train_agent(toy, tmp_path / "third", "--num_timesteps", 64, "--init_from", tmp_path / "nowhere.zip")


def test_gamma_changes_nothing(toy, tmp_path):
    weights = []
    for gamma in (0.1, 0.99):
        train_agent(toy, tmp_path / str(gamma), "--num_timesteps", 64, "--gamma", gamma)
        weights.append(load_policy(tmp_path / str(gamma) / "final_model.zip").state_dict())
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_held_out_evaluation_runs_every_text_at_every_price_once():
    assert [train.environments(n) for n in (48 * 3, 22 * 3, 7, 131)] == [48, 33, 7, 1]


def test_figures_are_per_token_and_absent_where_nothing_is_masked():
    infos = [{"sums": (10, 2, 3.0, 1)}, {"sums": (30, 6, 1.0, 5)}]
    assert mean_figures(infos) == {"keep_ratio": 0.8, "distortion": 0.1, "nats": 0.5, "top1": 0.75}
    assert mean_figures([{"sums": (10, 0, 0.0, 0)}]) == {"keep_ratio": 1.0, "distortion": 0.0}


def test_a_second_run_starts_a_log_of_its_own(toy, tmp_path):
    for seed in (1, 2):
        train_agent(toy, tmp_path, "--num_timesteps", 64, "--seed", seed)
    events = EventAccumulator(str(tmp_path / "tb_logs")).Reload()
    assert [p.step for p in events.Scalars("rollout/J")] == [32, 64]
    assert [p.step for p in events.Scalars("eval/J")][-1] == 64


def test_the_benchmark_prints_its_ratios(toy, capsys):
    benchmark.main(f"--data_path {toy / 'data/processed_data.json'} --reconstructor_path {toy / 'tuned'} --base_model {toy / 'base'} --max_length {LENGTH} --texts 4 --n_envs 4 --turns 2 --device cpu --quiet".split())
    said = capsys.readouterr().out
    assert said.count("agent is") == 2 and said.count("TokenCompressionVecEnv is") == 1 and "decisions/s" in said


def test_variants_are_compared_at_equal_time(toy, tmp_path, capsys):
    small = "--width 16 --layers 1 --heads 2 --embedding_dim 8 --n_steps 32 --n_envs 16 --batch_size 16 --eval_sequences 4 --eval_freq 32 --device cpu"
    words = ["--data_path", toy / "data/processed_data.json", "--reconstructor_path", toy / "tuned", "--output_dir", tmp_path, "--flags", small, "--quiet"]
    words += ["--variants", "own", "neighbours=--credit_window 2", "--minutes", "0.02", "--seeds", "0", "1", "--pilot_rollouts", "1"]
    compare.main([str(w) for w in words])
    said = capsys.readouterr().out
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert [v["name"] for v in record["variants"]] == ["own", "neighbours"] and "2 seeds" in said
    assert json.loads((tmp_path / "neighbours-1/training.json").read_text())["args"]["credit_window"] == 2
    for variant in record["variants"]:
        runs = [json.loads((tmp_path / f"{variant['name']}-{seed}/training.json").read_text()) for seed in (0, 1)]
        assert [run["texts"] for run in runs] == [variant["texts"]] * 2 and variant["texts"] % 32 == 0
        for J, run in zip(variant["J"], runs, strict=True):
            assert J == [compare.J_at(run["evaluations"], 1.2 * share) for share in (0.25, 0.5, 1)]
        assert np.mean(list(variant["J_at_prices"].values()), 0) == pytest.approx([run["evaluations"][-1]["J"] for run in runs], abs=1e-6) and len(variant["J_at_prices"]) == 3
    before = (tmp_path / "own-0/final_model.zip").stat().st_mtime_ns
    compare.main([str(w) for w in words])
    assert (tmp_path / "own-0/final_model.zip").stat().st_mtime_ns == before, "what is there is not run again"
    assert compare.J_at([{"seconds": 10, "J": 0.1}, {"seconds": 20, "J": 0.3}], 15) == pytest.approx(0.2)
    with pytest.raises(InputError, match="own-0: expected a run with --clip_range 0.3, found 0.2"):
        compare.main([str(w) for w in words if w != "own"] + ["--variants", "own=--clip_range 0.3"])
    found = {"name": "own", "J": [[0.1, 0.2, 0.3]], "J_at_prices": {"1.5": [0.3]}, "texts": 64, "minutes": [1.0]}
    assert "*" not in compare.format_table([found], 1.0) and "not comparable" in compare.format_table([found], 2.0)


@pytest.mark.parametrize("variants", [["a", "a"], ["a/b"], ["=--lr 1"], ['a=--width "'], ["a=--no_such_flag 1"], ["a=--width 10 --heads 4"]])
def test_impossible_variants_are_refused_before_any_is_trained(variants, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        compare.main(["--output_dir", str(tmp_path / "out"), "--variants", *variants])
    assert "error: " in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words", [["--num_timesteps", "10", "--n_steps", "64"], ["--min_price", "3", "--max_price", "2"], ["--width", "10", "--heads", "4"], ["--n_steps", "30", "--n_envs", "16"], ["--clip_range", "nan"], ["--seed", "-1"], ["--batch_size", "1"], ["--n_envs", "64", "--group_size", "5"], ["--flips", "2", "--credit_window", "1"], ["--credit", "text", "--warm_start", "64"]]
)
def test_impossible_flags_are_refused(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        train.parse_args(words)
    assert "expected" in capsys.readouterr().err


def test_bad_input_is_refused(toy, tmp_path):
    check_refusal("rl/train.py", "--data_path", toy / "data/processed_data.json", "--reconstructor_path", toy / "base", expect=["reconstructor.json is missing", "train_cpu.py"])
    with pytest.raises(InputError, match="expected at most 31"):
        train_agent(toy, tmp_path / "out", "--max_length", 400)
    (tmp_path / "broken.zip").write_bytes(b"PK not a zip")
    with pytest.raises(InputError, match="expected an agent"):
        load_policy(tmp_path / "broken.zip")
    train_agent(toy, tmp_path / "half", "--num_timesteps", 32)
    whole = (tmp_path / "half/best_model.zip").read_bytes()
    (tmp_path / "half/best_model.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="expected an agent"):
        load_policy(tmp_path / "half/best_model.zip")
    with pytest.raises(FileNotFoundError, match="Train one with"):
        load_policy(tmp_path / "nowhere.zip")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="--device cuda: expected"):
            find_device("cuda")


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
