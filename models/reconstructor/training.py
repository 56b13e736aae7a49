"""Masked fine-tuning of the reconstructor: the one implementation behind `train_cpu.py` and `train_gpu.py`.

Built on the Hugging Face Trainer, so that the same code runs on a CPU, on MPS, on CUDA with AMP, and on several
processes under `torchrun` or `accelerate launch`.
"""

import hashlib
import json
import math
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.trainer_utils import rotate_checkpoints

from data.artifacts import SEED, InputError, Parser, bounded, command_line, make_output_dir, read_json, write_json, write_text
from data.sequences import SPLITS, load_info, load_sequences, pad_batch
from models.reconstructor.masking import draw_mask_ratios, keep_highest, random_keep_mask
from models.reconstructor.pretraining.optimizer import MuonAdamW
from models.reconstructor.reconstructor import ATTENTION, Reconstructor, find_device
from models.reconstructor.reconstructor import SCHEMA as RECONSTRUCTOR_SCHEMA
from models.reconstructor.tokenizer import BASE_MODEL, MASK_TOKEN

SCHEMA = "rltc.finetuning/1"
UNITS = {"loss": "nats per masked token", "nats": "nats per masked token", "top1": "share of masked tokens restored", "learning_rate": "AdamW's", "tokens_per_second": "tokens of text per second, over all processes"}
EVAL_MASK_RATIOS = (0.1, 0.3, 0.5)
CURVE = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # mask ratios of the model card
HELD_OUT_SEED = 0  # draws the validation texts, the same for every --seed
UNFINISHED = ".unfinished"  # where a checkpoint is written before it gets its name
MANIFEST = "checksums.json"  # SHA-256 of every file of a checkpoint, written last: without it a checkpoint is not whole


