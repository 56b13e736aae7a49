"""The environment: a text comes in, a keep mask goes out, and the reward weighs compression against reconstruction.

An episode is one text, decided in one step. The reward is the Lagrangian of rate and distortion, in nats per
token, J = λ (1 − R) − D, which is the sum over tokens of

    token_rewards_i = (masked_i (λ − nats_i) − gaps_i) / T                                   (1)

R is the share of tokens kept, D the nats of the masked tokens per original token, and λ ("price", nats per token
saved) what a token costs to send. gaps_i is 0 if the receiver is told where tokens are missing. If it has to find
that out, D has the nats of the gaps, too: gaps_i is token i's share of them (`models/reconstructor/gaps.py`), so that
keeping a token costs something as well. Padding earns nothing, costs nothing, counts nowhere.

One decision is about a token, or about all tokens of a word, whose actions are averaged.

Shapes: `B` texts, `L` = max_length, the padded length; `T` valid tokens of one text.
"""

import time

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from data.artifacts import InputError
from data.sequences import pad_batch
from models.agent.policy import observation_space
from models.reconstructor.masking import KEEP_THRESHOLD
from models.reconstructor.scoring import score
from models.reconstructor.words import Words, spread

# λ in nats per token saved: agents trained on these keep from 0.9 of a text to 0.4. Where gaps are found, a token costs more.
PRICES = {"told": (0.15, 12.0), "found": (0.5, 16.0)}


def token_rewards(keep_mask, valid, nats, price, gaps=0.0):
    """Equation (1): each token's share of J, (B, L) float32, from two bool masks, nats and gaps (B, L) and price (B,)."""
    lengths = valid.sum(1, keepdims=True)
    return (((valid & ~keep_mask) * (np.asarray(price)[:, None] - nats) - gaps) / lengths).astype(np.float32)


class TextStream:
    """Texts and prices in the order in which episodes take them.

    Random: every text once per epoch, prices log-uniform in `prices` = (low, high). Fixed (`shuffle=False`): the
    texts in order, each with every price of the tuple, again and again.
    """

    def __init__(self, sequences, prices, shuffle=True):
        if not len(sequences):
            raise InputError("expected at least one text, found none")
        self.sequences, self.prices, self.shuffle = sequences, tuple(float(p) for p in prices), shuffle
        self.seed(0)

    def seed(self, seed):
        """Start again from the first text, with random draws from `seed`."""
        self.rng = np.random.default_rng(seed)
        self.position, self.order = 0, np.zeros(0, np.int64)  # of the epoch, drawn when it begins

    def state(self):
        """Where the stream stands, as numbers and lists: what `restore` takes."""
        return {"rng": self.rng.bit_generator.state, "position": self.position, "order": self.order.tolist()}

    def restore(self, state):
        self.rng.bit_generator.state, self.position = state["rng"], state["position"]
        self.order = np.array(state["order"], dtype=np.int64)
        if self.position and self.shuffle and not np.array_equal(np.sort(self.order), np.arange(len(self.sequences))):
            raise ValueError(f"expected an order of {len(self.sequences)} texts, found {len(self.order)} numbers")

    def next(self):
        """The next text, int64 (T,), and its price."""
        count, position = len(self.sequences), self.position
        self.position += 1
        if not self.shuffle:
            text, price = divmod(position, len(self.prices))
            return self.sequences[text % count], self.prices[price]
        if position % count == 0:
            self.order = self.rng.permutation(count)
        price = np.exp(self.rng.uniform(*np.log((self.prices[0], self.prices[-1]))))
        return self.sequences[int(self.order[position % count])], float(price)


class Judge:
    """Pays for keep masks: one batched reconstructor call for any number of texts. `unit`: what one decision is about."""

    def __init__(self, reconstructor, max_length, unit="token"):
        self.reconstructor, self.max_length = reconstructor, max_length
        self.words = Words(reconstructor.tokenizer, unit)
        self.seconds = 0.0  # spent in the reconstructor

    def observe(self, texts, prices):
        """The observation of a batch of texts: a dict of arrays with first dimension B."""
        ids, valid = pad_batch(texts, 0, self.max_length)
        return {"tokens": ids.astype(np.int32), "valid": valid.astype(np.int8), "price": np.asarray(prices, np.float32)[:, None]}

    def by_word(self, actions, ids, valid):
        """The mean action of each word, at all of its tokens, (B, L)."""
        if self.words.unit == "token":
            return actions
        starts = self.words.starts(torch.as_tensor(ids), torch.as_tensor(valid))
        return spread(torch.as_tensor(actions, dtype=torch.float32), starts).numpy()

    def pay(self, observation, actions):
        """Rewards (B,) float32 and one info dict per text, for actions (B, L) in [0, 1].

        info: `token_rewards` (L,), which sum to the reward; `keep_ratio`; `sums`, figures of merit are made of them
        (`models/reconstructor/scoring.py`); `episode`, as Stable-Baselines3 has it.
        """
        actions, expected = np.asarray(actions), observation["tokens"].shape
        if actions.shape != expected or not np.isfinite(actions).all():
            found = f"shape {actions.shape}, all finite: {bool(np.isfinite(actions).all())}"
            raise ValueError(f"actions: expected finite numbers of shape {expected}, found {found}; pass one number per token")
        ids, valid = observation["tokens"].astype(np.int64), observation["valid"].astype(bool)
        keep_mask = (self.by_word(actions, ids, valid) > KEEP_THRESHOLD) | ~valid
        longest = int(valid.sum(1).max())  # nothing is computed over columns that are padding in every text
        began = time.monotonic()
        scored = score(self.reconstructor, ids[:, :longest], keep_mask[:, :longest], valid[:, :longest])
        self.seconds += time.monotonic() - began
        shares = np.zeros(expected, np.float32)
        price = observation["price"][:, 0]
        shares[:, :longest] = token_rewards(keep_mask[:, :longest], valid[:, :longest], scored.nats, price, scored.gaps)
        rewards = shares.sum(1)
        infos = [
            {"token_rewards": own, "keep_ratio": 1 - sums[1] / sums[0], "sums": sums, "episode": {"r": float(reward), "l": 1}}
            for own, sums, reward in zip(shares, scored.sums, rewards, strict=True)
        ]
        return rewards, infos


