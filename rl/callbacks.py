"""What is watched while the agent trains. `rl/README.md` defines every scalar."""

import time

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm


def mean_figures(infos):
    """Figures over all tokens of a list of info dicts: {keep_ratio, distortion, gaps, nats, top1}.

    nats and top1 are per masked token, and absent if nothing is masked.
    """
    tokens, masked, nats, right, *_, gaps = np.sum([info["sums"] for info in infos], axis=0)
    found = {"keep_ratio": 1 - masked / tokens, "distortion": (nats + gaps) / tokens, "gaps": gaps / tokens}
    if masked:
        found |= {"nats": nats / masked, "top1": right / masked}
    return {name: float(value) for name, value in found.items()}


class RolloutFigures(BaseCallback):
    """Logs J, keep ratio, distortion, nats and top-1 of the training rollouts, throughput and where the time goes; shows
    progress.

    Comes last in a list of callbacks, so that what the others do before a rollout is not counted as part of it.
    """

    def __init__(self, total, quiet=False):
        super().__init__()
        self.total, self.quiet = total, quiet

    def _on_training_start(self):
        self.started, self.tokens, self.rollout_seconds = time.monotonic(), 0, 0.0
        self.judge_before = self.training_env.judge.seconds
        self.progress = tqdm(total=self.total, initial=self.num_timesteps, unit="text", desc="train agent", disable=self.quiet)

    def _on_rollout_start(self):
        self.infos, self.rewards, self.rollout_started = [], [], time.monotonic()

    def _on_step(self):
        self.infos += self.locals["infos"]
        self.rewards += list(self.locals["rewards"])
        self.tokens += sum(info["sums"][0] for info in self.locals["infos"])
        self.progress.update(self.training_env.num_envs)
        return True

    def _on_rollout_end(self):
        self.rollout_seconds += time.monotonic() - self.rollout_started
        means = mean_figures(self.infos)
        self.logger.record("rollout/J", float(np.mean(self.rewards)))
        for name, value in means.items():
            self.logger.record(f"rollout/{name}", value)
        self.logger.record("time/decisions_per_second", self.tokens / (time.monotonic() - self.started))
        reconstructor = self.training_env.judge.seconds - self.judge_before
        policy = self.rollout_seconds - reconstructor
        spent = {"reconstructor": reconstructor, "policy": policy, "update": self.model.update_seconds}
        for name, seconds in spent.items():
            self.logger.record(f"time/share_of_{name}", seconds / sum(spent.values()))
        self.progress.set_postfix(J=f"{np.mean(self.rewards):.3f}", keep=f"{means['keep_ratio']:.2f}", refresh=False)

    def _on_training_end(self):
        self.progress.close()


def held_out_figures(agent, env, prices):
    """Figures of held-out texts, decided without chance: those of `mean_figures`, and J, over all prices and at each.

    `env`: a TokenCompressionVecEnv that runs every text at every one of `prices`, in order, each text as often as any other.
    """
    episodes, infos, observation = len(env.stream.sequences) * len(prices), [], env.reset()
    while len(infos) < episodes:
        observation, _, _, found = env.step(agent.predict(observation, deterministic=True)[0])
        infos += found
    mean_J = lambda some: float(np.mean([info["episode"]["r"] for info in some]))
    figures = {"J": mean_J(infos), **mean_figures(infos)}
    for i, price in enumerate(prices):
        mine = infos[i :: len(prices)]
        means = mean_figures(mine)
        figures |= {f"J_at_{price:g}": mean_J(mine)} | {f"{name}_at_{price:g}": means[name] for name in ("keep_ratio", "gaps")}
    return figures