def parse_args(argv, devices, doc):
    """The command line of both scripts; `devices` are the ones the script offers, the first is the default."""
    parser = Parser(doc)
    add = parser.add_argument
    add("--data_path", type=Path, default=Path("data/processed/processed_data.json"), help="training sequences; val_data.json is expected beside them")
    add("--output_dir", type=Path, default=Path("models/reconstructor/fine-tuned"), help="directory for the model, checkpoint-* and tb_logs")
    add("--base_model", default=BASE_MODEL, help="directory or hub name of the causal LM to start from, e.g. gpt2")
    add("--epochs", type=bounded(float, 0, 10**6, open_ends=True), default=3.0, help="passes over the training sequences")
    add("--max_steps", type=bounded(int, -1, 10**9), default=-1, help="optimiser steps; 0 or less: as --epochs says")
    add("--batch_size", type=bounded(int, 1, 10**6), default=8, help="sequences per device and forward pass")
    add("--gradient_accumulation_steps", type=bounded(int, 1, 10**6), default=1, help="forward passes per optimiser step")
    add("--max_length", type=bounded(int, 2, 10**6), default=None, help="tokens per sequence, longer ones are cut into several; default: the data's, or the model's positions less one")
    add("--mask_ratio", type=bounded(float, 0, 1, open_ends=True), default=0.3, help="centre of the mask ratios drawn per text, between 0 and 1")
    add("--mask_spread", type=bounded(float, 0, 1), default=0.25, help="half width of the mask ratios, so that one model serves every rate; 0: exactly --mask_ratio")
    add("--span_share", type=bounded(float, 0, 1), default=0.2, help="share of texts masked in spans instead of single tokens, 0 to 1")
    add("--mask_policy", type=Path, default=None, help="agent written by rl/train.py that decides some of the masks, so that the reconstructor gets used to it")
    add("--policy_share", type=bounded(float, 0, 1), default=0.5, help="share of texts masked by --mask_policy, at mask ratios drawn as for the others, 0 to 1; nothing without --mask_policy")
    add("--causal_share", type=bounded(float, 0, 1), default=0.0, help="share of batches that train the model as a causal LM instead, so that it stays one, 0 to 1")
    add("--attention", choices=ATTENTION, default=ATTENTION[0], help="what a token may look at: the whole text, or only what comes before")
    add("--optimizer", choices=("adamw", "muon"), default="adamw", help="muon: Muon on the hidden matrices, AdamW on the rest")
    add("--learning_rate", type=bounded(float, 0, 1, open_ends=True), default=4e-4, help="peak learning rate of AdamW, and of Muon's matrices with --optimizer muon")
    add("--warmup_ratio", type=bounded(float, 0, 1), default=0.05, help="share of the steps in which the learning rate rises; then it falls linearly to 0")
    add("--weight_decay", type=bounded(float, 0, 10), default=0.01, help="decoupled weight decay")
    add("--max_grad_norm", type=bounded(float, 0, 10**6), default=1.0, help="gradients are clipped to this norm")
    add("--gradient_checkpointing", action="store_true", help="trade time for memory: recompute activations in the backward pass")
    add("--torch_compile", action="store_true", help="compile the transformer with torch.compile: minutes of waiting, then faster steps on a GPU; needs a C++ compiler on a CPU")
    add("--use_amp", action="store_true", help="automatic mixed precision: bfloat16 where the device has it, else float16 (CUDA)")
    add("--device", choices=devices, default=devices[0], help="where to train")
    add("--eval_steps", type=bounded(int, 1, 10**9), default=200, help="optimiser steps between validations")
    add("--eval_sequences", type=bounded(int, 1, 10**9), default=128, help="validation sequences scored at each of the mask ratios " + ", ".join(map(str, EVAL_MASK_RATIOS)))
    add("--save_steps", type=bounded(int, 1, 10**9), default=500, help="optimiser steps between checkpoints")
    add("--save_total_limit", type=bounded(int, 1, 10**6), default=2, help="newest checkpoints to keep")
    add("--logging_steps", type=bounded(int, 1, 10**9), default=10, help="optimiser steps between TensorBoard points")
    add("--resume", action="store_true", help="go on from the newest checkpoint in --output_dir")
    add("--seed", type=SEED, default=42, help="seeds order and masks")
    add("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


def mixed_precision(args):
    """Check that the device is there and settle AMP. Returns {"bf16": bool, "fp16": bool}; raises InputError."""
    find_device(args.device)
    if not args.use_amp:
        return {"bf16": False, "fp16": False}
    if args.device == "mps":
        print("AMP is switched off on MPS: Trainer's mixed precision does not support it")
        return {"bf16": False, "fp16": False}
    if args.device == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        print("AMP is switched off: this processor has no bfloat16 instructions, so it would be slower")
        return {"bf16": False, "fp16": False}
    bf16 = args.device == "cpu" or torch.cuda.is_bf16_supported()
    return {"bf16": bf16, "fp16": not bf16}


@torch.inference_mode()
def masked_accuracy(reconstructor, texts, mask_ratio, batch_size=16, seed=0):
    """Nats and top-1 over all masked tokens of `texts` (list of arrays), masked at random with a fixed seed.

    Returns {"nats", "top1", "masked"}: nats per masked token, share restored, number of masked tokens.
    """
    rng = np.random.default_rng(seed)
    nats = correct = count = 0
    for first in range(0, len(texts), batch_size):
        ids, valid = pad_batch(texts[first : first + batch_size], reconstructor.bos_id)
        keep_mask = random_keep_mask(valid, mask_ratio, rng)
        prediction = reconstructor.predict(ids, keep_mask, valid)
        masked = torch.as_tensor(valid & ~keep_mask)
        nats += float(prediction.nats.sum())
        correct += int((prediction.top1.cpu()[masked] == torch.as_tensor(ids)[masked]).sum())
        count += int(masked.sum())
    if not count:
        raise InputError(f"validation: expected a masked token in {len(texts)} texts at mask ratio {mask_ratio}, found none; use longer texts or a larger --max_length")
    return {"nats": nats / count, "top1": correct / count, "masked": count}


class NumberedTexts(torch.utils.data.Dataset):
    """Items `(i, tokens)`: the number of a text seeds its masks."""

    def __init__(self, texts):
        self.texts = texts

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, i):
        return i, self.texts[i]


