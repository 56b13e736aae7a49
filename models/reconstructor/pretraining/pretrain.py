"""Pre-train the embedded base model: a small GPT-2 with a gap head, from nothing, on a mixture of many kinds of English text.

Users rarely run this: its output is committed as `models/reconstructor/base/`.

    python models/reconstructor/pretraining/corpora.py --output_dir corpora
    python data/prepare.py --source mixed --input corpora/*.jsonl.gz --output_dir data/mixture --max_sequences 1000000
    python models/reconstructor/pretraining/pretrain.py --data_dir data/mixture --output_dir base --device cuda --max_minutes 7

Reads what data/prepare.py wrote; writes a model directory with the averaged weights, `pretraining.json` (settings, log) and, at
each evaluation, a checkpoint: with `--resume` the same command goes on from there, also to a larger --max_steps or --max_minutes.
Without `--device cuda` it runs on CPUs, slowly.

1. Three objectives in every step, in different windows: causal; masked (full attention, every masked token is predicted from the
   position before it, as the reconstructor does); gaps (tokens are dropped, the rest is read with full attention, and a head
   says at every boundary how many are missing). Charpentier and Samuel 2024, "GPT or BERT: why not both?", train the first two.
2. What is masked or dropped is drawn at random or by surprisal or frequency with noise, by tokens, spans or words (draws.py).
3. The vocabulary is cut to the tokens of the training text (vocabulary.py).
4. Position embeddings are fixed sinusoids, and the first layers' heads begin by looking at a neighbour (positions.py).
5. Muon (Jordan et al. 2024) on the hidden matrices, AdamW on the rest. The weights that are kept are a moving average.
6. Half of the windows start at position 0, as texts do; the others at a random position. The last LONG_SHARE of the run uses
   windows of `--n_positions`.
7. Kinds of text are drawn by their tokens to the power EVENNESS; one whose gap between training and validation opens by more
   than the others' gets less (draws.KindWeights).
"""

import copy
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import torch
from transformers import GPT2LMHeadModel

from data.artifacts import SEED, InputError, Parser, bounded, command_line, run, write_json
from data.limits import check_memory
from data.scratch import claimed
from models.reconstructor.checkpoints import resumable
from models.reconstructor.gaps import GapHead
from models.reconstructor.loss import summed_nats
from models.reconstructor.pretraining.checkpoints import MADE_BY, SCHEMA, go_on, gpt2_config, save_base, save_checkpoint
from models.reconstructor.pretraining.draws import KindWeights, Streams, read_streams, room_for, word_ends
from models.reconstructor.pretraining.evaluation import Base, evaluate
from models.reconstructor.pretraining.network import read
from models.reconstructor.pretraining.positions import begin_with_neighbours
from models.reconstructor.pretraining.vocabulary import Vocabulary, full_embedding
from models.reconstructor.reconstructor import check_place
from models.reconstructor.tokenizer import BASE_MODEL, bos_id, load_tokenizer, locate, text_vocab_size

UNITS = {
    "minutes": "minutes of wall time", "tokens": "tokens read", "causal": "nats per token",
    "masked": "nats per masked token, 30 % masked", "top1": "share of masked tokens",
    "gaps": "nats of gaps per original token, 70 % kept", "weight": "share of the windows",
}
SHARES = {"causal": 0.45, "masked": 0.4, "gaps": 0.15}  # of the windows, and of the loss
LONG_SHARE = 0.1  # last share of the run, in long windows
WEIGHT_DECAY = 0.1  # of the hidden matrices
WEIGHT = 16  # bytes that a weight takes in training, with its gradient and what the optimiser keeps
WARMUP_STEPS = 100
EARLY = 50  # a step at which everything is evaluated and saved once, so that a fault shows at once


