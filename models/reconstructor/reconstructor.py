"""The reconstructor: a causal language model made bidirectional, which predicts masked tokens.

A text `x_1 … x_T` goes in as `[BOS, x_1 … x_T]`, with `<|mask|>` in place of what was not sent, under a full
attention mask (an additive 4-D mask, which every stock transformers model takes). Token i is predicted from the
position before it: masked next-token prediction (BehnamGhader et al. 2024, "LLM2Vec", section 2.1), which keeps
the alignment that causal pre-training gave the output layer.

A receiver is told where tokens are missing, or finds it out. Told, it pays −ln p(x_i | c, g) for every masked token, given the
sent tokens c and the gaps g. If it has to find the gaps it also pays −ln p(g_j | c) at every boundary of what was sent
(gaps.py): the sum of both is −ln p(x | c), and nothing is left unpaid.

Shapes: `B` texts, `T` tokens, `V` vocabulary, `D` model width, `M` masked tokens in a batch.
"""

import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

from data.artifacts import InputError, weight_files, write_json
from data.room import on_full_disk
from data.scratch import MARK, keep_apart, make_scratch, remove_scratch
from data.shapes import TEXT, among
from models.reconstructor.causal_lm import MADE_BY, RECORD, SCHEMA, check_head, load_causal_lm, read_record
from models.reconstructor.gaps import GAP_HEAD, GAPS, GapHead, at_places, load_gap_head, save_gap_head, send, shares
from models.reconstructor.loss import check_finite, read_logits, summed_nats
from models.reconstructor.tokenizer import MASK_TOKEN, bos_id, fingerprint, load_tokenizer, locate

ATTENTION = ("bidirectional", "causal")
SAVING = ".rltc_saving"  # in a model's directory, while its files are written
LOGIT_ROWS = 128  # masked tokens whose logits are alive at one time: 128 x 50,257 x 4 bytes = 26 MB
# Tokens that go through the model at one time. On a CPU small passes stay in the cache: 64 texts of 128 tokens in
# passes of 2,048 tokens take half the time of one pass.
TOKENS_PER_PASS = {"cpu": 2048}
TOKENS_PER_PASS_GPU = 65_536


class Prediction(NamedTuple):
    """What the reconstructor says of every token. At kept tokens: nats 0, the token itself."""

    nats: torch.Tensor  # (B, T) float32, -ln p(true token | kept tokens and gaps)
    top1: torch.Tensor  # (B, T) int64, the most probable token
    gaps: torch.Tensor  # (B, T) float32, each token's share of -ln p(gaps | kept tokens); 0 if the receiver is told


def find_device(name):
    """The torch device of a name; "auto" takes CUDA if there is one. Raises InputError if it is not there."""
    there = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    if name == "auto":
        return "cuda" if "cuda" in there else "cpu"
    if name not in there:
        expected = f"expected one of {', '.join(there)} on this machine, found no {name}"
        raise InputError(f"--device {name}: {expected}; choose one of them (fine-tuning on a CPU: {MADE_BY})")
    return name


def attention_bias(valid, attention="bidirectional", dtype=torch.float32):
    """The additive mask (B, 1, T + 1, T + 1) of texts behind a BOS: 0 where a position is looked at. `valid` (B, T) bool."""
    B, T = valid.shape
    attended = torch.cat([valid.new_ones(B, 1), valid], 1)[:, None, None].expand(B, 1, T + 1, T + 1)
    if attention == "causal":
        attended = attended & torch.ones(T + 1, T + 1, dtype=torch.bool, device=valid.device).tril()
    return torch.zeros(attended.shape, dtype=dtype, device=valid.device).masked_fill_(~attended, torch.finfo(dtype).min)