class ReconstructorTrainer(Trainer):
    """Trainer with the masked loss, validation by mask ratio, and checkpoints that are whole and standard model directories."""

    def __init__(self, *args, settings, **kwargs):
        super().__init__(*args, **kwargs)
        self.settings = settings
        self.model_accepts_loss_kwargs = True  # the loss below is divided by the masked tokens of the whole optimiser step
        self.run_dir = Path(self.args.output_dir)
        self.mask_policy = load_mask_policy(settings.mask_policy, kwargs["model"], self.args.device) if settings.mask_policy else None
        self.tokens, self.logged = 0, (time.monotonic(), 0)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of an optimiser step, their masks, and the number of masked tokens in all of them, over all processes.

        The mask of a text depends on the seed, the step and the text's number: not on how the step is divided into
        batches and processes, nor on where a run was interrupted.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        for batch in batches:
            batch["keep_mask"] = torch.as_tensor(self.draw_masks(batch.pop("number").tolist(), batch["ids"].cpu().numpy(), batch["valid"].cpu().numpy()), device=batch["ids"].device)
            self.tokens += int(batch["valid"].sum())
        masked = sum((batch["valid"] & ~batch["keep_mask"]).sum() for batch in batches)
        return batches, self.accelerator.reduce(torch.as_tensor(masked, device=device), "sum").clamp(min=1)

    def draw_masks(self, numbers, ids, valid):
        """Keep masks (B, T) for the texts with these numbers, as the command line says."""
        s, masks, mask_ratios, by_policy = self.settings, [], [], []
        for number, row in zip(numbers, valid, strict=True):
            rng = np.random.default_rng([s.seed, self.state.global_step, number])
            mask_ratios.append(draw_mask_ratios(1, s.mask_ratio, s.mask_spread, rng)[0])
            masks.append(random_keep_mask(row[None], mask_ratios[-1], rng, s.span_share))
            by_policy.append(self.mask_policy is not None and rng.random() < s.policy_share)
        masks, chosen = np.concatenate(masks), np.flatnonzero(by_policy)
        if len(chosen):
            keep_ratios = 1 - np.array(mask_ratios)[chosen]
            kept = self.mask_policy.keep_probability_at(ids[chosen], valid[chosen], keep_ratios)
            masks[chosen] = keep_highest(kept, valid[chosen], keep_ratios)
        return masks

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        as_causal_lm = np.random.default_rng([self.settings.seed, self.state.global_step]).random() < self.settings.causal_share
        nats, _ = model(inputs["ids"], inputs["keep_mask"], inputs["valid"], as_causal_lm=as_causal_lm)
        # Gradients are averaged over processes, hence the factor: the sum is what one process would have.
        loss = nats.sum() * self.accelerator.num_processes / num_items_in_batch
        if not torch.isfinite(loss):
            rate = self.optimizer.param_groups[-1]["lr"]
            raise InputError(f"the loss is {loss.item()} at step {self.state.global_step}, learning rate {rate:g}; lower --learning_rate and go on with --resume")
        return loss

    def log(self, logs, *args, **kwargs):
        if "loss" in logs:
            (before, tokens), self.logged = self.logged, (time.monotonic(), self.tokens)
            logs = {**logs, "tokens_per_second": (self.tokens - tokens) * self.accelerator.num_processes / (self.logged[0] - before)}
        super().log(logs, *args, **kwargs)

    def evaluate(self, *args, metric_key_prefix="eval", **kwargs):
        model = self.accelerator.unwrap_model(self.model).eval()
        metrics = {}
        for mask_ratio in EVAL_MASK_RATIOS:
            found = masked_accuracy(model, self.eval_dataset, mask_ratio)
            metrics |= {f"{metric_key_prefix}_{k}_at_{mask_ratio}": found[k] for k in ("nats", "top1")}
        model.train()
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.logged = time.monotonic(), self.tokens
        return metrics

    def last_validation(self):
        """The metrics of the validation at the present step; None if there was none."""
        rows = (row for row in self.state.log_history if row["step"] == self.state.global_step)
        return next(({k: v for k, v in row.items() if k.startswith("eval_")} for row in rows if f"eval_nats_at_{EVAL_MASK_RATIOS[0]}" in row), None)

    def _get_output_dir(self, trial):
        return str(self.run_dir)

    def _save_checkpoint(self, model, trial):
        """Write a checkpoint in a folder aside, sign it, and only then give it its name. Raises InputError rather than save NaN."""
        final, name = self.run_dir, f"checkpoint-{self.state.global_step}"
        if not all(p.isfinite().all() for p in self.model.parameters()):
            raise InputError(f"the weights are no longer finite at step {self.state.global_step}; lower --learning_rate and go on with --resume")
        self.run_dir = final / UNFINISHED
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.run_dir = final
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            sign(final / UNFINISHED / name)
            shutil.rmtree(final / name, ignore_errors=True)
            os.replace(final / UNFINISHED / name, final / name)
            shutil.rmtree(final / UNFINISHED)
            rotate_checkpoints(output_dir=str(final), save_total_limit=self.args.save_total_limit, use_mtime=True)
        self.logged = time.monotonic(), self.tokens

    def publish(self, curve):
        """Put the model into the output directory, file by file in one step each, with its curve on the model card."""
        aside = self.run_dir / UNFINISHED
        self._save(aside, curve=curve)
        for path in sorted(aside.iterdir(), key=lambda p: p.name == "reconstructor.json"):
            os.replace(path, self.run_dir / path.name)
        aside.rmdir()

    def _save(self, output_dir=None, state_dict=None, curve=None):
        directory = make_output_dir(output_dir or self.args.output_dir)
        reconstructor = self.accelerator.unwrap_model(self.model)
        metrics = next((row for row in reversed(self.state.log_history) if f"eval_nats_at_{EVAL_MASK_RATIOS[0]}" in row), {})
        reconstructor.save(directory, args=self.settings, step=self.state.global_step, metrics=metrics)
        torch.save(self.args, directory / "training_args.bin")
        write_text(directory / "README.md", model_card(self.settings, reconstructor, self.state.global_step, metrics, curve))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        saved = Reconstructor.load(resume_from_checkpoint)
        self.accelerator.unwrap_model(self.model).load_state_dict(saved.state_dict())


