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
from models.agent.actor_critic import TokenCompressionPolicy
from models.agent.reader import Reader
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
    reader, box = Reader(reconstructor, np.arange(V), blocks=1), spaces.Box(0.0, 1.0, (max(LENGTHS),), np.float32)
    kwargs = {"reader": reader, "embedding_dim": 4, "width": 8, "layers": 1, "heads": 2}
    policy = TokenCompressionPolicy(observation_space(V, max(LENGTHS), 12.0), box, lambda _: 1e-3, features_extractor_kwargs=kwargs)
    policy.network.start_from(reconstructor.model, np.arange(V, 0, -1))
    with torch.no_grad():
        for name, tensor in policy.own_state().items():
            tensor.copy_(fill(name.removeprefix("features_extractor.network."), tensor.shape, 0.3))
        policy.value_net.bias.fill_(2.0)
        policy.action_net.weight.mul_(8)
        policy.action_net.bias.fill_(2.5)
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
    "masks": ["011111111111", "0001100000", "0000100", "001", "0"],
    "masks_at_ratio": ["100110010111", "0011011101", "0101101", "110", "1"],
    "probability": [
        0.000000, 0.760653, 0.737310, 0.864712, 0.784853, 0.781023, 0.705416, 0.617416, 0.772719, 0.781594, 0.827773,
        0.828968, 0.000000, 0.000000, 0.000000, 0.746958, 0.796068, 0.000000, 0.000000, 0.000000, 0.000000, 0.020430,
        0.000000, 0.000000, 0.000000, 0.000000, 0.655421, 0.000000, 0.000000, 0.000000, 0.000000, 0.636639, 0.000000,
    ],
    "nats": [
        5.216244, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000,
        0.000000, 6.780397, 6.712139, 5.304266, 0.000000, 0.000000, 4.516590, 5.307093, 5.395370, 5.720425, 0.619539,
        6.083387, 3.278161, 7.099047, 5.323446, 0.000000, 7.168266, 3.138860, 3.716225, 4.970296, 0.000000, 5.138550,
    ],
    "J": [
        -0.359687, -2.435582, -1.155881, -0.895507, 0.861450,
    ],
    "shares": [
        -0.359687, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000, 0.000000,
        0.000000, -0.478040, -0.471214, -0.330427, 0.000000, 0.000000, -0.251659, -0.330709, -0.339537, -0.372042,
        0.138046, -0.297627, 0.103120, -0.442721, -0.189064, 0.000000, -0.452609, 0.123020, -0.238742, -0.656765,
        0.000000, 0.861450,
    ],
    "importances": [
        0.162121, 0.086344, 0.055439, 0.113392, 0.086077, 0.073488, 0.082032, 0.047799, 0.076310, 0.067619, 0.062198,
        0.087181, 0.104143, 0.192148, 0.102573, 0.075925, 0.066411, 0.076150, 0.104983, 0.065548, 0.135752, 0.076366,
        0.150150, 0.115405, 0.134501, 0.229849, 0.072906, 0.133360, 0.163828, 0.385479, 0.366471, 0.248051, 1.000000,
    ],
}

if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q"]))
