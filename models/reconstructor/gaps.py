"""Gaps: how many tokens are missing between those that were sent, and what it costs a receiver to find that out.

The receiver reads `[BOS, c_1 … c_S]`, the tokens that were sent and nothing else, with full attention. At every boundary
j, from 0 to S, after c_j (0: after BOS), the gap head gives a distribution over the number g_j of tokens that are
missing: placeholder insertion of the Levenshtein Transformer (Gu et al. 2019, section 3.2), as a likelihood. Shapes: `B`
texts, `T` tokens, `S` of them sent, `D` model width. What belongs to a boundary stands, in arrays (B, T + 1), at the
place of the sent token before it, BOS first.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from data.artifacts import InputError, reason_of, written_aside

GAPS = ("found", "told")  # what the receiver has to find, or is told
GAP_HEAD = "gap_head.safetensors"  # beside a model's own weights
CLASSES = 7  # gaps of 0 to 6 tokens have a class each; longer ones share the last, and a geometric tail says how long
HIDDEN = 256  # units of the gap head


class GapHead(nn.Module):
    """p(g) for every g from 0 on, at every boundary.

    It takes the state that stands at c_j and the one at the next token; after the last there is none, which reads as zeros.
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

    def likeliest(self, states):
        """The most probable gap at every boundary, (B, S + 1) int64; of a long one the tail's mean."""
        log_p, end = self(states)
        best = log_p.argmax(-1)
        return torch.where(best == CLASSES, CLASSES + (-end).exp().clamp(max=1000).round().long(), best)


def save_gap_head(head, directory, dtype=torch.float32):
    """Write a gap head beside the weights of a model, whole or not at all."""
    with written_aside(Path(directory) / GAP_HEAD) as temporary:
        save_file({name: value.to(dtype).cpu().contiguous() for name, value in head.state_dict().items()}, temporary)


def load_gap_head(directory, width):
    """The gap head beside the weights of a model of this width, in float32; None if there is none. Raises InputError."""
    path = Path(directory) / GAP_HEAD
    if not path.is_file():
        return None
    try:
        state = load_file(path)
        head = GapHead(width, len(state["before.weight"]))
        head.load_state_dict({name: value.float() for name, value in state.items()})
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{path}: expected the gap head of a model of width {width}, found: {reason_of(error)}; train it anew with: "
            "python models/reconstructor/train_cpu.py"
        ) from None
    if not all(value.isfinite().all() for value in head.state_dict().values()):
        raise InputError(f"{path}: expected finite weights, found NaN or infinity; train it anew")
    return head.eval()


class Sent(NamedTuple):
    """What a receiver gets of texts, packed: tokens ids (B, S) int64 and valid (B, S) bool; and what it does not get.

    place (B, S + 1): where BOS and each sent token stand in `[BOS, text]`; gaps (B, S + 1): tokens missing after each.
    """

    ids: torch.Tensor
    valid: torch.Tensor
    place: torch.Tensor
    gaps: torch.Tensor


def send(ids, keep_mask, valid):
    """The Sent of texts: ids (B, T) int64, keep_mask, valid (B, T) bool, tensors."""
    B, T = ids.shape
    sent = keep_mask & valid
    count = sent.sum(1)
    order = (~sent).to(torch.int8).argsort(dim=1, stable=True)[:, : int(count.max()) if B else 0]  # sent ones first, in order
    inside = torch.arange(order.shape[1], device=ids.device) < count[:, None]
    length = valid.sum(1, keepdim=True)
    place = torch.cat([order.new_zeros(B, 1), torch.where(inside, order + 1, length)], 1)
    following = torch.cat([place[:, 1:], length], 1)
    last = torch.arange(place.shape[1], device=ids.device) == count[:, None]
    following = torch.where(last, length + 1, following)  # the end of the text, as if a token stood there
    real = torch.cat([inside.new_ones(B, 1), inside], 1)
    return Sent(ids.gather(1, order), inside, place, torch.where(real, following - place - 1, 0))


def at_places(values, sent, length):
    """Values (B, S + 1) of boundaries at their places in a text of `length` tokens: (B, length + 1), zero elsewhere."""
    real = torch.cat([sent.valid.new_ones(len(values), 1), sent.valid], 1)
    return values.new_zeros(len(values), length + 1).scatter_add_(1, sent.place, torch.where(real, values, 0))


def shares(boundary, keep_mask, valid):
    """Each token's share (B, T) of the boundaries' values (B, T + 1): what is missing in a gap shares its value alike.

    Where nothing is missing, the sent tokens on both sides take half each, or all if there is one. Shares add up to the values.
    """
    masked = valid & ~keep_mask
    B, T = masked.shape
    place = torch.arange(1, T + 1, device=masked.device).expand(B, T)
    last = torch.where(keep_mask & valid, place, 0).cummax(1).values  # the boundary that a masked token is missing at
    size = boundary.new_zeros(B, T + 1).scatter_add_(1, last, masked.to(boundary.dtype))
    of_gap = (boundary / size.clamp(min=1)).gather(1, last)
    whole = torch.where(size == 0, boundary, 0)  # nothing is missing
    boundaries = torch.arange(T + 1, device=masked.device)
    sides = (boundaries > 0).long() + (boundaries < valid.sum(1, keepdim=True))  # tokens beside each
    half = whole / sides.clamp(min=1)
    of_kept = half[:, 1:] + half[:, :-1]  # the boundary after a token, and the one before it
    return torch.where(masked, of_gap, torch.where(valid, of_kept, 0))
