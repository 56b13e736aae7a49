"""Who decides which tokens to keep: the agent and what it is measured against, behind one interface.

A method is an object with `name`, `lm_passes` (language-model passes per text) and

    scores(ids, valid, keep_ratio) -> importance (B, T) float: higher is kept first

for ids (B, T) int64 and valid (B, T) bool, True at text. `masking.keep_highest` turns scores into masks with an
exact number of kept tokens, the same for every method.
"""

import numpy as np
import torch

from data.artifacts import InputError


class Agent:
    """The trained policy at the λ whose natural keep ratio is nearest: tokens ranked by their keep probability."""

    name, lm_passes = "agent", 0

    def __init__(self, policy):
        self.policy = policy

    def scores(self, ids, valid, keep_ratio):
        return self.policy.keep_probability(ids, valid, self.policy.price_for(keep_ratio)).numpy()


class Random:
    """Every subset of the right size is equally likely."""

    name, lm_passes = "random", 0

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def scores(self, ids, valid, keep_ratio):
        return self.rng.random(ids.shape)


class TokenFrequency:
    """Rare tokens first: -log of the token's count in the training split, plus one."""

    name, lm_passes = "token frequency", 0

    def __init__(self, counts):
        self.importance = -np.log(counts + 1.0)

    def scores(self, ids, valid, keep_ratio):
        return self.importance[ids]


class CausalSurprisal:
    """Selective Context (Li et al. 2023) on single tokens: -ln p(token | the text before it) by a causal LM."""

    name, lm_passes = "causal surprisal", 1

    def __init__(self, model, bos_id):
        self.model, self.bos_id = model.eval(), bos_id

    @torch.inference_mode()
    def scores(self, ids, valid, keep_ratio):
        ids, valid = (torch.as_tensor(x, device=self.model.device) for x in (ids, valid))
        B, T = ids.shape
        positions = getattr(self.model.config, "max_position_embeddings", T)
        if T > positions:
            raise InputError(f"a text of {T} tokens: expected at most {positions}, the positions of --base_model; use a smaller --max_length")
        # Padding stands at the end, where a causal model's earlier positions never see it. Token i is read from position i - 1.
        inputs = torch.cat([ids.new_full((B, 1), self.bos_id), torch.where(valid, ids, self.bos_id)[:, :-1]], 1)
        hidden = self.model.base_model(input_ids=inputs, use_cache=False).last_hidden_state
        surprisal = torch.zeros(B, T)
        weight = self.model.get_output_embeddings().weight
        for row in range(B):
            logits = hidden[row] @ weight.T  # (T, V), one text at a time
            surprisal[row] = torch.nn.functional.cross_entropy(logits.float(), ids[row], reduction="none").cpu()
        return surprisal.numpy()
