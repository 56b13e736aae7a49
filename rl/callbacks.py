"""What is watched while the agent trains. README's section on TensorBoard defines every scalar."""

import time

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from tqdm import tqdm

from rl.ppo import save_agent


def mean_figures(infos):
    """Figures over all tokens of a list of info dicts: {keep_ratio, distortion, nats, top1}.

    nats and top1 are per masked token, and absent if nothing is masked.
    """
    tokens, masked, nats, right = np.sum([info["sums"] for info in infos], axis=0)
    found = {"keep_ratio": 1 - masked / tokens, "distortion": nats / tokens}
    if masked:
        found |= {"nats": nats / masked, "top1": right / masked}
    return {name: float(value) for name, value in found.items()}


class RolloutFigures(BaseCallback):
    """Logs J, keep ratio, distortion, nats and top-1 of the training rollouts, throughput and where the time goes; shows progress.

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
        spent = {"reconstructor": reconstructor, "policy": self.rollout_seconds - reconstructor, "update": self.model.update_seconds}
        for name, seconds in spent.items():
            self.logger.record(f"time/share_of_{name}", seconds / sum(spent.values()))
        self.progress.set_postfix(J=f"{np.mean(self.rewards):.3f}", keep=f"{means['keep_ratio']:.2f}", refresh=False)

    def _on_training_end(self):
        self.progress.close()


class HeldOutEvaluation(BaseCallback):
    """Every `eval_freq` texts: held-out texts, each at every evaluation price, by the thresholded policy.

    Before each evaluation the policy's λ is calibrated on those texts, so that the best model can meet a keep ratio.
    The best model is saved to `best_path`; `history` has a row per evaluation; `on_evaluated(self)` is called after each, `seconds()` says how long the run has taken.
    `patience`: training stops after so many evaluations without a new best; 0 never.
    """

    def __init__(self, env, texts, price_range, prices, eval_freq, best_path, on_evaluated, seconds, patience=0):
        super().__init__()
        self.env, self.texts, self.price_range, self.prices, self.eval_freq = env, texts, price_range, prices, eval_freq
        self.best_path, self.on_evaluated, self.seconds, self.patience = best_path, on_evaluated, seconds, patience
        self.history, self.own_seconds = [], 0.0

    @property
    def best_J(self):
        return max(row["J"] for row in self.history)

    def _on_rollout_start(self):
        if not self.history or self.num_timesteps - self.history[-1]["texts"] >= self.eval_freq:
            self.evaluate()

    def _on_step(self):
        return not self.exhausted()

    def _on_training_end(self):
        if self.history[-1]["texts"] < self.num_timesteps and not self.exhausted():
            self.evaluate()

    def exhausted(self):
        """Whether patience has come to an end."""
        best = max(range(len(self.history)), key=lambda i: self.history[i]["J"])
        return 0 < self.patience <= len(self.history) - 1 - best

    def decide(self):
        """The info dicts of all texts at all prices, in the environment's order: every price of a text, then the next text."""
        infos, observation = [], self.env.reset()
        while len(infos) < len(self.texts[0]) * len(self.prices):
            actions, _ = self.model.predict(observation, deterministic=True)
            observation, _, _, found = self.env.step(actions)
            infos += found
        return infos

    def evaluate(self):
        """Calibrate, evaluate, keep the best model, log."""
        began = self.seconds()
        self.model.policy.calibrate(*self.texts, *self.price_range)
        infos = self.decide()
        row = {"texts": self.num_timesteps, "seconds": began - self.own_seconds, "J": float(np.mean([info["episode"]["r"] for info in infos])), **mean_figures(infos)}
        for i, price in enumerate(self.prices):
            mine = infos[i :: len(self.prices)]
            row[f"J_at_{price:g}"] = float(np.mean([info["episode"]["r"] for info in mine]))
            row[f"keep_ratio_at_{price:g}"] = mean_figures(mine)["keep_ratio"]
        self.history.append(row)
        for name, value in row.items():
            if name not in ("texts", "seconds"):
                self.logger.record(f"eval/{name}", value)
        self.logger.dump(self.num_timesteps)
        if row["J"] == self.best_J:
            save_agent(self.model, self.best_path)
        self.on_evaluated(self)
        self.own_seconds += self.seconds() - began
        tqdm.write(f"{row['texts']:>9,} texts  held-out J {row['J']:.4f}  " + "  ".join(f"λ={p:g}: J {row[f'J_at_{p:g}']:.3f} keep {row[f'keep_ratio_at_{p:g}']:.2f}" for p in self.prices))
