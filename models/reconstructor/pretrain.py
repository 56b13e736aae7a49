"""Pre-train the embedded base model: a small GPT-2, from nothing, both as a causal and as a masked language model.

Users rarely run this: its output is committed as `models/reconstructor/base/`.

    python data/prepare.py --output_dir data/processed --max_length 1024
    python models/reconstructor/pretrain.py --data_dir data/processed --output_dir models/reconstructor/base --max_minutes 60
    python models/reconstructor/pretrain.py --data_dir data/processed --output_dir models/reconstructor/base --max_minutes 120 --resume

Reads `processed_data.json` and `val_data.json`; writes a `GPT2LMHeadModel` in 16-bit safetensors, the tokenizer,
`pretraining.json` (settings, log, metrics) and a model card. What a run needs to go on is in `state/` beside them; runs
add up, because `--max_steps` and `--max_minutes` count from the beginning of the first.

What makes it quick on a CPU, and good for masked reconstruction:

1. Two objectives (Charpentier and Samuel 2024, "GPT or BERT: why not both?"): after `--causal_start` of the run,
   in `--masked_share` of the windows of every step, attention is bidirectional and masked tokens are predicted from the
   position before them, exactly as the reconstructor does. The other windows train an ordinary causal language model.
2. The vocabulary is cut to the tokens of the training text (half of GPT-2's 50,257), because the output layer is most
   of the cost. Afterwards every token that was never seen gets the mean embedding of the tokens seen once, which makes
   it as unlikely as those; all reported losses are over the full vocabulary.
3. Of the rare part of that vocabulary, a step normalises over the targets and a uniform sample, weighted so that the
   partition function is unbiased (`OutputSample`). The last EXACT_END of the run normalises over all.
4. Position embeddings are fixed sinusoids, and the first layers' heads begin by looking at a neighbour (`positions.py`).
5. Muon (Jordan et al. 2024) on the hidden matrices, AdamW on embeddings, biases and norms.
6. Half of the windows start at position 0, as texts do; the others at a random position, so that every position
   is met though the windows are short. The last `--long_share` of the run uses windows of
   `--n_positions`, so that long-range attention is seen too.
"""

import copy
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

from data.artifacts import SEED, InputError, Parser, bounded, command_line, make_output_dir, read_json, run, write_json, write_text, written_aside
from data.sequences import SPLITS, load_sequences
from models.reconstructor.loss import CHUNK, read_logits, summed_nats
from models.reconstructor.masking import draw_mask_ratios, random_keep_mask
from models.reconstructor.optimizer import MuonAdamW
from models.reconstructor.positions import begin_with_neighbours
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.tokenizer import BASE_MODEL, bos_id, fingerprint, load_tokenizer, text_vocab_size
from models.reconstructor.training import CURVE, masked_accuracy
from models.reconstructor.vocabulary import FREQUENT, RARE_SAMPLE, OutputSample, Vocabulary, expand

SCHEMA = "rltc.pretraining/2"
UNITS = {
    "minutes": "minutes of wall time", "tokens": "tokens", "causal_nats": "nats per token", "masked_nats": "nats per masked token",
    "val_nats": "nats per token, full vocabulary", "val_masked_nats": "nats per masked token, 30 % masked", "val_masked_top1": "share of masked tokens",
}
STATE = ("step", "minutes", "tokens", "log", "drawn", "runs", "earlier")  # of a Pretraining, beside model and optimiser
WARMUP_STEPS = 50
EXACT_END = 0.1  # last share of the run in which the loss is normalised over all of the cut vocabulary
MASK_RATIO, MASK_SPREAD, SPAN_SHARE = 0.3, 0.25, 0.2  # the defaults of train_cpu.py
POSITION_BUCKETS = 8  # the model card shows the loss in this many stretches of positions


