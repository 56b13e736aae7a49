"""Who decides which tokens to keep: the agent and what it is measured against, behind one interface.

A method is an object with `name`, `lm_passes` (language-model passes per text), `depends_on_rate` (whether the scores
change with the keep ratio), `mean` (whether a word has the mean of its tokens' scores or their sum, whichever was better on
validation texts) and

    scores(ids, valid, keep_ratio) -> importance (B, T) float: higher is kept first

for ids (B, T) int64, valid (B, T) bool, True at text, and a keep ratio, a number or (B,). `Words.keep_highest` turns scores
into masks that keep as many tokens for every method: exactly, or as whole words allow. Where the passes depend on the call,
`lm_passes` is that of the last call. Every reading counts as its share of a pass: of the model's blocks that it goes through, and
of the text that it reads, where gaps are looked for in what is sent; output layers don't count.
"""

import functools
from zlib import crc32

import numpy as np
import torch
from transformers import DynamicCache

from data.artifacts import InputError
from data.sequences import SPLITS, load_sequences
from models.reconstructor.loss import check_finite, read_logits
from eval.verified import MeanMaskedNats, Verified
from models.agent.reader import Reader
from models.reconstructor.masking import budget
from models.reconstructor.reconstructor import LOGIT_ROWS
from models.reconstructor.texts import token_counts
from models.reconstructor.words import SPACE, kinds_of_tokens, spread

CHEAP = ("causal", "iterative", "frequency", "random")  # of the methods of `--methods` those that never ask the reconstructor
BY_PLACE = ("head", "tail", "sentences")  # those that keep whole parts of a text
OPPONENTS = (*CHEAP, *BY_PLACE, "verified-once", "verified-twice", "mean-nats")
# What the agents of `--against` are called, by their kind, which is what `--receivers` calls them.
AGAINST = {"critic": "critic alone", "proposer": "learned proposer", "against": "agent, other training"}


class Agent:
    """The trained policy's keep probabilities at the λ, for every text, at which it keeps about as much by itself."""

    name, depends_on_rate, mean = "agent", True, True

    def __init__(self, policy, name=name):
        self.policy, self.name = policy, name

    @property
    def lm_passes(self):
        return self.policy.lm_passes

    def scores(self, ids, valid, keep_ratio):
        return self.policy.keep_probability_at(ids, valid, keep_ratio).numpy()


class Random:
    """Every subset of the right size is equally likely. Chance depends on the seed, the text and the keep ratio alone."""

    name, lm_passes, depends_on_rate, mean = "random", 0, True, True

    def __init__(self, seed):
        self.seed = seed

    def scores(self, ids, valid, keep_ratio):
        ratios = np.broadcast_to(np.asarray(keep_ratio, dtype=np.float64), len(ids))
        scores = np.zeros(ids.shape)
        for row, (text, ratio) in enumerate(zip(ids, ratios, strict=True)):
            seeds = self.seed, crc32(text[valid[row]].astype(np.int64).tobytes()), crc32(ratio.tobytes())
            scores[row, valid[row]] = np.random.default_rng(seeds).random(valid[row].sum())
        return scores


class TokenFrequency:
    """Rare tokens first: -log of the token's share of training texts (the first 20,000), each counted once more."""

    name, lm_passes, depends_on_rate, mean = "token frequency", 0, False, True

    def __init__(self, counts):
        self.importance = np.log((counts + 1.0).sum() / (counts + 1.0))

    def scores(self, ids, valid, keep_ratio):
        return self.importance[ids]


class Place:
    """The head of a text, or its tail."""

    lm_passes, depends_on_rate, mean = 0, False, True

    def __init__(self, name):
        self.name = name

    def scores(self, ids, valid, keep_ratio):
        place = np.broadcast_to(np.arange(ids.shape[1], dtype=float), ids.shape)
        return place if self.name == "tail" else -place


