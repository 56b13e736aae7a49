"""The agent: a small network that looks at a whole text and gives every token a probability of being kept.

Blocks of a language model can be part of it, with a twelfth of an output layer at most. With several passes it drafts a decision,
reads the text as the receiver would if what the draft might mask were masked, and decides again. Shapes: `B` texts, `T` tokens, `D`
width of the network, `H` heads, `E` token features, `F` all features of a token, `V` vocabulary. `valid` (B, T) bool is True
at text, False at padding: the only mask polarity here.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from stable_baselines3.common.distributions import BernoulliDistribution
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from models.agent.pretrained import EVIDENCE, SMALLEST_COST, DraftReader, PretrainedLayers
from models.reconstructor.masking import KEEP_THRESHOLD

SINUSOID_BASE = 10_000.0  # Vaswani et al. 2017, section 3.5
CALIBRATION_PRICES = 12  # values of λ between the lowest and the highest, evenly in log λ
BISECTIONS = 6  # of the range of λ; what is left of 0.15 to 12 is a factor of 1.07
CALIBRATION_BATCH = 64  # texts at a time
FIRST_COST = 3.0  # nats that an untrained critic expects of a masked token
FIRST_SHARPNESS = 2.0  # of the untrained policy: at λ = 2 it keeps 69 % of the tokens, and explores both decisions at every λ
DRAFT_THRESHOLD = 0.85  # a draft hides tokens that are kept with at most this probability: what is hidden is known best


def zeroed(linear):
    """The same layer, whose output is zero until it learns."""
    for parameter in linear.parameters():
        nn.init.zeros_(parameter)
    return linear


class PositionalEncoding(nn.Module):
    """Adds sinusoids of the position, times a learned scale. No longest length: a policy is used at any."""

    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), 0.1))
        # Pairs share a frequency: columns 2i and 2i + 1 have 1 / SINUSOID_BASE^(2i / D).
        frequency = torch.exp(torch.arange(0, width, 2) * (-math.log(SINUSOID_BASE) / width))
        self.register_buffer("frequency", frequency, persistent=False)

    def forward(self, x):
        """x (B, T, D) to the same shape."""
        angle = torch.arange(x.shape[1], device=x.device)[:, None] * self.frequency  # (T, D / 2)
        wave = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)[:, : x.shape[2]]  # (T, D)
        return x + self.scale * wave


class TokenImportanceAttention(nn.Module):
    """Pools a text into one context vector by attention; the attention weights are the tokens' importances.

    Every head has a learned query, so the cost is linear in T.
    """

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.score, self.value, self.out = nn.Linear(width, heads), nn.Linear(width, width), nn.Linear(width, width)

    def importances(self, x, valid):
        """(B, H, T) weights of each head over the text: zero at padding, summing to 1."""
        scores = self.score(x).transpose(1, 2)  # (B, H, T)
        return scores.masked_fill(~valid[:, None], float("-inf")).softmax(-1)

    def forward(self, x, valid):
        """x (B, T, D), valid (B, T) to context (B, 1, D)."""
        B, T, D = x.shape
        values = self.value(x).view(B, T, self.heads, D // self.heads).transpose(1, 2)  # (B, H, T, D / H)
        pooled = (self.importances(x, valid)[:, :, None] @ values).reshape(B, 1, D)
        return self.out(pooled)


class LocalContext(nn.Module):
    """What stands around a token: a depthwise convolution over its neighbours, then a mixing of the channels."""

    def __init__(self, width, kernel=5):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.pointwise = nn.Linear(width, width)

    def forward(self, x, valid):
        """x (B, T, D), valid (B, T) to (B, T, D)."""
        shown = self.norm(x) * valid[..., None]  # padding must look like the zeros beyond the edge
        return x + self.pointwise(F.gelu(self.depthwise(shown.transpose(1, 2)).transpose(1, 2)))


class TransformerLayer(nn.Module):
    """A pre-norm transformer layer with full attention. No dropout: rollout and update must see one policy."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x, attended):
        """x (B, T, D); attended (B, 1, 1, T) bool, or None if every position is text."""
        B, T, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)  # each (B, H, T, D / H)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=attended)
        x = x + self.out(mixed.transpose(1, 2).reshape(B, T, D))
        return x + self.mlp(self.norm2(x))


