"""Learn by supervision which words to keep, from masks verified with the reconstructor: an opponent of the agent.

    python rl/train_proposer.py --reconstructor_path models/reconstructor/base --output_dir models/agent/output/proposer

Every training text gets a price λ and the mask that is verified at it, which takes some readings; then the first pass of the
agent's network learns to predict that mask, token by token, from half a reading. The epoch that predicts validation texts' masks
best is kept, with the threshold of the highest J on them. Writes `best_model.zip`, an agent's file, and `training.json`.

The idea is LLMLingua-2's (Pan et al. 2024): token classification learned from compressed texts. Deviations: 1. the labels are
masks that leave nothing dearer than λ, not a large model's abridgements; 2. the price is an input, so that one classifier serves
all rates; 3. the agent's network and readings instead of a fine-tuned encoder.
"""

import copy
import math
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from tqdm import tqdm

from data.artifacts import SEED, Parser, bounded, run, stamped, write_json
from data.limits import COUNT, check_memory
from data.scratch import claimed, keep_apart
from data.sequences import pad_batch
from models.agent.actor_critic import TokenCompressionPolicy
from models.agent.files import SCHEMA as AGENT_SCHEMA
from models.agent.files import identity, save_agent
from models.agent.policy import observation_space
from models.agent.reader import Reader
from models.reconstructor.gaps import GAPS
from models.reconstructor.reconstructor import Reconstructor, find_device
from models.reconstructor.scoring import score, verify
from models.reconstructor.texts import HELD_OUT_SEED, open_splits, token_counts
from models.reconstructor.words import DECIDED
from rl.env import PRICES, TextStream, token_rewards
from rl.train import EMBEDDING_DIM, HEADS, LAST_RATE, LAYERS