def read_states(model, ids, keep_mask, valid, bos_id, mask_id, attention="bidirectional"):
    """Last hidden states (B, T + 1, D) of `[BOS, masked text]`: state i predicts token i, state i + 1 stands at it.

    model: a transformer without its output layer; ids (B, T) int64; keep_mask, valid (B, T) bool. This is how reconstructor and
    agent read a text. Raises InputError if it is longer than the model's positions.
    """
    positions = getattr(model.config, "max_position_embeddings", 2**31) - 1  # BOS takes one
    if ids.shape[1] > positions:
        raise InputError(
            f"a text of {ids.shape[1]} tokens: expected at most {positions}, the model's positions less one; "
            "use a smaller --max_length"
        )
    shown = torch.where(keep_mask & valid, ids, torch.where(valid, mask_id, bos_id))
    inputs = torch.cat([shown.new_full((len(ids), 1), bos_id), shown], 1)
    bias = attention_bias(valid, attention, model.get_input_embeddings().weight.dtype)
    return model(input_ids=inputs, attention_mask=bias, use_cache=False).last_hidden_state


def passes(valid, device):
    """Split a batch `valid` (B, T) into (rows, length) of texts of similar length, no larger than the device likes."""
    lengths = valid.sum(1)
    limit = TOKENS_PER_PASS.get(device.type, TOKENS_PER_PASS_GPU)
    order = lengths.argsort(descending=True, stable=True)
    while len(order):
        longest = max(1, int(lengths[order[0]]))
        count = max(1, limit // longest)
        yield order[:count], longest
        order = order[count:]


def check_place(directory, **inputs):
    """Raises InputError if a model can't be saved to `directory`: it is one of `inputs`, {flag: path or None}, or has a model
    that is not ours, one without our record."""
    keep_apart(directory, **inputs)
    theirs = [path for path in (Path(directory) / "config.json", *weight_files(directory)) if path.is_file()]
    if theirs and not (Path(directory) / RECORD).is_file() and not (Path(directory) / SAVING).is_dir():
        found = f"found {theirs[0].name} without a {RECORD}, which would be overwritten"
        raise InputError(f"--output_dir {directory}: expected no model or one of {MADE_BY}, {found}; choose another one")


class Reconstructor(torch.nn.Module):
    """A causal LM, its tokenizer and the way it is used. `self.model` stays a stock transformers model.

    `gap_head`: None if it can't find gaps. `found`: whether it has to.
    """

    def __init__(self, model, tokenizer, attention="bidirectional", gap_head=None, found=False):
        super().__init__()
        if attention not in ATTENTION:
            raise InputError(f"attention: expected one of {', '.join(ATTENTION)}, found '{attention}'")
        if MASK_TOKEN not in tokenizer.get_vocab():
            tokenizer.add_special_tokens({"additional_special_tokens": [MASK_TOKEN]})
        check_head(model)
        self.model, self.tokenizer, self.attention = model, tokenizer, attention
        self.gap_head, self.found = gap_head, found
        self.mask_id, self.bos_id = tokenizer.convert_tokens_to_ids(MASK_TOKEN), bos_id(tokenizer)
        if model.get_input_embeddings().num_embeddings <= self.mask_id:
            # The new row is the mean of the others: a token about which nothing is known.
            model.resize_token_embeddings(self.mask_id + 1, mean_resizing=False)
            with torch.no_grad():
                rows = model.get_input_embeddings().weight
                rows[self.mask_id] = rows[: self.mask_id].mean(0)
        self.directory = None  # where it was loaded from
        self.vocab_size = self.mask_id  # the mask token comes last and is never an answer
        self.fingerprint = fingerprint(tokenizer)
        self.max_length = int(getattr(model.config, "max_position_embeddings", 2**31)) - 1  # BOS takes one position

    @classmethod
    def from_base(cls, name_or_dir, attention="bidirectional", gaps="told"):
        """A reconstructor that has not been fine-tuned yet; its gap head is new if there is none. Raises InputError."""
        model = load_causal_lm(name_or_dir)
        width = model.config.hidden_size
        head = (load_gap_head(locate(name_or_dir), width) or GapHead(width)) if gaps == "found" else None
        return cls(model, load_tokenizer(name_or_dir), attention, head, gaps == "found")

    @classmethod
    def load(cls, directory, device="cpu", gaps="told"):
        """A reconstructor, the embedded base or a fine-tuned one, ready to predict. Raises FileNotFoundError or InputError.

        `gaps`: "found" or "told", whether it has to find them.
        """
        directory = Path(locate(directory))
        info = read_record(directory, {"attention": among(*ATTENTION), "tokenizer_fingerprint": TEXT})
        model = load_causal_lm(directory)
        head = load_gap_head(directory, model.config.hidden_size)
        if gaps == "found" and head is None:
            raise InputError(
                f"{directory}: expected a reconstructor that finds gaps, found no gap head beside its weights; train one with: "
                f"python {MADE_BY} --gaps found, or say --gaps told"
            )
        self = cls(model, load_tokenizer(directory), info["attention"], head, gaps == "found")
        if self.fingerprint != info["tokenizer_fingerprint"]:
            raise InputError(
                f"{directory}: expected tokenizer {info['tokenizer_fingerprint']}, found {self.fingerprint}; "
                f"fine-tune again with: python {MADE_BY}"
            )
        self.directory = directory
        return self.to(device).eval()

    def save(self, directory, **record):
        """Write a checkpoint that stock transformers classes load, and `reconstructor.json` with `record`.

        Its files change together: they are written aside, and while they get their places there is no record. What an earlier
        model left of weights goes.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        remove_scratch(directory / SAVING)
        aside = make_scratch(directory / SAVING)
        with on_full_disk(directory):
            self.model.save_pretrained(aside)
            self.tokenizer.save_pretrained(aside)
        if self.gap_head is not None:
            save_gap_head(self.gap_head, aside, self.model.dtype)
        written = [path for path in sorted(aside.iterdir()) if path.name != MARK]
        for earlier in (directory / RECORD, *weight_files(directory), directory / GAP_HEAD):
            earlier.unlink(missing_ok=True)
        for path in written:
            os.replace(path, directory / path.name)
        write_json(
            directory / RECORD, SCHEMA, units={"max_length": "tokens"}, weights=[directory / path.name for path in written],
            max_length=self.max_length, attention=self.attention, tokenizer_fingerprint=self.fingerprint,
            gaps=[way for way in GAPS if way == "told" or self.gap_head is not None], **record,
        )
        remove_scratch(aside)

    @property
    def device(self):
        return self.model.device

    @property
    def name(self):
        """What messages call it."""
        return f"the reconstructor {self.directory or ''}".strip()

    def output_weight(self):
        """The output layer (V, D), without the mask token's row."""
        return self.model.get_output_embeddings().weight[: self.vocab_size]

    def hidden(self, ids, keep_mask, valid):
        """The last hidden states (M, D) that predict the masked tokens of a batch, text by text."""
        read = read_states(self.model.base_model, ids, keep_mask, valid, self.bos_id, self.mask_id, self.attention)
        return read[:, :-1][valid & ~keep_mask]

    def gap_states(self, sent):
        """States (B, S + 1, D) of `[BOS, what was sent]`, zero at padding, of a Sent."""
        read = read_states(self.model.base_model, sent.ids, sent.valid, sent.valid, self.bos_id, self.mask_id, self.attention)
        return read * torch.cat([sent.valid.new_ones(len(read), 1), sent.valid], 1)[..., None]

    def gap_nats(self, ids, keep_mask, valid):
        """-ln p of the gaps, (B, T + 1) float32, each at the place of the boundary that it is at, zero elsewhere."""
        sent = send(ids, keep_mask, valid)
        return at_places(self.gap_head.nats(self.gap_states(sent), sent.gaps), sent, ids.shape[1])

    def forward(self, ids, keep_mask, valid):
        """Summed nats of the masked tokens of a batch, and of its gaps if they are to be found.

        The training loss is their quotient by the masked tokens of a step. Where the model does not learn, there are gaps alone.
        """
        gaps = self.gap_nats(ids, keep_mask, valid).sum() if self.found else 0.0
        if self.found and torch.is_grad_enabled() and not self.output_weight().requires_grad:
            return gaps
        return summed_nats(self.hidden(ids, keep_mask, valid), self.output_weight(), ids[valid & ~keep_mask]) + gaps

    @torch.inference_mode()
    def predict(self, ids, keep_mask, valid=None, find=True):
        """Score and fill the masked tokens of texts no longer than `max_length`, all in one pass; two if gaps are to be found.

        ids (B, T) int64: the true tokens (read at masked positions only to look up their probability).
        keep_mask, valid (B, T) bool; arrays or tensors. `find`: False leaves the gaps out. Returns a Prediction on this model's
        device. Raises InputError rather than nats that are NaN or infinite.
        """
        ids, keep_mask = (torch.as_tensor(x, device=self.device) for x in (ids, keep_mask))
        valid = torch.ones_like(keep_mask) if valid is None else torch.as_tensor(valid, device=self.device)
        nats, gaps = (torch.zeros(ids.shape, dtype=torch.float32, device=self.device) for _ in range(2))
        top1 = ids.clone()
        for rows, length in passes(valid, self.device):
            part = tuple(x[rows, :length] for x in (ids, keep_mask, valid))
            masked = part[2] & ~part[1]
            if self.found and find:
                gaps[rows, :length] = shares(self.gap_nats(*part), *part[1:])
            if not masked.any():
                continue
            hidden, truth, weight = self.hidden(*part), part[0][masked], self.output_weight()
            read = [read_logits(h @ weight.T, t) for h, t in zip(hidden.split(LOGIT_ROWS), truth.split(LOGIT_ROWS))]
            row, column = masked.nonzero(as_tuple=True)
            nats[rows[row], column], top1[rows[row], column] = map(torch.cat, zip(*read))
        check_finite(self.name, nats, gaps)
        return Prediction(nats, top1, gaps)

    def restore(self, tokens):
        """A text from the tokens that were sent, and nothing else: where tokens are missing first, then which.

        tokens (S,) integers; returns int64 (T,), on the CPU. Raises InputError if the reconstructor can't find gaps, or if more
        was sent than it reads.
        """
        return self.fill([tokens])[0][0]

    @torch.inference_mode()
    def fill(self, texts):
        """As `restore`, of many texts together: for each its tokens, int64 (T,), and which of them were sent, bool (T,)."""
        if self.gap_head is None:
            raise InputError(f"{self.name}: expected one that finds gaps, found no gap head beside its weights; load another")
        texts = [torch.as_tensor(tokens, dtype=torch.int64) for tokens in texts]
        if (most := max(map(len, texts))) > self.max_length:
            raise InputError(f"{most} tokens were sent: expected at most {self.max_length}; restore them in parts")
        sent, found = pad_sequence(texts, batch_first=True).to(self.device), []
        valid = torch.arange(most, device=self.device) < torch.tensor([len(text) for text in texts], device=self.device)[:, None]
        gaps = torch.zeros(len(texts), most + 1, dtype=torch.int64, device=self.device)
        for rows, length in passes(valid, self.device):
            part = sent[rows, :length], valid[rows, :length], valid[rows, :length]
            states = self.gap_states(send(*part))
            check_finite(self.name, states)
            gaps[rows, : length + 1] = self.gap_head.likeliest(states)
        for tokens, after in zip(texts, gaps.cpu(), strict=True):
            after = after[: len(tokens) + 1]
            after = torch.where(after.cumsum(0) <= self.max_length - len(tokens), after, 0)  # no longer than it reads
            place = torch.arange(len(tokens)) + after[:-1].cumsum(0)
            ids = torch.full((len(tokens) + int(after.sum()),), self.bos_id)
            ids[place] = tokens
            found.append((ids, torch.zeros(len(ids), dtype=torch.bool).index_fill(0, place, True)))
        ids, keep_mask = (pad_sequence(some, batch_first=True) for some in zip(*found, strict=True))
        valid = torch.arange(ids.shape[1]) < torch.tensor([len(text) for text, _ in found])[:, None]
        top1 = self.predict(ids, keep_mask, valid, find=False).top1.cpu()
        return [(row[: len(text)], kept) for row, (text, kept) in zip(top1, found, strict=True)]