class ContextGate(nn.Module):
    """Lets each token decide how much of a shared context it takes in: x + sigmoid(W [x, c]) * c."""

    def __init__(self, width):
        super().__init__()
        self.gate = nn.Linear(2 * width, width)

    def forward(self, x, context):
        """x (B, T, D), context (B, 1, D) to (B, T, D)."""
        context = context.expand_as(x)
        return x + torch.sigmoid(self.gate(torch.cat([x, context], -1))) * context


class EnhancedTokenCompressionPolicy(nn.Module):
    """Token ids, validity and price λ in, one feature vector per token out.

    Token features (a trainable embedding, the log frequency, and what `pretrained` layers make of the text, if there are
    any: arguments of PretrainedLayers), the price, the position; local context by convolution; transformer layers; and a gated
    context pooled by TokenImportanceAttention. `without` names PARTS to leave out. `passes`: how often a text is decided; from
    the second pass on, the draft of all decisions is one more feature, and with `pretrained` layers what a DraftReader makes of it
    if what is kept with a probability of at most `draft_threshold` is hidden.
    """

    PARTS = ("position", "local", "layers", "importance")

    def __init__(self, vocab_size, embedding_dim=32, width=96, layers=2, heads=4, without=(), passes=1, draft_threshold=DRAFT_THRESHOLD, pretrained=None):
        super().__init__()
        self.passes, self.draft_threshold = passes, draft_threshold
        self.pretrained = PretrainedLayers(**{name: value for name, value in pretrained.items() if name != "mask_id"}) if pretrained else None
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.register_buffer("log_frequency", torch.zeros(vocab_size))
        self.lift = nn.Linear(embedding_dim + 1 + (self.pretrained.width if pretrained else 0), width)
        self.price = nn.Sequential(nn.Linear(1, width), nn.GELU(), nn.Linear(width, 2 * width))
        self.reader = DraftReader(self.pretrained, pretrained["config"], pretrained["mask_id"]) if pretrained and passes > 1 else None
        # A decision that is reconsidered begins as it was.
        self.draft = zeroed(nn.Linear(1 + (self.reader.width + EVIDENCE if self.reader else 0), width)) if passes > 1 else None
        self.evidence = zeroed(nn.Linear(EVIDENCE, width, bias=False)) if self.reader else None
        self.position = None if "position" in without else PositionalEncoding(width)
        self.local = None if "local" in without else LocalContext(width)
        self.layers = nn.ModuleList(TransformerLayer(width, heads) for _ in range(0 if "layers" in without else layers))
        self.importance, self.gate = (None, None) if "importance" in without else (TokenImportanceAttention(width, heads), ContextGate(width))
        self.norm = nn.LayerNorm(width)

    def read(self, ids, valid):
        """What is known of each token whatever the price: ids (B, T) int64, valid (B, T) bool to (B, T, F)."""
        features = [self.embedding(ids), self.log_frequency[ids][..., None]]
        if self.pretrained is not None:
            features.append(self.pretrained(ids, valid))
        return torch.cat(features, -1)

    def reread(self, ids, valid, draft):
        """What is known of each token of a draft (B, T), probabilities of keeping: they, and with a DraftReader what it gives."""
        drafted = draft[..., None]
        return drafted if self.reader is None else torch.cat([drafted, self.reader(ids, valid, draft > self.draft_threshold)], -1)

    def before_pooling(self, ids, valid, price, drafted=None, read=None):
        """The token states (B, T, D) that TokenImportanceAttention pools. Arguments as of `forward`, but for `drafted`, the features of `reread`."""
        features = self.read(ids, valid) if read is None else read
        scale, shift = self.price(price.log()[:, None]).chunk(2, -1)  # (B, 1, D) each
        x = self.lift(features) * (1 + scale) + shift
        if drafted is not None:
            x = x + self.draft(drafted)
        if self.position is not None:
            x = self.position(x)
        if self.local is not None:
            x = self.local(x, valid)
        attended = None if bool(valid.all()) else valid[:, None, None]
        for layer in self.layers:
            x = layer(x, attended)
        return x

    def forward(self, ids, valid, price, draft=None, read=None):
        """ids (B, T) int64, valid (B, T) bool, price (B, 1) in nats per token, to features (B, T, D).

        draft (B, T): the probabilities of keeping that were decided before, if this is not the first pass. read (B, T, F): what
        `read` gives for these texts, if that is known already.
        """
        drafted = None if draft is None else self.reread(ids, valid, draft)
        x = self.before_pooling(ids, valid, price, drafted, read)
        x = self.norm(x if self.importance is None else self.gate(x, self.importance(x, valid)))
        return x if drafted is None or self.reader is None else x + self.evidence(drafted[..., -EVIDENCE:])

    def importances(self, ids, valid, price, draft=None, read=None):
        """What TokenImportanceAttention looks at, mean over its heads: (B, T), each text sums to 1. None if it was left out."""
        if self.importance is None:
            return None
        drafted = None if draft is None else self.reread(ids, valid, draft)
        return self.importance.importances(self.before_pooling(ids, valid, price, drafted, read), valid).mean(1)

    @torch.no_grad()
    def start_from(self, model, counts):
        """Start from a reconstructor's causal LM and the corpus' counts (V,).

        The token embedding becomes the truncated SVD of the model's, its columns' mean deviation scaled to 1; the frequency
        feature is standardised; pretrained layers take the model's weights.
        """
        V, E = self.embedding.weight.shape
        embeddings = model.get_input_embeddings().weight[:V].float()
        centred = embeddings - embeddings.mean(0)
        left, values, _ = torch.svd_lowrank(centred, q=min(E, *centred.shape), niter=4)
        reduced = left * values
        self.embedding.weight.zero_()
        self.embedding.weight[:, : reduced.shape[1]] = reduced / reduced.std(0).clamp(min=1e-6).mean()
        log_frequency = torch.log(torch.as_tensor(counts[:V], dtype=torch.float32) + 1)
        self.log_frequency[:] = (log_frequency - log_frequency.mean()) / log_frequency.std().clamp(min=1e-6)
        if self.pretrained is not None:
            self.pretrained.start_from(model)
        if self.reader is not None:
            self.reader.start_from(model, counts)