@functools.lru_cache(maxsize=8)
def ends_of_sentences(tokenizer):
    """(V,) bool: tokens that may end a sentence, if white space follows."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return np.array([text.rstrip().rstrip("\"')]”’").endswith((".", "!", "?")) for text in texts])


class Sentences:
    """Whole sentences, those of the rarest tokens in the mean first; the one that does not fit any more is cut off behind."""

    name, lm_passes, depends_on_rate, mean = "whole sentences", 0, False, True

    def __init__(self, frequency, tokenizer):
        self.frequency, self.tokenizer = frequency, tokenizer

    def scores(self, ids, valid, keep_ratio):
        spaces = (kinds_of_tokens(self.tokenizer).numpy()[ids] & SPACE) > 0
        starts = np.zeros(ids.shape, dtype=bool)
        starts[:, 1:] = ends_of_sentences(self.tokenizer)[ids[:, :-1]] & spaces[:, 1:]
        starts = torch.as_tensor(starts | ~valid)
        starts[:, 0] = True
        return spread(torch.as_tensor(self.frequency.scores(ids, valid, keep_ratio)), starts).numpy()


def check_length(model, length):
    """Raises InputError if texts of `length` tokens are longer than a causal LM's positions."""
    positions = getattr(model.config, "max_position_embeddings", length)
    if length > positions:
        raise InputError(
            f"a text of {length} tokens: expected at most {positions}, the positions of --base_model; use a smaller --max_length"
        )


def read_states(model, states, ids):
    """-ln p(id) (B, T) float32 from the states (B, T, D) that predict ids (B, T), with the logits of LOGIT_ROWS at one time."""
    weight = model.get_output_embeddings().weight
    chunks = zip(states.flatten(0, 1).split(LOGIT_ROWS), ids.flatten().split(LOGIT_ROWS), strict=True)
    return torch.cat([read_logits(state @ weight.T, truth)[0] for state, truth in chunks]).view(ids.shape).cpu().numpy()


class CausalSurprisal:
    """Selective Context (Li et al. 2023) on single tokens: -ln p(token | BOS and the text before it) by a causal LM.

    Raises InputError if the texts are longer than the model's positions.
    """

    name, lm_passes, depends_on_rate, mean = "causal surprisal", 1, False, True

    def __init__(self, model, bos_id):
        self.model, self.bos_id = model.eval(), bos_id

    @torch.inference_mode()
    def scores(self, ids, valid, keep_ratio):
        ids, valid = (torch.as_tensor(x, device=self.model.device) for x in (ids, valid))
        check_length(self.model, ids.shape[1])
        # Padding stands at the end, where a causal model's earlier positions never see it. Token i is read from position i - 1.
        inputs = torch.cat([ids.new_full((len(ids), 1), self.bos_id), torch.where(valid, ids, self.bos_id)[:, :-1]], 1)
        found = read_states(self.model, self.model.base_model(input_ids=inputs, use_cache=False).last_hidden_state, ids)
        check_finite(f"{self.name} by {self.model.name_or_path}", found[valid.cpu().numpy()])
        return found


class KeptContext:
    """Reads segments of texts by a causal LM, each after nothing but BOS and the tokens that were kept of earlier segments.

    Keys and values of what was kept stay in a cache. Every row of the batch has kept equally many tokens.
    """

    def __init__(self, model, bos_id, rows):
        self.model, self.cache = model, DynamicCache()
        self.kept = torch.full((rows, 1), bos_id, device=model.device)  # (B, K): kept, but not read yet
        self.state = torch.zeros(rows, 1, model.config.hidden_size, device=model.device)  # of the last kept token that was read

    def select(self, rows):
        """Go on with some rows of the batch only."""
        rows = torch.as_tensor(rows, device=self.model.device)
        self.cache.batch_select_indices(rows)
        self.kept, self.state = self.kept[rows], self.state[rows]

    def surprisal(self, segment):
        """-ln p (B, S) of the tokens of a segment, ids (B, S): one reading of what was kept last and the segment."""
        kept, length = self.kept.shape[1], segment.shape[1]
        inputs = torch.cat([self.kept, segment], 1)
        hidden = self.model.base_model(input_ids=inputs, past_key_values=self.cache, use_cache=True).last_hidden_state
        states = torch.cat([self.state, hidden], 1)[:, kept : kept + length]  # token i is read from the token before it
        self.cache.crop(-length)  # what was dropped must leave, and what is kept must be read without it
        self.state, self.kept = states[:, :1], self.kept[:, :0]
        return read_states(self.model, states, segment)