class Progress(ProgressCallback):
    """Trainer's progress bar without its dump of every logged dict; TensorBoard has those."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(nats=logs["loss"], refresh=False)


class Report(TrainerCallback):
    """One line per validation."""

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if state.is_world_process_zero:
            values = "  ".join(f"{r:.0%}: {metrics[f'eval_nats_at_{r}']:.3f} nats {metrics[f'eval_top1_at_{r}']:.3f} top-1" for r in EVAL_MASK_RATIOS)
            tqdm.write(f"step {state.global_step:5d}  masked {values}")


def load_mask_policy(path, reconstructor, device):
    """The agent at `path`. Raises FileNotFoundError, or InputError if it belongs to another tokenizer."""
    from models.agent.files import load_policy  # here, because Stable-Baselines3 takes seconds to import

    policy = load_policy(path, device)
    if (found := policy.tokenizer_fingerprint) != reconstructor.fingerprint:
        raise InputError(f"--mask_policy {path}: expected an agent for tokenizer {reconstructor.fingerprint}, found one for {found}; give an agent trained with this tokenizer")
    return policy


def checksums(directory):
    """{name: SHA-256} of the files of a directory but the manifest."""
    found = {}
    for path in sorted(directory.iterdir()):
        if path.name != MANIFEST:
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def sign(directory):
    """Write the manifest of a checkpoint that is complete."""
    write_text(directory / MANIFEST, json.dumps(checksums(directory), indent=1) + "\n")


def damage(directory):
    """What is wrong with a checkpoint, in a few words; None if every file is as it was written."""
    try:
        expected = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{MANIFEST} is missing or unreadable: it was never finished"
    found = checksums(directory)
    differing = [name for name in expected if found.get(name) != expected[name]]
    return f"{', '.join(differing)} not as written" if differing else None


def newest_checkpoint(args):
    """The path of the undamaged `checkpoint-*` under `args.output_dir` that was finished last; damaged ones are named and skipped.

    Raises FileNotFoundError if there is none, InputError if all are damaged, or if it was trained from another base or with
    other attention.
    """
    candidates = sorted(args.output_dir.glob("checkpoint-*"), key=lambda p: p.stat().st_mtime, reverse=True)
    if not candidates:
        raise FileNotFoundError(f"--resume: expected a checkpoint-* directory in {args.output_dir}, found none; leave --resume away to start anew")
    damaged = []
    for path in candidates:
        if not (reason := damage(path)):
            break
        damaged.append(f"{path.name} ({reason})")
    else:
        raise InputError(f"--resume: expected a whole checkpoint in {args.output_dir}, found only damaged ones: {'; '.join(damaged)}; leave --resume away to start anew")
    if damaged:
        print(f"skipped {'; '.join(damaged)}; going on from {path.name}")
    before = read_json(path / "reconstructor.json", RECONSTRUCTOR_SCHEMA, "models/reconstructor/train_cpu.py")["args"]
    for name in ("attention", "base_model"):
        if before[name] != getattr(args, name):
            raise InputError(f"--resume: {path} was trained with --{name} {before[name]}, found --{name} {getattr(args, name)}; give the same, or leave --resume away")
    return str(path)


def model_card(args, reconstructor, step, metrics, curve=None):
    """The text of a model card: how the model was made and how well it restores held-out text."""
    script = "models/reconstructor/train_cpu.py" if args.device == "cpu" else "models/reconstructor/train_gpu.py"
    known = curve or {r: {"nats": metrics[f"eval_nats_at_{r}"], "top1": metrics[f"eval_top1_at_{r}"]} for r in EVAL_MASK_RATIOS if f"eval_nats_at_{r}" in metrics}
    rows = "\n".join(f"| {float(r):.1f} | {m['nats']:.3f} | {m['top1']:.3f} |" for r, m in known.items())
    return f"""---