class TokenCompressionFeaturesExtractor(BaseFeaturesExtractor):
    """EnhancedTokenCompressionPolicy as a Stable-Baselines3 features extractor: Dict observation to (B, L, D)."""

    def __init__(self, observation_space, embedding_dim=32, width=96, layers=2, heads=4, without=(), passes=1, draft_threshold=DRAFT_THRESHOLD, pretrained=None, tokenizer_fingerprint=""):
        super().__init__(observation_space, features_dim=width)
        self.tokenizer_fingerprint = tokenizer_fingerprint
        self.network = EnhancedTokenCompressionPolicy(int(observation_space["tokens"].high.max()) + 1, embedding_dim, width, layers, heads, without, passes, draft_threshold, pretrained)

    @staticmethod
    def unpack(observations):
        """ids, valid, price from a batch of observations, which Stable-Baselines3 hands over as floats."""
        return observations["tokens"].long(), observations["valid"] > 0, observations["price"].float()

    def forward(self, observations):
        return self.network(*self.unpack(observations))


class TokenBernoulli(BernoulliDistribution):
    """Independent keep decisions. The deterministic action is the keep probability, not its rounding."""

    def log_prob(self, actions):
        return self.distribution.log_prob((actions > KEEP_THRESHOLD).float())  # (B, L), of the decision that the environment reads

    def entropy(self):
        return self.distribution.entropy()  # (B, L), nats

    def mode(self):
        return self.distribution.probs


