"""Masked fine-tuning of the reconstructor: the one implementation behind `train_cpu.py` and `train_gpu.py`.

Built on the Hugging Face Trainer, so that the same code runs on a CPU, on MPS, on CUDA with AMP, and on several
processes under `torchrun` or `accelerate launch`.
"""

import math
import os
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import TensorBoardCallback

from data.artifacts import SEED, InputError, Parser, bounded, make_output_dir, read_json, write_json
from data.sequences import SPLITS, load_info, load_sequences, pad_batch
from models.reconstructor.masking import draw_mask_ratios, random_keep_mask
from models.reconstructor.optimizer import MuonAdamW
from models.reconstructor.reconstructor import ATTENTION, Reconstructor, find_device
from models.reconstructor.reconstructor import SCHEMA as RECONSTRUCTOR_SCHEMA
from models.reconstructor.tokenizer import BASE_MODEL

SCHEMA = "rltc.finetuning/1"
UNITS = {"loss": "nats per masked token", "nats": "nats per masked token", "top1": "share of masked tokens restored", "learning_rate": "AdamW's"}
EVAL_MASK_RATIOS = (0.1, 0.3, 0.5)


def parse_args(argv, devices, doc):
    """The command line of both scripts; `devices` are the ones the script offers, the first is the default."""
    parser = Parser(doc)
    add = parser.add_argument
    add("--data_path", type=Path, default=Path("data/processed/processed_data.json"), help="training sequences; val_data.json is expected beside them")
    add("--output_dir", type=Path, default=Path("models/reconstructor/fine-tuned"), help="directory for the model, checkpoint-* and tb_logs")
    add("--base_model", default=BASE_MODEL, help="directory or hub name of the causal LM to start from, e.g. gpt2")
    add("--epochs", type=bounded(float, 0, 10**6, open_ends=True), default=3.0, help="passes over the training sequences")
    add("--max_steps", type=bounded(int, -1, 10**9), default=-1, help="optimiser steps; -1: as --epochs says")
    add("--batch_size", type=bounded(int, 1, 10**6), default=8, help="sequences per device and forward pass")
    add("--gradient_accumulation_steps", type=bounded(int, 1, 10**6), default=1, help="forward passes per optimiser step")
    add("--max_length", type=bounded(int, 2, 10**6), default=None, help="tokens per sequence, longer ones are cut into several; default: the data's, or the model's positions less one")
    add("--mask_ratio", type=bounded(float, 0, 1, open_ends=True), default=0.3, help="centre of the mask ratios drawn per text, between 0 and 1")
    add("--mask_spread", type=bounded(float, 0, 1), default=0.25, help="half width of the mask ratios, so that one model serves every rate; 0: exactly --mask_ratio")
    add("--span_share", type=bounded(float, 0, 1), default=0.2, help="share of texts masked in spans instead of single tokens, 0 to 1")
    add("--causal_share", type=bounded(float, 0, 1), default=0.0, help="share of batches that train the model as a causal LM instead, so that it stays one, 0 to 1")
    add("--attention", choices=ATTENTION, default=ATTENTION[0], help="what a token may look at: the whole text, or only what comes before")
    add("--optimizer", choices=("adamw", "muon"), default="adamw", help="muon: Muon on the hidden matrices, AdamW on the rest")
    add("--learning_rate", type=bounded(float, 0, 1, open_ends=True), default=4e-4, help="peak learning rate")
    add("--warmup_ratio", type=bounded(float, 0, 1), default=0.05, help="share of the steps in which the learning rate rises; then it falls linearly to 0")
    add("--weight_decay", type=bounded(float, 0, 10), default=0.01, help="decoupled weight decay")
    add("--max_grad_norm", type=bounded(float, 0, 10**6), default=1.0, help="gradients are clipped to this norm")
    add("--gradient_checkpointing", action="store_true", help="trade time for memory: recompute activations in the backward pass")
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


class ReconstructorTrainer(Trainer):
    """Trainer with the masked loss, validation by mask ratio, and checkpoints that are standard model directories."""

    def __init__(self, *args, settings, **kwargs):
        super().__init__(*args, **kwargs)
        self.settings = settings
        self.model_accepts_loss_kwargs = False  # the loss below is a mean, so Trainer divides by the accumulation steps

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # Masks are drawn here, from torch's global generator, whose state is part of a checkpoint: a resumed run
        # draws the masks the uninterrupted run would have drawn.
        rng = np.random.default_rng(int(torch.randint(2**62, ())))
        valid = inputs["valid"].cpu().numpy()
        s = self.settings
        ratios = draw_mask_ratios(len(valid), s.mask_ratio, s.mask_spread, rng)
        keep_mask = torch.as_tensor(random_keep_mask(valid, ratios, rng, s.span_share)).to(inputs["ids"].device)
        nats, count = model(inputs["ids"], keep_mask, inputs["valid"], as_causal_lm=rng.random() < s.causal_share)
        loss = nats.sum() / count.sum().clamp(min=1)
        if not torch.isfinite(loss):
            rate = self.optimizer.param_groups[-1]["lr"]
            raise InputError(f"the loss is {loss.item()} at step {self.state.global_step}, learning rate {rate:g}; lower --learning_rate and go on with --resume")
        return loss

    def evaluate(self, *args, metric_key_prefix="eval", **kwargs):
        model = self.accelerator.unwrap_model(self.model).eval()
        metrics = {}
        for mask_ratio in EVAL_MASK_RATIOS:
            found = masked_accuracy(model, self.eval_dataset, mask_ratio)
            metrics |= {f"{metric_key_prefix}_{k}_at_{mask_ratio}": found[k] for k in ("nats", "top1")}
        model.train()
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir=None, state_dict=None):
        directory = make_output_dir(output_dir or self.args.output_dir)
        self.accelerator.unwrap_model(self.model).save(directory, args=self.settings, step=self.state.global_step)
        torch.save(self.args, directory / "training_args.bin")

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


