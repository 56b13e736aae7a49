"""What is watched while the agent trains. README's section on TensorBoard defines every scalar."""

import time

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from tqdm import tqdm

FIGURES = ("keep_ratio", "distortion", "nats", "top1")


def mean_figures(infos):
    """Means of the environment's figures over a list of info dicts; texts with nothing masked have no nats or top-1."""
    means = {}
    for name in FIGURES:
        values = np.array([info[name] for info in infos], dtype=float)
        means[name] = float(np.nanmean(values)) if np.isfinite(values).any() else 0.0
    return means


class RolloutFigures(BaseCallback):
    """Logs J, keep ratio, distortion, nats and top-1 of the training rollouts, throughput, and shows progress."""

    def __init__(self, total, quiet=False):
        super().__init__()
        self.total, self.quiet = total, quiet

    def _on_training_start(self):
        self.started, self.texts, self.tokens = time.monotonic(), 0, 0
        self.progress = tqdm(total=self.total, unit="text", desc="train agent", disable=self.quiet)

    def _on_rollout_start(self):
        self.infos, self.rewards = [], []

    def _on_step(self):
        self.infos += self.locals["infos"]
        self.rewards += list(self.locals["rewards"])
        self.tokens += int(self.model._last_obs["valid"].sum())
        self.progress.update(self.training_env.num_envs)
        return True

    def _on_rollout_end(self):
        means = mean_figures(self.infos)
        self.logger.record("rollout/J", float(np.mean(self.rewards)))
        for name, value in means.items():
            self.logger.record(f"rollout/{name}", value)
        self.logger.record("time/decisions_per_second", self.tokens / (time.monotonic() - self.started))
        self.progress.set_postfix(J=f"{np.mean(self.rewards):.3f}", keep=f"{means['keep_ratio']:.2f}", refresh=False)

    def _on_training_end(self):
        self.progress.close()


class HeldOutEvaluation(EvalCallback):
    """Stable-Baselines3's EvalCallback on held-out texts, each at every evaluation price, by the thresholded policy.

    Before each evaluation the policy's λ is calibrated on those texts, so that `best_model.zip` can meet a keep
    ratio. `history` collects one row per evaluation.
    """

    def __init__(self, env, texts, price_range, prices, **kwargs):
        super().__init__(env, deterministic=True, warn=False, verbose=0, **kwargs)
        self.texts, self.price_range, self.prices, self.history = texts, price_range, prices, []

    def _log_success_callback(self, locals_, globals_):
        self.infos.append(locals_["info"])
        self.infos[-1]["price"] = self.prices[(len(self.infos) - 1) % len(self.prices)]

    def _on_step(self):
        if self.eval_freq <= 0 or self.n_calls % self.eval_freq:
            return True
        return self.evaluate_now()

    def evaluate_now(self):
        """Calibrate, evaluate, keep the best model and log, whatever the step."""
        self.model.policy.calibrate(*self.texts, *self.price_range)
        self.infos = []
        calls, self.n_calls, frequency, self.eval_freq = self.n_calls, 1, self.eval_freq, 1
        go_on = super()._on_step()
        self.n_calls, self.eval_freq = calls, frequency
        row = {"texts": self.num_timesteps, "J": float(self.last_mean_reward), **mean_figures(self.infos)}
        for price in self.prices:
            mine = [info for info in self.infos if info["price"] == price]
            row[f"J_at_{price:g}"] = float(np.mean([info["episode"]["r"] for info in mine]))
            row[f"keep_ratio_at_{price:g}"] = mean_figures(mine)["keep_ratio"]
        self.history.append(row)
        for name, value in row.items():
            if name != "texts":
                self.logger.record(f"eval/{name}", value)
        tqdm.write(f"{row['texts']:>9,} texts  held-out J {row['J']:.4f}  " + "  ".join(f"λ={p:g}: J {row[f'J_at_{p:g}']:.3f} keep {row[f'keep_ratio_at_{p:g}']:.2f}" for p in self.prices))
        return go_on
