"""The toy problem is learned, and its controls are not: `python rl/test_learning.py` or pytest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest

from rl.conftest import LENGTH, agent_on
from rl.env import TokenCompressionVecEnv


class ShuffledRewards(TokenCompressionVecEnv):
    """Negative control: the shares of J are dealt out at random among all tokens of the texts decided at one time."""

    control = np.random.default_rng(0)

    def step_wait(self):
        observation, rewards, dones, infos = super().step_wait()
        shares = self.control.permutation(np.concatenate([info["token_rewards"] for info in infos]))
        for info, row in zip(infos, shares.reshape(len(infos), -1), strict=True):
            info["token_rewards"] = row
        return observation, rewards, dones, infos


def learned(reconstructor, texts, unit="token", critic_only=False):
    """J at λ = 1.2 of an agent that was trained on its rewards, and of one that was trained on shuffled ones.

    PPO's decisions are sampled, because a threshold would make a rule of the faintest bias; those of the critic alone are not.
    """
    J = {}
    for cls in (TokenCompressionVecEnv, ShuffledRewards):
        env = cls(texts, reconstructor, LENGTH, 64, (1.2, 1.200001), unit=unit)
        agent = agent_on(env, batch_size=16, critic_only=critic_only).learn(64 * 8)
        env = TokenCompressionVecEnv(texts, reconstructor, LENGTH, 192, (1.2,), False, unit)
        J[cls] = env.step(agent.predict(env.reset(), deterministic=critic_only)[0])[1].mean()
    return J[TokenCompressionVecEnv], J[ShuffledRewards]


@pytest.mark.parametrize("critic_only", [False, True])
def test_agent_learns_the_planted_redundancy_and_the_control_does_not(reconstructor, texts, critic_only):
    """The best mask drops the echoes, which cost nothing: J = 1.2 / 2 = 0.6. Keeping all pays 0."""
    agents, control = learned(reconstructor, texts, critic_only=critic_only)
    assert agents > 0.55 and control < 0.2, (agents, control)


def test_it_is_learned_where_the_gaps_have_to_be_found(finder, texts):
    """A receiver that is used to it finds all echoes missing: that costs next to nothing, where random gaps cost much."""
    ids = np.stack(list(texts))
    echo = np.isin(ids, finder.tokenizer.convert_tokens_to_ids(list("ABCD")))
    random = np.random.default_rng(0).random(ids.shape) < 0.5
    gaps = [finder.predict(ids, keep_mask).gaps.sum(1).mean().item() / LENGTH for keep_mask in (~echo, random)]
    assert gaps[0] < 0.06 and gaps[1] > 0.25, gaps
    agents, control = learned(finder, texts, "word")
    assert agents > 0.45 and control < 0.1, (agents, control)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
