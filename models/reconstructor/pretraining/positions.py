"""Positions that a GPT-2 trained for an hour can use: fixed sinusoids, and heads that begin by looking at a neighbour.

With position embeddings learned from nothing, 17 million tokens do not give a small model a single head that looks at the
token before: its attention stays a blurred bag of words, it knows bigrams and little else, and bidirectional training finds
nothing in later tokens. Here `wpe` holds sinusoids (Vaswani et al. 2017, section 3.5, denser frequencies), which stay as
they are, and the query and key matrices of the first layers begin as rotations of those sinusoids, so that head h attends to
the token at a given offset (mimetic initialisation, Trockman and Kolter 2023, goes the same way). Everything is trained from
there, but `wpe`. The model remains a stock `GPT2LMHeadModel`, and what it learns at one position holds at every other.
"""

import torch

PAIRS = 32  # sinusoids; each takes two columns of the embedding
FASTEST, SLOWEST = 2.0, 0.01  # radians per token: the first tells neighbours apart, the last spans hundreds of tokens
NORM = 1.5  # of a position embedding; token embeddings begin at about 0.6
SHARPNESS = 0.85  # of queries and keys: nine tenths of the attention fall on the offset at first
# Offsets of the heads of the first layers. Token i is predicted from position i - 1, so that 2 is the token after the gap.
OFFSETS = ((-1, 2, -2, 3), (-1, 2, -3, 1), (-1, 2, -2, 3))


def begin_with_neighbours(model):
    """Set the position embeddings of a new GPT2LMHeadModel, freeze them, and give its first heads their offsets."""
    wpe, width = model.transformer.wpe.weight, model.config.n_embd
    size = width // model.config.n_head
    pairs = min(PAIRS, size // 2)
    speed = FASTEST * (SLOWEST / FASTEST) ** (torch.arange(pairs) / max(1, pairs - 1))
    angle = torch.arange(len(wpe))[:, None] * speed  # (n_positions, pairs)
    with torch.no_grad():
        wpe.zero_()
        wpe[:, : 2 * pairs] = torch.stack([angle.cos(), angle.sin()], -1).flatten(1) * NORM / pairs**0.5
        model.transformer.wte.weight.mul_(2)
        for layer, offsets in zip(model.transformer.h, OFFSETS):
            weight = layer.attn.c_attn.weight  # (D, 3 D): queries, keys, values
            for head, offset in enumerate(offsets[: model.config.n_head]):
                columns = slice(head * size, head * size + 2 * pairs)
                weight[:, :width][:, columns] = rotation(speed, 0.0, width)
                weight[:, width : 2 * width][:, columns] = rotation(speed, -offset, width)
    wpe.requires_grad_(False)


def rotation(speed, offset, width):
    """(D, 2 pairs): takes the sinusoids of position p to SHARPNESS times those of p + offset, other columns to nothing."""
    cos, sin = torch.cos(speed * offset), torch.sin(speed * offset)
    blocks = [torch.tensor([[c, s], [-s, c]]) for c, s in zip(cos.tolist(), sin.tolist())]
    turned = torch.zeros(width, 2 * len(blocks))
    turned[: 2 * len(blocks)] = SHARPNESS * torch.block_diag(*blocks)
    return turned
