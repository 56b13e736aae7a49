"""Masked fine-tuning of the reconstructor: the one implementation behind `train_cpu.py` and `train_gpu.py`.

A plain loop on Hugging Face Accelerate: the same code runs on a CPU, on MPS, on CUDA with AMP, and on several processes
under `torchrun` or `accelerate launch`. Texts and masks of an optimiser step depend on the seed and its number alone, so
that a run ends the same whether it was interrupted or not, and on however many processes.
"""

import contextlib
import math
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import gather_object
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from data.artifacts import SEED, InputError, Parser, bounded, check_resumed, write_json
from data.limits import BATCH, COUNT, LEARNING_RATE, RATIO
from data.scratch import claimed
from data.sequences import pad_batch
from models.reconstructor import checkpoints, texts
from models.reconstructor.gaps import GAPS
from models.reconstructor.reconstructor import ATTENTION, Reconstructor, check_place, find_device
from models.reconstructor.texts import Rarity, draw_masks, load_mask_policy, masked_accuracy, open_splits, order_of_texts
from models.reconstructor.tokenizer import BASE_MODEL, locate
from models.reconstructor.words import DECIDED

SCHEMA = "rltc.finetuning/1"
UNITS = {
    "loss": "nats, of gaps, too, per masked token", "nats": "nats per masked token", "top1": "share of masked tokens restored",
    "gaps": "nats of gaps per original token", "learning_rate": "AdamW's", "tokens_per_second": "of text, over all processes",
}
EVAL_MASK_RATIOS = (0.1, 0.3, 0.5)
FREE = (  # flags that may change when a run goes on; of batches only the size of a step counts
    "resume", "quiet", "output_dir", "data_path", "device", "epochs", "max_steps", "batch_size", "gradient_accumulation_steps",
    "learning_rate", "gradient_checkpointing", "torch_compile", "use_amp", "amp_dtype", "eval_steps", "eval_sequences",
    "save_steps", "save_total_limit", "logging_steps",
)
MAX_GRAD_NORM = 1.0  # gradients are clipped to it, as GPT-3's (Brown et al. 2020, appendix B)
CURVE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # mask ratios of the last validation