class IterativeSurprisal:
    """LLMLingua's token-level step (Jiang et al. 2023, section 3.2): surprisal given the earlier segments as compressed.

    Deviations: 1. every segment keeps the same share, exact to the token over the whole text, where LLMLingua thresholds at a
    percentile; 2. the embedded base model instead of LLaMA; 3. segments of `segment` tokens, shorter in proportion to the texts;
    4. where words are decided, a word has the mean surprisal of what lies in the segment.
    """

    name, depends_on_rate, mean = "iterative surprisal", True, True

    def __init__(self, model, bos_id, words, segment=32):
        self.model, self.bos_id, self.words, self.segment, self.lm_passes = model.eval(), bos_id, words, segment, None

    @torch.inference_mode()
    def scores(self, ids, valid, keep_ratio):
        if np.ndim(keep_ratio):  # rows must keep equally many tokens, for the cache
            rows = (slice(i, i + 1) for i in range(len(ids)))
            return np.concatenate([self.scores(ids[r], valid[r], float(keep_ratio[r.start])) for r in rows])
        check_length(self.model, ids.shape[1])
        words = self.words.starts(torch.as_tensor(ids), torch.as_tensor(valid))
        lengths, scores = valid.sum(1), np.zeros(ids.shape)
        rows, context = np.arange(len(ids)), KeptContext(self.model, self.bos_id, len(ids))
        starts = range(0, int(lengths.max()), self.segment)
        for start in starts:
            going_on = lengths[rows] > start
            rows = rows[going_on]
            context.select(np.flatnonzero(going_on))
            segment = ids[rows, start : start + self.segment]
            surprisal = context.surprisal(torch.as_tensor(segment, device=self.model.device))
            check_finite(f"{self.name} by {self.model.name_or_path}", surprisal[valid[rows, start : start + self.segment]])
            if self.words.unit == "word":
                begins = words[rows, start : start + self.segment].clone()
                begins[:, 0] = True
                surprisal = spread(torch.as_tensor(surprisal), begins).numpy()
            within = valid[rows, start : start + self.segment]
            ends = start + within.sum(1)
            quota = budget(ends, keep_ratio) - budget(start, keep_ratio)
            order = np.argsort(np.where(within, -surprisal, np.inf), axis=1, kind="stable")
            rank = order.argsort(axis=1)
            chosen = rank < quota[:, None]
            scores[rows, start : start + self.segment] = chosen  # what is kept of each segment is settled here
            # A row that goes on has kept as many tokens as every other; of one that ends here anything may follow.
            most = quota.max()
            kept = np.sort(order[:, :most], axis=1)
            context.kept = torch.as_tensor(np.take_along_axis(segment, kept, 1), device=self.model.device)
        self.lm_passes = len(starts)
        return scores


def build_opponent(name, model, receiver, words, counts, seed, common=None):
    """The method of this name: `model` a causal LM for surprisal, `counts()` of the training texts' tokens (V,).

    `common`: what verification looks at beside the truth, as the agent does; default: the most frequent tokens by `counts`.
    """
    base = model, receiver.bos_id

    def verified(readings):
        looked_at = Reader.common_tokens(counts()) if common is None else common
        reader = Reader(receiver, looked_at, found=receiver.found, unit=words.unit)
        return Verified(reader, (TokenFrequency(counts()), CausalSurprisal(*base)), readings)

    makers = {
        "causal": lambda: CausalSurprisal(*base),
        "iterative": lambda: IterativeSurprisal(*base, words),
        "frequency": lambda: TokenFrequency(counts()),
        "random": lambda: Random(seed),
        "head": lambda: Place("head"),
        "tail": lambda: Place("tail"),
        "sentences": lambda: Sentences(TokenFrequency(counts()), receiver.tokenizer),
        "verified-once": lambda: verified(1),
        "verified-twice": lambda: verified(2),
        "mean-nats": lambda: MeanMaskedNats(receiver, words, seed),
    }
    return makers[name]()


def training_counts(args, reconstructor):
    """The tokens' counts (V,) in the training texts beside `--data_path`, or in `--chosen_on`.

    Raises FileNotFoundError or InputError.
    """
    folder = args.chosen_on or args.data_path[0].parent
    return token_counts(load_sequences(folder / SPLITS["train"], reconstructor.fingerprint), reconstructor.vocab_size)


def build_opponents(args, models):
    """{name: method} of the OPPONENTS among `--methods`, from an evaluation's Models. Raises FileNotFoundError or InputError."""
    counts = functools.cache(functools.partial(training_counts, args, models.reconstructor))
    common = models.policies[0].reader.common
    return {
        name: build_opponent(name, models.base, models.receiver(name), models.words, counts, args.seed, common)
        for name in dict.fromkeys(args.methods) if name in OPPONENTS
    }
