"""Training windows, drawn where the model is: streams of tokens by kind of text, masks, and texts with tokens dropped.

Everything lies on the device and is drawn there. Shapes: `B` windows, `W` tokens of a window, `S` tokens kept, `V` vocabulary.
"""

from pathlib import Path

import numpy as np
import torch

from data.artifacts import InputError, check_shape, plain_json, read_json
from data.shapes import ANY, TEXT, count, beginning
from models.reconstructor.tokenizer import text_vocab_size

REMEDY = "write it again with: python data/prepare.py"
DATASET = "rltc.dataset/1", "data/prepare.py"  # as in data/sequences.py, whose import needs `datasets`
FEWEST = 512  # tokens of a kind in a split
ROW = {"index": count(), "part?": TEXT, "tokens": ANY}  # tokens are too many to be looked at one by one

SMOOTHING = 5.0  # pseudo-counts with which a bigram's estimate leans on the token's frequency
MEAN_SPAN = 3.0  # tokens, as in masking.py
# What a keep decision is made by, and of what: shares of the windows. Single tokens at random are what the model is measured by.
METHODS = {"random": 0.5, "surprisal": 0.3, "frequency": 0.2}
UNITS = {"token": 0.5, "span": 0.15, "word": 0.35}
NOISE = (0.3, 3.0)  # nats, standard deviation of what is added to surprisal or frequency, uniform from window to window
MASKED = (0.05, 0.55)  # mask ratios in training, uniform
KEPT = (0.4, 0.95)  # keep ratios where tokens are dropped, uniform
EVENNESS = 0.75  # 1: kinds are drawn by their tokens; 0: all alike


def read_streams(directory, split, bos):
    """{kind: (n,) int32} from the files of data/prepare.py, BOS in front of every document; kinds are the parts of a mixture.

    The lines are read without `datasets`, which a machine lent for an hour may not have. Raises FileNotFoundError or InputError.
    """
    about = {"source": TEXT, "splits": {split: {"file": TEXT}}, "tokenizer": {"vocab_size": count(1)}}
    info, parts = read_json(Path(directory) / "dataset_info.json", *DATASET, about), {}
    path, size = Path(directory) / info["splits"][split]["file"], info["tokenizer"]["vocab_size"]
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            place = f"{path}, line {number}"
            row = plain_json(place, line, REMEDY)
            check_shape(place, row, ROW, REMEDY)
            if not isinstance(row["tokens"], list) or set(map(type, row["tokens"])) != {int}:
                raise InputError(f"{place}: expected a list of token ids, found {beginning(row['tokens'])}; {REMEDY}")
            if min(row["tokens"]) < 0 or max(row["tokens"]) >= size:
                raise InputError(f"{place}: expected token ids from 0 to {size - 1}, found others; {REMEDY}")
            begin = [bos] * (row["index"] == 0)
            parts.setdefault(row.get("part", info["source"]), []).append(np.array(begin + row["tokens"], dtype=np.int32))
    streams = {kind: np.concatenate(parts[kind]) for kind in sorted(parts)}
    for kind, stream in streams.items():
        if len(stream) < FEWEST:
            raise InputError(f"{directory}: expected {FEWEST} {split} tokens of {kind} or more, found {len(stream)}; give more")
    return streams


def word_ends(tokenizer):
    """(2, V) bool: whether a token's first, last character is one that words go on with, a letter, digit or apostrophe."""
    texts = [tokenizer.decode([i]) for i in range(text_vocab_size(tokenizer))]
    inside = lambda character: character.isalnum() or character in "'’\ufffd"
    return np.array([[bool(text) and inside(text[place]) for text in texts] for place in (0, -1)])


class Bigrams:
    """Surprisal of a token from the token before it and from the one after it, from counts of training tokens; `V` of them."""

    def __init__(self, tokens, vocab_size):
        self.size = vocab_size
        self.single = torch.bincount(tokens, minlength=vocab_size)
        self.pairs, self.counts = torch.unique(tokens[:-1] * vocab_size + tokens[1:], return_counts=True)
        self.share = (self.single + 1) / (len(tokens) + vocab_size)

    def surprisal(self, tokens, counted):
        """(2, n) float16 nats of `tokens` (n,), from the left and from the right; `counted`: leave each one's own count out."""
        pairs = tokens[:-1] * self.size + tokens[1:]
        place = torch.searchsorted(self.pairs, pairs).clamp(max=len(self.pairs) - 1)
        count = torch.where(self.pairs[place] == pairs, self.counts[place], 0).sub(int(counted)).clamp(min=0)
        nats = torch.zeros(2, len(tokens), device=tokens.device)
        for side, (given, known) in enumerate(((tokens[1:], tokens[:-1]), (tokens[:-1], tokens[1:]))):
            total = self.single[known].sub(int(counted)).clamp(min=0) + SMOOTHING
            value = -((count + SMOOTHING * self.share[given]) / total).log()
            nats[side, 1 - side : len(tokens) - side] = value
        return nats.half()

    def frequency(self, tokens):
        """(n,) float16: -ln of the tokens' share."""
        return -self.share.log()[tokens].half()