SCHEMA = "rltc.proposer/1"
UNITS = {
    "bce": "nats per token of validation texts: binary cross-entropy of verified masks",
    "seconds": "seconds of wall time; processor_seconds: of all cores",
    "base_rate": "bce of who knows what share of each text is kept, and not which tokens", "texts": "texts",
    "J": "nats per original token",
    "keep_ratio": "share of tokens kept by verified masks of the training texts", "prices": "nats per token saved",
}
WIDTH, BATCH = 96, 16  # as the agent's
LEARNING_RATE, DECAY = 1e-3, 0.05  # the rate falls linearly to LAST_RATE of it
JUDGED = (1.5, 3.0, 6.0)  # prices at which thresholds are judged, as agents are by rl/train.py
THRESHOLDS = (0.5, 0.4, 0.3, 0.2)  # of the probability of keeping: to hide a dear token loses more than to send a cheap one


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--data_path", type=Path, default=Path("data/processed/processed_data.json"), help="training texts, val_data.json beside")
    add("--reconstructor_path", type=Path, default=Path("models/reconstructor/fine-tuned"), help="as of rl/train.py")
    add("--output_dir", type=Path, default=Path("models/agent/output/proposer"), help="directory to write")
    add("--num_texts", type=COUNT, default=1000, help="training texts, each with one λ, log-uniform as the agent's")
    add("--eval_sequences", type=COUNT, default=96, help="validation texts, each with one λ")
    add("--epochs", type=bounded(int, 1, 1000), default=4, help="passes over the texts; later ones predict no better")
    add("--gaps", choices=GAPS, default=GAPS[0], help="whether the receiver has to find where tokens are missing, or is told")
    add("--unit", choices=DECIDED, default=DECIDED[0], help="what one decision is about")
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("--seed", type=SEED, default=42, help="seeds texts, prices, first weights and the order of texts")
    add("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(max_length=None)
    return parser.parse_args(argv)


class Example(NamedTuple):
    """A text's ids (T,), what the reader makes of it (T, S) in 16 bit, its λ, and its verified keep mask (T,) bool."""

    text: np.ndarray
    states: torch.Tensor
    price: float
    kept: np.ndarray


def verified_examples(texts, prices, count, seed, reader, quiet=True):
    """`count` Examples of texts with a price in `prices` = (low, high), log-uniform; drawn with `seed`."""
    stream, found = TextStream(texts, prices), []
    stream.seed(seed)
    for _ in tqdm(range(count), desc="verify", unit="text", disable=quiet):
        text, price = stream.next()
        ids = torch.as_tensor(text, device=reader.reconstructor.device)[None]
        states = reader.read(ids, torch.ones_like(ids, dtype=torch.bool))[0].half()
        kept = ~verify(reader.reconstructor, reader.words, text, np.zeros(len(text), bool), price).masked[0]
        found.append(Example(text, states, price, kept))
    return found


def build_proposer(args, reconstructor, counts):
    """An untrained policy that decides in the first pass, for the tokens' counts (V,) of its training texts."""
    torch.manual_seed(args.seed)
    found, prices = args.gaps == "found", PRICES[args.gaps]
    reader = Reader(reconstructor, Reader.common_tokens(counts), found=found, unit=args.unit)
    sizes = {"embedding_dim": EMBEDDING_DIM, "width": WIDTH, "layers": LAYERS, "heads": HEADS}
    policy = TokenCompressionPolicy(
        observation_space(reconstructor.vocab_size, 1, prices[1]), spaces.Box(0.0, 1.0, (1,), np.float32), lambda _: 0.0,
        prices=prices, supervised=True, features_extractor_kwargs={"reader": reader, **sizes},
    ).to(reconstructor.device)
    policy.network.start_from(reconstructor.model, counts)
    kind = {"prices": prices, "critic_only": False, "supervised": True}
    policy.config = {"sizes": sizes, "blocks": reader.blocks, "gaps": args.gaps, "unit": args.unit, **kind}
    return policy


def cross_entropy(policy, examples):
    """The binary cross-entropy of the examples' masks, summed over all tokens, in nats, and how many tokens these are."""
    ids, valid = (torch.as_tensor(x, device=policy.device) for x in pad_batch([e.text for e in examples], 0))
    kept, _ = pad_batch([e.kept for e in examples], 0)
    states = torch.nn.utils.rnn.pad_sequence([e.states for e in examples], batch_first=True)
    price = torch.tensor([[e.price] for e in examples], dtype=torch.float32, device=policy.device)
    logits = policy.decide(ids, valid, price, states)[0][valid]
    target = torch.as_tensor(kept, dtype=torch.float32, device=policy.device)[valid]
    return F.binary_cross_entropy_with_logits(logits, target, reduction="sum"), len(target)


@torch.no_grad()
def mean_cross_entropy(policy, examples):
    """In nats per token."""
    batches = [cross_entropy(policy, examples[i : i + BATCH]) for i in range(0, len(examples), BATCH)]
    return float(sum(loss for loss, _ in batches)) / sum(tokens for _, tokens in batches)


def base_rate(examples):
    """The cross-entropy, in nats per token, of who knows what share of each text is kept and nothing else."""
    kept = np.array([e.kept.mean() for e in examples]).clip(1e-9, 1 - 1e-9)
    lengths = np.array([len(e.kept) for e in examples])
    return float(((-kept * np.log(kept) - (1 - kept) * np.log1p(-kept)) * lengths).sum() / lengths.sum())


def train(policy, examples, held_out, args):
    """Epochs of training, one at a time: yields the mean cross-entropy of the held-out examples after each."""
    rng, steps = np.random.default_rng(args.seed), args.epochs * -(-len(examples) // BATCH)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], LEARNING_RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, LAST_RATE, steps)
    with tqdm(total=steps, desc="train proposer", unit="step", disable=args.quiet) as progress:
        for _ in range(args.epochs):
            order = rng.permutation(len(examples))
            for start in range(0, len(order), BATCH):
                loss, tokens = cross_entropy(policy, [examples[i] for i in order[start : start + BATCH]])
                optimizer.zero_grad()
                (loss / tokens).backward()
                torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                progress.update(1)
            yield mean_cross_entropy(policy, held_out)


def J_by_threshold(policy, examples):
    """{threshold: mean J of the examples' texts at JUDGED} of keeping what is kept with more than that probability."""
    found = dict.fromkeys(THRESHOLDS, 0.0)
    for start in range(0, len(examples), BATCH):
        some = examples[start : start + BATCH]
        ids, valid = pad_batch([e.text for e in some], 0)
        for price in JUDGED:
            kept = policy.keep_probability(ids, valid, price).numpy()
            for threshold in THRESHOLDS:
                keep_mask = (kept > threshold) | ~valid
                paid = score(policy.reader.reconstructor, ids, keep_mask, valid)
                J = token_rewards(keep_mask, valid, paid.nats, [price] * len(ids), paid.gaps).sum()
                found[threshold] += float(J) / len(examples) / len(JUDGED)
    return found


def main(argv=None):
    args = parse_args(argv)
    keep_apart(args.output_dir, reconstructor_path=args.reconstructor_path, data_path=args.data_path.parent)
    with claimed(args.output_dir):
        propose(args)


def propose(args):
    """Verify masks, learn them, and write the proposer."""
    start, processor = time.monotonic(), time.process_time()
    reconstructor = Reconstructor.load(args.reconstructor_path, find_device(args.device), args.gaps)
    texts, validation, length = open_splits(args, reconstructor)
    policy = build_proposer(args, reconstructor, token_counts(texts, reconstructor.vocab_size))
    remedy = "give fewer, or a smaller --max_length to data/prepare.py"
    check_memory(args.num_texts * length * policy.reader.states * 2, f"--num_texts {args.num_texts}", remedy)
    examples, held_out = (
        verified_examples(some, policy.prices, count, seed, policy.reader, args.quiet)
        for some, count, seed in ((texts, args.num_texts, args.seed), (validation, len(validation), HELD_OUT_SEED))
    )
    history = []
    read_with = {"path": str(args.reconstructor_path), **identity(reconstructor.directory, args.gaps)}
    known = {"tokenizer_fingerprint": reconstructor.fingerprint, "max_length": length, "texts": len(examples)}
    for bce in train(policy, examples, held_out, args):
        history.append(bce)
        if bce == min(history):
            best = copy.deepcopy(policy.own_state())
    policy.load_state_dict(best, strict=False)
    J = J_by_threshold(policy, held_out)
    threshold = max(J, key=J.get)
    with torch.no_grad():  # what is kept with the threshold's probability is kept with one half
        policy.action_net.bias += math.log((1 - threshold) / threshold)
    row = {"epoch": history.index(min(history)) + 1, "bce": min(history), "threshold": threshold, "J": J[threshold]}
    config = stamped(AGENT_SCHEMA, args, UNITS, reconstructor=read_with, held_out=row, **known, **policy.config)
    save_agent(policy, config, args.output_dir / "best_model.zip")
    record = {
        "seconds": time.monotonic() - start, "processor_seconds": time.process_time() - processor,
        "base_rate": base_rate(held_out), "keep_ratio": float(np.concatenate([e.kept for e in examples]).mean()), "bce": history,
        "J_by_threshold": {str(threshold): value for threshold, value in J.items()},
    }
    write_json(args.output_dir / "training.json", SCHEMA, args, UNITS, [reconstructor.directory], **known, **record)
    after = ", ".join(f"{bce:.3f}" for bce in history)
    print(
        f"{len(examples):,} texts in {record['processor_seconds']:.0f} s of processor time; cross-entropy of validation masks by "
        f"epoch: {after}; knowing the shares kept: {record['base_rate']:.3f}; J {J[threshold]:.3f} at threshold {threshold}; "
        f"written to {args.output_dir}"
    )


if __name__ == "__main__":
    run(main)
