"""PPO with credit per token.

`TokenPPO` keeps Stable-Baselines3's PPO (schedules, callbacks, logging, the training loop) and has a rollout and an update of
its own. Deviations from PPO (Schulman et al. 2017) and from Stable-Baselines3's implementation:

1. The action of a text of L tokens is L decisions. Probability ratio, clipping, advantage and value are per token: the ratio
   is pi(k_i | text) / pi_old(k_i | text), and the loss is the mean over valid tokens. Stable-Baselines3 sums the
   log-probabilities over the text and gives all L decisions one advantage: J .123 where this has .294, at equal time and with
   one pass (`rl/README.md`).
2. The reward of token i is its own share of J, from `info["token_rewards"]`, times the text's length: in nats per token
   rather than per text, so that its scale does not depend on the length. J, the text's reward, is what is logged.
3. Episodes have one step, so returns are rewards and the advantage is reward minus value: `gamma` and `gae_lambda` change
   nothing.
4. Advantages are divided by λ to the power PRICE_EXPONENT: at a low λ less is at stake, and such texts would hardly count
   beside those at a high one. Then they are standardised over the valid tokens of a minibatch.
5. Token i's own share of J does not hold what masking it does to its neighbours' nats. So what the CREDIT_WINDOW tokens on
   either side earned beyond the critic's estimate is added to the advantage: that they came out dearer because token i was
   masked is then held against masking it. The critic's estimate takes the noise of their own decisions out.
6. The critic's loss is that of the decision taken, not of the state (`TokenCompressionPolicy`), and it is Poisson's: ĉ − c
   ln ĉ for the estimate ĉ of a masked token's nats c, and the same for what a kept one costs. Its minimum is the mean, as that
   of squared errors, but an error weighs in proportion to its share of ĉ: decisions hang on whether a cheap token costs a
   little more or less than λ.
7. A text is decided twice. The second pass acts and is what PPO trains. The first only drafts: its critic is fitted to the
   same decisions, and its probabilities to those of the second (cross entropy), so that the draft is as near to what will be
   decided as it can be.
8. Reading is the rollout's work. What the reader makes of the text and of the rollout's draft is kept for all epochs of the
   update, in 16 bit; the draft is part of what the second pass observes and does not change during the update. Where a
   rollout's readings would take more than READINGS_BYTES, they are not kept but read again, minibatch by minibatch, from the
   same drafts.
9. Where one decision is about a word, ratio, clipping, entropy and losses of the policy count once per word, and a word's
   advantage is the sum over its tokens, with the neighbours of its ends. The critic estimates tokens all the same.
"""

import functools
import time
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from stable_baselines3 import PPO
from stable_baselines3.common.utils import explained_variance

from data.artifacts import InputError
from models.agent.reader import SMALLEST_COST
from models.reconstructor.masking import KEEP_THRESHOLD
from models.reconstructor.words import spread

CREDIT_WINDOW = 2  # tokens; the best of 0, 1, 2 and 4 (eval/results/NOTES.md)
PRICE_EXPONENT = 0.5  # between 0, where a low λ hardly counts, and 1, where all count alike (eval/results/NOTES.md)
READINGS_BYTES = 512 * 2**20  # of a rollout's readings


def sum_of_neighbours(x, starts, window):
    """For every word of a row of x (B, T) the sum over the places at most `window` away from it, without its own; at each token.

    starts (B, T) bool: where words begin; everywhere, if every token is one.
    """
    sums = F.pad(x.cumsum(1), (window + 1, window))
    sums[:, -window:] = sums[:, -window - 1, None]
    through = sums[:, 2 * window + 1 :] - sums[:, : -2 * window - 1]  # of places i - window to i + window
    before = sums[:, window:-window - 1] - sums[:, : -2 * window - 1]  # of places i - window to i - 1
    place = torch.arange(x.shape[1], device=x.device)
    first = torch.where(starts, place, 0).cummax(1).values
    ends = F.pad(starts[:, 1:], (0, 1), value=True)
    last = torch.where(ends, place, x.shape[1]).flip(1).cummin(1).values.flip(1)
    after = through - before - x  # of places i + 1 to i + window
    return before.gather(1, first) + after.gather(1, last)


