"""The agent's network: it looks at a whole text and describes every token by a vector, from which the heads decide.

What it knows of a text comes from the reconstructor (`models/agent/reader.py`), which is read and never trained here. Shapes:
`B` texts, `T` tokens, `D` width of the network, `H` heads, `E` token features, `S` states that a reading gives a token, `V`
vocabulary. `valid` (B, T) bool is True at text, False at padding: the only mask polarity here.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from models.agent.reader import EVIDENCE

SINUSOID_BASE = 10_000.0  # Vaswani et al. 2017, section 3.5


def observation_space(vocab_size, max_length, max_price):
    """Small arrays only: token ids, which positions are text, and the price λ. Never embeddings."""
    tokens, valid = spaces.Box(0, vocab_size - 1, (max_length,), np.int32), spaces.Box(0, 1, (max_length,), np.int8)
    return spaces.Dict({"tokens": tokens, "valid": valid, "price": spaces.Box(0.0, max_price, (1,), np.float32)})


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
        q, k, v = self.qkv(self.norm1(x)).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)  # (B, H, T, D / H)
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
    """Tokens, price λ and what the reader makes of them in, one vector per token out.

    Token features (a trained embedding, the log frequency, the reader's `states` of the text), the price, the position; local
    context by convolution; transformer layers; and a gated context pooled by TokenImportanceAttention. From the second pass
    on, what the reader makes of the draft is added.
    """

    def __init__(self, vocab_size, states, evidence=EVIDENCE, embedding_dim=32, width=96, layers=2, heads=4):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding_dim)
        self.register_buffer("log_frequency", torch.zeros(vocab_size))
        self.lift = nn.Linear(embedding_dim + 1 + states, width)
        self.price = nn.Sequential(nn.Linear(1, width), nn.GELU(), nn.Linear(width, 2 * width))
        self.draft, self.evidence = nn.Linear(1 + states + evidence, width), nn.Linear(evidence, width, bias=False)
        for parameter in (*self.draft.parameters(), *self.evidence.parameters()):
            nn.init.zeros_(parameter)  # a decision that is reconsidered begins as it was
        self.position = PositionalEncoding(width)
        self.local = LocalContext(width)
        self.layers = nn.ModuleList(TransformerLayer(width, heads) for _ in range(layers))
        self.importance, self.gate = TokenImportanceAttention(width, heads), ContextGate(width)
        self.norm = nn.LayerNorm(width)

    def before_pooling(self, ids, valid, price, text, draft=None):
        """The token states (B, T, D) that TokenImportanceAttention pools. Arguments as of `forward`."""
        features = torch.cat([self.embedding(ids), self.log_frequency[ids][..., None], text.float()], -1)
        scale, shift = self.price(price.log()[:, None]).chunk(2, -1)  # (B, 1, D) each
        x = self.lift(features) * (1 + scale) + shift
        if draft is not None:
            x = x + self.draft(draft.float())
        x = self.local(self.position(x), valid)
        attended = None if bool(valid.all()) else valid[:, None, None]
        for layer in self.layers:
            x = layer(x, attended)
        return x

    def forward(self, ids, valid, price, text, draft=None):
        """ids (B, T) int64, valid (B, T) bool, price (B, 1) in nats per token, to features (B, T, D).

        text (B, T, S), draft (B, T, 1 + S + evidence): the reader's, of the text and of the draft; None in the first pass.
        """
        x = self.before_pooling(ids, valid, price, text, draft)
        x = self.norm(self.gate(x, self.importance(x, valid)))
        return x if draft is None else x + self.evidence(draft[..., -self.evidence.in_features :].float())

    @torch.no_grad()
    def start_from(self, model, counts):
        """Start from a reconstructor's causal LM and the corpus' counts (V,).

        The token embedding becomes the truncated SVD of the model's, its columns' mean deviation scaled to 1; the frequency
        feature is standardised.
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


class TokenCompressionFeaturesExtractor(BaseFeaturesExtractor):
    """EnhancedTokenCompressionPolicy and its reader as a Stable-Baselines3 features extractor: Dict observation to (B, L, D).

    `reader`: a models.agent.reader.Reader. `sizes`: the network's other arguments.
    """

    def __init__(self, observation_space, reader, **sizes):
        vocab_size = int(observation_space["tokens"].high.max()) + 1
        network = EnhancedTokenCompressionPolicy(vocab_size, reader.states, reader.evidence, **sizes)
        super().__init__(observation_space, features_dim=network.norm.normalized_shape[0])
        self.network = network
        self.reader = reader  # no module: its weights are the reconstructor's

    @staticmethod
    def unpack(observations):
        """ids, valid, price from a batch of observations, which Stable-Baselines3 hands over as floats."""
        return observations["tokens"].long(), observations["valid"] > 0, observations["price"].float()

    def forward(self, observations):
        ids, valid, price = self.unpack(observations)
        return self.network(ids, valid, price, self.reader.read(ids, valid))
