"""Teach an agent what a word is worth to a language model that reads what is sent: what one lost under masks of many kinds.

    python rl/train_worth.py --reads reads.jsonl --model_path models/agent/output/best_model.zip

The policy stays as it is; `worth.safetensors` comes beside it (models/agent/worth.py). A question counts by the nats that its
text brings the answer. A tenth of the texts is held out, to say how much of what is lost was expected.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from tqdm import tqdm

from data.artifacts import SEED, InputError, Parser, bounded, plain_json, run, sha256_of
from data.scratch import claimed, keep_apart
from data.sequences import pad_batch
from data.shapes import NUMBER, TEXT, WORD, flaw
from models.agent.files import TrainedAgent, check_place, load_policy, needs
from models.agent.worth import Worth
from models.reconstructor.reconstructor import find_device
from models.reconstructor.tokenizer import locate
from models.reconstructor.words import Words

LEAST_GAIN = 2.0  # nats that a text has to bring an answer: others say nothing about words
LEAST, MOST = -0.3, 1.3  # shares of it that are lost are cut to this
HELD_OUT, BATCH = 10, 16  # one text in so many is held out; texts in a step
LEARNING_RATE, DECAY = 1e-3, 0.05


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--reads", type=Path, default=Path("reads.jsonl"), help="JSON Lines of rl/read.py")
    add("--model_path", type=Path, default=Path("models/agent/output/best_model.zip"), help="agent that is taught")
    add("--output_dir", type=Path, default=Path("models/agent/output/read"), help="directory for the agent with its worths")
    add("--epochs", type=bounded(int, 1, 1000), default=3, help="passes over the texts")
    add("--seed", type=SEED, default=42, help="seeds first weights and the order of texts")
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


def load_reads(path):
    """Texts with masks (M, W) float32, shares lost (M,) and a weight, as dicts, of a file of rl/read.py. Raises InputError."""
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = plain_json("", line, "")
            if flaw(row, {"text": WORD, "masks": [TEXT, ...], "questions": [{"nats": [NUMBER]}]}):
                raise ValueError
            masks = np.array([[int(sent) for sent in mask] for mask in row["masks"]], dtype=np.float32)
            nats = np.array([each["nats"] for each in row["questions"]], dtype=np.float64).reshape(-1, len(masks) + 2)
            whole = masks.ndim == 2 and set(np.unique(masks)) <= {0, 1}
        except ValueError:
            whole = False
        if not whole:
            raise InputError(f"{path}, line {number}: expected text, masks and questions, as of rl/read.py; write it again")
        gain = nats[:, 0] - nats[:, 1]
        nats, gain = nats[gain >= LEAST_GAIN], gain[gain >= LEAST_GAIN, None]
        if len(gain):
            lost = np.clip((nats[:, 2:] - nats[:, 1:2]) / gain, LEAST, MOST)
            weight = float(gain.sum())
            found.append({"text": row["text"], "masks": masks, "lost": (lost * gain).sum(0) / weight, "weight": weight})
    if len(found) < HELD_OUT:
        raise InputError(f"{path}: expected {HELD_OUT} texts or more that help with an answer, found {len(found)}; read more")
    return found


def pooled(rows, reader, path, batch=32):
    """Give every row its words' states (W, S) and sizes (W,). Raises InputError if masks are not of these words."""
    tokenizer, words = reader.reconstructor.tokenizer, Words(reader.reconstructor.tokenizer)
    tokens = [tokenizer(row["text"], add_special_tokens=False, verbose=False)["input_ids"] for row in rows]
    order = sorted(range(len(rows)), key=lambda i: len(tokens[i]))
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        ids, valid = (torch.as_tensor(x) for x in pad_batch([np.array(tokens[i]) for i in part], 0))
        states = reader.read(ids.to(reader.reconstructor.device), valid.to(reader.reconstructor.device))
        for i, of_text in zip(part, states, strict=True):
            first = words.first_of(tokens[i])
            if len(first) != (found := rows[i]["masks"].shape[1]):
                raise InputError(f"{path}: expected masks of {len(first)} words, found {found}; read anew")
            sizes = np.diff([*first, len(tokens[i])])
            rows[i]["states"] = torch.stack([part.mean(0) for part in of_text[: len(tokens[i])].split(sizes.tolist())]).cpu()
            rows[i]["sizes"] = torch.as_tensor(sizes, dtype=torch.float32)


def loss_of(worth, row):
    """The weighted squared error of one row, and that of the mean."""
    masks, lost = (torch.as_tensor(row[name], dtype=torch.float32) for name in ("masks", "lost"))
    return row["weight"] * (worth.lost(row["states"], row["sizes"], masks) - lost).square().mean()


def explained(worth, rows):
    """The share of the variance of what is lost, over all texts and masks, that was expected."""
    worth.eval()
    with torch.inference_mode():
        left = sum(float(loss_of(worth, row)) for row in rows)
    weight = np.array([row["weight"] for row in rows])
    mean = (weight * [row["lost"].mean() for row in rows]).sum() / weight.sum()
    return 1 - left / float((weight * [np.square(row["lost"] - mean).mean() for row in rows]).sum())


def train(rows, states, args):
    """The Worth after `--epochs`, and what it explains of the held-out rows after each."""
    torch.manual_seed(args.seed)
    held_out, rows, rng = rows[::HELD_OUT], [r for i, r in enumerate(rows) if i % HELD_OUT], np.random.default_rng(args.seed)
    worth, steps = Worth(states), args.epochs * -(-len(rows) // BATCH)
    optimizer = torch.optim.AdamW(worth.parameters(), LEARNING_RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps + 1, pct_start=0.1)
    history = []
    with tqdm(total=steps, unit="step", disable=args.quiet) as progress:
        for _ in range(args.epochs):
            order = rng.permutation(len(rows))
            worth.train()
            for start in range(0, len(order), BATCH):
                loss = sum(loss_of(worth, rows[i]) for i in order[start : start + BATCH]) / BATCH
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(worth.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                progress.update(1)
            history.append(explained(worth, held_out))
    return worth.eval(), history


def main(argv=None):
    args = parse_args(argv)
    keep_apart(args.output_dir, model_path=locate(args.model_path))
    policy = load_policy(args.model_path, find_device(args.device))
    keep_apart(args.output_dir, **needs(policy.config, "model_path"))
    check_place(args.output_dir)
    rows = load_reads(args.reads)
    pooled(rows, policy.reader, args.reads)
    with claimed(args.output_dir):
        policy.reader.worth, history = train(rows, policy.reader.states, args)
        of_reads = {"reads": sha256_of(args.reads), "texts": len(rows), "explained": history[-1]}
        policy.config = {**policy.config, "worth": of_reads}
        TrainedAgent(policy).save_pretrained(args.output_dir)
    after = ", ".join(f"{share:.3f}" for share in history)
    print(f"{len(rows):,} texts; explained of what is lost of held-out texts, by epoch: {after}; written to {args.output_dir}")


if __name__ == "__main__":
    run(main)
