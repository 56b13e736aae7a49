"""The network that pre-training reads with: a stock GPT2LMHeadModel, run without any attention mask, and the gap head beside it.

A causal or a full attention without a mask is the case that fused attention kernels are made for. Shapes: `B` windows,
`T` tokens, `V` vocabulary, `D` model width.
"""

import torch
from torch import nn
from torch.nn import functional as F

CLASSES = 7  # gaps of 0 to 6 tokens have a class each; longer ones share the last, and a geometric tail says how long
HIDDEN = 256  # units of the gap head


def read(model, embedding, ids, positions, causal):
    """Last hidden states (B, T, D) of `ids` (B, T) at `positions` (B, T); `embedding` (V, D) takes the place of GPT-2's own."""
    network = model.transformer
    heads, rate = model.config.n_head, model.config.attn_pdrop if model.training else 0.0
    state = network.drop(F.embedding(ids, embedding) + network.wpe(positions))
    for block in network.h:
        parts = block.attn.c_attn(block.ln_1(state)).split(state.shape[-1], 2)
        query, key, value = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in parts)  # (B, heads, T, D / heads)
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=rate, is_causal=causal)
        state = state + block.attn.resid_dropout(block.attn.c_proj(mixed.transpose(1, 2).flatten(2)))
        state = state + block.mlp(block.ln_2(state))
    return network.ln_f(state)


class GapHead(nn.Module):
    """How many tokens are missing at every boundary of a text whose tokens were dropped: p(g) for every g from 0 on.

    The text is read as `[BOS, c_1 … c_S]` with full attention. Boundary j, from 0 to S, lies after c_j (0: after BOS): the head
    takes the state that stands at c_j and the one at the next token; after the last there is none, which reads as zeros.
    """

    def __init__(self, width, hidden=HIDDEN):
        super().__init__()
        self.before, self.after = nn.Linear(width, hidden), nn.Linear(width, hidden, bias=False)
        self.out = nn.Linear(hidden, CLASSES + 2)  # logits of 0 to 6 and of "longer", and the logit of the tail's end
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, states):
        """Log-probabilities (B, S + 1, CLASSES + 1), and the tail's logit (B, S + 1) of ending at each further token."""
        later = F.pad(self.after(states[:, 1:]), (0, 0, 0, 1))
        scores = self.out(F.gelu(self.before(states) + later)).float()
        return scores[..., :-1].log_softmax(-1), scores[..., -1]

    def nats(self, states, gaps):
        """-ln p(g) (B, S + 1) of `gaps` (B, S + 1) int64 under the states (B, S + 1, D)."""
        log_p, end = self(states)
        nats = -log_p.gather(-1, gaps.clamp(max=CLASSES)[..., None])[..., 0]
        further = (gaps - CLASSES).clamp(min=0)
        tail = F.softplus(-end) + further * F.softplus(end)  # -ln q - further ln(1 - q), q = sigmoid(end)
        return nats + torch.where(gaps >= CLASSES, tail, torch.zeros_like(tail))
