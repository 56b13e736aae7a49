"""Which texts a training reads, how they are masked, and how well masked texts are restored."""

import functools

import numpy as np
import torch

from data.artifacts import InputError
from data.limits import check_memory
from data.scratch import keep_apart
from data.sequences import SPLITS, load_info, load_sequences, pad_batch
from models.reconstructor.causal_lm import load_causal_lm
from models.reconstructor.masking import draw_mask_ratios, random_keep_mask
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.scoring import SUMS, score
from models.reconstructor.tokenizer import locate
from models.reconstructor.words import Words

HELD_OUT_SEED = 0  # draws the validation texts, the same for every --seed
ACTIVATIONS = 64  # bytes that a forward pass keeps of a number of a layer, about
COUNTED_TEXTS = 20_000  # texts that token frequencies are counted on
FREQUENCY_SHARE, NOISE = 0.5, (0.3, 3.0)  # of masks without a policy where gaps are found: by word frequency plus so many nats


def token_counts(sequences, vocab_size):
    """How often each token stands in the first COUNTED_TEXTS texts, (V,)."""
    return np.bincount(sequences.first(COUNTED_TEXTS), minlength=vocab_size)


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


def check_batch(args, config, tokens):
    """Raises InputError if, on a CPU, a forward pass of so many tokens can't be kept for its gradients."""
    if args.device == "cpu" and not args.gradient_checkpointing:
        size = tokens * config.num_hidden_layers * config.hidden_size * ACTIVATIONS
        check_memory(size, f"--batch_size {args.batch_size}", "give a smaller one and --gradient_accumulation_steps")


@functools.lru_cache(maxsize=1)
def order_of_texts(seed, count):
    """The numbers 0 … count − 1 in the order of an epoch."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).numpy()


def draw_masks(args, step, numbers, ids, valid, policy=None, rarity=None):
    """Keep masks (B, T) of the texts with these numbers, as the command line says.

    The mask of a text depends on the seed, the step and the text's number: not on how the step is divided into batches and
    processes, nor on where a run was interrupted. `policy`: a MaskPolicy; `rarity`: a Rarity, where gaps are to be found.
    """
    masks, keep_ratios, by_policy = np.ones_like(valid), [], []
    for number, text, row, mask in zip(numbers, ids, valid, masks, strict=True):
        rng, alone = np.random.default_rng([args.seed, step, number]), (text[None, row], row[None, row])  # without its padding
        mask_ratio = draw_mask_ratios(1, args.mask_ratio, args.mask_spread, rng)[0]
        keep_ratios.append(1 - mask_ratio)
        mask[row] = random_keep_mask(alone[1], mask_ratio, rng, args.span_share)[0]
        by_policy.append(policy is not None and rng.random() < args.policy_share)
        if rarity and not by_policy[-1] and rng.random() < FREQUENCY_SHARE:
            mask[row] = rarity.masks(*alone, 1 - mask_ratio, rng)[0]
    chosen = np.flatnonzero(by_policy)
    if len(chosen):
        masks[chosen] = policy.masks(ids[chosen], valid[chosen], np.array(keep_ratios)[chosen])
    return masks


class Rarity:
    """Masks that keep rare words, with noise: gaps as methods leave them are easier to find than those of chance."""

    def __init__(self, sequences, reconstructor):
        counts = token_counts(sequences, reconstructor.vocab_size)
        self.nats, self.words = -np.log((counts + 1) / (counts.sum() + 1)), Words(reconstructor.tokenizer)

    def masks(self, ids, valid, keep_ratio, rng):
        """Keep masks (B, T), alike but for the noise of `rng`."""
        noise = rng.uniform(*NOISE) * rng.standard_normal(ids.shape)
        return self.words.keep_highest(self.nats[ids] + noise, ids, valid, keep_ratio)


class MaskPolicy:
    """What decides the masks of `--mask_policy`: an agent, or one of the methods that agents are compared with."""

    def __init__(self, method, words):
        self.method, self.words = method, words

    def masks(self, ids, valid, keep_ratios):
        """Keep masks (B, T) that keep the shares (B,) of the texts."""
        return self.words.keep_highest(self.method.scores(ids, valid, keep_ratios), ids, valid, keep_ratios, self.method.mean)


def load_mask_policy(args, reconstructor, texts, device):
    """The MaskPolicy that the command line names, for the reconstructor's tokenizer. Raises FileNotFoundError or InputError."""
    from eval.inputs import first_base_model  # here, because Stable-Baselines3 takes seconds to import
    from eval.methods import OPPONENTS, Agent, build_opponent
    from models.agent.files import load_policy, needs

    name, fingerprint = str(args.mask_policy), reconstructor.fingerprint
    if name in OPPONENTS:
        receiver = Reconstructor.from_base(args.base_model, gaps=args.gaps).to(device).eval()
        words, counts = Words(receiver.tokenizer, args.unit), functools.partial(token_counts, texts, receiver.vocab_size)
        model = load_causal_lm(first_base_model(locate(args.base_model))).to(device)  # not what it was fine-tuned to
        return MaskPolicy(build_opponent(name, model, receiver, words, counts, args.seed), words)
    policy = load_policy(args.mask_policy, device)
    keep_apart(args.output_dir, **needs(policy.config, "mask_policy"))
    if (found := policy.tokenizer_fingerprint) != fingerprint:
        expected = f"expected an agent for tokenizer {fingerprint}, found one for {found}"
        raise InputError(f"--mask_policy {name}: {expected}; give an agent trained with this tokenizer")
    return MaskPolicy(Agent(policy), policy.reader.words)


def masked_accuracy(reconstructor, texts, mask_ratio, policy=None, batch_size=16, seed=0):
    """Nats and top-1 over all masked tokens of `texts` (list of arrays), masked at random with a fixed seed, or by a MaskPolicy.

    Returns {"nats", "top1", "gaps", "masked"}: nats per masked token, share restored, nats of gaps per original token, number of
    masked tokens.
    """
    rng, sums = np.random.default_rng(seed), np.zeros(len(SUMS))
    for first in range(0, len(texts), batch_size):
        ids, valid = pad_batch(texts[first : first + batch_size], reconstructor.bos_id)
        if policy:
            keep_mask = policy.masks(ids, valid, np.full(len(ids), 1 - mask_ratio))
        else:
            keep_mask = random_keep_mask(valid, mask_ratio, rng)
        sums += score(reconstructor, ids, keep_mask, valid).sums.sum(0)
    total = dict(zip(SUMS, sums.tolist(), strict=True))
    if not total["masked"]:
        raise InputError(
            f"validation: expected a masked token in {len(texts)} texts at mask ratio {mask_ratio}, found none; "
            "use longer texts or a larger --max_length"
        )
    found = {"nats": total["nats"] / total["masked"], "top1": total["right"] / total["masked"]}
    return found | {"gaps": total["gaps"] / total["tokens"], "masked": int(total["masked"])}
