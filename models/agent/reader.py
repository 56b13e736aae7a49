"""What the agent takes from a reconstructor: it reads the text with the first blocks, and the draft with all of them.

That is its receiver, or a smaller one with the same tokenizer, so that deciding does not cost more where the receiver is larger.
Nothing here is trained, and nothing is saved with an agent but the list of common tokens: the weights are the
reconstructor's. Shapes: `B` texts, `T` tokens, `M` hidden tokens, `S` = 2 D' states of a token, `D'` hidden size of the
reconstructor, `E` numbers of evidence.
"""

import torch
from transformers import AutoModel

from data.artifacts import InputError
from models.reconstructor.gaps import shares
from models.reconstructor.loss import check_finite
from models.reconstructor.reconstructor import passes, read_states
from models.reconstructor.words import Words

DRAFT_THRESHOLD = 0.85  # a draft hides tokens that are kept with at most this probability: what is hidden is known best
COMMON_TOKENS = 4096  # most frequent tokens, whose logits stand for those of all when a draft is read; 1/12 of GPT-2's
EVIDENCE_ROWS = 1024  # hidden tokens whose common logits are alive at one time: 1,024 x 4,096 x 4 bytes = 17 MB
EVIDENCE = 4  # numbers per token that say how the receiver would do with a draft
GAP_EVIDENCE = 2  # that many more where it has to find the gaps
LARGEST_EVIDENCE = 12.0  # nats; keeps a token that the receiver would never guess from drowning the others
SMALLEST_COST = 0.01  # nats; keeps the logarithms of costs finite


def first_blocks(model, blocks):
    """The transformer of a causal LM cut to its first blocks, which share the weights of the whole."""
    config = type(model.config).from_dict(model.config.to_dict())
    config.num_hidden_layers = blocks
    cut, weights = AutoModel.from_config(config), model.base_model.state_dict()
    cut.load_state_dict({name: weights[name] for name in cut.state_dict()}, assign=True)
    return cut.requires_grad_(False).eval()


class Reader:
    """Reads texts and drafts as the receiver would, if `reconstructor` is the receiver, and else about so.

    `blocks`: how many of the reconstructor's blocks read the text; half of them if None. `common` (C,) int64: the corpus'
    most frequent tokens. `found`: whether the receiver has to find the gaps. `unit`: what one decision is about. `states`: S.
    `evidence`: E.
    """

    def __init__(self, reconstructor, common, blocks=None, found=False, unit="token"):
        depth = reconstructor.model.config.num_hidden_layers
        self.blocks = blocks or max(1, depth // 2)
        if self.blocks > depth:
            raise InputError(f"blocks {blocks}: expected at most {depth}, the reconstructor's; take fewer")
        self.reconstructor = reconstructor
        self.first = first_blocks(reconstructor.model, self.blocks).to(reconstructor.device)
        self.common = torch.as_tensor(common, device=reconstructor.device)
        self.states = 2 * reconstructor.model.config.hidden_size
        self.found, self.words = found, Words(reconstructor.tokenizer, unit)
        self.evidence = EVIDENCE + GAP_EVIDENCE * found
        self.depth, self.sent = depth, 1.0  # the share of the texts that the last draft sent
        self.worth = None  # models.agent.worth.Worth of an agent that was taught what words are worth to a language model

    @property
    def passes(self):
        """What a decision costs in passes of the whole model that it reads with, output layers not counted.

        The text goes through the first blocks and its draft through all; who looks for gaps reads what the last draft sent, too.
        """
        return 1 + self.blocks / self.depth + self.found * self.sent

    @staticmethod
    def common_tokens(counts):
        """The COMMON_TOKENS most frequent tokens by counts (V,), int64."""
        return torch.as_tensor(counts).argsort(descending=True, stable=True)[:COMMON_TOKENS]

    @torch.no_grad()
    def _states(self, model, ids, keep_mask, valid):
        """(B, T, S): the state at each token and the one before it, which predicts it; what is at padding means nothing."""
        r = self.reconstructor
        found = ids.new_zeros(*ids.shape, self.states, dtype=torch.float32)
        for rows, length in passes(valid, ids.device):
            part = (x[rows, :length] for x in (ids, keep_mask, valid))
            read = read_states(model, *part, r.bos_id, r.mask_id, r.attention).float()
            found[rows, :length] = torch.cat([read[:, 1:], read[:, :-1]], -1)
        check_finite(r.name, found[valid])
        return found

    def read(self, ids, valid):
        """What the first blocks make of a text: ids (B, T) int64, valid (B, T) bool to (B, T, S)."""
        return self._states(self.first, ids, valid, valid)

    @torch.no_grad()
    def reread(self, ids, valid, draft):
        """What the receiver makes of a draft (B, T), probabilities of keeping: (B, T, 1 + S + E).

        The draft itself; the states of the text with everything hidden that is kept with at most DRAFT_THRESHOLD; and the
        evidence, zero at tokens that are not hidden. Where gaps are to be found, a token's share of their nats and its logarithm
        are added.
        """
        keep_mask = draft > DRAFT_THRESHOLD
        states, hidden = self._states(self.reconstructor.model.base_model, ids, keep_mask, valid), valid & ~keep_mask
        evidence = states.new_zeros(*ids.shape, EVIDENCE)
        weight = self.reconstructor.output_weight().detach()
        common = weight[self.common].float()
        parts = zip(states[hidden][:, self.states // 2 :].split(EVIDENCE_ROWS), ids[hidden].split(EVIDENCE_ROWS), strict=True)
        evidence[hidden] = torch.cat([self._evidence(predicting, truth, weight, common) for predicting, truth in parts])
        gaps = [self._gap_evidence(ids, keep_mask, valid)] if self.found else []
        return torch.cat([draft[..., None], states, evidence, *gaps], -1)

    def _gap_evidence(self, ids, keep_mask, valid):
        """(B, T, GAP_EVIDENCE): each token's share of the nats of a draft's gaps, and its logarithm."""
        self.sent = float((keep_mask & valid).sum() / valid.sum())
        nats = valid.new_zeros(valid.shape, dtype=torch.float32)
        for rows, length in passes(valid, ids.device):
            part = tuple(x[rows, :length] for x in (ids, keep_mask, valid))
            nats[rows, :length] = shares(self.reconstructor.gap_nats(*part), *part[1:])
        check_finite(self.reconstructor.name, nats)
        nats = nats.clamp(max=LARGEST_EVIDENCE)
        return torch.stack([nats, (nats + SMALLEST_COST).log()], -1)

    def _evidence(self, predicting, truth, weight, common):
        """(M, EVIDENCE) from the states that predict M hidden tokens (M, D'), their ids (M,), and the output layer.

        That is: 1 for a hidden token; nearly its nats, -ln p among the common tokens and itself; their logarithm; and how far its
        logit is above that of the likeliest common token.
        """
        logits, true = predicting @ common.T, (predicting * weight[truth].float()).sum(-1)  # (M, C), (M,)
        total = logits.logsumexp(-1)
        total = torch.where(torch.isin(truth, self.common), total, total.logaddexp(true))
        check_finite(self.reconstructor.name, total, true)
        nats = (total - true).clamp(0, LARGEST_EVIDENCE)
        lead = (true - logits.amax(-1)).clamp(-LARGEST_EVIDENCE, LARGEST_EVIDENCE)
        return torch.stack([torch.ones_like(nats), nats, (nats + SMALLEST_COST).log(), lead], -1)
