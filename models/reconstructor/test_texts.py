"""Tests of the masks that a training draws: `python models/reconstructor/test_texts.py` or pytest."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pytest
import torch

from data.artifacts import InputError
from data.sequences import load_sequences, pad_batch
from eval.methods import CausalSurprisal, Random, TokenFrequency
from models.reconstructor.causal_lm import load_causal_lm
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.test_checkpoints import fine_tune, train_cpu_args
from models.reconstructor.texts import MaskPolicy, Rarity, draw_masks, load_mask_policy, token_counts
from models.reconstructor.tokenizer import BASE_MODEL
from models.reconstructor.words import Words


@pytest.fixture(scope="module")
def reconstructor(toy):
    return Reconstructor.from_base(toy / "base")


@pytest.fixture(scope="module")
def texts(toy, reconstructor):
    return load_sequences(toy / "data/processed_data.json", reconstructor.fingerprint)


@pytest.fixture(scope="module")
def uneven(texts):
    """ids and valid of 12 toy texts of 5 to 16 tokens."""
    return pad_batch([texts[i][: 5 + i] for i in range(12)], 0)


def policy_of(name, toy, reconstructor, texts, *words):
    args = train_cpu_args("--mask_policy", name, "--base_model", str(toy / "base"), *words)
    return load_mask_policy(args, reconstructor, texts, "cpu")


def test_masks_follow_the_flags():
    """Exactly --mask_ratio without spread, others in another step, the same however texts are batched."""
    args, valid = train_cpu_args(*"--mask_ratio 0.25 --mask_spread 0".split()), np.ones((4, 16), bool)

    def masks(step, numbers):
        return draw_masks(args, step, numbers, np.zeros((len(numbers), 16)), valid[: len(numbers)])

    first = masks(0, [3, 1, 4, 5])
    assert ((~first).sum(1) == 4).all()
    assert np.array_equal(first, np.concatenate([masks(0, [3, 1]), masks(0, [4, 5])]))
    assert not np.array_equal(first, masks(1, [3, 1, 4, 5]))


@pytest.mark.parametrize("policy", [None, "causal", "frequency", "random", "verified-once"])
def test_a_texts_mask_does_not_depend_on_its_company(toy, reconstructor, texts, uneven, policy):
    """Nor on how far it is padded, whoever decides."""
    (ids, valid), args = uneven, train_cpu_args(*"--mask_ratio 0.5 --policy_share 0.6".split())
    policy, rarity = policy and policy_of(policy, toy, reconstructor, texts), Rarity(texts, reconstructor)
    together = draw_masks(args, 3, np.arange(12), ids, valid, policy, rarity)
    for row, length in enumerate(valid.sum(1)):
        part = slice(row, row + 1), slice(length)
        alone = draw_masks(args, 3, [row], ids[part], valid[part], policy, rarity)
        assert np.array_equal(together[row, :length], alone[0]), row
    assert together[~valid].all() and not together[valid].all()
    assert not np.array_equal(together, draw_masks(args, 4, np.arange(12), ids, valid, policy, rarity))


def test_a_policy_decides_its_share_at_the_ratios_drawn(reconstructor):
    """The policy is asked at each text's keep ratio, and its masks have exactly as many tokens."""

    class LastFirst:
        mean = True

        def scores(self, ids, valid, keep_ratio):
            self.asked = keep_ratio
            return np.arange(ids.shape[1])[None] * valid

    args, method = train_cpu_args(*"--policy_share 0.5 --mask_ratio 0.5 --span_share 0".split()), LastFirst()
    ids, valid = np.full((400, 16), 3), np.ones((400, 16), bool)
    masks = draw_masks(args, 0, np.arange(400), ids, valid, MaskPolicy(method, Words(reconstructor.tokenizer)))
    by_policy = (np.sort(masks, 1) == masks).all(1)  # the last are kept
    assert 0.4 < by_policy.mean() < 0.6 and len(method.asked) == pytest.approx(by_policy.sum(), abs=8)
    assert set(method.asked.round(3)) - {0.5} and method.asked.min() >= 0.25 and method.asked.max() <= 0.75


def test_where_gaps_are_found_half_of_the_masks_keep_rare_words(reconstructor, texts, toy):
    """In the toy language an echo is more frequent than a word: by chance they are half of what is masked."""
    args = train_cpu_args(*"--mask_ratio 0.3 --mask_spread 0 --span_share 0".split())
    ids, valid = pad_batch([texts[i] for i in range(200)], 0)
    echo, rarity = np.isin(ids, reconstructor.tokenizer.convert_tokens_to_ids(list("ABCD"))), Rarity(texts, reconstructor)
    masks = [draw_masks(args, 0, np.arange(200), ids, valid, None, some) for some in (None, rarity)]
    assert all(((~mask).sum(1) == 5).all() for mask in masks)
    chance, both = (echo[~mask].mean() for mask in masks)
    assert abs(chance - 0.5) < 0.05 and 0.55 < both < 0.95
    assert 0.35 < (masks[0] == masks[1]).all(1).mean() < 0.65
    counts = token_counts(texts, reconstructor.vocab_size)
    assert counts.sum() == sum(len(text) for text in texts) and counts[ids[echo]].min() > counts[ids[~echo]].max()


def test_the_masks_of_a_name_are_that_methods(toy, reconstructor, texts, uneven):
    """At each text's own keep ratio; surprisal is that of the causal model, whatever it has been fine-tuned to since."""
    (ids, valid), ratios = uneven, np.linspace(0.3, 0.8, 12)
    fine_tune(toy, toy / "further", "--max_steps", 4, "--batch_size", 4, "--eval_steps", 100)
    methods = {
        "causal": CausalSurprisal(load_causal_lm(toy / "base"), 0), "random": Random(42),
        "frequency": TokenFrequency(token_counts(texts, reconstructor.vocab_size)),
    }
    for name, method in methods.items():
        for base in ("base", "further"):
            policy = policy_of(name, toy, reconstructor, texts, "--base_model", str(toy / base))
            expected = policy.words.keep_highest(method.scores(ids, valid, ratios), ids, valid, ratios)
            assert np.array_equal(policy.masks(ids, valid, ratios), expected), (name, base)


def test_masks_of_a_method_are_of_words_or_of_tokens():
    """The embedded base and English: no word is torn, unless single tokens are asked for."""
    base = Reconstructor.from_base(BASE_MODEL)
    text = base.tokenizer("Monongahela's reforestation wasn't unanimously recommended by 1,903 Pennsylvanian arboriculturists")
    ids, torn = np.array([text["input_ids"]]), {}
    valid = np.ones_like(ids, dtype=bool)
    starts = Words(base.tokenizer).starts(torch.as_tensor(ids), torch.as_tensor(valid)).numpy()
    for unit in ("word", "token"):
        policy = load_mask_policy(train_cpu_args("--mask_policy", "causal", "--unit", unit), base, [ids[0]], "cpu")
        mask = policy.masks(ids, valid, np.array([0.5]))
        assert 0.2 < mask.mean() <= 0.55
        torn[unit] = int((mask[:, 1:] != mask[:, :-1])[~starts[:, 1:]].sum())
    assert torn["word"] == 0 < torn["token"]


def test_a_mask_policy_that_is_not_there_is_refused_in_one_line(toy, tmp_path):
    with pytest.raises((InputError, FileNotFoundError), match="nowhere is missing; expected an agent") as refused:
        fine_tune(toy, tmp_path, "--mask_policy", "nowhere", "--max_steps", 1)
    assert "\n" not in str(refused.value)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