class TokenCompressionEnv(gymnasium.Env):
    """One text at a time. Action: `Box(0, 1, (max_length,))`, keep where it exceeds 0.5.

    `sequences`: anything with `len` and integer items that gives int arrays (T,), T <= max_length, such as
    `data.sequences.Sequences`. `prices`: (low, high), λ is drawn log-uniformly, in nats per token. `unit`: "token" or "word".
    """

    metadata = {"render_modes": []}

    def __init__(self, sequences, reconstructor, max_length, prices=PRICES["told"], unit="token"):
        self.judge, self.stream = Judge(reconstructor, max_length, unit), TextStream(sequences, prices)
        self.observation_space = observation_space(reconstructor.vocab_size, max_length, max(prices))
        self.action_space = spaces.Box(0.0, 1.0, (max_length,), np.float32)
        self._batch = None

    def reset(self, *, seed=None, options=None):
        """Draw the next text. `options` may hold "tokens", an int array (T,), and "price" to choose them instead."""
        super().reset(seed=seed)
        if seed is not None:
            self.stream.seed(seed)
        tokens, price = self.stream.next()
        options = options or {}
        self._batch = self.judge.observe([options.get("tokens", tokens)], [options.get("price", price)])
        return self._observation(), {}

    def _observation(self):
        return {key: value[0].copy() for key, value in self._batch.items()}

    def step(self, action):
        """Decide the text. Returns observation, J, True, False, info."""
        assert self._batch is not None, "reset() comes before step()"
        rewards, infos = self.judge.pay(self._batch, np.asarray(action)[None])
        return self._observation(), float(rewards[0]), True, False, infos[0]


class TokenCompressionVecEnv(VecEnv):
    """Many texts at once, judged by one batched reconstructor call. Pays what TokenCompressionEnv pays."""

    def __init__(self, sequences, reconstructor, max_length, num_envs, prices=PRICES["told"], shuffle=True, unit="token"):
        self.judge, self.stream = Judge(reconstructor, max_length, unit), TextStream(sequences, prices, shuffle)
        self.render_mode = None
        observations = observation_space(reconstructor.vocab_size, max_length, max(prices))
        super().__init__(num_envs, observations, spaces.Box(0.0, 1.0, (max_length,), np.float32))

    def _draw(self):
        self.observation = self.judge.observe(*zip(*(self.stream.next() for _ in range(self.num_envs))))
        return dict(self.observation)

    def reset(self):
        """Draw new texts; in fixed order, from the first one again."""
        if self._seeds[0] is not None or not self.stream.shuffle:
            self.stream.seed(self._seeds[0] or 0)
        self._reset_seeds()
        return self._draw()

    def step_async(self, actions):
        self._actions = actions

    def step_wait(self):
        rewards, infos = self.judge.pay(self.observation, self._actions)
        return self._draw(), rewards, np.ones(self.num_envs, bool), infos

    def state(self):
        """Everything that future texts and prices depend on, as numbers, lists and tensors: what `restore` takes."""
        observation = {name: torch.as_tensor(array) for name, array in self.observation.items()}
        return {"stream": self.stream.state(), "observation": observation}

    def restore(self, state):
        """Go back to where `state()` was called."""
        self.stream.restore(state["stream"])
        self.observation = {name: tensor.numpy() for name, tensor in state["observation"].items()}

    def close(self):
        """Nothing to release."""

    def get_attr(self, attr_name, indices=None):
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name, value, indices=None):
        setattr(self, attr_name, value)

    def env_method(self, method_name, *method_args, indices=None, **method_kwargs):
        return [getattr(self, method_name)(*method_args, **method_kwargs) for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False for _ in self._get_indices(indices)]
