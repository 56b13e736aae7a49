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

BISECTIONS = 6  # of the range of λ; what is left of 0.15 to 12 is a factor of 1.07
FIRST_COST = 3.0  # nats that an untrained critic expects of a masked token
FIRST_SHARPNESS = 2.0  # of the untrained policy: at λ = 2 it keeps 69 % of the tokens, and explores both decisions at every λ


class TokenCompressionPolicy(MultiInputActorCriticPolicy):
    """Actor and critic per token on shared features, for `rl.ppo.TokenPPO`: every quantity is (B, L).

    The reward of a token is known but for one number, the nats c_i that it would cost if it were masked: 0 if kept, λ −
    c_i if masked. So the critic estimates c_i, and its value is V_i = (1 − p_i) (λ − ĉ_i). The actor starts from the
    critic's estimate, since a token is worth masking if c_i < λ:

        logit p_i = s log(ĉ_i / λ) + residual_i                                                    (1)

    with a learned sharpness s. Gradients of the policy loss do not reach ĉ, nor those of the critic's loss p. With
    `critic_only` the residual stays 0 and s as it is, so that a token is kept where ĉ_i > λ: the control that shows what
    the actor is worth.

    `prices`: lowest and highest λ that it was trained for. `reader` and sizes of the network: in `features_extractor_kwargs`.
    Of Stable-Baselines3's policies it has `predict`; the deterministic action is the probability of keeping, not its rounding.
    """

    def __init__(self, *args, prices=(0.15, 12.0), critic_only=False, **kwargs):
        self.prices, self.critic_only = tuple(prices), critic_only
        kwargs.setdefault("features_extractor_class", TokenCompressionFeaturesExtractor)
        super().__init__(*args, **{**kwargs, "net_arch": [], "ortho_init": False})

    def _build(self, lr_schedule):
        self.action_net, self.value_net = nn.Linear(self.features_dim, 1), nn.Linear(self.features_dim, 1)
        nn.init.normal_(self.action_net.weight, std=0.0 if self.critic_only else 0.01)
        nn.init.zeros_(self.action_net.bias)
        nn.init.constant_(self.value_net.bias, FIRST_COST)
        self.sharpness = nn.Parameter(torch.tensor(FIRST_SHARPNESS))
        if self.critic_only:
            self.action_net.requires_grad_(False)
            self.sharpness.requires_grad_(False)
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
        """What a decision costs, in passes of the whole reconstructor without its output layer."""
        return self.reader.passes

    def own_state(self):
        """The tensors that are the agent's own, by name: what its file holds."""
        shared = ("pi_features_extractor.", "vf_features_extractor.")  # Stable-Baselines3's second and third name of one module
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(shared)}

    def decide(self, ids, valid, price, text, draft=None):
        """One pass: logits of keeping, equation (1), and estimated nats of a masked token, (B, T) each."""
        features = self.network(ids, valid, price, text, draft)
        cost = F.softplus(self.value_net(features).squeeze(-1)) + SMALLEST_COST
        return self.sharpness * (cost.detach() / price).log() + self.action_net(features).squeeze(-1), cost

    @torch.no_grad()
    def read(self, ids, valid, price, text=None, draft=None):
        """What a second pass needs of texts ids (B, T) int64, valid (B, T) bool at λ price (B, 1): the two readings.

        That is what the reader makes of the texts, (B, T, S), and of their drafts, (B, T, 1 + S + EVIDENCE). `text`: the first,
        if known; draft (B, T): the drafts, if decided.
        """
        text = self.reader.read(ids, valid) if text is None else text
        draft = torch.sigmoid(self.decide(ids, valid, price, text)[0]) if draft is None else draft
        return text, self.reader.reread(ids, valid, draft)

    def decisions(self, ids, valid, price):
        """Logits of keeping and what masking gains by the critic, λ − ĉ, (B, T) each, of the second pass; both readings."""
        readings = self.read(ids, valid, price)
        logits, cost = self.decide(ids, valid, price, *readings)
        return logits, price - cost, readings

    def _predict(self, observation, deterministic=False):
        keep = self.decisions(*self.features_extractor.unpack(observation))[0].sigmoid()
        return keep if deterministic else torch.bernoulli(keep)

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