def parse_args(argv, devices, doc):
    """The command line of both scripts; of the `devices` that a script offers the first is the default."""
    parser = Parser(doc)
    add = parser.add_argument
    share = bounded(float, 0, 1)
    add("--data_path", type=Path, default=Path("data/processed/processed_data.json"), help="training texts")
    add("--output_dir", type=Path, default=Path("models/reconstructor/fine-tuned"), help="directory to write")
    add("--base_model", default=BASE_MODEL, help="directory or hub name of the causal LM to start from, e.g. gpt2")
    add("--epochs", type=bounded(float, 1e-6, 10**6), default=3.0, help="passes over the training texts")
    add("--max_steps", type=bounded(int, -1, 10**9), default=-1, help="optimiser steps; 0 or less: as --epochs says")
    add("--batch_size", type=BATCH, default=8, help="texts per device and forward pass")
    add("--gradient_accumulation_steps", type=COUNT, default=1, help="forward passes per optimiser step")
    add("--max_length", type=bounded(int, 2, 10**6), help="tokens per text, longer ones are cut; default: as in the data")
    add("--mask_ratio", type=RATIO, default=0.3, help="centre of the mask ratios drawn per text")
    add("--mask_spread", type=share, default=0.25, help="half width of the mask ratios, so that one model serves every rate")
    add("--span_share", type=share, default=0.2, help="share of texts masked in spans instead of single tokens")
    add("--gaps", choices=GAPS, default=GAPS[0],
        help="whether it learns to find where tokens are missing, too, from the sent tokens alone, or is told")
    add("--gap_head_only", action="store_true", help="train the gap head alone, quickly; the model's own weights stay as is")
    add("--mask_policy",
        help="who decides some of the masks, so that the reconstructor gets used to it: an agent or a method of eval/evaluate.py")
    add("--unit", choices=DECIDED, default=DECIDED[0], help="what one decision of such a method is about; an agent knows its own")
    add("--policy_share", type=share, default=0.5, help="share of texts masked by --mask_policy, at mask ratios as of the others")
    add("--attention", choices=ATTENTION, default=ATTENTION[0], help="whether a token looks at the whole text")
    add("--learning_rate", type=LEARNING_RATE, default=4e-4, help="AdamW's, at its peak")
    add("--warmup_ratio", type=share, default=0.05, help="share of the steps in which the rate rises; then it falls to 0")
    add("--weight_decay", type=bounded(float, 0, 10), default=0.01, help="decoupled weight decay of matrices")
    add("--gradient_checkpointing", action="store_true", help="recompute activations: less memory, more time")
    add("--torch_compile", action="store_true", help="minutes of compiling, then faster steps; a CPU needs a C++ compiler")
    add("--use_amp", action="store_true", help="automatic mixed precision on CUDA, or a CPU with bfloat16 instructions")
    add("--amp_dtype", choices=("bfloat16", "float16"), default="bfloat16", help="of --use_amp on CUDA, where it has both")
    add("--device", choices=devices, default=devices[0], help="where to train")
    add("--eval_steps", type=COUNT, default=200, help="optimiser steps between validations")
    add("--eval_sequences", type=COUNT, default=128, help=f"validation texts, scored at mask ratios {EVAL_MASK_RATIOS}")
    add("--save_steps", type=COUNT, default=500, help="optimiser steps between checkpoints")
    add("--save_total_limit", type=COUNT, default=2, help="newest checkpoints to keep")
    add("--logging_steps", type=COUNT, default=10, help="optimiser steps between TensorBoard points")
    add("--resume", action="store_true", help="go on from the newest checkpoint in --output_dir")
    add("--seed", type=SEED, default=42, help="seeds order, masks and dropout")
    add("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args(argv)
    if args.gap_head_only and args.gaps == "told":
        parser.error("--gap_head_only: expected --gaps found, found --gaps told, where there is no gap head")
    return args


def mixed_precision(args):
    """Check that the device is there and settle AMP: "no", "bf16" or "fp16", in Accelerate's words. Raises InputError."""
    find_device(args.device)
    if args.use_amp and args.device == "mps":
        print("AMP is switched off on MPS: Accelerate's mixed precision is not reliable there")
    elif args.use_amp and args.device == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        print("AMP is switched off: this processor has no bfloat16 instructions, so it would be slower")
    elif args.use_amp:
        in_bf16 = args.device == "cpu" or (args.amp_dtype == "bfloat16" and torch.cuda.is_bf16_supported())
        return "bf16" if in_bf16 else "fp16"
    return "no"


def fine_tune(args):
    """Train as the command line says, alone in its --output_dir. Returns the last metrics."""
    check_place(args.output_dir, base_model=locate(args.base_model), mask_policy=args.mask_policy)
    training = Training(args)
    with claimed(args.output_dir), checkpoints.resumable(args.output_dir, args):
        return training.run()


class Training:
    """A fine-tuning in progress: `args` is the command line, `step` the optimiser steps taken, `log` what was measured."""

    def __init__(self, args):
        precision = mixed_precision(args)
        torch.manual_seed(args.seed)
        self.args, self.step, self.log, self.before, self.metrics = args, 0, [], None, None
        self.data = checkpoints.read_from(args.data_path, args.mask_policy)
        if args.resume:
            checkpoint, state = checkpoints.read_newest(args.output_dir, checkpoints.FINE_TUNING)
            check_resumed(checkpoint, vars(args), state["args"], FREE)
            checkpoints.check_read_from(checkpoint, state["data"], self.data)
            self.reconstructor = Reconstructor.load(checkpoint, gaps=args.gaps)
        else:
            self.reconstructor = Reconstructor.from_base(args.base_model, args.attention, args.gaps)
        self.texts, self.validation, length = open_splits(args, self.reconstructor)
        texts.check_batch(args, self.reconstructor.model.config, min(args.batch_size, len(self.texts)) * length)
        AcceleratorState._reset_state(reset_partial_state=True)  # of an earlier training in this process
        self.accelerator = Accelerator(cpu=args.device == "cpu", mixed_precision=precision)
        named = args.mask_policy is not None
        self.policy = load_mask_policy(args, self.reconstructor, self.texts, self.accelerator.device) if named else None
        self.rarity = Rarity(self.texts, self.reconstructor) if args.gaps == "found" else None
        self.step_size = args.batch_size * args.gradient_accumulation_steps * self.accelerator.num_processes  # texts
        if args.resume and state["step_size"] != self.step_size:
            raise InputError(f"{checkpoint} has {state['step_size']} texts a step, found {self.step_size}; give as many")
        self.per_epoch = math.ceil(len(self.texts) / self.step_size)
        self.steps = args.max_steps if args.max_steps > 0 else max(1, round(args.epochs * self.per_epoch))
        if args.gap_head_only:
            self.reconstructor.model.requires_grad_(False)
        if args.gradient_checkpointing:
            model = self.reconstructor.model  # the second name is that of older transformers
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        if args.torch_compile:
            self.reconstructor.model.base_model.compile(dynamic=True)
        self.model, self.optimizer = self.accelerator.prepare(self.reconstructor.train(), adamw(args, self.reconstructor))
        if args.resume:
            with checkpoints.restoring(checkpoint):
                self.restore(state)
        self.is_main, self.writer = self.accelerator.is_main_process, None

    def restore(self, state):
        """Go on where `save` was called."""
        self.step, self.log, self.before, self.metrics = (state[name] for name in ("step", "log", "before", "metrics"))
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"] and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        states = state["random"]
        checkpoints.restore_random_states(states[self.accelerator.process_index % len(states)], self.args.device)

    def save(self):
        """Write a checkpoint: a standard model directory and what else the future depends on. InputError rather than NaN."""
        scaler = self.accelerator.scaler
        if not all(p.isfinite().all() for p in self.reconstructor.parameters()):
            raise InputError(f"the weights are not finite at step {self.step}; {self.remedy()}")
        state = {
            "args": {name: str(value) for name, value in vars(self.args).items()}, "data": self.data,
            "step_size": self.step_size, "step": self.step, "log": self.log,
            "before": self.before, "metrics": self.metrics, "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else None,
            "random": gather_object([checkpoints.random_states(self.args.device)]),  # of every process
        }
        if self.is_main:
            checkpoints.write_checkpoint(self.args.output_dir, self.step, state, self.args.save_total_limit, self.save_model)
        self.accelerator.wait_for_everyone()

    def remedy(self):
        """What to do where weights or loss are not finite."""
        return "lower --learning_rate" + " and go on with --resume" * bool(self.step and checkpoints.own(self.args.output_dir))

    def save_model(self, folder):
        self.reconstructor.save(folder, args=self.args, step=self.step, metrics=self.metrics)

    def batches(self):
        """(ids, keep_mask, valid), each (B, T), for every forward pass of this process in the coming optimiser step."""
        args, processes = self.args, self.accelerator.num_processes
        epoch, place = divmod(self.step, self.per_epoch)
        if place == 0:
            torch.empty((), dtype=torch.int64).random_()  # what a DataLoader draws: dropout as in runs that were made with one
        chosen = order_of_texts(args.seed + epoch, len(self.texts))[place * self.step_size : (place + 1) * self.step_size]
        # As many for every process, at the end of an epoch too.
        chosen = np.resize(chosen, math.ceil(len(chosen) / processes) * processes)
        passes = math.ceil(len(chosen) / (args.batch_size * processes))
        for numbers in np.array_split(chosen, passes * processes)[self.accelerator.process_index :: processes]:
            ids, valid = pad_batch([self.texts[int(i)] for i in numbers], self.reconstructor.bos_id)
            keep_mask = draw_masks(args, self.step, numbers, ids, valid, self.policy, self.rarity)
            yield tuple(torch.as_tensor(x, device=self.accelerator.device) for x in (ids, keep_mask, valid))

    def learning_rate(self):
        """The learning rate of the coming step: a linear rise, a linear fall to 0."""
        warmup = int(self.args.warmup_ratio * self.steps)
        share = self.step / warmup if self.step < warmup else (self.steps - self.step) / max(1, self.steps - warmup)
        return self.args.learning_rate * share

    def take_step(self):
        """One optimiser step. Returns its loss, the norm of its gradients, and its tokens of text, over all processes."""
        accelerator, batches = self.accelerator, list(self.batches())
        counts = [sum((valid & ~keep_mask).sum() for _, keep_mask, valid in batches), sum(valid.sum() for *_, valid in batches)]
        masked, tokens = accelerator.reduce(torch.stack(counts), "sum").clamp(min=1)
        loss, rate = 0.0, self.learning_rate()
        for i, batch in enumerate(batches):
            with contextlib.nullcontext() if i == len(batches) - 1 else accelerator.no_sync(self.model):
                # Gradients are averaged over processes, hence the factor: the sum is what one process would have.
                part = self.model(*batch) * accelerator.num_processes / masked
                accelerator.backward(part)
            loss += part.detach()
        loss = accelerator.reduce(loss, "mean").item()
        if not math.isfinite(loss):
            raise InputError(f"the loss is {loss} at step {self.step}, learning rate {rate:g}; {self.remedy()}")
        norm = float(accelerator.clip_grad_norm_(self.reconstructor.parameters(), MAX_GRAD_NORM))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return loss, norm, int(tokens)

    def record(self, kind, values):
        """Put figures into the log and into TensorBoard under `kind`."""
        self.log.append({"step": self.step, **values})
        for name, value in values.items() if self.writer else ():
            self.writer.add_scalar(f"{kind}/{name.removeprefix('eval_')}", value, self.step)

    def validate(self):
        """Score the validation texts and print a line."""
        found = {r: masked_accuracy(self.reconstructor.eval(), self.validation, r, self.policy) for r in EVAL_MASK_RATIOS}
        self.reconstructor.train()
        figures = ("nats", "top1", "gaps") if self.reconstructor.found else ("nats", "top1")
        self.metrics = {f"eval_{name}_at_{r}": found[r][name] for r in found for name in figures}
        self.before = self.before or self.metrics
        self.record("eval", self.metrics)
        if self.is_main:
            gaps = [f" {m['gaps']:.3f} gaps" * self.reconstructor.found for m in found.values()]
            values = "  ".join(
                f"{r:.0%}: {m['nats']:.3f} nats {m['top1']:.3f} top-1{g}" for (r, m), g in zip(found.items(), gaps, strict=True)
            )
            tqdm.write(f"step {self.step:5d}  masked {values}")

    def run(self):
        """Train to the last step, with validations, logs and checkpoints on the way."""
        args, losses, tokens, seconds = self.args, [], 0, 0.0
        if args.resume and self.step >= self.steps and checkpoints.is_record_of(args.output_dir / "training.json", log=self.log):
            print(f"{args.output_dir}: the run has taken its {self.step} steps; nothing was changed. More: --max_steps")
            return self.metrics
        self.writer = SummaryWriter(str(args.output_dir / "tb_logs"), purge_step=self.step + 1) if self.is_main else None
        if not self.before:
            self.validate()
        bar = tqdm(total=self.steps, initial=self.step, unit="step", disable=args.quiet or not self.is_main)
        while self.step < self.steps:
            start, rate = time.monotonic(), self.learning_rate()
            loss, norm, read = self.take_step()
            losses, tokens, seconds = [*losses, loss], tokens + read, seconds + time.monotonic() - start
            bar.update()
            bar.set_postfix(nats=round(loss, 3), refresh=False)
            if self.step % args.logging_steps == 0:
                figures = {"loss": sum(losses) / len(losses), "learning_rate": rate, "tokens_per_second": tokens / seconds}
                # A step that overflowed in float16 has no norm, and JSON no infinity.
                self.record("train", figures | ({"grad_norm": norm} if math.isfinite(norm) else {}))
                losses, tokens, seconds = [], 0, 0.0
            if self.step % args.eval_steps == 0 or self.step == self.steps:
                self.validate()
            if self.step % args.save_steps == 0 or self.step == self.steps:
                self.save()
        bar.close()
        if self.is_main:
            self.publish()
        return self.metrics

    def publish(self):
        """Put the model and `training.json` into the output directory."""
        args = self.args
        curve = {str(ratio): masked_accuracy(self.reconstructor.eval(), self.validation, ratio, self.policy) for ratio in CURVE}
        self.save_model(args.output_dir)
        weights = [path for path in (locate(args.base_model), args.mask_policy, args.output_dir) if path and Path(path).exists()]
        content = {"steps": self.step, "before": self.before, "metrics": self.metrics, "curve": curve, "log": self.log}
        write_json(args.output_dir / "training.json", SCHEMA, args, UNITS, weights, **content)
        self.writer.close()
        print(f"fine-tuned for {self.step} steps; written to {args.output_dir}")


def adamw(args, reconstructor):
    """AdamW with decay on matrices alone; beta2 as of GPT-3 (Brown et al. 2020, appendix B)."""
    trained = [p for p in reconstructor.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": args.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.95), fused=True)
