"""The network that pre-training reads with: a stock GPT2LMHeadModel, run without any attention mask.

A causal or a full attention without a mask is the case that fused attention kernels are made for. Shapes: `B` windows,
`T` tokens, `V` vocabulary, `D` model width.
"""

import torch
from torch.nn import functional as F


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
