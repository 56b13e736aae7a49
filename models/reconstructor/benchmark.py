"""Measure the speed of masked fine-tuning against stock Hugging Face masked-LM practice, side by side in one run.

    python models/reconstructor/benchmark.py --data_path data/processed/processed_data.json --max_length 128

Stock: `AutoModelForCausalLM` as it is loaded, logits over the whole vocabulary at all positions, cross entropy with labels
of -100 where nothing is masked, float32, `torch.optim.AdamW`. Ours: what `train_cpu.py` does. Both start from the same
weights and take the same steps on the same texts and masks with the same dropout, in turns of `--steps` optimiser steps, so
that a noisy machine is noisy for both; their losses are printed beside their speed. Writes nothing.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from data.artifacts import SEED, Parser, bounded, run
from data.sequences import load_sequences, pad_batch
from models.reconstructor.masking import draw_mask_ratios, random_keep_mask
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.tokenizer import BASE_MODEL, locate


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--data_path", type=Path, default=Path("data/processed/processed_data.json"), help="training sequences")
    add("--base_model", default=BASE_MODEL, help="directory or hub name of the causal LM")
    add("--max_length", type=bounded(int, 2, 10**6), default=128, help="tokens per text, longer ones are cut into several")
    add("--batch_size", type=bounded(int, 1, 10**6), default=8, help="texts per step")
    add("--steps", type=bounded(int, 1, 10**6), default=5, help="optimiser steps per turn")
    add("--turns", type=bounded(int, 1, 10**6), default=6, help="turns of each")
    add("--mask_ratio", type=bounded(float, 0, 1, open_ends=True), default=0.3, help="centre of the mask ratios, as in train_cpu.py")
    add("--mask_spread", type=bounded(float, 0, 1), default=0.25, help="half width of the mask ratios")
    add("--learning_rate", type=bounded(float, 0, 1, open_ends=True), default=4e-4, help="learning rate of both")
    add("--seed", type=SEED, default=42, help="seeds texts and masks")
    add("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


class Ours:
    """Fine-tuning as this repository does it."""

    def __init__(self, args):
        self.reconstructor = Reconstructor.from_base(args.base_model).train()
        self.optimizer = torch.optim.AdamW(self.reconstructor.parameters(), lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=0.01, fused=True)

    def step(self, number, ids, keep_mask, valid):
        torch.manual_seed(number)  # dropout
        nats, count = self.reconstructor(ids, keep_mask, valid)
        return self._update(nats / count)

    def _update(self, loss):
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.reconstructor.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


class Stock(Ours):
    """The same model and texts under stock practice: all logits, then cross entropy at the labels."""

    def __init__(self, args):
        super().__init__(args)
        tokenizer, weights = self.reconstructor.tokenizer, self.reconstructor.model.state_dict()
        model = AutoModelForCausalLM.from_pretrained(locate(args.base_model), dtype=torch.float32)
        if model.get_input_embeddings().num_embeddings < len(tokenizer):
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.load_state_dict(weights)
        self.reconstructor.model = model.train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)

    def step(self, number, ids, keep_mask, valid):
        torch.manual_seed(number)
        r = self.reconstructor
        shown = torch.where(keep_mask, ids, r.mask_id)
        inputs = torch.cat([torch.full_like(shown[:, :1], r.bos_id), shown], 1)
        labels = torch.where(valid & ~keep_mask, ids, -100)
        attended = torch.cat([torch.ones_like(valid[:, :1]), valid], 1)[:, None, None].expand(-1, 1, inputs.shape[1], -1)
        mask = torch.zeros(attended.shape).masked_fill(~attended, torch.finfo(torch.float32).min)
        logits = r.model(input_ids=inputs, attention_mask=mask, use_cache=False).logits  # (B, T + 1, V)
        return self._update(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), ignore_index=-100))


def main(argv=None):
    args = parse_args(argv)
    torch.manual_seed(args.seed)
    ways = {"stock": Stock(args), "ours": Ours(args)}
    texts = load_sequences(args.data_path, ways["ours"].reconstructor.fingerprint, args.max_length)
    order, rng = np.random.default_rng(args.seed).permutation(len(texts)), np.random.default_rng(args.seed)

    def batch(number):
        chosen = order[np.arange(number * args.batch_size, (number + 1) * args.batch_size) % len(order)]
        ids, valid = pad_batch([texts[int(i)] for i in chosen], ways["ours"].reconstructor.bos_id)
        keep_mask = random_keep_mask(valid, draw_mask_ratios(len(ids), args.mask_ratio, args.mask_spread, rng), rng)
        return number, *(torch.as_tensor(x) for x in (ids, keep_mask, valid))

    first = batch(0)
    for way in ways.values():  # the first step is slower than the others and is not timed; both take it
        way.step(*first)
    speeds, losses = {name: [] for name in ways}, {name: [] for name in ways}
    for turn in tqdm(range(args.turns), unit="turn", disable=args.quiet):
        batches = [batch(1 + turn * args.steps + i) for i in range(args.steps)]
        tokens = sum(int(valid.sum()) for *_, valid in batches)
        for name, way in ways.items():
            start = time.perf_counter()
            losses[name] += [way.step(*b) for b in batches]
            speeds[name].append(tokens / (time.perf_counter() - start))
    print(f"{args.turns} turns of {args.steps} steps of {args.batch_size} texts of up to {args.max_length} tokens, float32, {torch.get_num_threads()} threads")
    for name in ways:
        print(f"{name:6s} {np.median(speeds[name]):8.0f} tokens/s (from {min(speeds[name]):.0f} to {max(speeds[name]):.0f})   mean loss {np.mean(losses[name]):.4f}, in the last turn {np.mean(losses[name][-args.steps :]):.4f} nats per masked token")
    ratios = np.array(speeds["ours"]) / np.array(speeds["stock"])
    print(f"ours / stock: {np.median(ratios):.2f} (from {ratios.min():.2f} to {ratios.max():.2f}), paired by turn")


if __name__ == "__main__":
    run(main)
