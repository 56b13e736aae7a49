"""What a base model knows of each kind of text: sums per document of causal nats, of masked tokens, and of the nats of gaps.

Every figure is a ratio of sums, so that its interval can be taken over documents. Shapes as in draws.py.
"""

from typing import NamedTuple

import torch

from models.reconstructor.loss import read_logits
from models.reconstructor.pretraining.draws import room_for
from models.reconstructor.pretraining.network import read

MASK_RATIO, KEPT = 0.3, 0.7  # in training's log; of the tokens kept where tokens are dropped
LOGITS = {"cpu": 128}  # tokens whose logits are alive at one time
LOGITS_GPU = 8192
ROWS = 32_768  # tokens read at one time
SEED = 0  # of masks: the same ones at every call


class Base(NamedTuple):
    """A base model to be read with: `embedding` (V + 1, D) over all tokens takes the place of the model's own."""

    model: torch.nn.Module
    head: torch.nn.Module
    embedding: torch.Tensor
    bos: int

    def read(self, ids, causal):
        """Last hidden states (B, W, D) of [BOS, ids without the last] (B, W): state i is there to predict token i."""
        inputs = torch.cat([torch.full_like(ids[:, :1], self.bos), ids[:, :-1]], 1)
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.device.type == "cuda"):
            return read(self.model, self.embedding, inputs, positions, causal)

    def score(self, states, targets):
        """Nats (N,) and whether the most probable token is right (N,), of targets (N,) after states (N, D)."""
        size, weight = LOGITS.get(states.device.type, LOGITS_GPU), self.embedding[:-1]  # the mask token is never an answer
        states = states.to(weight.dtype)
        parts = [read_logits(s @ weight.T, t) for s, t in zip(states.split(size), targets.split(size), strict=True)]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]) == targets


def windows(streams, kind, window, tokens):
    """Places (B, window) of `tokens` tokens of a kind, in windows spread over its stream, or one window of all."""
    first, length = int(streams.first[kind]), int(streams.length[kind])
    window = min(window, length)
    count = max(1, min(tokens, length) // window)
    starts = first + torch.linspace(0, length - window, count, device=streams.tokens.device).long()
    return starts[:, None] + torch.arange(window, device=starts.device)


def by_document(base, streams, places, *columns):
    """(documents, columns) float64: sums of `columns`, each shaped as `places`, over the documents that the places are in."""
    number = (streams.tokens == base.bos).cumsum(0)[places].flatten()
    _, number = number.unique(return_inverse=True)
    flat = torch.stack([column.flatten().double() for column in columns], 1)
    return flat.new_zeros(int(number.max()) + 1, len(columns)).index_add_(0, number, flat).cpu()


@torch.no_grad()
def causal_sums(base, streams, kind, window, tokens):
    """(documents, 2): tokens and their nats, each from all before it in its window; BOS does not count."""
    places = windows(streams, kind, window, tokens)
    ids = streams.tokens[places].long()
    parts = ids.split(max(1, ROWS // window))
    nats = torch.cat([base.score(base.read(part, causal=True).flatten(0, 1), part.flatten())[0] for part in parts])
    text = ids != base.bos
    return by_document(base, streams, places, text, nats.view_as(ids) * text)


@torch.no_grad()
def masked_sums(base, streams, kind, window, tokens, mask_ratio=MASK_RATIO):
    """(documents, 3): masked tokens, single ones at random, their nats, and how many are right; read with full attention."""
    generator = torch.Generator(streams.tokens.device).manual_seed(SEED + kind)
    places = windows(streams, kind, window, tokens)
    ids = streams.tokens[places].long()
    hide = streams.masked(places, generator, mask_ratio) & (ids != base.bos)
    nats, right = torch.zeros(ids.shape, device=ids.device), torch.zeros_like(hide)
    shown = torch.where(hide, len(base.embedding) - 1, ids)
    size = max(1, ROWS // window)
    states = [base.read(some, causal=False)[at] for some, at in zip(shown.split(size), hide.split(size), strict=True)]
    nats[hide], right[hide] = base.score(torch.cat(states), ids[hide])
    return by_document(base, streams, places, hide, nats, right)


@torch.no_grad()
def gap_sums(base, streams, kind, window, tokens):
    """(documents, 2): original tokens, and nats of the gaps where KEPT of them are kept, by the methods of training."""
    generator = torch.Generator(streams.tokens.device).manual_seed(SEED + kind)
    places = windows(streams, kind, room_for(window, KEPT), tokens)
    kept, gaps, length = streams.dropped(places, int(places.shape[1] * KEPT), generator, KEPT)
    size = max(1, ROWS // window)
    states = [base.read(some, causal=False) for some in torch.cat([kept, kept[:, :1]], 1).split(size)]  # of [BOS, kept]
    nats = [base.head.nats(some, missing).sum(1) for some, missing in zip(states, gaps.split(size), strict=True)]
    return by_document(base, streams, places[:, 0], length, torch.cat(nats))


def evaluate(base, streams, window, tokens):
    """{kind: {"causal", "masked", "top1", "gaps"}} over `tokens` tokens of every kind: nats per token, nats per masked token
    (MASK_RATIO of them), share of these that is right, nats of gaps per original token."""
    found = {}
    for kind, name in enumerate(streams.kinds):
        counted, causal = causal_sums(base, streams, kind, window, tokens).sum(0).tolist()
        masked, nats, right = masked_sums(base, streams, kind, window, tokens).sum(0).tolist()
        whole, gaps = gap_sums(base, streams, kind, window, tokens).sum(0).tolist()
        found[name] = {"causal": causal / counted, "masked": nats / masked, "top1": right / masked, "gaps": gaps / whole}
    return found
