"""What a model in training knows, by kind of text: causal nats, nats and top-1 of masked tokens, nats of gaps."""

import torch

from models.reconstructor.loss import read_logits
from models.reconstructor.pretraining.draws import room_for
from models.reconstructor.pretraining.network import read

RATIO, KEPT = 0.3, 0.7  # masked, kept where tokens are dropped
ROWS = {"cpu": 128}  # tokens whose logits are alive at one time
ROWS_GPU = 8192
SEED = 0


def score_logits(states, embedding, targets):
    """Nats (N,) and whether the most probable token is right (N,), of targets (N,) after states (N, D)."""
    size, weight = ROWS.get(states.device.type, ROWS_GPU), embedding[:-1]  # the mask token is never an answer
    parts = [read_logits(s @ weight.T, t) for s, t in zip(states.split(size), targets.split(size), strict=True)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]) == targets


@torch.no_grad()
def evaluate(model, head, embedding, streams, bos, window, tokens, precision):
    """{kind: {"causal", "masked", "top1", "gaps"}} over `tokens` tokens of every kind, in windows of `window` spread over its stream.

    nats per token, per masked token (RATIO of them, single ones at random), share of them, nats of the gaps per original token
    (KEPT of the tokens kept, by the methods of training). The same windows and masks at every call.
    """
    device, found = embedding.device, {}
    for kind, (name, first, length) in enumerate(zip(streams.kinds, streams.first.tolist(), streams.length.tolist(), strict=True)):
        generator = torch.Generator(device).manual_seed(SEED + kind)
        count = max(1, min(tokens, length) // window)
        starts = first + torch.linspace(0, max(0, length - window), count, device=device).long()
        places = (starts[:, None] + torch.arange(window, device=device)).clamp(max=first + length - 1)
        sums = torch.zeros(5, dtype=torch.float64, device=device)
        for rows in places.split(max(1, 32_768 // window)):
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                sums += score_rows(model, embedding, streams, rows, bos, generator)
        causal, count, masked, right, hidden = sums.tolist()
        gap_nats = score_gaps(model, head, embedding, streams, kind, bos, window, tokens, precision)
        found[name] = {"causal": causal / count, "masked": masked / hidden, "top1": right / hidden, "gaps": gap_nats}
    return found


def score_rows(model, embedding, streams, places, bos, generator):
    """Sums over windows: causal nats, tokens, nats of masked tokens, how many are right, masked tokens."""
    ids, positions = streams.tokens[places].long(), torch.arange(places.shape[1], device=places.device).expand_as(places)
    shifted = torch.cat([torch.full_like(ids[:, :1], bos), ids[:, :-1]], 1)
    causal, _ = score_logits(read(model, embedding, shifted, positions, causal=True).flatten(0, 1), embedding, ids.flatten())
    hide = streams.masked(places, generator, RATIO)
    shown = torch.where(hide, len(embedding) - 1, ids)
    inputs = torch.cat([torch.full_like(ids[:, :1], bos), shown[:, :-1]], 1)
    nats, right = score_logits(read(model, embedding, inputs, positions, causal=False)[hide], embedding, ids[hide])
    values = [causal.double().sum(), causal.numel(), nats.double().sum(), right.sum(), right.numel()]
    return torch.stack([torch.as_tensor(value, dtype=torch.float64, device=ids.device) for value in values])


def score_gaps(model, head, embedding, streams, kind, bos, window, tokens, precision):
    """Nats of the gaps per original token."""
    device = embedding.device
    generator = torch.Generator(device).manual_seed(SEED + kind)
    only = torch.zeros(len(streams.kinds), device=device)
    only[kind] = 1
    size = room_for(window - 1, KEPT)
    total = whole = 0.0
    rows = max(1, min(128, tokens // size))
    for _ in range(max(1, tokens // (rows * size))):
        places = streams.draw(only, rows, size, generator)
        kept, gaps, length = streams.dropped(places, window - 1, generator, KEPT)
        inputs = torch.cat([torch.full_like(kept[:, :1], bos), kept], 1)
        positions = torch.arange(window, device=device).expand_as(inputs)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            states = read(model, embedding, inputs, positions, causal=False)
            total = total + head.nats(states, gaps).double().sum()
        whole += length.sum()
    return float(total / whole)
