"""PPO with credit per token.

`TokenPPO` keeps all of Stable-Baselines3's PPO (rollouts, schedules, callbacks, logging, save and load). Deviations from
PPO (Schulman et al. 2017) and from Stable-Baselines3's implementation:

1. The action of a text of L tokens is L decisions. Probability ratio, clipping, advantage and value are per token:
   the ratio is pi(k_i | text) / pi_old(k_i | text), and the loss is the mean over valid tokens. Stable-Baselines3 sums
   the log-probabilities over the text and gives all L decisions one advantage.
2. The reward of token i is its own share of J, from `info["token_rewards"]`, times the text's length: in nats per
   token rather than per text, so that its scale does not depend on the length. J, the text's reward, is what is logged.
3. Episodes have one step, so returns are rewards and the advantage is reward minus value: `gamma` and `gae_lambda`
   change nothing.
4. Advantages are divided by λ to the power of `price_exponent`: at a low λ less is at stake, and such texts would hardly
   count beside those at a high one. Then they are standardised over the valid tokens of a minibatch.
5. Token i's own share of J does not hold what masking it does to its neighbours' nats. With that alone the expected gradient
   is not that of J: the policy climbs towards decisions of which none gains by changing alone (tokens whose neighbours
   are mostly masked cost more, and are kept). Models are selected by J itself. With a credit window w, what the masked ones
   among the w tokens on either side earned beyond the critic's estimate is added to the advantage: that they came out dearer because
   token i was masked is then held against masking it. The critic's estimate takes the noise of their own decisions out.
6. Three more ways to give credit are there to be compared.
   Texts as a whole: Stable-Baselines3's own PPO, with `TokenCompressionPolicy(per_token=False)`.
7. With `TokenCompressionPolicy` the critic's loss is that of the decision taken, not of the state: see there. Squared
   errors are dominated by the dearest tokens, while decisions hang on whether a cheap one costs a little more or less than
   λ. So the critic's estimate ĉ of a masked token's nats c can have the Poisson loss ĉ − c ln ĉ instead: its minimum, too, is
   the mean, but an error weighs in proportion to its share of ĉ.
8. Where a policy decides in several passes, the last one acts and is what PPO trains; its ratio holds the change of the drafts,
   too. An earlier one only drafts: its critic is fitted to the same decisions, which adds to the critic's loss, and its
   probabilities to those of the last pass (cross entropy, whose floor is the entropy of the last pass), so that the draft is as near
   to what will be decided as it can be. Texts as a whole have no such losses.

The defaults of the class are plain PPO per token; those of rl/train.py are what was measured to be best. On texts of one
token the class computes what Stable-Baselines3's PPO computes (tested).
"""

import pickle
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.utils import explained_variance

from data.artifacts import InputError, written_aside
from models.agent.policy import TokenCompressionPolicy
from models.reconstructor.masking import KEEP_THRESHOLD

UNREADABLE = (  # what reading an agent's file can raise
    OSError, zipfile.BadZipFile, AssertionError, ValueError, KeyError, IndexError, TypeError, RuntimeError, AttributeError, ImportError, EOFError, pickle.UnpicklingError,
)
CRITIC_LOSSES = ("poisson", "mse")
PER_TOKEN = ("rewards", "returns", "values", "log_probs", "advantages")


def sum_of_neighbours(x, window):
    """For every place of the last axis the sum over the places at most `window` away, without the place itself."""
    before = np.concatenate([np.zeros_like(x[..., :1]), np.cumsum(x, -1)], -1)
    place = np.arange(x.shape[-1])
    return before[..., np.minimum(place + window + 1, len(place))] - before[..., np.maximum(place - window, 0)] - x


