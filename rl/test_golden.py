"""What an agent decides and earns, pinned: `python rl/test_golden.py` or pytest.

Five short texts, a small agent and a small reconstructor whose weights are drawn by name and seed. The figures below were printed
by the code at commit 3b0dbba; whatever is moved, they stay.
"""

import sys
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from data.sequences import pad_batch
from models.agent.policy import TokenCompressionPolicy
from models.reconstructor.masking import KEEP_THRESHOLD, keep_highest
from models.reconstructor.reconstructor import Reconstructor
from rl.env import Judge, observation_space

V, LENGTHS, PRICES = 40, (12, 10, 7, 3, 1), (0.9, 2.0, 4.0, 3.0, 6.0)


def fill(name, shape, scale):
    """Numbers that depend on the name alone and that 16 bits can hold."""
    drawn = np.random.default_rng(zlib.crc32(name.encode())).normal(size=tuple(shape)) * scale
    return torch.tensor(drawn, dtype=torch.float16).float()


def golden_reconstructor():
    names = ["<|endoftext|>", *(f"w{i}" for i in range(1, V))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=names[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=names[0], eos_token=names[0], unk_token=names[0])
    config = GPT2Config(vocab_size=V + 1, n_positions=20, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(fill(name, parameter.shape, 0.5))
    return Reconstructor(model, tokenizer).eval()


def golden_policy(reconstructor):
    pretrained = {"config": reconstructor.model.config.to_dict(), "blocks": 1, "bos_id": 0, "mask_id": V, "rate": 0.0}
    kwargs = {"embedding_dim": 4, "width": 8, "layers": 1, "heads": 2, "passes": 2, "pretrained": pretrained}
    box = spaces.Box(0.0, 1.0, (max(LENGTHS),), np.float32)
    policy = TokenCompressionPolicy(observation_space(V, max(LENGTHS), 12.0), box, lambda _: 1e-3, features_extractor_kwargs=kwargs)
    network = policy.features_extractor.network
    network.start_from(reconstructor.model, np.arange(V, 0, -1))
    with torch.no_grad():
        for name, tensor in policy.state_dict().items():
            own = name.removeprefix("features_extractor.network.")
            if own.startswith(("pretrained.", "reader.", "features_extractor", "pi_", "vf_")) or own == "calibration":
                continue
            tensor.copy_(fill(own, tensor.shape, 0.3))
        policy.value_net.bias.fill_(2.0)
        policy.action_net.bias.fill_(4.0)
        policy.sharpness.fill_(1.0)
    return policy.train(False)


@pytest.fixture(scope="module")
def decided():
    """What is decided of the five texts at their prices and at a keep ratio, and what it earns."""
    reconstructor = golden_reconstructor()
    policy, rng = golden_policy(reconstructor), np.random.default_rng(0)
    texts = [rng.integers(1, V, length) for length in LENGTHS]
    ids, valid = pad_batch(texts, 0)
    prices = np.array(PRICES, dtype=np.float32)
    probability = policy.keep_probability(ids, valid, prices).numpy()
    judge = Judge(reconstructor, max(LENGTHS))
    rewards, infos = judge.pay(judge.observe(texts, prices), (probability > KEEP_THRESHOLD).astype(np.float32))
    keep_mask = (probability > KEEP_THRESHOLD) | ~valid
    policy.calibrate(ids, valid, 0.15, 12.0)
    at_ratio = keep_highest(policy.keep_probability_at(ids, valid, 0.6).numpy(), valid, 0.6)
    return {
        "masks": ["".join("01"[int(k)] for k in row[:length]) for row, length in zip(keep_mask, LENGTHS)],
        "masks_at_ratio": ["".join("01"[int(k)] for k in row[:length]) for row, length in zip(at_ratio, LENGTHS)],
        "probability": probability[valid],
        "nats": reconstructor.predict(ids, keep_mask, valid).nats.numpy()[valid],
        "J": np.asarray(rewards),
        "shares": np.concatenate([info["token_rewards"][:length] for info, length in zip(infos, LENGTHS)]),
        "importances": policy.importances(ids, valid, prices).numpy()[valid],
    }


def test_masks(decided):
    assert decided["masks"] == GOLDEN["masks"]
    assert decided["masks_at_ratio"] == GOLDEN["masks_at_ratio"]


@pytest.mark.parametrize("figure", ["probability", "nats", "J", "shares", "importances"])
def test_figures(decided, figure):
    np.testing.assert_allclose(decided[figure], GOLDEN[figure], atol=1e-5)


GOLDEN = {
    "masks": ["111111111111", "1111111111", "1111111", "111", "1"],
    "masks_at_ratio": ["010111001011", "0011110011", "0001111", "101", "1"],
    "probability": [
        0.986940, 0.987479, 0.987181, 0.988879, 0.987482, 0.987736, 0.986566, 0.986139, 0.987668, 0.987188, 0.988414,
        0.988061, 0.969805, 0.970830, 0.970936, 0.973259, 0.973731, 0.971755, 0.971197, 0.970753, 0.972683, 0.971436,
        0.940024, 0.937576, 0.939968, 0.943476, 0.945603, 0.945336, 0.942071, 0.958825, 0.959087, 0.959153, 0.919142,
    ],
    "nats": [
        0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000,
        0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000,
        0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000,
    ],
    "J": [
        0.000000, 0.000000, 0.000000, 0.000000, 0.000000,
    ],
    "shares": [
        0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000,
        0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000,
        0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000,
    ],
    "importances": [
        0.075002, 0.096052, 0.062731, 0.122100, 0.099402, 0.077614, 0.086497, 0.055214, 0.078080, 0.079762, 0.065293,
        0.102253, 0.086148, 0.143887, 0.101736, 0.120419, 0.091465, 0.086494, 0.085654, 0.062463, 0.115518, 0.106216,
        0.135056, 0.122470, 0.122488, 0.171340, 0.139888, 0.121373, 0.187385, 0.384619, 0.304489, 0.310892, 1.000000,
    ],
}

if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q"]))