class Samples(NamedTuple):
    """Decided texts: `texts` is ids (B, T), valid (B, T), price (B, 1); readings; all others (B, T).

    starts: where a word begins, everywhere if tokens are decided; drafts: probabilities of keeping of the first pass; gains and
    keeping: λ − ĉ and ê, what the critic says that masking gains and keeping costs; returns: what was gained.
    """

    ids: torch.Tensor
    valid: torch.Tensor
    price: torch.Tensor
    starts: torch.Tensor
    drafts: torch.Tensor
    masked: torch.Tensor
    log_probs: torch.Tensor
    gains: torch.Tensor
    keeping: torch.Tensor
    returns: torch.Tensor
    text: torch.Tensor | None
    draft: torch.Tensor | None

    @property
    def texts(self):
        return self.ids, self.valid, self.price

    @property
    def decided(self):
        """The places (B, T) that stand for a decision each: the first tokens of words."""
        return self.valid & self.starts

    @property
    def values(self):
        """V = (1 − p) (λ − ĉ) − p ê: the critic's value of the state, (B, T)."""
        masking = torch.where(self.masked, self.log_probs.exp(), 1 - self.log_probs.exp())
        return masking * self.gains - (1 - masking) * self.keeping

    @property
    def advantages(self):
        """Deviations 3, 5 and 9, (B, T)."""
        expected = torch.where(self.masked, self.gains, -self.keeping)
        surprise = torch.where(self.valid, self.returns - expected, 0.0)
        own = spread(torch.where(self.valid, self.returns - self.values, 0.0), self.starts, mean=False)
        return own + sum_of_neighbours(surprise, self.starts, CREDIT_WINDOW)


class TokenRolloutBuffer:
    """The Samples of a rollout. Made by Stable-Baselines3 with the arguments of its own buffers."""

    def __init__(self, buffer_size, observation_space, action_space, device="cpu", n_envs=1, **_):
        self.texts, self.device = buffer_size * n_envs, device
        self.reset()

    def reset(self):
        self.steps = []

    def add(self, samples):
        """Append one step's Samples; readings are kept in 16 bit if those of the whole rollout fit into READINGS_BYTES."""
        size = sum(part.numel() * 2 for part in (samples.text, samples.draft)) / len(samples.ids)
        kept = size * self.texts <= READINGS_BYTES
        text, draft = ((part.half() if kept else None) for part in (samples.text, samples.draft))
        self.steps.append(samples._replace(text=text, draft=draft))

    def all(self):
        """The Samples of all steps as one, which takes their place."""
        if len(self.steps) > 1:
            joined = (None if parts[0] is None else torch.cat(parts) for parts in zip(*self.steps, strict=True))
            self.steps = [Samples(*joined)]
        return self.steps[0]

    def get(self, batch_size):
        """Yield the Samples in random minibatches of `batch_size` texts, cut to the longest of them."""
        everything = self.all()
        order = np.random.permutation(len(everything.ids))
        for first in range(0, len(order), batch_size):
            rows = torch.as_tensor(order[first : first + batch_size], device=self.device)
            longest = int(everything.valid[rows].sum(1).max())
            yield Samples(*(x if x is None else x[rows] if x.shape[1] == 1 else x[rows, :longest] for x in everything))