class TokenRolloutBuffer(DictRolloutBuffer):
    """A rollout buffer whose rewards, values, log-probabilities, advantages and returns are (steps, envs, L).

    `credit_window`: tokens on either side whose surprise a decision is credited with, see deviation 5.
    """

    def __init__(self, *args, credit_window=0, **kwargs):
        self.credit_window = credit_window
        super().__init__(*args, **kwargs)

    def reset(self):
        super().reset()
        for name in PER_TOKEN:
            setattr(self, name, np.zeros((self.buffer_size, self.n_envs, self.action_dim), dtype=np.float32))
        self.token_rewards = None  # of the step that is being added

    def add(self, obs, action, reward, episode_start, value, log_prob):
        """As in Stable-Baselines3, with value and log_prob (envs, L); `self.token_rewards` (envs, L) was set before."""
        for key in self.observations:
            self.observations[key][self.pos] = obs[key]
        lengths = obs["valid"].sum(1, keepdims=True)
        self.actions[self.pos] = action
        self.rewards[self.pos] = self.token_rewards * lengths
        self.values[self.pos] = value.cpu().numpy()
        self.log_probs[self.pos] = log_prob.cpu().numpy()
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def compute_returns_and_advantage(self, last_values, dones):
        assert dones.all(), "episodes have one step"
        self.returns = self.rewards.copy()
        self.advantages = self.returns - self.values
        if self.credit_window:
            # Masking was drawn with probability q, and the value is q times the critic's gain of masking.
            masked = (self.actions <= KEEP_THRESHOLD) & (self.observations["valid"] > 0)
            surprise = np.where(masked, self.returns - self.values / np.exp(self.log_probs), 0).astype(np.float32)
            self.advantages += sum_of_neighbours(surprise, self.credit_window)

    def _get_samples(self, batch_inds, env=None):
        samples = super()._get_samples(batch_inds, env)
        per_token = {
            "old_values": self.values, "old_log_prob": self.log_probs, "advantages": self.advantages, "returns": self.returns,
        }
        return samples._replace(**{name: self.to_torch(array[batch_inds]) for name, array in per_token.items()})


class FallingRate:
    """A learning rate that falls linearly, as a function of the share of training that remains. Files of agents refer to it by name."""

    def __init__(self, first, last):
        self.first, self.last = first, last

    def __call__(self, remaining):
        return self.last + remaining * (self.first - self.last)


class TimedPPO(PPO):
    """Stable-Baselines3's PPO, which times its updates and keeps to the learning rates of the policy's parameter groups.

    The value of what follows a rollout is not computed, since episodes have one step.
    """

    def __init__(self, *args, **kwargs):
        self.update_seconds = 0.0  # spent in `train`
        super().__init__(*args, **kwargs)

    def collect_rollouts(self, *args, **kwargs):
        self.policy.predict_values = lambda obs: torch.zeros(self.n_envs, device=self.device)
        try:
            return super().collect_rollouts(*args, **kwargs)
        finally:
            del self.policy.predict_values

    def _update_learning_rate(self, optimizers):
        super()._update_learning_rate(optimizers)
        for group in self.policy.optimizer.param_groups:
            group["lr"] *= group.get("share_of_rate", 1.0)