def newest_checkpoint(args):
    """The path of the `checkpoint-*` under `args.output_dir` that was finished last.

    Raises FileNotFoundError if there is none, InputError if it was trained from another base or with other attention.
    """
    states = sorted(args.output_dir.glob("checkpoint-*/trainer_state.json"), key=lambda p: p.stat().st_mtime)
    if not states:
        raise FileNotFoundError(f"--resume: expected a checkpoint-* directory in {args.output_dir}, found none; leave --resume away to start anew")
    path = states[-1].parent
    before = read_json(path / "reconstructor.json", RECONSTRUCTOR_SCHEMA, "models/reconstructor/train_cpu.py")["args"]
    for name in ("attention", "base_model"):
        if before[name] != getattr(args, name):
            raise InputError(f"--resume: {path} was trained with --{name} {before[name]}, found --{name} {getattr(args, name)}; give the same, or leave --resume away")
    return str(path)


def trainer_arguments(args, precision, steps):
    """The TrainingArguments that the command line amounts to."""
    return TrainingArguments(
        output_dir=str(args.output_dir), max_steps=steps,
        per_device_train_batch_size=args.batch_size, gradient_accumulation_steps=args.gradient_accumulation_steps,
        learning_rate=args.learning_rate, weight_decay=args.weight_decay, warmup_steps=int(args.warmup_ratio * steps), max_grad_norm=args.max_grad_norm,
        adam_beta2=0.95, lr_scheduler_type="linear", seed=args.seed, data_seed=args.seed, use_cpu=args.device == "cpu", **precision,
        eval_strategy="steps", eval_steps=args.eval_steps, save_strategy="steps", save_steps=args.save_steps, save_total_limit=args.save_total_limit,
        logging_steps=args.logging_steps, report_to=[], disable_tqdm=args.quiet, remove_unused_columns=False,
        ddp_find_unused_parameters=False, dataloader_pin_memory=args.device == "cuda",
    )


def fine_tune(args):
    """Run fine-tuning as the parsed command line says. Returns the metrics of the last validation."""
    precision = mixed_precision(args)
    torch.manual_seed(args.seed)
    checkpoint = newest_checkpoint(args) if args.resume else None
    reconstructor = Reconstructor.from_base(args.base_model, args.attention)
    train, validation, _ = open_splits(args, reconstructor)
    make_output_dir(args.output_dir)
    if args.gradient_checkpointing:
        reconstructor.model.activation_checkpointing_enable()

    def collate(items):
        ids, valid = pad_batch(items, reconstructor.bos_id)
        return {"ids": torch.as_tensor(ids), "valid": torch.as_tensor(valid)}

    processes = int(os.environ.get("WORLD_SIZE", 1))  # set by torchrun and accelerate launch
    per_epoch = math.ceil(len(train) / (args.batch_size * args.gradient_accumulation_steps * processes))
    steps = args.max_steps if args.max_steps > 0 else max(1, round(args.epochs * per_epoch))
    optimizer = MuonAdamW(reconstructor, args.learning_rate, args.learning_rate, args.weight_decay) if args.optimizer == "muon" else None
    trainer = ReconstructorTrainer(
        model=reconstructor, args=trainer_arguments(args, precision, steps), train_dataset=train, eval_dataset=validation, data_collator=collate,
        optimizers=(optimizer, None), callbacks=[Report(), TensorBoardCallback(SummaryWriter(str(args.output_dir / "tb_logs")))], settings=args,
    )
    trainer.remove_callback(PrinterCallback if args.quiet else ProgressCallback)
    if not args.quiet:
        trainer.add_callback(Progress())
    before = trainer.evaluate()
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics = trainer.evaluate()
    trainer.save_model(str(args.output_dir))
    if trainer.is_world_process_zero():
        write_json(
            args.output_dir / "training.json", SCHEMA, args, UNITS,
            steps=trainer.state.global_step, before=before, metrics=metrics, log=trainer.state.log_history,
        )
        print(f"fine-tuned for {trainer.state.global_step} steps; written to {args.output_dir}")
    return metrics


def open_splits(args, reconstructor):
    """Training sequences, a list of validation arrays drawn with `args.seed`, and the length that both are cut to."""
    positions, data_length = reconstructor.max_length, int(load_info(args.data_path)["max_length"])
    if args.max_length and args.max_length > positions:
        raise InputError(f"--max_length {args.max_length}: expected at most {positions}, the model's positions less one for BOS; choose a smaller one or another model")
    length = args.max_length or min(data_length, positions)
    train = load_sequences(args.data_path, reconstructor.fingerprint, length)
    held_out = load_sequences(args.data_path.parent / SPLITS["val"], reconstructor.fingerprint, length)
    chosen = np.random.default_rng(args.seed).permutation(len(held_out))[: args.eval_sequences]
    return train, [held_out[int(i)] for i in chosen], length
