"""Pre-train the embedded base model: a small GPT-2 with a gap head, from nothing, on a mixture of many kinds of English text.

Users rarely run this: its output is committed as `models/reconstructor/base/`.

    python models/reconstructor/pretraining/mixture.py --input_dir corpora --output mixture.npz
    python models/reconstructor/pretraining/pretrain.py --mixture mixture.npz --output_dir run --max_minutes 120
    python models/reconstructor/pretraining/checkpoints.py --input_dir run --output_dir models/reconstructor/base

Reads the token arrays of mixture.py; writes the averaged weights in parts (checkpoints.py) and `pretraining.json` (settings, log).
The same command runs on an accelerator (`--device cuda`). A run goes on from a finished base with `--init_from`.

1. Three objectives in every step, in different windows: causal; masked (full attention, every masked token is predicted from the
   position before it, as the reconstructor does); gaps (tokens are dropped, the rest is read with full attention, and a small head
   says at every boundary how many are missing). Charpentier and Samuel 2024, "GPT or BERT: why not both?", train the first two.
2. What is masked or dropped is drawn at random or by surprisal or frequency with noise, by tokens, spans or words (draws.py).
3. The vocabulary is cut to the tokens of the training text; afterwards every token that was never seen gets the mean embedding of
   those seen once. On a CPU a step normalises over a sample of the rare part (vocabulary.py), exactly in the last EXACT_END of the run.
4. Position embeddings are fixed sinusoids, and the first layers' heads begin by looking at a neighbour (positions.py).
5. Muon (Jordan et al. 2024) on the hidden matrices, AdamW on embeddings, biases and norms; the weights that are kept are a moving average.
6. Half of the windows start at position 0, as texts do; the others at a random position. The last `--long_share` of the run uses
   windows of `--n_positions`.
7. Kinds of text are drawn by their tokens to the power of `--evenness`; one whose gap between training and validation opens by more
   than the others' gets less (KindWeights).
"""

import copy
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import torch
from transformers import GPT2LMHeadModel

from data.artifacts import SEED, InputError, Parser, bounded, command_line, make_output_dir, read_json, write_json
from models.reconstructor import loss as head_loss
from models.reconstructor.loss import summed_nats
from models.reconstructor.pretraining.checkpoints import MADE_BY, SCHEMA, gpt2_config, load_gap_head, write_parts
from models.reconstructor.pretraining.draws import Streams, load_mixture, room_for
from models.reconstructor.pretraining.evaluation import evaluate
from models.reconstructor.pretraining.network import GapHead, read
from models.reconstructor.pretraining.optimizer import MuonAdamW
from models.reconstructor.pretraining.positions import begin_with_neighbours
from models.reconstructor.pretraining.vocabulary import FREQUENT, RARE_SAMPLE, OutputSample, Vocabulary, full_embedding

UNITS = {
    "minutes": "minutes of wall time", "tokens": "tokens read", "causal": "nats per token", "masked": "nats per masked token, 30 % masked",
    "top1": "share of masked tokens", "gaps": "nats of gaps per original token, 70 % kept", "weight": "share of the windows",
}
WARMUP_STEPS = 100
EXACT_END = 0.1  # last share of the run in which the loss is normalised over all of the cut vocabulary
EARLY = 50  # a step at which everything is evaluated and saved once, so that a fault shows at once
CHUNK = 8192  # tokens whose logits are alive at one time on an accelerator


class KindWeights:
    """How often each kind of text is drawn: tokens ** evenness, less where the gap between validation and training opens."""

    STRENGTH, LIMITS = 4.0, (0.25, 2.0)  # per nat that a gap opens further than the mean; factors, at most

    def __init__(self, lengths, evenness):
        self.base = lengths.double() ** evenness
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