class Windows:
    """Windows (length + 1,) that cover a token stream once per epoch, in random order with a random offset.

    Which window is the n-th depends on the seed and n alone, so that a run can go on at any step.
    """

    def __init__(self, stream, length, seed):
        self.stream, self.length, self.seed = stream, length, seed
        self.per_epoch = (len(stream) - 2 * length - 1) // length
        self._epoch, self._starts = None, None

    def __getitem__(self, n):
        epoch, index = divmod(n, self.per_epoch)
        if epoch != self._epoch:
            rng = np.random.default_rng([self.seed, self.length, epoch])
            self._epoch, self._starts = epoch, rng.permutation(self.per_epoch) * self.length + rng.integers(self.length)
        start = self._starts[index]
        return self.stream[start : start + self.length + 1]


def token_stream(sequences, separator):
    """All documents of a split as one array, `separator` in front of each."""
    parts, previous = [], None
    docs = sequences.docs
    for i in range(len(sequences)):
        if docs[i] != previous:
            parts.append(np.array([separator]))
        previous = docs[i]
        parts.append(sequences[i])
    return np.concatenate(parts)


def learning_rate_factor(step, progress, cooldown):
    """Trapezoid: linear warm-up over WARMUP_STEPS, constant, linear cool-down to zero over the last `cooldown` of the run."""
    return min(1.0, (step + 1) / WARMUP_STEPS, max(0.0, (1 - progress) / cooldown) if cooldown else 1.0)


@torch.no_grad()
def held_out_nats(model, stream, length, bos, batch_size=8):
    """Causal nats over consecutive windows of `length` tokens, BOS in front, summed by position: (length,), and the number of windows."""
    starts = range(0, len(stream) - length + 1, length)
    by_position = torch.zeros(length)
    for first in range(0, len(starts), batch_size):
        targets = torch.as_tensor(np.stack([stream[s : s + length] for s in starts[first : first + batch_size]]))
        inputs = torch.cat([torch.full_like(targets[:, :1], bos), targets[:, :-1]], 1)
        hidden = model.transformer(inputs).last_hidden_state  # (B, T, D)
        for h, target in zip(hidden, targets, strict=True):
            chunks = zip(h.split(CHUNK), target.split(CHUNK), strict=True)
            by_position += torch.cat([read_logits(part @ model.lm_head.weight.T, truth)[0] for part, truth in chunks])
    return by_position.double(), len(starts)


