"""Who decides which tokens to keep: the agent and what it is measured against, behind one interface.

A method is an object with `name`, `lm_passes` (language-model passes per text), `depends_on_rate` (whether the scores
change with the keep ratio) and

    scores(ids, valid, keep_ratio) -> importance (B, T) float: higher is kept first

for ids (B, T) int64 and valid (B, T) bool, True at text. `masking.keep_highest` turns scores into masks with an
exact number of kept tokens, the same for every method. Where the number of passes depends on the rate or the length,
`lm_passes` is that of the last call. A policy that begins with some blocks of a language model counts them as their share of a
pass, and every reading of a draft as one; output layers don't count.
"""

import numpy as np
import torch

from data.artifacts import InputError
from data.sequences import pad_batch
from models.reconstructor.loss import read_logits
from models.reconstructor.masking import budget, keep_counts, keep_highest

SENT = 1e3  # nats, more than any token costs: a score of tokens that are sent in any case


class Agent:
    """The trained policy at the λ, for every text, at which it keeps about as much by itself: tokens ranked by their keep probability."""

    name, depends_on_rate = "agent", True

    def __init__(self, policy):
        self.policy, self.lm_passes = policy, policy.reader.passes

    def scores(self, ids, valid, keep_ratio):
        return self.policy.keep_probability_at(ids, valid, keep_ratio).numpy()

    def importances(self, ids, valid, keep_ratio):
        """What the policy's TokenImportanceAttention looks at, as multiples of an even distribution: (B, T), each text's mean is 1; None if it has none."""
        found = self.policy.importances(ids, valid, self.policy.price_at(ids, valid, keep_ratio))
        return None if found is None else found.numpy() * valid.sum(1, keepdims=True)


class Random:
    """Every subset of the right size is equally likely."""

    name, lm_passes, depends_on_rate = "random", 0, True

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def scores(self, ids, valid, keep_ratio):
        return self.rng.random(ids.shape)


class TokenFrequency:
    """Rare tokens first: -log of the token's count in training texts (the first 20,000), plus one."""

    name, lm_passes, depends_on_rate = "token frequency", 0, False

    def __init__(self, counts):
        self.importance = -np.log(counts + 1.0)

    def scores(self, ids, valid, keep_ratio):
        return self.importance[ids]


@torch.inference_mode()
def causal_nats(model, bos_id, ids, valid):
    """-ln p(token | BOS and the tokens before it) by a causal LM, (B, T) float32; ids (B, T) int64, valid (B, T) bool, padding at the end.

    Raises InputError if the texts are longer than the model's positions.
    """
    ids, valid = (torch.as_tensor(x, device=model.device) for x in (ids, valid))
    B, T = ids.shape
    positions = getattr(model.config, "max_position_embeddings", T)
    if T > positions:
        raise InputError(f"a text of {T} tokens: expected at most {positions}, the positions of --base_model; use a smaller --max_length")
    # Padding stands at the end, where a causal model's earlier positions never see it. Token i is read from position i - 1.
    inputs = torch.cat([ids.new_full((B, 1), bos_id), torch.where(valid, ids, bos_id)[:, :-1]], 1)
    hidden = model.base_model(input_ids=inputs, use_cache=False).last_hidden_state
    weight = model.get_output_embeddings().weight
    # One text at a time: logits are (T, V).
    return np.stack([read_logits(h @ weight.T, t)[0].cpu().numpy() for h, t in zip(hidden, ids)])


class CausalSurprisal:
    """Selective Context (Li et al. 2023) on single tokens: -ln p(token | the text before it) by a causal LM."""

    name, lm_passes, depends_on_rate = "causal surprisal", 1, False

    def __init__(self, model, bos_id):
        self.model, self.bos_id = model.eval(), bos_id

    def scores(self, ids, valid, keep_ratio):
        return causal_nats(self.model, self.bos_id, ids, valid)