class KindWeights:
    """How often each kind of text is drawn: tokens ** EVENNESS, less where the gap between validation and training opens."""

    STRENGTH, LIMITS = 4.0, (0.25, 2.0)  # per nat that a gap opens further than the mean; factors, at most

    def __init__(self, lengths):
        self.base = lengths.double() ** EVENNESS
        self.start, self.factor = None, torch.ones_like(self.base)

    def shares(self):
        share = self.base * self.factor
        return share / share.sum()

    def update(self, gaps):
        """`gaps` (kinds,): validation less training nats, now. The first call says where each gap starts: documents differ."""
        gaps = torch.as_tensor(gaps, dtype=torch.float64, device=self.base.device)
        self.start = gaps if self.start is None else self.start
        opened = gaps - self.start
        self.factor = (self.STRENGTH * (opened.mean() - opened)).exp().clamp(*self.LIMITS)

    def state(self):
        return {"start": self.start, "factor": self.factor}

    def restore(self, state):
        """Go on where `state` was called."""
        self.start, self.factor = (value if value is None else value.to(self.base.device) for value in state.values())


class Streams:
    """The token streams of several kinds of text, end to end, with what decisions about tokens are made by.

    `arrays`: {kind: (n,) integer array}; `joins` (2, V) bool: the token's first, last character is one that words are made of.
    `bigrams`: of the training streams; None if these are they.
    """

    def __init__(self, arrays, joins, device, bigrams=None):
        self.kinds = list(arrays)
        whole = [torch.as_tensor(arrays[kind].astype("int64")) for kind in self.kinds]
        self.length = torch.tensor([len(part) for part in whole], device=device)
        self.first = self.length.cumsum(0) - self.length
        tokens = torch.cat(whole).to(device)
        head, tail = torch.as_tensor(joins).to(device)[:, tokens]
        self.begins = torch.cat([head.new_ones(1), ~(head[1:] & tail[:-1])])  # whether a word begins at a token
        self.bigrams = bigrams or Bigrams(tokens, joins.shape[1])
        self.surprisal = self.bigrams.surprisal(tokens, counted=bigrams is None)
        self.frequency = self.bigrams.frequency(tokens)
        self.tokens = tokens.int()

    def draw(self, weights, count, size, generator):
        """Places (count, size) of windows in `tokens`: kinds drawn by `weights` (kinds,), starts uniform."""
        kind = torch.multinomial(weights, count, replacement=True, generator=generator)
        room = (self.length[kind] - size).clamp(min=0)
        start = self.first[kind] + (torch.rand(count, generator=generator, device=kind.device) * (room + 1)).long()
        return (start[:, None] + torch.arange(size, device=kind.device)).clamp(max=len(self.tokens) - 1)

    def importance(self, places, generator):
        """Scores (B, W) by which tokens are kept, highest first: in each window by one of METHODS, for one of UNITS."""
        B, W = places.shape
        uniform = lambda *shape: torch.rand(*shape, generator=generator, device=places.device)
        method, unit = (choose(shares, uniform(B, 1)) for shares in (METHODS, UNITS))
        lean, noise = uniform(B, 1), NOISE[0] + (NOISE[1] - NOISE[0]) * uniform(B, 1)
        left, right = self.surprisal[:, places].float()
        by = torch.where(method == 1, lean * left + (1 - lean) * right, self.frequency[places].float()) * (method > 0)
        begins = torch.where(unit == 0, True, torch.where(unit == 1, uniform(B, W) < 1 / MEAN_SPAN, self.begins[places]))
        begins[:, 0] = True
        segment = begins.cumsum(1) - 1
        total = torch.zeros_like(by).scatter_add_(1, segment, by)
        size = torch.zeros_like(by).scatter_add_(1, segment, torch.ones_like(by))
        score = total / size.clamp(min=1) + noise * torch.randn(B, W, generator=generator, device=places.device)
        return score.gather(1, segment)

    def masked(self, places, generator, ratio=None):
        """Which tokens are hidden, (B, W) bool, exact to the token; `ratio`: that share everywhere, single tokens at random."""
        B, W = places.shape
        if ratio is None:
            scores = self.importance(places, generator)
            ratio = MASKED[0] + (MASKED[1] - MASKED[0]) * torch.rand(B, 1, generator=generator, device=places.device)
        else:
            scores = torch.rand(B, W, generator=generator, device=places.device)
        return rank(scores) < ratio * W

    def dropped(self, places, kept, generator, ratio=None):
        """Texts of which `kept` = S tokens are left: their tokens (B, S), the gaps (B, S + 1) and the whole texts' lengths (B,).

        A text is the beginning of its window, S / ratio tokens long; `ratio`: default uniform in KEPT.
        """
        B, W = places.shape
        if ratio is None:
            ratio = KEPT[0] + (KEPT[1] - KEPT[0]) * torch.rand(B, generator=generator, device=places.device)
        length = (kept / torch.as_tensor(ratio, device=places.device)).round().long().expand(B).clamp(max=W)
        outside = torch.arange(W, device=places.device) >= length[:, None]
        scores = self.importance(places, generator).masked_fill(outside, -torch.inf)
        chosen = scores.topk(kept, dim=1).indices.sort(dim=1).values  # (B, S)
        edges = torch.cat([chosen.new_full((B, 1), -1), chosen, length[:, None]], 1)
        return self.tokens[places.gather(1, chosen)].long(), edges.diff(dim=1) - 1, length


def room_for(kept, ratio=KEPT[0]):
    """How long a window must be for texts of which `kept` tokens are left."""
    return int(kept / ratio) + 1


def choose(shares, uniform):
    """The number of the share that each uniform draw falls into."""
    ends = torch.tensor(list(shares.values()), device=uniform.device).cumsum(0)[:-1]
    return torch.bucketize(uniform, ends, right=True)


def rank(scores):
    """The place of each score (B, W) in ascending order."""
    return scores.argsort(1).argsort(1)