class TokenPPO(PPO):
    """PPO whose ratio, value, advantage and clipping are per token. Takes PPO's arguments; needs a TokenCompressionPolicy."""

    update_seconds = 0.0  # spent in `train`

    def __init__(self, *args, **kwargs):
        super().__init__(*args, rollout_buffer_class=TokenRolloutBuffer, **kwargs)

    @torch.no_grad()
    def sample(self, observation):
        """Decide a batch of observations: actions (B, L), and their Samples but for the returns."""
        batch = self.policy.features_extractor.unpack({k: torch.as_tensor(v, device=self.device) for k, v in observation.items()})
        logits, gains, keeping, readings = self.policy.decisions(*batch)
        actions = self.policy.sample(logits, *batch[:2])
        log_probs = F.logsigmoid(torch.where(actions > KEEP_THRESHOLD, logits, -logits))
        starts, drafts = self.policy.reader.words.starts(*batch[:2]), readings[1][..., 0]
        masked = actions <= KEEP_THRESHOLD
        return actions, Samples(*batch, starts, drafts, masked, log_probs, gains, keeping, None, *readings)

    def collect_rollouts(self, env, callback, rollout_buffer, n_rollout_steps):
        """Decide `n_rollout_steps` batches of texts. False if a callback ends training."""
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        callback.on_rollout_start()
        for _ in range(n_rollout_steps):
            actions, samples = self.sample(self._last_obs)
            self._last_obs, rewards, dones, infos = env.step(actions.cpu().numpy())
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            shares = torch.as_tensor(np.stack([info["token_rewards"] for info in infos]), device=self.device)
            rollout_buffer.add(samples._replace(returns=shares * samples.valid.sum(1, keepdim=True)))
        callback.on_rollout_end()
        return True

    def critic_error(self, cost, keeping, samples):
        """Poisson's loss of estimated nats (B, T): of `cost`, mean over masked tokens, and of `keeping`, over kept ones."""
        masked, kept = samples.masked & samples.valid, ~samples.masked & samples.valid
        parts = [(cost[masked], (samples.price - samples.returns)[masked])]
        if self.policy.reader.found:
            parts.append((keeping[kept] + SMALLEST_COST, -samples.returns[kept]))
        loss = functools.partial(F.poisson_nll_loss, log_input=False, reduction="sum")
        return sum(loss(estimate, found) / max(1, len(found)) for estimate, found in parts)

    def losses(self, samples, clip_range):
        """{name: loss} of one minibatch and its diagnostics, entropy, approx_kl and clip_fraction: means over decisions.

        value_loss is summed over both passes, draft_loss is the first pass's cross entropy with the second.
        """
        text, draft, decisions = samples.text, samples.draft, samples.decided
        if text is None:
            text, draft = self.policy.read(*samples.texts, draft=samples.drafts)
        first, *first_costs = self.policy.decide(*samples.texts, text)
        logits, *costs = self.policy.decide(*samples.texts, text, draft)
        found = {"value_loss": self.critic_error(*costs, samples) + self.critic_error(*first_costs, samples)}
        log_ratio = (F.logsigmoid(torch.where(samples.masked, -logits, logits)) - samples.log_probs)[decisions]
        ratio, decided = log_ratio.exp(), logits.detach().sigmoid()[decisions]
        if not self.policy.critic_only:
            advantages = (samples.advantages / samples.price**PRICE_EXPONENT)[decisions]
            if len(advantages) > 1:
                advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
            clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
            found["policy_gradient_loss"] = -torch.min(advantages * ratio, advantages * clipped).mean()
            found["draft_loss"] = F.binary_cross_entropy_with_logits(first[decisions], decided)
        with torch.no_grad():
            entropy = F.binary_cross_entropy_with_logits(logits[decisions], decided)
            approx_kl = (ratio - 1 - log_ratio).mean()  # Schulman's k3 estimator
            clip_fraction = ((ratio - 1).abs() > clip_range).float().mean()
        return found, {"entropy": entropy, "approx_kl": approx_kl, "clip_fraction": clip_fraction}

    def train(self):
        """Update the policy from the rollout buffer: `n_epochs` passes in minibatches of `batch_size` texts."""
        began = time.monotonic()
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        clip_range, history = self.clip_range(self._current_progress_remaining), []
        for _ in range(self.n_epochs):
            for samples in self.rollout_buffer.get(self.batch_size):
                found, diagnostics = self.losses(samples, clip_range)
                loss = sum(self.vf_coef * value if name == "value_loss" else value for name, value in found.items())
                self.policy.optimizer.zero_grad()
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
                figures = {**found, "loss": loss, **diagnostics}
                *values, norm = torch.stack([*figures.values(), norm]).tolist()  # one wait for the device
                if not np.isfinite([*values, norm]).all():
                    found = f"found {loss.item()} and {norm} after {self.num_timesteps} texts"
                    raise InputError(f"PPO: expected a finite loss and gradient, {found}; lower --learning_rate")
                history.append(dict(zip(figures, values, strict=True)))
                self.policy.optimizer.step()
            self._n_updates += 1
        rollout = self.rollout_buffer.all()
        values, returns = (x[rollout.valid].cpu().numpy() for x in (rollout.values, rollout.returns))
        for name in history[0]:
            self.logger.record(f"train/{name}", float(np.mean([row[name] for row in history])))
        self.logger.record("train/explained_variance", explained_variance(values, returns))
        self.logger.record("train/clip_range", clip_range)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.update_seconds += time.monotonic() - began