class IterativeSurprisal:
    """LLMLingua's token-level step (Jiang et al. 2023, section 3.2): surprisal given the earlier segments as they were compressed.

    Deviations: 1. every segment keeps the same share, exact to the token over the whole text, where LLMLingua thresholds at a
    percentile; 2. the embedded base model instead of LLaMA; 3. segments of `segment` tokens, shorter in proportion to the texts.
    """

    name, depends_on_rate = "iterative surprisal", True

    def __init__(self, model, bos_id, segment=32):
        self.model, self.bos_id, self.segment, self.lm_passes = model.eval(), bos_id, segment, None

    def scores(self, ids, valid, keep_ratio):
        lengths = valid.sum(1)
        scores, kept = np.zeros(ids.shape), [np.empty(0, dtype=np.int64) for _ in ids]
        starts = range(0, ids.shape[1], self.segment)
        for start in starts:
            rows = np.flatnonzero(lengths > start)
            ends = np.minimum(start + self.segment, lengths[rows])
            contexts = [np.concatenate([kept[row], ids[row, start:end]]) for row, end in zip(rows, ends, strict=True)]
            surprisal = causal_nats(self.model, self.bos_id, *pad_batch(contexts, 0))
            for row, end, context, nats in zip(rows, ends, contexts, surprisal, strict=True):
                quota = budget(end, keep_ratio) - budget(start, keep_ratio)
                nats = nats[len(kept[row]) : len(context)]
                chosen = np.sort(np.argsort(-nats, kind="stable")[:quota])
                scores[row, start + chosen] = 1  # what is kept of each segment is settled here
                kept[row] = np.concatenate([kept[row], ids[row, start + chosen]])
        self.lm_passes = len(starts)
        return scores


class MeanMaskedNats:
    """What the reconstructor itself says: a token's mean nats under random masks of the rate asked for, `passes` of them.

    Every mask hides the tokens that were hidden least often so far, in random order, so that all are hidden equally often; more
    masks where that many would not reach every token.
    """

    name, depends_on_rate = "mean nats under random masks", True

    def __init__(self, reconstructor, seed, passes=24):
        self.reconstructor, self.seed, self.passes, self.lm_passes = reconstructor, seed, passes, None

    def scores(self, ids, valid, keep_ratio):
        rng, times, total = np.random.default_rng(self.seed), np.zeros(ids.shape), np.zeros(ids.shape)
        lengths = valid.sum(1)
        self.lm_passes = max(self.passes, int(np.ceil(lengths / np.maximum(lengths - keep_counts(valid, keep_ratio), 1)).max()))
        for _ in range(self.lm_passes):
            keep_mask = keep_highest(times + rng.random(ids.shape), valid, keep_ratio)
            times += ~keep_mask
            total += self.reconstructor.predict(ids, keep_mask, valid).nats.cpu().numpy()
        return total / np.maximum(times, 1)


class VerifiedOnce:
    """What a single reading by the reconstructor is worth without training: mask too much, see what each token would cost, send the dearest.

    `proposer` is a method whose highest-scored `keep_ratio ** power` of a text is sent in any case. This is the agent's own
    budget of one reading, which no per-token score uses. The larger the power, the more is masked in it; 1.5 was best on validation texts.
    """

    name, depends_on_rate = "surprisal verified once", True

    def __init__(self, reconstructor, proposer, power=1.5):
        self.reconstructor, self.proposer, self.power, self.lm_passes = reconstructor, proposer, power, proposer.lm_passes + 1

    def scores(self, ids, valid, keep_ratio):
        sent = keep_highest(self.proposer.scores(ids, valid, keep_ratio), valid, keep_ratio**self.power)
        return np.where(sent, SENT, self.reconstructor.predict(ids, sent, valid).nats.cpu().numpy())


class VerifiedMasks:
    """The practical oracle: mask `surplus` times too many, reconstruct, send what came back dearest, and again, `rounds` times.

    It looks at the reconstructor's answer under the joint mask, which no per-token score does. `proposer` is a method whose
    scores say what to mask at first.
    """

    name, depends_on_rate = "reconstructor-verified masks", True

    def __init__(self, reconstructor, proposer, surplus=1.6, rounds=8):
        self.reconstructor, self.proposer, self.surplus, self.rounds, self.lm_passes = reconstructor, proposer, surplus, rounds, None

    def scores(self, ids, valid, keep_ratio):
        proposal = self.proposer.scores(ids, valid, keep_ratio)
        target = valid.sum(1) - keep_counts(valid, keep_ratio)
        first = np.minimum(np.ceil(self.surplus * target), valid.sum(1)).astype(np.int64)
        order = np.where(valid, proposal, np.inf).argsort(1, kind="stable").argsort(1)
        masked = order < first[:, None]
        for left in range(self.rounds, 0, -1):
            nats = np.where(masked, self.reconstructor.predict(ids, ~masked, valid).nats.cpu().numpy(), -np.inf)
            surplus = masked.sum(1) - target
            dearest = (-nats).argsort(1, kind="stable").argsort(1)
            masked &= dearest >= np.ceil(surplus / left).astype(np.int64)[:, None]
        self.lm_passes = self.proposer.lm_passes + self.rounds
        return (~masked).astype(float)