class Pretraining:
    """The state of a run: model, gap head, their moving averages, optimiser, step, minutes, log."""

    def __init__(self, args, mixture):
        self.args, self.device = args, torch.device(args.device)
        self.bos, self.vocab_size = mixture.about["bos"], mixture.about["vocab_size"]
        self.train_text = Streams(mixture.streams["train"], mixture.joins, self.device)
        self.held_out = Streams(mixture.streams["val"], mixture.joins, self.device, self.train_text.bigrams)
        self.vocabulary = Vocabulary(list(mixture.streams["train"].values()), self.vocab_size)
        self.small = self.vocabulary.small.to(self.device)
        self.weights = KindWeights(self.train_text.length, args.evenness)
        torch.manual_seed(args.seed)
        model = GPT2LMHeadModel(gpt2_config(vars(args), len(self.vocabulary), None))
        begin_with_neighbours(model)
        self.model, self.head = model.to(self.device).train(), GapHead(args.n_embd).to(self.device)
        self.optimizer = MuonAdamW(torch.nn.ModuleDict({"model": self.model, "head": self.head}), args.muon_lr, args.adamw_lr, args.weight_decay)
        self.step, self.minutes, self.tokens, self.log, self.runs = 0, 0.0, 0, [], []
        self.recent = torch.zeros(4, dtype=torch.float64, device=self.device)
        self.start_average()

    def start_average(self):
        self.average = copy.deepcopy(torch.nn.ModuleDict({"model": self.model, "head": self.head})).eval().requires_grad_(False)
        self.pairs = [list(self.average.parameters()), [*self.model.parameters(), *self.head.parameters()]]

    def start_from(self, directory):
        """Take the weights of a finished base model and no optimiser state. Raises InputError if its shape differs."""
        full = GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32)
        own, embedding = self.model.state_dict(), full.get_input_embeddings().weight
        cut = embedding[torch.as_tensor(np.append(self.vocabulary.tokens, len(embedding) - 1))]
        theirs = {**full.state_dict(), "transformer.wte.weight": cut, "lm_head.weight": cut}
        differing = [name for name in own if name not in theirs or own[name].shape != theirs[name].shape]
        if differing:
            raise InputError(f"--init_from: expected a GPT-2 of the shape that the flags say, found another at {differing[0]}; give the flags it was made with")
        self.model.load_state_dict({name: theirs[name] for name in own})
        self.head.load_state_dict(load_gap_head(directory).state_dict())
        record = read_json(Path(directory) / "pretraining.json", SCHEMA, MADE_BY)
        self.tokens, self.runs, self.log = record["tokens"], record["runs"], record["log"]
        self.start_average()

    def progress(self):
        return max(self.step / self.args.max_steps, self.minutes / self.args.max_minutes)

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.precision == "bf16")

    def counts(self, progress):
        """Windows of a step and their length: causal, masked, with dropped tokens."""
        length = self.args.n_positions if progress > 1 - self.args.long_share else self.args.window
        rows = max(1, self.args.batch_tokens // length)
        shares = (self.args.masked_share, self.args.gap_share) if progress >= self.args.causal_start else (0.0, 0.0)
        masked, dropped = (int(rows * share + 0.5) for share in shares)
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
            full = torch.cat([full, torch.cat([self.small[self.bos].expand(dropped, 1), self.small[kept]], 1)])
        score, embedding, loss = self.scorer(progress, targets), self.model.transformer.wte.weight, {}
        with self.autocast():
            if causal:
                states = read(self.model, embedding, inputs[:causal], positions[:causal], causal=True)
                loss["causal"] = score(states.flatten(0, 1), self.model.lm_head.weight, targets[:causal].flatten()) / targets[:causal].numel()
            if masked + dropped:
                states = read(self.model, embedding, full, positions[causal:], causal=False)
            if masked:
                hidden, wanted = states[:masked][hide], targets[causal:][hide]
                loss["masked"] = score(hidden, self.model.lm_head.weight, wanted) / len(wanted)
            if dropped:
                loss["gaps"] = self.head.nats(states[masked:], gaps).mean()
        return loss, (causal + masked + dropped) * length

    def offsets(self, rows, length, generator):
        """The position of each window's first token (rows, 1), 0 in half of them, and in which of them (rows,)."""
        draw = torch.rand(2, rows, generator=generator, device=self.device)
        starts = draw[0] < 0.5
        offsets = (draw[1] * (self.args.n_positions - length + 1)).long() * ~starts
        return offsets[:, None], offsets == 0

    def scorer(self, progress, targets):
        """The function that sums nats over the cut vocabulary; on a CPU, until EXACT_END, over a sample of its rare part."""
        if self.device.type != "cpu" or progress >= 1 - EXACT_END or len(self.vocabulary) <= FREQUENT + RARE_SAMPLE:
            return summed_nats
        sample = OutputSample(targets.flatten(), len(self.vocabulary), np.random.default_rng([self.args.seed, self.step]))
        return lambda hidden, _, wanted: sample.summed_nats(hidden, self.model.lm_head.weight, wanted)

    def update(self, progress):
        """One step of the optimiser and of the moving average."""
        seed = int(np.random.default_rng([self.args.seed, self.step]).integers(2**62))
        torch.manual_seed(seed)  # dropout
        loss, tokens = self.losses(progress, torch.Generator(self.device).manual_seed(seed))
        share = {"causal": 1 - self.args.masked_share - self.args.gap_share, "masked": self.args.masked_share, "gaps": self.args.gap_share}
        total = sum(loss[name] * (share[name] if len(loss) > 1 else 1.0) for name in loss)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.pairs[1], 1.0)
        for rate, part in zip((self.args.muon_lr, self.args.adamw_lr), self.optimizer.parts, strict=True):
            for group in part.param_groups:
                group["lr"] = rate * learning_rate_factor(self.step, progress, self.args.cooldown)
        self.optimizer.step()
        self.optimizer.zero_grad()
        keep = min(self.args.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(*self.pairs, 1 - keep)
            values = [loss[name].detach() if name in loss else total.new_zeros(()) for name in share]
            self.recent += torch.stack([*values, torch.ones_like(total)]).double()
        self.step, self.tokens = self.step + 1, self.tokens + tokens

    def look(self):
        """Evaluate the averaged weights on training and held-out text, weigh the kinds anew, and save. Raises InputError where the loss is lost."""
        model, head = self.average["model"], self.average["head"]
        embedding = full_embedding(model.transformer.wte.weight, self.vocabulary, self.vocab_size)
        score = lambda text: evaluate(model, head, embedding, text, self.bos, self.args.window, self.args.eval_tokens, self.args.precision)
        train, val = score(self.train_text), score(self.held_out)
        names = ("causal", "masked", "gaps")
        row = {"step": self.step, "minutes": round(self.minutes, 3), "tokens": self.tokens}
        row["loss"] = dict(zip(names, (self.recent[:3] / self.recent[3].clamp(min=1)).tolist(), strict=True))
        self.recent.zero_()
        row["weight"] = dict(zip(self.train_text.kinds, [round(share, 4) for share in self.weights.shares().tolist()], strict=True))
        row |= {"train": train, "val": val}
        if not np.isfinite([row["loss"][name] for name in names]).all():
            raise InputError(f"the loss is not a number at step {self.step}; lower --muon_lr or --adamw_lr and start again")
        if self.step >= EARLY:
            self.weights.update([val[kind]["causal"] - train[kind]["causal"] for kind in self.train_text.kinds])
        self.log.append(row)
        write_parts(model, head, embedding, self.args.output_dir)
        write_json(
            self.args.output_dir / "pretraining.json", SCHEMA, self.args, UNITS, bos=self.bos, steps=self.step, tokens=self.tokens, minutes=self.minutes, runs=self.runs, log=self.log,
            train_tokens=dict(zip(self.train_text.kinds, self.train_text.length.tolist(), strict=True)),
        )
        say(row)

    def train(self):
        """Train until --max_steps or --max_minutes; look at once, at step EARLY, every --eval_steps and --eval_minutes, and at the end."""
        args, start = self.args, time.monotonic()
        self.runs.append({"tokens": self.tokens, "command": command_line(MADE_BY, args)})
        looked = -1.0
        while (progress := self.progress()) < 1:
            if self.step in (0, EARLY) or self.step % args.eval_steps == 0 or self.minutes - looked >= args.eval_minutes:
                self.look()
                looked = self.minutes = (time.monotonic() - start) / 60
            self.update(progress)
            self.minutes = (time.monotonic() - start) / 60
        self.look()


def learning_rate_factor(step, progress, cooldown):
    """Trapezoid: linear warm-up over WARMUP_STEPS, constant, linear cool-down to zero over the last `cooldown` of the run."""
    return min(1.0, (step + 1) / WARMUP_STEPS, max(0.0, (1 - progress) / cooldown) if cooldown else 1.0)


def say(row):
    """One line per kind of an evaluation."""
    loss = "  ".join(f"{name} {value:.3f}" for name, value in row["loss"].items())
    print(f"step {row['step']:,}  {row['minutes']:.2f} min  {row['tokens'] / 1e6:.1f} M tokens  {loss}", flush=True)
    for kind, val in row["val"].items():
        if kind in row["train"]:
            train = row["train"][kind]
            figures = "  ".join(f"{name} {val[name]:.3f} ({train[name]:.3f})" for name in val)
            print(f"  {kind:20s} {row['weight'][kind]:.3f}  {figures}", flush=True)
        else:
            print(f"  {kind:20s}        " + "  ".join(f"{name} {value:.3f}" for name, value in val.items()), flush=True)


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--mixture", type=Path, required=True, help="token arrays written by mixture.py")
    add("--output_dir", type=Path, required=True, help="directory for the parts of the weights and the log")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to train")
    add("--precision", choices=("float32", "bf16"), default="float32", help="of activations and matrix products; weights are float32")
    add("--n_layer", type=bounded(int, 1, 100), default=6, help="transformer layers")
    add("--n_embd", type=bounded(int, 8, 10_000), default=256, help="width of the model")
    add("--n_head", type=bounded(int, 1, 100), default=4, help="attention heads; divides --n_embd")
    add("--n_positions", type=bounded(int, 16, 100_000), default=1024, help="tokens the model can look at")
    add("--dropout", type=bounded(float, 0, 1), default=0.1, help="dropout of embeddings and residual branches, 0 to 1")
    add("--masked_share", type=bounded(float, 0, 1), default=0.4, help="share of the windows with masked tokens, 0 to 1")
    add("--gap_share", type=bounded(float, 0, 1), default=0.15, help="share of the windows with dropped tokens, 0 to 1")
    add("--causal_start", type=bounded(float, 0, 1), default=0.04, help="first share of the run that is causal alone: masked training from nothing stands on a plateau")
    add("--window", type=bounded(int, 8, 100_000), default=256, help="tokens per training window, at most --n_positions")
    add("--long_share", type=bounded(float, 0, 1), default=0.1, help="last share of the run with windows of --n_positions, 0 to 1")
    add("--batch_tokens", type=bounded(int, 8, 10**7), default=4096, help="tokens per optimiser step")
    add("--muon_lr", type=bounded(float, 0, 1), default=4e-3, help="learning rate of the hidden matrices (update RMS is 0.2 of it)")
    add("--adamw_lr", type=bounded(float, 0, 1), default=3e-3, help="learning rate of embeddings, norms and biases")
    add("--cooldown", type=bounded(float, 0, 1), default=0.5, help="last share of the run in which the learning rates fall linearly to zero, 0 to 1")
    add("--weight_decay", type=bounded(float, 0, 10), default=0.1, help="decoupled weight decay of the hidden matrices")
    add("--average", type=bounded(float, 0, 1), default=0.99, help="how much of the moving average of the weights stays in a step, 0 to 1")
    add("--evenness", type=bounded(float, 0, 1), default=0.75, help="kinds are drawn by their tokens to this power: 1 as they are, 0 all alike")
    add("--max_steps", type=bounded(int, 1, 10**9), default=10**6, help="optimiser steps, at most")
    add("--max_minutes", type=bounded(float, 0, 10**6, open_ends=True), default=60.0, help="minutes of training, at most; the learning rate follows whichever limit is nearer")
    add("--eval_steps", type=bounded(int, 1, 10**9), default=10**6, help="optimiser steps between evaluations, after each of which the weights are saved")
    add("--eval_minutes", type=bounded(float, 0, 10**6), default=10.0, help="minutes between evaluations")
    add("--eval_tokens", type=bounded(int, 100, 10**9), default=30_000, help="tokens of every kind scored at each evaluation, held out and from training")
    add("--init_from", default=None, help="base model to go on from instead of random weights, with its gap head")
    add("--seed", type=SEED, default=42, help="seeds initial weights, windows, positions, masks and dropout")
    args = parser.parse_args(argv)
    if args.n_embd % args.n_head:
        parser.error(f"--n_head {args.n_head}: expected a divisor of --n_embd {args.n_embd}")
    if args.window > args.n_positions:
        parser.error(f"--window {args.window}: expected at most --n_positions {args.n_positions}")
    if args.masked_share + args.gap_share > 1:
        parser.error(f"--masked_share {args.masked_share}: expected at most {1 - args.gap_share:g}, what --gap_share leaves")
    return args


def main(argv=None):
    args = parse_args(argv)
    make_output_dir(args.output_dir)
    if args.device == "cuda":
        head_loss.CHUNK = CHUNK
        torch.set_float32_matmul_precision("high")
    run = Pretraining(args, load_mixture(args.mixture))
    if args.init_from:
        run.start_from(args.init_from)
    print(f"{sum(p.numel() for p in run.model.parameters()) / 1e6:.1f} M parameters while training over {len(run.vocabulary):,} of {run.vocab_size:,} tokens; {int(run.train_text.length.sum()):,} training tokens of {len(run.train_text.kinds)} kinds", flush=True)
    run.train()
    print(f"written to {args.output_dir}")


if __name__ == "__main__":
    from data.artifacts import run as run_script

    run_script(main)
