"""What the agent takes from a reconstructor: its first blocks, and the whole of it to read drafts with.

Shapes: `B` texts, `T` tokens, `V` vocabulary, `D'` hidden size of the reconstructor. `valid` (B, T) bool is True at text, False at padding.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModel

from data.artifacts import InputError
from models.reconstructor.reconstructor import TOKENS_PER_PASS, TOKENS_PER_PASS_GPU, attention_bias

COMMON_TOKENS = 4096  # most frequent tokens, whose logits stand for those of all when a draft is read again; 1/12 of GPT-2's
EVIDENCE_ROWS = 1024  # hidden tokens whose common logits are alive at one time: 1,024 x 4,096 x 4 bytes = 17 MB
EVIDENCE = 4  # numbers per token that say how the receiver would do with a draft
LARGEST_EVIDENCE = 12.0  # nats; keeps a token that the receiver would never guess from drowning the others
SMALLEST_COST = 0.01  # nats; keeps the logarithms of costs finite


class PretrainedLayers(nn.Module):
    """The first blocks of a reconstructor: features of tokens that have read their context before any training.

    `config`: of the whole model, as a dict; `blocks`: how many of it; `bos_id` stands in front of every text; `rate`: share of
    the learning rate that the blocks are trained with, 0: not at all; `attention`: the reconstructor's. Embeddings are never trained, those of tokens stored in 16 bit.
    """

    def __init__(self, config, blocks, bos_id, rate, attention="bidirectional"):
        super().__init__()
        self.attention = attention
        config = AutoConfig.for_model(**config)
        self.blocks, self.share, self.bos_id, self.rate = blocks, blocks / config.num_hidden_layers, bos_id, rate
        config.num_hidden_layers = blocks
        self.model = AutoModel.from_config(config).requires_grad_(rate > 0)
        for module in self.model.modules():
            if isinstance(module, nn.Embedding):  # of tokens and, in GPT-2, of positions: what is learned must hold at every other
                module.requires_grad_(False)
        self.embedding = self.model.get_input_embeddings().half()
        self.width = 2 * self.model.config.hidden_size
        self.train(False)

    def train(self, mode=True):
        return super().train(False)  # no dropout: rollout and update must see one policy

    @torch.no_grad()
    def start_from(self, model):
        """Take the weights of a causal LM."""
        weights = model.base_model.state_dict()
        self.model.load_state_dict({name: weights[name] for name in self.model.state_dict()})

    def forward(self, ids, valid):
        """ids, valid (B, T) to (B, T, 2 D'): the state at each token and the one before it, from which a reconstructor predicts it.

        Zero at padding beyond the longest text. Raises InputError if the texts are longer than the model's positions allow.
        """
        padding = ids.shape[1] - int(valid.sum(1).max())
        ids, valid = ids[:, : ids.shape[1] - padding], valid[:, : ids.shape[1] - padding]
        positions = getattr(self.model.config, "max_position_embeddings", 2**31) - 1
        if ids.shape[1] > positions:
            raise InputError(f"texts of {ids.shape[1]} tokens: expected at most {positions}, the positions of the policy's pretrained blocks less one; use a smaller --max_length")
        shown = torch.cat([ids.new_full((len(ids), 1), self.bos_id), torch.where(valid, ids, self.bos_id)], 1)
        rows = max(1, TOKENS_PER_PASS.get(ids.device.type, TOKENS_PER_PASS_GPU) // ids.shape[1])
        states = torch.cat([self._states(*part) for part in zip(shown.split(rows), valid.split(rows), strict=True)])
        return F.pad(torch.cat([states[:, 1:], states[:, :-1]], -1), (0, 0, 0, padding))

    def _states(self, shown, valid):
        """Last states (B, T + 1, D') of texts with their BOS."""
        return self.model(inputs_embeds=self.embedding(shown).float(), attention_mask=attention_bias(valid, self.attention), use_cache=False).last_hidden_state


class DraftReader(PretrainedLayers):
    """Reads a text with what a draft hides hidden: the whole reconstructor, as the receiver uses it, frozen.

    What the receiver would make of the hidden tokens is known from the last states but for the output layer. Of that, the rows of
    the true tokens and of the `common` most frequent ones are used, all that is needed to know nearly what a token would cost,
    at a fraction of its price. `layers`: the first blocks of the same model, whose token embedding is shared; `mask_id` stands for
    what is hidden, and is the number of other tokens.
    """

    def __init__(self, layers, config, mask_id, common=COMMON_TOKENS):
        super().__init__(config, AutoConfig.for_model(**config).num_hidden_layers, layers.bos_id, 0, layers.attention)
        self.mask_id, self.embedding = mask_id, layers.embedding
        self.model.set_input_embeddings(self.embedding)
        tied = getattr(self.model.config, "tie_word_embeddings", False)
        self.output = self.embedding if tied else nn.Embedding(*self.embedding.weight.shape).half().requires_grad_(False)
        self.register_buffer("common", torch.zeros(min(common, mask_id), dtype=torch.long))

    @torch.no_grad()
    def start_from(self, model, counts):
        """Take the weights of a reconstructor's causal LM, and the tokens that are frequent by counts (V,)."""
        super().start_from(model)
        self.output.weight.copy_(model.get_output_embeddings().weight)
        self.common.copy_(torch.as_tensor(counts).argsort(descending=True, stable=True)[: len(self.common)])

    @torch.no_grad()
    def forward(self, ids, valid, keep_mask):
        """ids, valid, keep_mask (B, T) to (B, T, 2 D' + EVIDENCE): states as of PretrainedLayers, and the evidence, zero at kept tokens.

        That is: 1 for a hidden token; nearly its nats, -ln p among the common tokens and itself, and their logarithm; and how far
        its logit is above that of the likeliest common token.
        """
        states, hidden = super().forward(torch.where(keep_mask, ids, self.mask_id), valid), valid & ~keep_mask
        evidence, common = states.new_zeros(*ids.shape, EVIDENCE), self.output.weight[self.common].float()
        parts = zip(states[hidden][:, self.width // 2 :].split(EVIDENCE_ROWS), ids[hidden].split(EVIDENCE_ROWS), strict=True)
        evidence[hidden] = torch.cat([self._evidence(predicting, truth, common) for predicting, truth in parts])
        return torch.cat([states, evidence], -1)

    def _evidence(self, predicting, truth, common):
        """(M, EVIDENCE) from the states that predict M hidden tokens (M, D'), their ids (M,), and the output layer of the common tokens."""
        logits, true = predicting @ common.T, (predicting * self.output.weight[truth].float()).sum(-1)  # (M, common), (M,)
        total = logits.logsumexp(-1)
        total = torch.where(torch.isin(truth, self.common), total, total.logaddexp(true))
        nats = (total - true).clamp(0, LARGEST_EVIDENCE)
        return torch.stack([torch.ones_like(nats), nats, (nats + SMALLEST_COST).log(), (true - logits.amax(-1)).clamp(-LARGEST_EVIDENCE, LARGEST_EVIDENCE)], -1)