library_name: transformers
base_model: {args.base_model}
---
# Reconstructor

`{args.base_model}` fine-tuned for {step} steps to restore masked tokens, with {args.attention} attention. A masked token is
`{MASK_TOKEN}` (token {reconstructor.mask_id:,}); token i is predicted from the position before it. Made by

```
{command_line(script, args)}
```

Validation texts, single tokens masked at random (seed 0), scored at masked positions only:

| masked | nats per masked token | top-1 |
|---|---|---|
{rows}
"""


def trainer_arguments(args, precision, steps, processes):
    """The TrainingArguments that the command line amounts to."""
    return TrainingArguments(
        output_dir=str(args.output_dir), max_steps=steps,
        per_device_train_batch_size=args.batch_size, gradient_accumulation_steps=args.gradient_accumulation_steps,
        learning_rate=args.learning_rate, weight_decay=args.weight_decay, warmup_steps=int(args.warmup_ratio * steps), max_grad_norm=args.max_grad_norm,
        adam_beta2=0.95, lr_scheduler_type="linear", seed=args.seed, data_seed=args.seed, use_cpu=args.device == "cpu", **precision,
        eval_strategy="steps", eval_steps=args.eval_steps, save_strategy="steps", save_steps=args.save_steps, save_total_limit=args.save_total_limit,
        logging_steps=args.logging_steps, report_to=[], disable_tqdm=args.quiet, remove_unused_columns=False,
        ddp_find_unused_parameters=False, ddp_backend="gloo" if args.device == "cpu" and processes > 1 else None, dataloader_pin_memory=args.device == "cuda",
    )


def fine_tune(args):
    """Run fine-tuning as the parsed command line says. Returns the metrics of the last validation."""
    precision = mixed_precision(args)
    torch.manual_seed(args.seed)
    checkpoint = newest_checkpoint(args) if args.resume else None
    reconstructor = Reconstructor.from_base(args.base_model, args.attention)
    train, validation, _ = open_splits(args, reconstructor)
    make_output_dir(args.output_dir)
    main_process = int(os.environ.get("RANK", 0)) == 0  # RANK and WORLD_SIZE are set by torchrun and accelerate launch
    if main_process:
        shutil.rmtree(args.output_dir / UNFINISHED, ignore_errors=True)  # of a run that was killed
    if args.gradient_checkpointing:
        reconstructor.model.activation_checkpointing_enable()

    if args.torch_compile:
        reconstructor.model.base_model.compile(dynamic=True)

    def collate(items):
        numbers, texts = zip(*items, strict=True)
        ids, valid = pad_batch(texts, reconstructor.bos_id)
        return {"number": torch.tensor(numbers), "ids": torch.as_tensor(ids), "valid": torch.as_tensor(valid)}

    processes = int(os.environ.get("WORLD_SIZE", 1))
    per_epoch = math.ceil(len(train) / (args.batch_size * args.gradient_accumulation_steps * processes))
    steps = args.max_steps if args.max_steps > 0 else max(1, round(args.epochs * per_epoch))
    optimizer = MuonAdamW(reconstructor, args.learning_rate, args.learning_rate, args.weight_decay) if args.optimizer == "muon" else None
    logger = [TensorBoardCallback(SummaryWriter(str(args.output_dir / "tb_logs")))] if main_process else []
    trainer = ReconstructorTrainer(
        model=reconstructor, args=trainer_arguments(args, precision, steps, processes), train_dataset=NumberedTexts(train), eval_dataset=validation, data_collator=collate,
        optimizers=(optimizer, None), callbacks=[Report(), *logger], settings=args,
    )
    trainer.remove_callback(PrinterCallback if args.quiet else ProgressCallback)
    if not args.quiet:
        trainer.add_callback(Progress())
    before = trainer.evaluate()
    trainer.train(resume_from_checkpoint=checkpoint)
    for callback in logger:  # it has closed its log, and would open another one
        trainer.remove_callback(callback)
    metrics = trainer.last_validation() or trainer.evaluate()  # none if a run that is complete was to go on
    if trainer.is_world_process_zero():
        curve = {str(ratio): masked_accuracy(reconstructor.eval(), validation, ratio) for ratio in CURVE}
        trainer.publish(curve)
        write_json(
            args.output_dir / "training.json", SCHEMA, args, UNITS,
            steps=trainer.state.global_step, before=before, metrics=metrics, curve=curve, log=trainer.state.log_history,
        )
        print(f"fine-tuned for {trainer.state.global_step} steps; written to {args.output_dir}")
    return metrics


def open_splits(args, reconstructor):
    """Training sequences, a list of validation arrays, the same for every seed, and the length that both are cut to."""
    positions, data_length = reconstructor.max_length, int(load_info(args.data_path)["max_length"])
    if args.max_length and args.max_length > positions:
        raise InputError(f"--max_length {args.max_length}: expected at most {positions}, the model's positions less one for BOS; choose a smaller one or another model")
    length = args.max_length or min(data_length, positions)
    train = load_sequences(args.data_path, reconstructor.fingerprint, length)
    held_out = load_sequences(args.data_path.parent / SPLITS["val"], reconstructor.fingerprint, length)
    chosen = np.random.default_rng(HELD_OUT_SEED).permutation(len(held_out))[: args.eval_sequences]
    return train, [held_out[int(i)] for i in chosen], length
