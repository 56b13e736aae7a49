"""What is watched while the agent trains. README's section on TensorBoard defines every scalar."""

import time

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
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

    Before each evaluation the policy's λ is calibrated on those texts, so that the best model can meet a keep ratio.
    The best model is saved to `best_path`; `history` has a row per evaluation; `on_evaluated(self)` is called after each.
    """

    def __init__(self, env, texts, price_range, prices, best_path, on_evaluated, **kwargs):
        super().__init__(env, deterministic=True, warn=False, verbose=0, **kwargs)
        self.texts, self.price_range, self.prices, self.history = texts, price_range, prices, []
        self.best_path, self.on_evaluated = best_path, on_evaluated

    def _log_success_callback(self, locals_, globals_):
        # Called after each episode, in the order of the environment's texts: every price of a text, then the next text.
        self.infos.append(locals_["info"])

    def _on_step(self):
        return self.evaluate_now() if self.n_calls % self.eval_freq == 0 else True

    def evaluate_now(self):
        """Calibrate, evaluate, keep the best model, log, whatever the step."""
        self.model.policy.calibrate(*self.texts, *self.price_range)
        self.infos, best = [], self.best_mean_reward
        calls, frequency = self.n_calls, self.eval_freq
        self.n_calls = self.eval_freq = 1
        go_on = super()._on_step()
        self.n_calls, self.eval_freq = calls, frequency
        row = {"texts": self.num_timesteps, "J": float(self.last_mean_reward), **mean_figures(self.infos)}
        for i, price in enumerate(self.prices):
            mine = self.infos[i :: len(self.prices)]
            row[f"J_at_{price:g}"] = float(np.mean([info["episode"]["r"] for info in mine]))
            row[f"keep_ratio_at_{price:g}"] = mean_figures(mine)["keep_ratio"]
        self.history.append(row)
        for name, value in row.items():
            if name != "texts":
                self.logger.record(f"eval/{name}", value)
        self.logger.dump(self.num_timesteps)
        if self.best_mean_reward > best:
            save_agent(self.model, self.best_path)
        self.on_evaluated(self)
        tqdm.write(f"{row['texts']:>9,} texts  held-out J {row['J']:.4f}  " + "  ".join(f"λ={p:g}: J {row[f'J_at_{p:g}']:.3f} keep {row[f'keep_ratio_at_{p:g}']:.2f}" for p in self.prices))
        return go_on
