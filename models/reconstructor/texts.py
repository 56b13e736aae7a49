"""Which texts a training reads, how they are masked, and how well masked texts are restored."""

import functools

import numpy as np
import torch

from data.artifacts import InputError
from data.sequences import SPLITS, load_info, load_sequences, pad_batch
from models.reconstructor.masking import draw_mask_ratios, keep_highest, random_keep_mask
from models.reconstructor.scoring import SUMS, score

HELD_OUT_SEED = 0  # draws the validation texts, the same for every --seed


def open_splits(args, reconstructor):
    """Training sequences, a list of validation arrays, the same for every seed, and the length that both are cut to."""
    positions, data_length = reconstructor.max_length, int(load_info(args.data_path)["max_length"])
    if args.max_length and args.max_length > positions:
        raise InputError(
            f"--max_length {args.max_length}: expected at most {positions}, the model's positions less one for BOS; "
            "choose a smaller one or another model"
        )
    length = args.max_length or min(data_length, positions)
    train = load_sequences(args.data_path, reconstructor.fingerprint, length)
    held_out = load_sequences(args.data_path.parent / SPLITS["val"], reconstructor.fingerprint, length)
    chosen = np.random.default_rng(HELD_OUT_SEED).permutation(len(held_out))[: args.eval_sequences]
    return train, [held_out[int(i)] for i in chosen], length


@functools.lru_cache(maxsize=1)
def order_of_texts(seed, count):
    """The numbers 0 … count − 1 in the order of an epoch."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()


def draw_masks(args, step, numbers, ids, valid, policy=None):
    """Keep masks (B, T) of the texts with these numbers, as the command line says.

    The mask of a text depends on the seed, the step and the text's number: not on how the step is divided into batches and
    processes, nor on where a run was interrupted.
    """
    masks, mask_ratios, by_policy = [], [], []
    for number, row in zip(numbers, valid, strict=True):
        rng = np.random.default_rng([args.seed, step, number])
        mask_ratios.append(draw_mask_ratios(1, args.mask_ratio, args.mask_spread, rng)[0])
        masks.append(random_keep_mask(row[None], mask_ratios[-1], rng, args.span_share))
        by_policy.append(policy is not None and rng.random() < args.policy_share)
    masks, chosen = np.concatenate(masks), np.flatnonzero(by_policy)
    if len(chosen):
        keep_ratios = 1 - np.array(mask_ratios)[chosen]
        scores = policy.keep_probability_at(ids[chosen], valid[chosen], keep_ratios)
        masks[chosen] = keep_highest(scores, valid[chosen], keep_ratios)
    return masks


def load_mask_policy(path, fingerprint, device):
    """The agent at `path`, for texts of the tokenizer with this fingerprint. Raises FileNotFoundError or InputError."""
    from models.agent.files import load_policy  # here, because Stable-Baselines3 takes seconds to import

    policy = load_policy(path, device)
    if (found := policy.tokenizer_fingerprint) != fingerprint:
        expected = f"expected an agent for tokenizer {fingerprint}, found one for {found}"
        raise InputError(f"--mask_policy {path}: {expected}; give an agent trained with this tokenizer")
    return policy


def masked_accuracy(reconstructor, texts, mask_ratio, batch_size=16, seed=0):
    """Nats and top-1 over all masked tokens of `texts` (list of arrays), masked at random with a fixed seed.

    Returns {"nats", "top1", "masked"}: nats per masked token, share restored, number of masked tokens.
    """
    rng, sums = np.random.default_rng(seed), np.zeros(len(SUMS))
    for first in range(0, len(texts), batch_size):
        ids, valid = pad_batch(texts[first : first + batch_size], reconstructor.bos_id)
        sums += score(reconstructor, ids, random_keep_mask(valid, mask_ratio, rng), valid).sums.sum(0)
    total = dict(zip(SUMS, sums.tolist(), strict=True))
    if not total["masked"]:
        raise InputError(
            f"validation: expected a masked token in {len(texts)} texts at mask ratio {mask_ratio}, found none; "
            "use longer texts or a larger --max_length"
        )
    return {"nats": total["nats"] / total["masked"], "top1": total["right"] / total["masked"], "masked": int(total["masked"])}
