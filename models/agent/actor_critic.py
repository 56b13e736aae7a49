"""Actor and critic per token, as a Stable-Baselines3 policy, and how a trained one decides.

A text is decided twice. The first pass drafts; the reader reads the draft as the receiver would; the second pass, which sees
what came of it, decides. Shapes: `B` texts, `T` tokens (`L` in an observation, which is padded). Prices λ are in nats per
token.
"""

import torch
import torch.nn.functional as F
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from torch import nn

from data.artifacts import InputError
from models.agent.policy import TokenCompressionFeaturesExtractor
from models.agent.reader import SMALLEST_COST
from models.reconstructor.loss import check_finite
from models.reconstructor.words import spread

BISECTIONS = 6  # of the range of λ; what is left of 0.15 to 12 is a factor of 1.07
FIRST_COST = 3.0  # nats that an untrained critic expects of a masked token
FIRST_KEEPING = -2.0  # before softplus, .13 nats: what it expects that a kept token adds to the gaps around it
FIRST_SHARPNESS = 2.0  # of the untrained policy: at λ = 2 it keeps 69 % of the tokens, and explores both decisions at every λ


class TokenCompressionPolicy(MultiInputActorCriticPolicy):
    """Actor and critic per token on shared features, for `rl.ppo.TokenPPO`: every quantity is (B, L).

    The reward of a token is known but for two numbers, the nats c_i that it would cost if it were masked, its own and its share
    of a gap's, and e_i, what it costs if it is kept to find out that nothing is missing beside it: λ − c_i if masked, −e_i
    if kept. So the critic estimates both, and its value is V_i = (1 − p_i) (λ − ĉ_i) − p_i ê_i. The actor starts from
    these estimates, since a token is worth masking if c_i < λ + e_i:

        logit p_i = s log(ĉ_i / (λ + ê_i)) + residual_i                                            (1)

    with a learned sharpness s. Where the gaps are told, e_i is 0. Where a decision is about a word, ĉ, ê and the residual are
    means over its tokens, and all of them have its logit. Gradients of the policy loss do not reach ĉ and ê, nor those of the
    critic's loss p. With `critic_only` the residual stays 0 and s as it is, so that a token is kept where ĉ_i > λ + ê_i: the
    control that shows what the actor is worth. `supervised`: learned from masks (rl/train_proposer.py), it decides in the first
    pass, with ĉ and ê as they were before any training.

    `prices`: lowest and highest λ that it was trained for. `reader` and sizes of the network: in `features_extractor_kwargs`.
    Of Stable-Baselines3's policies it has `predict`; the deterministic action is the probability of keeping, not its rounding.
    """

    def __init__(self, *args, prices=(0.15, 12.0), critic_only=False, supervised=False, **kwargs):
        self.prices, self.critic_only, self.supervised = tuple(prices), critic_only, supervised
        kwargs.setdefault("features_extractor_class", TokenCompressionFeaturesExtractor)
        super().__init__(*args, **{**kwargs, "net_arch": [], "ortho_init": False})

    def _build(self, lr_schedule):
        self.action_net, self.value_net = nn.Linear(self.features_dim, 1), nn.Linear(self.features_dim, 1 + self.reader.found)
        nn.init.normal_(self.action_net.weight, std=0.0 if self.critic_only else 0.01)
        nn.init.zeros_(self.action_net.bias)
        with torch.no_grad():
            self.value_net.bias.copy_(torch.tensor([FIRST_COST, FIRST_KEEPING][: 1 + self.reader.found]))
        self.sharpness = nn.Parameter(torch.tensor(FIRST_SHARPNESS))
        if self.critic_only:
            self.action_net.requires_grad_(False)
            self.sharpness.requires_grad_(False)
        if self.supervised:
            nn.init.zeros_(self.value_net.weight)
            self.value_net.requires_grad_(False)
        self.mlp_extractor = nn.Identity()
        trained = [p for p in self.parameters() if p.requires_grad]
        self.optimizer = self.optimizer_class(trained, lr=lr_schedule(1), **self.optimizer_kwargs)

    @property
    def network(self):
        return self.features_extractor.network

    @property
    def reader(self):
        return self.features_extractor.reader

    @property
    def lm_passes(self):
        """What a decision costs, in passes of the whole model that it reads with, without its output layer."""
        return self.reader.blocks / self.reader.depth if self.supervised else self.reader.passes

    def own_state(self):
        """The tensors that are the agent's own, by name: what its file holds."""
        shared = ("pi_features_extractor.", "vf_features_extractor.")  # Stable-Baselines3's second and third name of one module
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(shared)}

    def decide(self, ids, valid, price, text, draft=None):
        """One pass: logits of keeping, equation (1), and estimated nats of a token if masked and if kept, (B, T) each."""
        features = self.network(ids, valid, price, text, draft)
        cost, *keeping = F.softplus(self.value_net(features)).unbind(-1)
        cost, keeping = cost + SMALLEST_COST, keeping[0] if keeping else torch.zeros_like(cost)
        residual, ours, theirs = self.action_net(features).squeeze(-1), cost.detach(), keeping.detach()
        if self.reader.words.unit == "word":
            starts = self.reader.words.starts(ids, valid)
            residual, ours, theirs = (spread(x, starts) for x in (residual, ours, theirs))
        logits = self.sharpness * (ours / (price + theirs)).log() + residual
        if not torch.is_grad_enabled():  # an update has a check and a remedy of its own
            name = f"the agent that reads with {self.reader.reconstructor.name}"
            check_finite(name, *(x[valid] for x in (logits, cost, keeping)))
        return logits, cost, keeping

    @torch.no_grad()
    def read(self, ids, valid, price, text=None, draft=None):
        """What a second pass needs of texts ids (B, T) int64, valid (B, T) bool at λ price (B, 1): the two readings.

        That is what the reader makes of the texts, (B, T, S), and of their drafts, (B, T, 1 + S + E). `text`: the first,
        if known; draft (B, T): the drafts, if decided. A supervised policy needs no second one: None.
        """
        text = self.reader.read(ids, valid) if text is None else text
        if self.supervised:
            return text, None
        draft = torch.sigmoid(self.decide(ids, valid, price, text)[0]) if draft is None else draft
        return text, self.reader.reread(ids, valid, draft)

    def decisions(self, ids, valid, price):
        """Of the second pass, (B, T) each: logits of keeping, and by the critic what masking gains, λ − ĉ, and keeping costs,
        ê; both readings."""
        readings = self.read(ids, valid, price)
        logits, cost, keeping = self.decide(ids, valid, price, *readings)
        return logits, price - cost, keeping, readings

    def sample(self, logits, ids, valid):
        """Decisions drawn by logits (B, T), 1 to keep; one for all tokens of a word."""
        drawn = torch.bernoulli(logits.sigmoid())
        if self.reader.words.unit == "token":
            return drawn
        place = torch.arange(ids.shape[1], device=ids.device)
        first = torch.where(self.reader.words.starts(ids, valid), place, 0).cummax(1).values
        return drawn.gather(1, first)

    def _predict(self, observation, deterministic=False):
        ids, valid, price = self.features_extractor.unpack(observation)
        logits = self.decisions(ids, valid, price)[0]
        return logits.sigmoid() if deterministic else self.sample(logits, ids, valid)

    def _as_batch(self, ids, valid, price):
        """Arrays or tensors as the network takes them: ids (B, T) int64, valid (B, T) bool, price (B, 1) float32."""
        ids, valid = torch.as_tensor(ids, device=self.device).long(), torch.as_tensor(valid, device=self.device)
        return ids, valid, torch.as_tensor(price, dtype=torch.float32, device=self.device).expand(len(ids))[:, None]

    @torch.no_grad()
    def keep_probability(self, ids, valid, price, text=None):
        """Probability that each token is kept, (B, T) float32 on the CPU, of texts no longer than the reconstructor reads.

        ids (B, T) int, valid (B, T) bool, as arrays or tensors; price: λ in nats per token, a number or (B,); text: what the
        reader makes of them, if known.
        """
        batch = self._as_batch(ids, valid, price)
        if not batch[0].shape[1]:
            raise InputError("a text of 0 tokens: expected at least 1")
        if not bool((batch[2] > 0).all()):  # also refuses NaN
            raise InputError(f"price: expected λ above 0, in nats per token, found {price}")
        return torch.sigmoid(self.decide(*batch, *self.read(*batch, text))[0]).cpu()

    @torch.no_grad()
    def keep_probability_at(self, ids, valid, keep_ratio):
        """As `keep_probability`, at the λ of `price_at`: what to rank tokens by to keep `keep_ratio` of a text of any kind."""
        ids, valid, share = self._as_batch(ids, valid, keep_ratio)
        if not bool(((share > 0) & (share <= 1)).all()):
            raise InputError(f"keep_ratio: expected a share above 0 and at most 1, found {keep_ratio}")
        text = self.reader.read(ids, valid) if ids.shape[1] else None
        return self.keep_probability(ids, valid, self.price_at(ids, valid, keep_ratio, text), text)

    @torch.no_grad()
    def price_at(self, ids, valid, keep_ratio, text=None):
        """For every text the λ (B,) at which the policy by itself keeps about `keep_ratio` of it, a number or (B,).

        By bisection of the trained range, on the mean probability of the first pass, which is fitted to that of the last.
        """
        ids, valid, keep_ratio = self._as_batch(ids, valid, keep_ratio)
        text = self.reader.read(ids, valid) if text is None else text
        low, high = (torch.full_like(keep_ratio, price) for price in self.prices)
        for _ in range(BISECTIONS):
            price = (low * high).sqrt()
            kept = torch.sigmoid(self.decide(ids, valid, price, text)[0])
            dear = (kept * valid).sum(1, keepdim=True) > keep_ratio * valid.sum(1, keepdim=True)
            low, high = torch.where(dear, price, low), torch.where(dear, high, price)
        return (low * high).sqrt()[:, 0]

    @torch.no_grad()
    def importances(self, ids, valid, price):
        """What TokenImportanceAttention looks at in the last pass, mean over its heads, (B, T) on the CPU; each text sums to 1.

        Arguments as of `keep_probability`.
        """
        batch = self._as_batch(ids, valid, price)
        x = self.network.before_pooling(*batch, *self.read(*batch))
        return self.network.importance.importances(x, batch[1]).mean(1).cpu()