class TokenCompressionPolicy(MultiInputActorCriticPolicy):
    """Actor and critic per token on shared features, for `TokenPPO` (`per_token=True`: every quantity is (B, L)).

    The reward of a token is known but for one number, the nats c_i that it would cost if it were masked: 0 if kept, λ − c_i
    if masked. So the critic estimates c_i, and its value is V_i = (1 − p_i) (λ − ĉ_i); and the actor starts from the
    critic's estimate, since a token is worth masking if c_i < λ:

        logit p_i = s log(ĉ_i / λ) + residual_i                                                    (1)

    with a learned sharpness s. Gradients of the policy loss do not reach ĉ, nor those of the critic's loss p. For that
    loss `evaluate_actions` gives the value of the decision that was taken, λ − ĉ_i or 0, so that ĉ is fitted to the
    nats of the tokens that were masked, without the noise of the decision itself.

    Where the network has several passes, from the second on it sees what the pass before decided, since the best decisions
    depend on each other. The last pass acts. The earlier ones draft, and are trained on what it did (`rl/ppo.py`, deviation 8); besides, both
    losses reach them through the probabilities of the draft.

    With `per_token=False` log-probability and entropy are summed over the text and the value is the text's, in the units
    of J, as Stable-Baselines3's own PPO expects: the same network under text-level credit.
    """

    def __init__(self, *args, per_token=True, **kwargs):
        self.per_token = per_token
        kwargs.setdefault("features_extractor_class", TokenCompressionFeaturesExtractor)
        super().__init__(*args, **{**kwargs, "net_arch": [], "ortho_init": False})

    def _get_constructor_parameters(self):
        return super()._get_constructor_parameters() | {"per_token": self.per_token}

    def _build(self, lr_schedule):
        self.action_dist = TokenBernoulli(self.action_space.shape[0])
        self.action_net, self.value_net = nn.Linear(self.features_dim, 1), nn.Linear(self.features_dim, 1)
        nn.init.normal_(self.action_net.weight, std=0.01)
        nn.init.zeros_(self.action_net.bias)
        nn.init.constant_(self.value_net.bias, FIRST_COST)
        self.sharpness = nn.Parameter(torch.tensor(FIRST_SHARPNESS))
        self.mlp_extractor = nn.Identity()
        # λ at which the trained policy keeps a given share of a text: rows of (price, natural keep ratio).
        self.register_buffer("calibration", torch.zeros(CALIBRATION_PRICES, 2))
        pretrained = self.features_extractor.network.pretrained
        slow = [] if pretrained is None else [p for p in pretrained.parameters() if p.requires_grad]
        own = {p for p in self.parameters() if p.requires_grad}.difference(slow)
        groups = [{"params": [p for p in self.parameters() if p in own]}]
        if slow:
            groups.append({"params": slow, "lr": lr_schedule(1) * pretrained.rate, "share_of_rate": pretrained.rate})  # TimedPPO keeps to it
        self.optimizer = self.optimizer_class(groups, lr=lr_schedule(1), **self.optimizer_kwargs)

    def _heads(self, obs):
        """Distribution, value of masking each token λ − ĉ (B, L), and valid (B, L)."""
        passes, valid = self.decisions(obs)
        logits, gain = passes[-1]
        return self.action_dist.proba_distribution(logits), gain, valid

    def decisions(self, obs):
        """For every pass the logits of keeping and the value of masking λ − ĉ, (B, L) each; and valid (B, L)."""
        ids, valid, price = self.features_extractor.unpack(obs)
        return [(logits, price - cost) for logits, cost in self._passes(ids, valid, price)], valid

    def _logits_and_cost(self, ids, valid, price, read=None):
        """Logits of keeping, equation (1), and estimated nats of a masked token, both (B, T), for texts (B, T) at λ (B, 1)."""
        return self._passes(ids, valid, price, read)[-1]

    def _passes(self, ids, valid, price, read=None, count=None):
        """`_logits_and_cost` of every pass, or of the first `count`."""
        network, found = self.features_extractor.network, []
        read = network.read(ids, valid) if read is None else read
        for _ in range(network.passes if count is None else count):
            draft = torch.sigmoid(found[-1][0]) if found else None
            found.append(self._decide(ids, valid, price, draft, read))
        return found

    def _decide(self, ids, valid, price, draft, read):
        features = self.features_extractor.network(ids, valid, price, draft, read)
        cost = F.softplus(self.value_net(features).squeeze(-1)) + SMALLEST_COST
        return self.sharpness * (cost.detach() / price).log() + self.action_net(features).squeeze(-1), cost

    def _per_text(self, x, valid):
        """x (B, L) as it is, or summed over the text's tokens (B,)."""
        return x if self.per_token else (x * valid).sum(1)

    def _value(self, gain, valid):
        """The value (B, L) of every token in nats per token as it is, or of the text (B,) in the units of J: their mean."""
        return self._per_text(gain if self.per_token else gain / valid.sum(1, keepdim=True), valid)

    def forward(self, obs, deterministic=False):
        distribution, gain, valid = self._heads(obs)
        actions = distribution.get_actions(deterministic=deterministic)
        values = (1 - distribution.distribution.probs) * gain
        return actions, self._value(values, valid), self._per_text(distribution.log_prob(actions), valid)

    def evaluate_actions(self, obs, actions):
        passes, valid = self.decisions(obs)
        taken, log_prob, entropy = self.evaluate_decision(*passes[-1], actions)
        return self._value(taken, valid), self._per_text(log_prob, valid), self._per_text(entropy, valid)

    def evaluate_decision(self, logits, gain, actions):
        """Value of the decisions taken, their log-probability and the entropy, (B, L) each, of one pass of `decisions`."""
        distribution = self.action_dist.proba_distribution(logits)
        return torch.where(actions > KEEP_THRESHOLD, 0.0, gain), distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs):
        return self._heads(obs)[0]

    @torch.no_grad()
    def keep_probability(self, ids, valid, price, read=None):
        """Probability that each token is kept, (B, T) float32 on the CPU, for texts as long as the pretrained blocks have positions, without them of any length.

        ids (B, T) int, valid (B, T) bool, as arrays or tensors; price: λ in nats per token, a number or (B,); read: what `read` gives for them, if known.
        """
        return torch.sigmoid(self._logits_and_cost(*self._as_batch(ids, valid, price), read)[0]).cpu()

    @torch.no_grad()
    def keep_probability_at(self, ids, valid, keep_ratio):
        """As `keep_probability`, at the λ of `price_at`: what to rank tokens by to keep `keep_ratio` of a text, whatever kind it is of."""
        read = self.features_extractor.network.read(*self._as_batch(ids, valid, keep_ratio)[:2])
        return self.keep_probability(ids, valid, self.price_at(ids, valid, keep_ratio, read), read)

    @torch.no_grad()
    def importances(self, ids, valid, price):
        """What TokenImportanceAttention looks at in the last pass, (B, T) float32 on the CPU; each text sums to 1. Arguments as of `keep_probability`.

        None if the policy was trained without it.
        """
        batch, network = self._as_batch(ids, valid, price), self.features_extractor.network
        read = network.read(*batch[:2])
        drafts = self._passes(*batch, read, network.passes - 1)
        found = network.importances(*batch, torch.sigmoid(drafts[-1][0]) if drafts else None, read)
        return None if found is None else found.cpu()

    def _as_batch(self, ids, valid, price):
        """Arrays or tensors as the network takes them: ids (B, T) int64, valid (B, T) bool, price (B, 1) float32."""
        ids, valid = torch.as_tensor(ids, device=self.device).long(), torch.as_tensor(valid, device=self.device)
        return ids, valid, torch.as_tensor(price, dtype=torch.float32, device=self.device).expand(len(ids))[:, None]

    @torch.no_grad()
    def calibrate(self, ids, valid, low, high):
        """Store the share of tokens that the thresholded policy keeps at prices from `low` to `high` on the given texts."""
        prices = np.geomspace(low, high, CALIBRATION_PRICES)
        ids, valid, _ = self._as_batch(ids, valid, low)
        kept = np.zeros(len(prices))
        for some, there in zip(ids.split(CALIBRATION_BATCH), valid.split(CALIBRATION_BATCH), strict=True):
            read = self.features_extractor.network.read(some, there)
            kept += [int((self._logits_and_cost(*self._as_batch(some, there, price), read)[0] > 0)[there].sum()) for price in prices]
        keep_ratios = kept / int(valid.sum())
        self.calibration.copy_(torch.tensor([*zip(prices, keep_ratios, strict=True)]))

    def _calibrated(self):
        """The λ of `calibrate` and the natural keep ratios at them, float64 arrays. Raises ValueError if there were none."""
        if not self.calibration.any():
            raise ValueError("the policy was never calibrated; rl/train.py does that at each evaluation")
        return self.calibration.cpu().double().numpy().T

    @torch.no_grad()
    def price_at(self, ids, valid, keep_ratio, read=None):
        """For every text the λ (B,) at which the policy of itself keeps about `keep_ratio` of it, a number or (B,): what decides best at that rate.

        By bisection between the λ of the calibration, on the mean probability of the first pass, which is fitted to that of the last.
        """
        prices, _ = self._calibrated()
        ids, valid, keep_ratio = self._as_batch(ids, valid, keep_ratio)
        read = self.features_extractor.network.read(ids, valid) if read is None else read
        low, high = (torch.full_like(keep_ratio, price) for price in prices[[0, -1]])
        for _ in range(BISECTIONS):
            price = (low * high).sqrt()
            kept = torch.sigmoid(self._passes(ids, valid, price, read, 1)[0][0])
            dear = (kept * valid).sum(1, keepdim=True) > keep_ratio * valid.sum(1, keepdim=True)
            low, high = torch.where(dear, price, low), torch.where(dear, high, price)
        return (low * high).sqrt()[:, 0]

    def price_for(self, keep_ratio):
        """The calibrated λ whose natural keep ratio is nearest to `keep_ratio`, interpolated in log λ."""
        price, natural = self._calibrated()
        natural = np.minimum.accumulate(natural)  # a dearer token is kept less often; noise may break the order
        return float(np.exp(np.interp(-keep_ratio, -natural, np.log(price))))

    def predict_values(self, obs):
        distribution, gain, valid = self._heads(obs)
        return self._value((1 - distribution.distribution.probs) * gain, valid)