class Pretraining:
    """The state of a run: model, gap head, their moving averages, optimisers, step, minutes, log."""

    def __init__(self, args):
        self.args, self.device = args, torch.device(args.device)
        self.tokenizer = load_tokenizer(args.tokenizer)
        self.bos, self.vocab_size, ends = bos_id(self.tokenizer), text_vocab_size(self.tokenizer), word_ends(self.tokenizer)
        train, val = (read_streams(args.data_dir, split, self.bos) for split in ("train", "val"))
        if set(train) != set(val):
            raise InputError(f"{args.data_dir}: expected the same kinds in training and validation; prepare the data again")
        self.train_text = Streams(train, ends, self.device)
        self.held_out = Streams(val, ends, self.device, self.train_text.bigrams)
        self.vocabulary = Vocabulary(list(train.values()), self.vocab_size)
        self.small = self.vocabulary.small.to(self.device)
        self.weights = KindWeights(self.train_text.length)
        torch.manual_seed(args.seed)
        model = GPT2LMHeadModel(gpt2_config(args, len(self.vocabulary)))
        begin_with_neighbours(model)
        self.model, self.head = model.to(self.device).train(), GapHead(args.n_embd).to(self.device)
        self.optimizers = self.make_optimizers()
        self.average = copy.deepcopy(torch.nn.ModuleDict({"model": self.model, "head": self.head})).eval().requires_grad_(False)
        self.pairs = [list(self.average.parameters()), [*self.model.parameters(), *self.head.parameters()]]
        self.step, self.minutes, self.tokens, self.log = 0, 0.0, 0, []
        self.recent = torch.zeros(4, dtype=torch.float64, device=self.device)
        if args.resume:
            go_on(self)

    def make_optimizers(self):
        """{optimiser: its learning rate}."""
        hidden = [p for p in self.model.transformer.h.parameters() if p.ndim == 2]
        chosen = {id(p) for p in hidden}
        others = [p for p in (*self.model.parameters(), *self.head.parameters()) if p.requires_grad and id(p) not in chosen]
        # As in Liu et al. 2025, "Muon is scalable for LLM training", updates have the size of AdamW's.
        muon = torch.optim.Muon(hidden, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")
        adamw = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        return {muon: self.args.muon_lr, adamw: self.args.adamw_lr}

    def progress(self):
        return max(self.step / self.args.max_steps, self.minutes / self.args.max_minutes)

    def counts(self, progress):
        """Windows of a step and their length: causal, masked, with dropped tokens."""
        length = self.args.n_positions if progress > 1 - LONG_SHARE else self.args.window
        rows = max(1, self.args.batch_tokens // length)
        later = progress >= self.args.causal_start
        masked, dropped = (int(rows * SHARES[name] + 0.5) * later for name in ("masked", "gaps"))
        return rows - masked - dropped, masked, dropped, length

    def losses(self, progress, generator):
        """Mean nats of each objective's targets; one may be missing. And the tokens read."""
        causal, masked, dropped, length = self.counts(progress)
        shares = self.weights.shares()
        places = self.train_text.draw(shares, causal + masked, length + 1, generator)
        ids = self.small[self.train_text.tokens[places].long()]
        offsets, starts = self.offsets(len(ids) + dropped, length, generator)
        ids[:, 0] = torch.where(starts[: len(ids)], self.small[self.bos], ids[:, 0])  # before the beginning of a text is nothing
        inputs, targets, positions = ids[:, :-1], ids[:, 1:], offsets + torch.arange(length, device=self.device)
        hide = self.train_text.masked(places[causal:, 1:], generator)
        full = inputs[causal:].clone()
        full[:, 1:][hide[:, :-1]] = self.vocabulary.mask  # a masked last target was never an input
        if dropped:
            room = self.train_text.draw(shares, dropped, room_for(length - 1), generator)
            kept, gaps, _ = self.train_text.dropped(room, length - 1, generator)
            first = torch.full_like(kept[:, :1], self.bos)
            full = torch.cat([full, self.small[torch.cat([first, kept], 1)]])
        loss, embedding, output = {}, self.model.transformer.wte.weight, self.model.lm_head.weight
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            if causal:
                states = read(self.model, embedding, inputs[:causal], positions[:causal], causal=True)
                loss["causal"] = summed_nats(states.flatten(0, 1), output, targets[:causal].flatten()) / targets[:causal].numel()
            if masked + dropped:
                states = read(self.model, embedding, full, positions[causal:], causal=False)
            if masked:
                loss["masked"] = summed_nats(states[:masked][hide], output, targets[causal:][hide]) / hide.sum()
            if dropped:
                loss["gaps"] = self.head.nats(states[masked:], gaps).mean()
        return loss, (causal + masked + dropped) * length

    def offsets(self, rows, length, generator):
        """The position of each window's first token (rows, 1), 0 in half of them, and in which of them (rows,)."""
        draw = torch.rand(2, rows, generator=generator, device=self.device)
        offsets = (draw[1] * (self.args.n_positions - length + 1)).long() * (draw[0] >= 0.5)
        return offsets[:, None], offsets == 0

    def update(self, progress):
        """One step of the optimisers and of the moving average."""
        seed = int(np.random.default_rng([self.args.seed, self.step]).integers(2**62))
        torch.manual_seed(seed)  # dropout
        loss, tokens = self.losses(progress, torch.Generator(self.device).manual_seed(seed))
        total = sum(loss[name] * (SHARES[name] if len(loss) > 1 else 1.0) for name in loss)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.pairs[1], 1.0)
        for optimizer, rate in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = rate * learning_rate_factor(self.step, progress, self.args.cooldown)
            optimizer.step()
            optimizer.zero_grad()
        keep = min(self.args.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(*self.pairs, 1 - keep)
            values = [loss[name].detach() if name in loss else total.new_zeros(()) for name in SHARES]
            self.recent += torch.stack([*values, torch.ones_like(total)]).double()
        self.step, self.tokens = self.step + 1, self.tokens + tokens

    def look(self):
        """Evaluate the averaged weights, weigh the kinds anew, save. Raises InputError where the loss is lost."""
        model, head = self.average["model"], self.average["head"]
        embedding = full_embedding(model.transformer.wte.weight, self.vocabulary, self.vocab_size)
        base = Base(model, head, embedding, self.bos)
        train, val = (evaluate(base, text, self.args.window, self.args.eval_tokens) for text in (self.train_text, self.held_out))
        kinds, loss = self.train_text.kinds, (self.recent[:3] / self.recent[3].clamp(min=1)).tolist()
        self.recent.zero_()
        if not np.isfinite(loss).all():
            raise InputError(f"the loss is not a number at step {self.step}; lower --muon_lr or --adamw_lr and start again")
        row = {"step": self.step, "minutes": round(self.minutes, 3), "tokens": self.tokens}
        row["loss"] = dict(zip(SHARES, loss, strict=True))
        row["weight"] = dict(zip(kinds, [round(share, 4) for share in self.weights.shares().tolist()], strict=True))
        self.log.append(row | {"train": train, "val": val})
        if self.step >= EARLY:
            self.weights.update([val[kind]["causal"] - train[kind]["causal"] for kind in kinds])
        save_base(model, head, embedding, self.tokenizer, self.args)
        write_json(
            self.args.output_dir / "pretraining.json", SCHEMA, self.args, UNITS, weights=[self.args.output_dir], log=self.log,
            command=command_line(MADE_BY, self.args), train_tokens=dict(zip(kinds, self.train_text.length.tolist(), strict=True)),
        )
        save_checkpoint(self)
        say(self.log[-1])

    def train(self):
        """Train until --max_steps or --max_minutes; look at once, at step EARLY, every --eval_minutes, and at the end.

        A run that goes on has looked at the step where it was saved.
        """
        args, start, looked = self.args, time.monotonic() - 60 * self.minutes, self.minutes
        while (progress := self.progress()) < 1:
            if not self.has_looked() and (self.step in (0, EARLY) or self.minutes - looked >= args.eval_minutes):
                self.look()
                looked = self.minutes = (time.monotonic() - start) / 60
            self.update(progress)
            self.minutes = (time.monotonic() - start) / 60
        if not self.has_looked():
            self.look()

    def has_looked(self):
        return bool(self.log) and self.log[-1]["step"] == self.step


def learning_rate_factor(step, progress, cooldown):
    """Trapezoid: linear warm-up over WARMUP_STEPS, constant, linear cool-down to zero over the last `cooldown` of the run."""
    return min(1.0, (step + 1) / WARMUP_STEPS, max(0.0, (1 - progress) / cooldown) if cooldown else 1.0)


def say(row):
    """One line per kind of an evaluation: its share, and figures on validation and in brackets on training text."""
    loss = "  ".join(f"{name} {value:.3f}" for name, value in row["loss"].items())
    print(f"step {row['step']:,}  {row['minutes']:.2f} min  {row['tokens'] / 1e6:.1f} M tokens  {loss}", flush=True)
    for kind, val in row["val"].items():
        figures = "  ".join(f"{name} {val[name]:.3f} ({row['train'][kind][name]:.3f})" for name in val)
        print(f"  {kind:20s} {row['weight'][kind]:.3f}  {figures}", flush=True)


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--data_dir", type=Path, required=True, help="what data/prepare.py --source mixed wrote")
    add("--output_dir", type=Path, required=True, help="directory for the model and its log")
    add("--tokenizer", default=BASE_MODEL, help="directory or hub name of the data's tokenizer")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to train; cuda reads in bfloat16")
    add("--n_layer", type=bounded(int, 1, 100), default=6, help="transformer layers")
    add("--n_embd", type=bounded(int, 8, 10_000), default=256, help="width of the model")
    add("--n_head", type=bounded(int, 1, 100), default=4, help="attention heads; divides --n_embd")
    add("--n_positions", type=bounded(int, 16, 100_000), default=1024, help="tokens the model can look at")
    add("--dropout", type=bounded(float, 0, 1), default=0.1, help="dropout of embeddings and residual branches, 0 to 1")
    add("--causal_start", type=bounded(float, 0, 1), default=0.02,
        help="first share of the run that is causal alone: masked training from nothing stands on a plateau")
    add("--window", type=bounded(int, 8, 100_000), default=256, help="tokens per training window, at most --n_positions")
    add("--batch_tokens", type=bounded(int, 8, 10**7), default=65_536, help="tokens per optimiser step")
    add("--muon_lr", type=bounded(float, 0, 1), default=4e-3, help="learning rate of the hidden matrices; updates are 0.2 of it")
    add("--adamw_lr", type=bounded(float, 0, 1), default=3e-3, help="learning rate of embeddings, norms and biases")
    add("--cooldown", type=bounded(float, 0, 1), default=0.5, help="last share of the run, in which the rates fall to zero")
    add("--average", type=bounded(float, 0, 1), default=0.998, help="what stays of the weights' moving average in a step, 0 to 1")
    add("--max_steps", type=bounded(int, 1, 10**9), default=10**6, help="optimiser steps, at most")
    add("--max_minutes", type=bounded(float, 1e-6, 10**6), default=60.0,
        help="minutes of training, at most; the learning rate follows whichever limit is nearer")
    add("--eval_minutes", type=bounded(float, 0, 10**6), default=0.75, help="minutes between evaluations; each saves the run")
    add("--resume", action="store_true", help="go on from the newest checkpoint in --output_dir")
    add("--eval_tokens", type=bounded(int, 100, 10**9), default=20_000,
        help="tokens of every kind scored at each evaluation, held out and from training")
    add("--seed", type=SEED, default=42, help="seeds initial weights, windows, positions, masks and dropout")
    args = parser.parse_args(argv)
    if args.n_embd % args.n_head:
        parser.error(f"--n_head {args.n_head}: expected a divisor of --n_embd {args.n_embd}")
    if args.window > args.n_positions:
        parser.error(f"--window {args.window}: expected at most --n_positions {args.n_positions}")
    return args


def main(argv=None):
    args = parse_args(argv)
    if args.device == "cuda":
        torch.set_float32_matmul_precision("high")
    size = args.n_embd * (12 * args.n_layer * args.n_embd + args.n_positions) * WEIGHT
    check_memory(size, f"--n_layer {args.n_layer} --n_embd {args.n_embd} --n_positions {args.n_positions}", "give smaller ones")
    check_place(args.output_dir, tokenizer=locate(args.tokenizer))
    with claimed(args.output_dir):
        training = Pretraining(args)
        millions, kinds = sum(p.numel() for p in training.model.parameters()) / 1e6, training.train_text.length
        print(f"{millions:.1f} M parameters, {int(kinds.sum()):,} training tokens of {len(kinds)} kinds", flush=True)
        with resumable(args.output_dir, args):
            training.train()
    print(f"written to {args.output_dir}")


if __name__ == "__main__":
    run(main)