class TokenPPO(TimedPPO):
    """PPO whose ratio, value, advantage and clipping are per token. Takes PPO's arguments; needs a per-token policy.

    `price_exponent`: power of λ that advantages are divided by, see deviation 4. `critic_loss`: one of CRITIC_LOSSES, see
    deviation 7.
    """

    def __init__(self, *args, price_exponent=0.0, critic_loss="mse", **kwargs):
        kwargs["rollout_buffer_class"] = TokenRolloutBuffer
        if critic_loss == "poisson" and kwargs.get("clip_range_vf") is not None:
            raise ValueError("critic_loss 'poisson': expected no clip_range_vf, which clips values that can be squared errors' only")
        self.price_exponent, self.critic_loss = price_exponent, critic_loss
        super().__init__(*args, **kwargs)

    def _update_info_buffer(self, infos, dones=None):
        # Called between the environment's step and the buffer's `add`: the place to hand over the tokens' shares.
        self.rollout_buffer.token_rewards = np.stack([info["token_rewards"] for info in infos])
        super()._update_info_buffer(infos, dones)

    def critic_error(self, values, returns, masked, price):
        """The critic's loss, a mean, over decisions (N,) at these values of λ: `masked` says which of them masked their token."""
        if self.critic_loss == "mse":
            return F.mse_loss(returns, values)
        expected, found = (price - values)[masked], (price - returns)[masked]  # nats
        return F.poisson_nll_loss(expected, found, log_input=False, reduction="sum") / masked.sum().clamp(min=1)

    def minibatch_losses(self, batch, clip_range, clip_range_vf):
        """Policy, value, entropy and draft losses of one minibatch and its diagnostics, all means over valid tokens, the second and fourth summed over passes.
        """
        valid = batch.observations["valid"] > 0  # (B, L)
        (*drafts, decision), _ = self.policy.decisions(batch.observations)
        values, log_prob, entropy = self.policy.evaluate_decision(*decision, batch.actions)
        values, log_ratio, entropy = values[valid], (log_prob - batch.old_log_prob)[valid], entropy[valid]  # (N,) each
        stakes = batch.observations["price"].expand_as(valid)[valid] ** self.price_exponent
        advantages, returns = batch.advantages[valid] / stakes, batch.returns[valid]
        if self.normalize_advantage and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
        policy_loss = -torch.min(advantages * ratio, advantages * clipped).mean()
        if clip_range_vf is not None:
            old = batch.old_values[valid]
            values = old + (values - old).clamp(-clip_range_vf, clip_range_vf)
        masked, price = (batch.actions <= KEEP_THRESHOLD)[valid], batch.observations["price"].expand_as(valid)[valid]
        value_loss = self.critic_error(values, returns, masked, price)
        draft_loss = torch.zeros((), device=values.device)
        for logits, gain in drafts:
            expected = torch.where(masked, gain[valid], 0.0)
            value_loss = value_loss + self.critic_error(expected, returns, masked, price)
            draft_loss = draft_loss + F.binary_cross_entropy_with_logits(logits[valid], decision[0].detach().sigmoid()[valid])
        with torch.no_grad():
            approx_kl = (log_ratio.exp() - 1 - log_ratio).mean().item()  # Schulman's k3 estimator
            clip_fraction = ((ratio - 1).abs() > clip_range).float().mean().item()
        return policy_loss, value_loss, -entropy.mean(), draft_loss, approx_kl, clip_fraction

    def train(self):
        """Update the policy from the rollout buffer: `n_epochs` passes in minibatches of `batch_size` texts."""
        began = time.monotonic()
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        clip_range = self.clip_range(self._current_progress_remaining)
        clip_range_vf = self.clip_range_vf and self.clip_range_vf(self._current_progress_remaining)
        history = []
        for _ in range(self.n_epochs):
            stop = False
            for batch in self.rollout_buffer.get(self.batch_size):
                policy_loss, value_loss, entropy_loss, draft_loss, approx_kl, clip_fraction = self.minibatch_losses(batch, clip_range, clip_range_vf)
                loss = policy_loss + self.ent_coef * entropy_loss + self.vf_coef * value_loss + draft_loss
                history.append([policy_loss.item(), value_loss.item(), entropy_loss.item(), draft_loss.item(), loss.item(), approx_kl, clip_fraction])
                if not np.isfinite(history[-1]).all():
                    raise InputError(f"PPO: the loss is {loss.item()} after {self.num_timesteps} texts; lower --learning_rate")
                if stop := self.target_kl is not None and approx_kl > 1.5 * self.target_kl:
                    break
                self.policy.optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
                self.policy.optimizer.step()
            self._n_updates += 1
            if stop:
                break
        self._log_update(np.mean(history, axis=0), clip_range)
        self.update_seconds += time.monotonic() - began

    def _log_update(self, means, clip_range):
        valid = self.rollout_buffer.observations["valid"].reshape(-1, self.rollout_buffer.action_dim) > 0
        values, returns = self.rollout_buffer.values[valid], self.rollout_buffer.returns[valid]
        names = ("policy_gradient_loss", "value_loss", "entropy_loss", "draft_loss", "loss", "approx_kl", "clip_fraction")
        for name, value in zip(names, means, strict=True):
            self.logger.record(f"train/{name}", value)
        self.logger.record("train/entropy", -means[2])
        self.logger.record("train/explained_variance", explained_variance(values, returns))
        self.logger.record("train/clip_range", clip_range)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")


class TextPPO(TimedPPO):
    """Stable-Baselines3's PPO, all decisions of a text under one advantage; it only logs as TokenPPO does."""

    def train(self):
        began = time.monotonic()
        try:
            super().train()
        except ValueError as error:  # PyTorch's Bernoulli, of a policy that says NaN
            raise InputError(f"PPO: no decisions after {self.num_timesteps} texts ({str(error).splitlines()[0]}); lower --learning_rate") from None
        tokens = self.rollout_buffer.observations["valid"].sum() / len(self.rollout_buffer.observations["valid"])
        self.logger.record("train/entropy", -self.logger.name_to_value["train/entropy_loss"] / tokens)
        self.update_seconds += time.monotonic() - began


AGENTS = {"token": TokenPPO, "text": TextPPO}  # by --credit


def save_agent(agent, path):
    """Save an agent, replacing the file of that name in one step."""
    with written_aside(path) as temporary:
        agent.save(temporary)


def load_policy(path, device="cpu"):
    """The policy of an agent saved by rl/train.py, ready to decide.

    Raises FileNotFoundError if there is no such file, InputError if it is not such an agent.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: expected an agent's file, found a directory; try {path / 'best_model.zip'}")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected an agent. Train one with: python rl/train.py --output_dir {path.parent}")
    try:
        agent = TokenPPO.load(path, device=device)
    except UNREADABLE as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise InputError(f"{path}: expected an agent that rl/train.py wrote, found: {reason[0]}; train one with: python rl/train.py") from None
    if not isinstance(agent.policy, TokenCompressionPolicy):
        raise InputError(f"{path}: expected a TokenCompressionPolicy, found {type(agent.policy).__name__}; train one with: python rl/train.py")
    agent.policy.set_training_mode(False)
    return agent.policy