class Pretraining:
    """The state of a run: model, optimiser, step, minutes, log. What a step does depends on these and the seed alone."""

    def __init__(self, args, streams, vocabulary, bos, evaluate):
        self.args, self.vocabulary, self.evaluate, self.bos = args, vocabulary, evaluate, int(vocabulary.small[bos])
        torch.manual_seed(args.seed)
        config = GPT2Config(
            vocab_size=len(vocabulary), n_positions=args.n_positions, n_embd=args.n_embd, n_layer=args.n_layer, n_head=args.n_head,
            activation_function="gelu_pytorch_tanh",  # GPT-2's GELU, fused
            resid_pdrop=args.dropout, embd_pdrop=args.dropout, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
        )
        self.model = GPT2LMHeadModel(config).train()
        if not args.learned_positions:
            begin_with_neighbours(self.model)
        self.optimizer = MuonAdamW(self.model, args.muon_lr, args.adamw_lr, args.weight_decay)
        self.windows = {length: [Windows(stream, length, args.seed) for stream in streams] for length in {args.window, args.n_positions}}
        self.step, self.minutes, self.tokens, self.log, self.drawn, self.runs, self.earlier = 0, 0.0, 0, [], {}, [], []

    def start_from(self, full):
        """Take the weights of a finished base model, whose last row is the mask token, and no optimiser state. Raises InputError if its shape differs."""
        own, embedding = self.model.state_dict(), full.get_input_embeddings().weight
        cut = embedding[torch.as_tensor(np.append(self.vocabulary.tokens, len(embedding) - 1))]
        theirs = {**full.state_dict(), "transformer.wte.weight": cut, "lm_head.weight": cut}
        differing = [name for name in own if name not in theirs or own[name].shape != theirs[name].shape]
        if differing:
            raise InputError(f"--init_from: expected a GPT-2 of the shape that --n_layer, --n_embd, --n_head and --n_positions say, found another at {differing[0]}; give the flags that it was made with")
        self.model.load_state_dict({name: theirs[name] for name in own})

    def save(self, directory):
        """Write everything that `load` needs, in one step."""
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "args": vars(self.args)}
        state |= {name: getattr(self, name) for name in STATE}
        make_output_dir(directory)
        with written_aside(directory / "state.pt") as temporary:
            torch.save(state, temporary)

    def load(self, directory):
        """Go on where the state was saved. Raises FileNotFoundError or InputError."""
        path = directory / "state.pt"
        if not path.is_file():
            raise FileNotFoundError(f"--resume: expected {path}, found none; leave --resume away to start anew")
        state = torch.load(path, weights_only=False)
        for name in ("n_layer", "n_embd", "n_head", "n_positions", "learned_positions"):
            if state["args"][name] != getattr(self.args, name):
                raise InputError(f"--resume: {path} has --{name} {state['args'][name]}, found --{name} {getattr(self.args, name)}; give the same")
        if len(state["model"]["transformer.wte.weight"]) != len(self.vocabulary):
            raise InputError(f"--resume: {path} was trained on other text ({len(state['model']['transformer.wte.weight'])} distinct tokens, found {len(self.vocabulary)}); give the same --data_dir and --extra_dir")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in STATE:
            setattr(self, name, state[name])

    def draw(self, length, rng):
        """A step's windows (B, length + 1), in ids of the cut vocabulary, and their positions (B, length)."""
        rows = []
        for _ in range(max(1, self.args.batch_tokens // length)):
            source = int(len(self.windows[length]) > 1 and rng.random() < self.args.extra_share)
            number = self.drawn.get((length, source), 0)
            self.drawn[length, source] = number + 1
            rows.append(self.windows[length][source][number])
        block = self.vocabulary.small[torch.as_tensor(np.stack(rows))]
        offsets = rng.integers(0, self.args.n_positions - length + 1, size=(len(block), 1)) * (rng.random((len(block), 1)) < 0.5)
        block[torch.as_tensor(offsets[:, 0] == 0), 0] = self.bos  # where a text begins, there is nothing before it
        return block, torch.as_tensor(offsets) + torch.arange(length)

    def losses(self, block, positions, progress, rng):
        """Mean nats of the causal windows and of the masked tokens in the masked windows; one may be missing."""
        inputs, targets = block[:, :-1].clone(), block[:, 1:]
        share = self.args.masked_share if progress >= self.args.causal_start else 0.0
        masked_rows = int(len(block) * share + rng.random())  # randomly rounded
        ratios = draw_mask_ratios(masked_rows, MASK_RATIO, MASK_SPREAD, rng)
        hide = ~torch.as_tensor(random_keep_mask(np.ones((masked_rows, targets.shape[1]), dtype=bool), ratios, rng, SPAN_SHARE)) if masked_rows else None
        if masked_rows:
            inputs[:masked_rows, 1:][hide[:, :-1]] = self.vocabulary.mask  # a masked last target was never an input
        sample = OutputSample(targets.flatten(), len(self.vocabulary), rng) if progress < 1 - EXACT_END and len(self.vocabulary) > FREQUENT + RARE_SAMPLE else None
        loss = {}
        for name, rows in (("masked", slice(0, masked_rows)), ("causal", slice(masked_rows, None))):
            if not len(inputs[rows]):
                continue
            full = torch.zeros(1, 1, inputs.shape[1], inputs.shape[1]) if name == "masked" else None
            hidden = self.model.transformer(inputs[rows], position_ids=positions[rows], attention_mask=full, use_cache=False).last_hidden_state
            hidden, wanted = (hidden[hide], targets[rows][hide]) if name == "masked" else (hidden.flatten(0, 1), targets[rows].flatten())
            score = sample.summed_nats if sample else summed_nats
            loss[name] = score(hidden, self.model.lm_head.weight, wanted) / len(wanted)
        return loss, masked_rows / len(block)

    def averaged(self):
        """The model with the mean of the weights that it has now and had at the evaluations of the last `--average_share` (Izmailov et al. 2018)."""
        model = copy.deepcopy(self.model)
        before = [weights for step, minutes, weights in self.earlier if step < self.step and self.progress(step, minutes) > 1 - self.args.average_share]
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(torch.stack([*(weights[name] for weights in before), parameter]).mean(0))
        return model

    def progress(self, step=None, minutes=None):
        """How much of the run is behind it, now or after so many steps and minutes, by whichever limit is nearer."""
        return max((step or self.step) / self.args.max_steps, (minutes or self.minutes) / self.args.max_minutes)

    def train(self, state_dir):
        """Train until --max_steps or --max_minutes; validate and save the state every --eval_steps."""
        args, start, recent = self.args, time.monotonic() - 60 * self.minutes, {"causal": [], "masked": []}
        if self.progress() < 1:
            self.runs.append({"tokens": self.tokens, "command": command_line("models/reconstructor/pretrain.py", args, leave_out=("quiet", "text_note"))})
        progress_bar = tqdm(total=args.max_steps, initial=self.step, unit="step", disable=args.quiet)
        while (progress := self.progress()) < 1:
            rng = np.random.default_rng([args.seed, self.step])
            torch.manual_seed(int(rng.integers(2**62)))  # dropout
            long_phase = progress > 1 - args.long_share
            block, positions = self.draw(args.n_positions if long_phase else args.window, rng)
            loss, share = self.losses(block, positions, progress, rng)
            for rates, part in zip((args.muon_lr, args.adamw_lr), self.optimizer.parts, strict=True):
                for group in part.param_groups:
                    group["lr"] = rates * learning_rate_factor(self.step, progress, args.cooldown)
            total = sum(loss[name] * weight for name, weight in (("causal", 1 - share), ("masked", share)) if name in loss)
            if not torch.isfinite(total):
                raise InputError(f"the loss is {total.item()} at step {self.step}, learning rates {args.muon_lr:g} and {args.adamw_lr:g} at their peak; lower them and go on with --resume")
            total.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            self.tokens += block[:, 1:].numel()
            self.minutes = (time.monotonic() - start) / 60
            for name in loss:
                recent[name].append(loss[name].item())
            progress_bar.update()
            progress_bar.set_postfix({name: f"{x.item():.3f}" for name, x in loss.items()} | {"minutes": f"{self.minutes:.1f}"}, refresh=False)
            if self.step % args.eval_steps == 0:
                means = {f"{name}_nats": float(np.mean(values)) if values else None for name, values in recent.items()}
                row = {"step": self.step, "minutes": round(self.minutes, 2), "tokens": self.tokens, **means, **self.evaluate(self.model)}
                self.log.append(row)
                recent = {"causal": [], "masked": []}
                if self.progress() > 1 - args.average_share:
                    self.earlier.append((self.step, self.minutes, {name: p.detach().clone() for name, p in self.model.named_parameters()}))
                self.save(state_dir)
                tqdm.write("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
        self.save(state_dir)


def score(full, tokenizer, stream, window, ratios):
    """Held-out figures of a model over windows of `window` tokens: causal nats, and nats and top-1 at mask `ratios`."""
    by_position, count = held_out_nats(full, stream, window, bos_id(tokenizer))
    reconstructor = Reconstructor(full, tokenizer)
    size = min(window, reconstructor.max_length)
    texts = [stream[s : s + size] for s in range(0, len(stream) - size + 1, size)]
    masked = {str(ratio): masked_accuracy(reconstructor, texts, ratio) for ratio in ratios}
    return {"val_nats": float(by_position.sum() / (count * window)), "val_tokens": count * window, "masked": masked}


def score_in_full(full, tokenizer, stream, args, ratios):
    """The figures of the model card: those of `score`, and causal nats over windows of `--n_positions` by position."""
    found = score(full, tokenizer, stream, args.window, ratios)
    by_position, count = held_out_nats(full, stream, args.n_positions, bos_id(tokenizer), batch_size=2)
    found |= {"val_nats_long": float(by_position.sum() / (count * args.n_positions)), "val_tokens_long": count * args.n_positions}
    return found | {"val_nats_by_position": [float(part.mean() / count) for part in by_position.chunk(POSITION_BUCKETS)]}


def model_card(args, model, done, metrics):
    """The text of the model card, all of its figures from this run."""
    parameters = sum(p.numel() for p in model.parameters())
    rows = "\n".join(f"| {r['step']} | {r['minutes']} | {r['tokens']:,} | {r['val_nats']:.3f} | {r['val_masked_nats']:.3f} | {r['val_masked_top1']:.3f} |" for r in done.log)
    split = lambda name: "test" if name in map(str, args.score_dir) else "validation"
    held_out = "\n".join(
        f"| {name}, {split(name)} | {m['val_nats']:.3f} | {m['val_tokens']:,} | {m['val_nats_long']:.3f} | {m['masked']['0.3']['nats']:.3f} | {m['masked']['0.3']['top1']:.3f} |" for name, m in metrics.items()
    )
    first = next(iter(metrics.values()))
    curve = "\n".join(f"| {float(r):.1f} | {m['nats']:.3f} | {m['top1']:.3f} | {m['masked']:,} |" for r, m in first["masked"].items())
    positions = "\n".join(f"| {i * args.n_positions // POSITION_BUCKETS} to {(i + 1) * args.n_positions // POSITION_BUCKETS - 1} | {nats:.3f} |" for i, nats in enumerate(first["val_nats_by_position"]))
    runs = "\n".join(f"# after {r['tokens']:,} tokens\n{r['command']}" for r in done.runs)
    c = model.config
    texts = f"`{args.data_dir}`" + (f" and, in {args.extra_share:.0%} of the windows, `{args.extra_dir}`" if args.extra_dir else "") + (f" ({args.text_note})" if args.text_note else "")
    objective = f"`<|mask|>` is token {c.vocab_size - 1:,}. " + (
        f"In {args.masked_share:.0%} of the windows of the last run it was trained to predict masked tokens with bidirectional attention, in the others as a causal language model."
        if args.masked_share
        else "In its last run it was trained as a causal language model alone; what it says of masked tokens is left from the masked windows of earlier runs, if the commands below name any."
    )
    averaged = f" Its weights are the mean of those at the evaluations of the last {args.average_share:.0%} of the run and at its end." if args.average_share else ""
    return f"""---
license: cc0-1.0
language: en
library_name: transformers
---
# Embedded base model

A GPT-2 with {parameters / 1e6:.1f} M parameters ({c.n_layer} layers, width {c.n_embd}, {c.n_head} heads, {c.n_positions} positions),
pre-trained from nothing on the training split of {texts}, in 16-bit safetensors with GPT-2's byte-level BPE
tokenizer beside it.
{objective}
It stands in for GPT-2 where no model hub can be reached.{averaged}

Held-out documents (full vocabulary of {c.vocab_size:,} tokens, BOS in front of every window):

| text | causal nats per token, windows of {args.window} | tokens scored | windows of {c.n_positions} | nats per masked token, 30 % masked | top-1 |
|---|---|---|---|---|---|
{held_out}

Before any fine-tuning, single tokens masked at random, seed 0, the first of these texts:

| masked | nats per masked token | top-1 | masked tokens |
|---|---|---|---|
{curve}

Causal nats per token by position in windows of {c.n_positions}:

| positions | nats per token |
|---|---|
{positions}

Made by ({done.tokens:,} training tokens; {done.minutes:.0f} minutes with {torch.get_num_threads()} threads, in which `--init_from` counts anew). Runs that end
by time give a similar model when they are repeated, not the same; choose another `--output_dir`:

```
{runs}
```

| step | minutes | tokens in all | validation nats | masked nats | masked top-1 |
|---|---|---|---|---|---|
{rows}

The columns of this table are on the first {args.eval_tokens:,} tokens of the validation split, 30 % masked, and before any averaging of weights.
"""


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--data_dir", type=Path, default=Path("data/processed"), help="directory written by data/prepare.py")
    add("--extra_dir", type=Path, default=None, help="more text, also prepared by data/prepare.py: its training split is mixed in, its validation split scored")
    add("--extra_share", type=bounded(float, 0, 1), default=0.2, help="share of the windows that come from --extra_dir, 0 to 1")
    add("--score_dir", type=Path, nargs="*", default=[], help="prepared text of other kinds that is only scored, in the model card")
    add("--text_note", default="", help="a sentence about the training text, for the model card")
    add("--output_dir", type=Path, default=Path(BASE_MODEL), help="directory for the model")
    add("--tokenizer", default=BASE_MODEL, help="directory or hub name of the tokenizer")
    add("--n_layer", type=bounded(int, 1, 100), default=6, help="transformer layers")
    add("--n_embd", type=bounded(int, 8, 10_000), default=256, help="width of the model")
    add("--n_head", type=bounded(int, 1, 100), default=4, help="attention heads; divides --n_embd")
    add("--n_positions", type=bounded(int, 16, 100_000), default=1024, help="tokens the model can look at")
    add("--learned_positions", action="store_true", help="random position embeddings and heads, all trained, instead of fixed sinusoids and heads that begin by looking at a neighbour")
    add("--dropout", type=bounded(float, 0, 1), default=0.1, help="dropout of embeddings and residual branches, 0 to 1")
    add("--masked_share", type=bounded(float, 0, 1), default=0.5, help="share of the windows that train masked prediction with bidirectional attention, 0 to 1")
    add("--causal_start", type=bounded(float, 0, 1), default=0.45, help="first share of the run without masked windows, 0 to 1: masked training from nothing stands on a plateau")
    add("--window", type=bounded(int, 8, 100_000), default=256, help="tokens per training window, at most --n_positions")
    add("--long_share", type=bounded(float, 0, 1), default=0.1, help="last share of the run with windows of --n_positions, 0 to 1")
    add("--batch_tokens", type=bounded(int, 8, 10**7), default=4096, help="tokens per optimiser step")
    add("--muon_lr", type=bounded(float, 0, 1), default=4e-3, help="learning rate of the hidden matrices (update RMS is 0.2 of it)")
    add("--adamw_lr", type=bounded(float, 0, 1), default=3e-3, help="learning rate of embeddings, norms and biases")
    add("--average_share", type=bounded(float, 0, 1), default=0.15, help="last share of the run at whose evaluations and end the weights are averaged for the finished model; 0: those of the end alone")
    add("--cooldown", type=bounded(float, 0, 1), default=0.5, help="last share of the run in which the learning rates fall linearly to zero, 0 to 1")
    add("--weight_decay", type=bounded(float, 0, 10), default=0.1, help="decoupled weight decay of the hidden matrices")
    add("--max_steps", type=bounded(int, 1, 10**9), default=20_000, help="optimiser steps, at most, resumed ones included")
    add("--max_minutes", type=bounded(float, 0, 10**6, open_ends=True), default=60.0, help="minutes of training, at most, resumed ones included; the learning rate follows whichever limit is nearer")
    add("--eval_steps", type=bounded(int, 1, 10**9), default=200, help="optimiser steps between evaluations, after each of which the state is saved")
    add("--eval_tokens", type=bounded(int, 100, 10**9), default=30_000, help="validation tokens scored while training")
    add("--score_tokens", type=bounded(int, 1, 10**9), default=200_000, help="held-out tokens of every kind of text scored at the end, for the model card")
    add("--init_from", default=None, help="base model to start from instead of random weights: more training where state/ is lost")
    add("--resume", action="store_true", help="go on from --output_dir/state")
    add("--seed", type=SEED, default=42, help="seeds initial weights, windows, positions, masks and dropout")
    add("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    if args.n_embd % args.n_head:
        parser.error(f"--n_head {args.n_head}: expected a divisor of --n_embd {args.n_embd}")
    if args.window > args.n_positions:
        parser.error(f"--window {args.window}: expected at most --n_positions {args.n_positions}")
    if args.score_tokens < args.n_positions:
        parser.error(f"--score_tokens {args.score_tokens}: expected at least --n_positions {args.n_positions}")
    return args


def open_streams(directory, splits, name, separator, n_positions):
    """The token streams of some splits of prepared text. Raises InputError if one is shorter than training needs."""
    streams = []
    for split in splits:
        stream = token_stream(load_sequences(directory / SPLITS[split], name), separator)
        if len(stream) < 4 * n_positions:
            raise InputError(f"{directory}: expected at least {4 * n_positions} tokens in the {split} split, four times --n_positions, found {len(stream)}; prepare more text or lower --n_positions")
        streams.append(stream)
    return streams


def main(argv=None):
    args = parse_args(argv)
    tokenizer = load_tokenizer(args.tokenizer)
    eos, name = bos_id(tokenizer), fingerprint(tokenizer)
    vocab_size = text_vocab_size(tokenizer)
    directories = [args.data_dir, *([args.extra_dir] if args.extra_dir else [])]
    streams, held_out = zip(*(open_streams(d, ("train", "val"), name, eos, args.n_positions) for d in directories))
    others = {str(d): open_streams(d, ["test"], name, eos, args.n_positions)[0] for d in args.score_dir}
    make_output_dir(args.output_dir)
    vocabulary = Vocabulary(streams, vocab_size)

    def evaluate(small):
        found = score(expand(small, vocabulary, vocab_size, eos), tokenizer, held_out[0][: args.eval_tokens], args.window, (MASK_RATIO,))
        masked = found["masked"][str(MASK_RATIO)]
        return {"val_nats": found["val_nats"], "val_masked_nats": masked["nats"], "val_masked_top1": masked["top1"]}

    done = Pretraining(args, streams, vocabulary, eos, evaluate)
    print(f"{sum(p.numel() for p in done.model.parameters()) / 1e6:.1f} M parameters while training over {len(vocabulary):,} of {vocab_size:,} tokens; {' + '.join(f'{len(s):,}' for s in streams)} training tokens")
    if args.resume:
        done.load(args.output_dir / "state")
    elif args.init_from:
        done.start_from(Reconstructor.from_base(args.init_from).model)
        if (earlier := Path(args.init_from) / "pretraining.json").is_file():
            record = read_json(earlier, SCHEMA, "models/reconstructor/pretrain.py")
            done.runs, done.tokens = record["runs"], record["tokens"]
    done.train(args.output_dir / "state")
    full = expand(done.averaged(), vocabulary, vocab_size, eos)
    texts = {**dict(zip(map(str, directories), held_out)), **others}
    metrics = {text: score_in_full(full, tokenizer, stream[: args.score_tokens], args, CURVE if text == str(args.data_dir) else (MASK_RATIO,)) for text, stream in texts.items()}
    save(full, tokenizer, args.output_dir)
    write_json(args.output_dir / "pretraining.json", SCHEMA, args, UNITS, steps=done.step, tokens=done.tokens, minutes=done.minutes, runs=done.runs, log=done.log, metrics=metrics)
    write_text(args.output_dir / "README.md", model_card(args, full, done, metrics))
    for text, m in metrics.items():
        print(f"{text}: causal {m['val_nats']:.3f} nats per token in windows of {args.window}, {m['val_nats_long']:.3f} in windows of {args.n_positions}; 30 % masked {m['masked']['0.3']['nats']:.3f} nats, top-1 {m['masked']['0.3']['top1']:.3f}")
    print(f"written to {args.output_dir}")


def save(model, tokenizer, directory):
    """Write weights in 16 bit and the tokenizer."""
    half = GPT2LMHeadModel(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(directory)
    tokenizer.save_pretrained(directory)


if __name__ == "__main__":
    run(main)
