"""Measure the speed of masked fine-tuning against stock Hugging Face masked-LM practice, side by side in one run.

    python models/reconstructor/benchmark.py --data_path data/processed/processed_data.json --max_length 128

Stock: `AutoModelForCausalLM` as it is loaded, logits over the whole vocabulary at all positions, cross entropy with labels
of -100 where nothing is masked, and Trainer's optimiser (fused AdamW) and autocast. Ours: what `train_cpu.py` and
`train_gpu.py` do. Both start from the same weights and take the same steps on the same texts and masks with the same
dropout, in turns of `--steps` optimiser steps, so that a noisy machine is noisy for both; their losses are printed beside
their speed. Writes nothing, or its figures to `--output`.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from data.artifacts import SEED, Parser, bounded, run, write_json
from data.limits import BATCH, LEARNING_RATE, RATIO
from data.sequences import load_sequences, pad_batch
from models.reconstructor.masking import draw_mask_ratios, random_keep_mask
from models.reconstructor.reconstructor import Reconstructor, find_device
from models.reconstructor.tokenizer import BASE_MODEL, locate
from models.reconstructor.training import adamw, parse_args as training_args

SCHEMA = "rltc.finetuning_speed/1"
UNITS = {"tokens_per_second": "tokens of text per second", "loss": "nats per masked token", "peak_memory": "bytes on the card"}


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--data_path", type=Path, default=Path("data/processed/processed_data.json"), help="training sequences")
    add("--base_model", default=BASE_MODEL, help="directory or hub name of the causal LM")
    add("--max_length", type=bounded(int, 2, 10**6), default=128, help="tokens per text, longer ones are cut into several")
    add("--batch_size", type=BATCH, default=8, help="texts per step")
    add("--steps", type=bounded(int, 1, 10**6), default=5, help="optimiser steps per turn")
    add("--turns", type=bounded(int, 1, 10**6), default=6, help="turns of each")
    add("--mask_ratio", type=RATIO, default=0.3, help="centre of the mask ratios")
    add("--mask_spread", type=bounded(float, 0, 1), default=0.25, help="half width of the mask ratios")
    add("--learning_rate", type=LEARNING_RATE, default=4e-4, help="learning rate of both")
    add("--device", default="cpu", help="cpu, cuda, mps or auto")
    add("--use_amp", action="store_true", help="bfloat16 by autocast for both, instead of float32")
    add("--output", type=Path, help="JSON file for the figures")
    add("--seed", type=SEED, default=42, help="seeds texts and masks")
    add("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


class Ours:
    """Fine-tuning as this repository does it."""

    def __init__(self, args, device):
        self.args, self.device = args, device
        self.reconstructor = Reconstructor.from_base(args.base_model).to(device).train()
        settings = training_args(["--learning_rate", str(args.learning_rate)], (device,), __doc__)
        self.optimizer = adamw(settings, self.reconstructor)

    def loss(self, ids, keep_mask, valid):
        return self.reconstructor(ids, keep_mask, valid) / (valid & ~keep_mask).sum()

    def step(self, number, *batch):
        """One optimiser step. Returns the loss."""
        torch.manual_seed(number)  # dropout
        with torch.autocast(self.device, torch.bfloat16, enabled=self.args.use_amp):
            loss = self.loss(*batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.reconstructor.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


class Stock(Ours):
    """The same model and texts under stock practice: all logits, then cross entropy at the labels."""

    def __init__(self, args, device):
        super().__init__(args, device)
        tokenizer, weights = self.reconstructor.tokenizer, self.reconstructor.model.state_dict()
        model = AutoModelForCausalLM.from_pretrained(locate(args.base_model), dtype=torch.float32, use_safetensors=True)
        if model.get_input_embeddings().num_embeddings < len(tokenizer):
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.load_state_dict(weights)
        self.reconstructor.model = model.to(device).train()
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True
        )

    def loss(self, ids, keep_mask, valid):
        r = self.reconstructor
        shown = torch.where(keep_mask, ids, r.mask_id)
        inputs = torch.cat([torch.full_like(shown[:, :1], r.bos_id), shown], 1)
        labels = torch.where(valid & ~keep_mask, ids, -100)
        attended = torch.cat([torch.ones_like(valid[:, :1]), valid], 1)[:, None, None].expand(-1, 1, inputs.shape[1], -1)
        mask = torch.zeros(attended.shape, device=ids.device).masked_fill(~attended, torch.finfo(torch.float32).min)
        logits = r.model(input_ids=inputs, attention_mask=mask, use_cache=False).logits.float()  # (B, T + 1, V)
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=-100)


def batches(args, reconstructor, device):
    """Endless (number, ids, keep_mask, valid), texts in a random order."""
    texts = load_sequences(args.data_path, reconstructor.fingerprint, args.max_length)
    order, rng = np.random.default_rng(args.seed).permutation(len(texts)), np.random.default_rng(args.seed)
    number = 0
    while True:
        chosen = order[np.arange(number * args.batch_size, (number + 1) * args.batch_size) % len(order)]
        ids, valid = pad_batch([texts[int(i)] for i in chosen], reconstructor.bos_id)
        keep_mask = random_keep_mask(valid, draw_mask_ratios(len(ids), args.mask_ratio, args.mask_spread, rng), rng)
        yield number, *(torch.as_tensor(x, device=device) for x in (ids, keep_mask, valid))
        number += 1


def peak_memory(device):
    """Bytes that the card had to hold since the last call, None on other devices."""
    if device != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak


def report(args, device, figures):
    """Print the figures {name: {"tokens_per_second", "losses", "peak_memory", "parameters"}} of both ways."""
    where = torch.cuda.get_device_name() if device == "cuda" else f"{device}, {torch.get_num_threads()} threads"
    size = f"{args.turns} turns of {args.steps} steps of {args.batch_size} texts of up to {args.max_length} tokens"
    print(f"{size}, {'bfloat16' if args.use_amp else 'float32'}, {where}")
    for name, f in figures.items():
        speed, last = f["tokens_per_second"], np.mean(f["losses"][-args.steps :])
        memory = f"   {f['peak_memory'] / 2**30:.2f} GiB" if f["peak_memory"] else ""
        print(f"{name:6s} {np.median(speed):8.0f} tokens/s (from {min(speed):.0f} to {max(speed):.0f}){memory}   mean loss "
              f"{np.mean(f['losses']):.4f}, in the last turn {last:.4f} nats per masked token")
    ratios = np.array(figures["ours"]["tokens_per_second"]) / np.array(figures["stock"]["tokens_per_second"])
    print(f"ours / stock: {np.median(ratios):.2f} (from {ratios.min():.2f} to {ratios.max():.2f}), paired by turn")


def main(argv=None):
    args = parse_args(argv)
    device = find_device(args.device)
    torch.manual_seed(args.seed)
    ways = {"stock": Stock(args, device), "ours": Ours(args, device)}
    parameters = sum(p.numel() for p in ways["ours"].reconstructor.parameters())
    figures = {name: {"tokens_per_second": [], "losses": [], "peak_memory": 0, "parameters": parameters} for name in ways}
    stream = batches(args, ways["ours"].reconstructor, device)
    first = next(stream)
    for way in ways.values():  # the first step is slower than the others and is not timed; both take it
        way.step(*first)
    for _ in tqdm(range(args.turns), unit="turn", disable=args.quiet):
        turn = [next(stream) for _ in range(args.steps)]
        tokens = sum(int(valid.sum()) for *_, valid in turn)
        for name, way in ways.items():
            peak_memory(device)
            start = time.perf_counter()
            figures[name]["losses"] += [way.step(*batch) for batch in turn]
            figures[name]["tokens_per_second"].append(tokens / (time.perf_counter() - start))
            figures[name]["peak_memory"] = max(figures[name]["peak_memory"], peak_memory(device) or 0)
    report(args, device, figures)
    if args.output:
        write_json(args.output, SCHEMA, args, UNITS, figures=figures)


if __name__ == "__main__":
    run(main)
