"""Tests of masks, loss and prediction: `python models/reconstructor/test_reconstructor.py` or pytest."""

import argparse
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM

from data.artifacts import InputError, sha256_of
from data.testing.toy import Planted
from models.reconstructor.causal_lm import load_causal_lm
from models.reconstructor.loss import summed_nats
from models.reconstructor.masking import draw_mask_ratios, keep_highest, random_keep_mask
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.tokenizer import BASE_MODEL, MASK_TOKEN, load_tokenizer


@pytest.fixture
def reconstructor(toy):
    return Reconstructor.from_base(toy / "base").eval()


def random_batch(reconstructor, seed=0, lengths=(16, 9, 1)):
    """ids, keep_mask and valid of texts of unequal length."""
    rng = np.random.default_rng(seed)
    valid = np.arange(max(lengths)) < np.array(lengths)[:, None]
    ids = np.where(valid, rng.integers(2, reconstructor.vocab_size, valid.shape), 0)
    return ids, random_keep_mask(valid, 0.4, rng), valid


# --- masks


@pytest.mark.parametrize("span_share", [0.0, 1.0])
def test_random_masks_are_exact_and_never_mask_padding(span_share):
    valid = np.arange(50) < np.array([50, 20, 7])[:, None]
    keep_mask = random_keep_mask(valid, np.array([0.3, 0.5, 0.1]), np.random.default_rng(0), span_share)
    assert (~keep_mask).sum(1).tolist() == [15, 10, 1] and keep_mask[~valid].all()


def test_spans_are_longer_than_single_tokens():
    valid = np.ones((200, 64), bool)
    runs = []
    for share in (0.0, 1.0):
        masked = ~random_keep_mask(valid, 0.25, np.random.default_rng(1), share)
        starts = masked & ~np.pad(masked, ((0, 0), (1, 0)))[:, :-1]
        runs.append(masked.sum() / starts.sum())
    # Independent masking at 0.25 has runs of mean 1 / 0.75; segments of mean 3 tokens give runs well over 2.
    assert runs[0] == pytest.approx(1 / 0.75, abs=0.1) and runs[1] > 2.5


def test_keep_highest_is_exact_and_prefers_earlier_tokens_among_equals():
    valid = np.array([[True] * 5, [True, True, True, False, False]])
    scores = np.array([[1, 5, 5, 0, 5], [0, 0, 9, 99, 99]])
    assert keep_highest(scores, valid, 0.4).tolist() == [[False, True, True, False, False], [False, False, True, True, True]]


def test_mask_ratios_stay_in_range():
    ratios = draw_mask_ratios(1000, 0.3, 0.5, np.random.default_rng(0))
    assert ratios.min() == 0.01 and 0.7 < ratios.max() <= 0.8


# --- loss and prediction


def test_fused_loss_and_gradients_equal_torch(monkeypatch):
    monkeypatch.setattr("models.reconstructor.loss.CHUNK", 7)
    torch.manual_seed(0)
    inputs = torch.randn(25, 6, dtype=torch.float64), torch.randn(40, 6, dtype=torch.float64), torch.randint(40, (25,))
    found, expected = ([x.clone().requires_grad_(x.is_floating_point()) for x in inputs] for _ in range(2))
    a, b = summed_nats(*found) * 0.3, F.cross_entropy(expected[0] @ expected[1].T, expected[2], reduction="sum") * 0.3
    a.backward(), b.backward()
    # The total is summed in float32.
    torch.testing.assert_close(a, b, check_dtype=False)
    for x, y in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-6, atol=1e-8)


def full_model_log_probabilities(reconstructor, ids, keep_mask):
    """An independent reference: the stock model's forward over [BOS, text], with a full 4-D mask, at every position."""
    ids, keep_mask = torch.as_tensor(ids), torch.as_tensor(keep_mask)
    shown = torch.where(keep_mask, ids, reconstructor.mask_id)
    inputs = F.pad(shown, (1, 0), value=reconstructor.bos_id)
    mask = torch.zeros(len(ids), 1, inputs.shape[1], inputs.shape[1])
    with torch.no_grad():
        logits = reconstructor.model(input_ids=inputs, attention_mask=mask).logits[:, :-1, : reconstructor.vocab_size]
    return logits.log_softmax(-1)


def llama(toy):
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=26, max_position_embeddings=32, bos_token_id=0, eos_token_id=0, **shape)
    torch.manual_seed(0)
    return Reconstructor(LlamaForCausalLM(config), load_tokenizer(toy / "base")).eval()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_logits_at_masked_positions_equal_the_full_models(toy, reconstructor, architecture):
    model = reconstructor if architecture == "gpt2" else llama(toy)
    ids, keep_mask, valid = random_batch(model, lengths=(16, 16))
    reference = full_model_log_probabilities(model, ids, keep_mask)
    prediction = model.predict(ids, keep_mask, valid)
    truth = torch.as_tensor(ids)
    nats = -reference.gather(2, truth[..., None])[..., 0]
    masked = ~torch.as_tensor(keep_mask)
    torch.testing.assert_close(prediction.nats[masked], nats[masked], rtol=1e-4, atol=1e-4)
    assert (prediction.nats[~masked] == 0).all() and (prediction.top1[~masked] == truth[~masked]).all()
    assert (prediction.top1[masked] == reference.argmax(-1)[masked]).all()
    batch = truth, torch.as_tensor(keep_mask), torch.as_tensor(valid)
    with torch.no_grad():
        assert float(model(*batch)) == pytest.approx(float(nats[masked].sum()), rel=1e-4)


def test_padding_changes_nothing(reconstructor):
    ids, keep_mask, valid = random_batch(reconstructor)
    together = reconstructor.predict(ids, keep_mask, valid)
    for row, length in enumerate(valid.sum(1)):
        alone = reconstructor.predict(ids[row : row + 1, :length], keep_mask[row : row + 1, :length])
        torch.testing.assert_close(together.nats[row, :length], alone.nats[0], rtol=1e-4, atol=1e-4)
        assert (together.nats[row, length:] == 0).all()


def test_the_answer_does_not_leak(reconstructor):
    ids, keep_mask, valid = random_batch(reconstructor)
    other = np.where(keep_mask, ids, 2 + (ids + 5) % 20)
    first, second = (reconstructor.predict(x, keep_mask, valid) for x in (ids, other))
    masked = torch.as_tensor(valid & ~keep_mask)
    assert (first.top1[masked] == second.top1[masked]).all()
    assert not torch.equal(first.nats, second.nats), "the truth is not looked up at all"


@pytest.mark.parametrize("attention, sees_future", [("bidirectional", True), ("causal", False)])
def test_attention_direction(toy, attention, sees_future):
    model = Reconstructor.from_base(toy / "base", attention).eval()
    ids, keep_mask = np.full((1, 8), 5), np.arange(8)[None] != 2
    changed = ids.copy()
    changed[0, 6] = 9
    same = torch.allclose(model.predict(ids, keep_mask).nats, model.predict(changed, keep_mask).nats, atol=1e-6)
    assert same != sees_future


def test_a_text_that_is_too_long_is_refused(reconstructor):
    ids, keep_mask, valid = random_batch(reconstructor, lengths=(75,))
    with pytest.raises(InputError, match="expected at most 31"):
        reconstructor.predict(ids, keep_mask, valid)


def test_weights_are_known_by_their_name_and_no_pickle_is_opened(toy, tmp_path):
    model = Reconstructor.from_base(toy / "base")
    model.save(tmp_path, args=argparse.Namespace())
    weights = tmp_path / "model.safetensors"
    record = json.loads((tmp_path / "reconstructor.json").read_text())
    assert record["weights"][weights.name] == sha256_of(weights)
    (tmp_path / "reconstructor.json").write_text(json.dumps(record | {"weights": {}}))
    weights.unlink()
    for content in (model.model.state_dict(), Planted(tmp_path / "planted")):
        torch.save(content, tmp_path / "pytorch_model.bin")
        for load in (Reconstructor.load, Reconstructor.from_base):
            with pytest.raises(InputError, match="expected a directory with config.json and model.safetensors"):
                load(tmp_path)
    assert not (tmp_path / "planted").exists()


SPOILED = {
    "missing": lambda tensors: [tensors.pop(name) for name in list(tensors) if ".h.1." in name],
    "unknown": lambda tensors: tensors.update({"transformer.h.7.ln_1.bias": torch.zeros(4)}),
    "of another shape": lambda tensors: tensors.update({"transformer.ln_f.weight": torch.ones(5)}),
    "not finite": lambda tensors: tensors["transformer.h.0.mlp.c_fc.bias"].fill_(float("nan")),
}


@pytest.mark.parametrize("what", [None, *SPOILED])
def test_weights_that_are_not_those_of_the_config_are_refused_by_name(toy, tmp_path, what):
    """Nothing is invented for what is missing; constants of old GPT-2 files are no weights."""
    shutil.copytree(toy / "base", tmp_path / "base")
    path = tmp_path / "base/model.safetensors"
    tensors = load_file(path) | {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4)}
    if what is None:
        save_file(tensors, path, metadata={"format": "pt"})
        assert load_causal_lm(tmp_path / "base")
        return
    SPOILED[what](tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"expected the finite tensors .* found \d+ {what}: transformer\.") as refused:
        load_causal_lm(tmp_path / "base")
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("name, value", [("n_head", -1), ("n_head", 0), ("layer_norm_epsilon", -9.0), ("n_positions", 0)])
def test_a_config_of_impossible_values_is_refused(toy, tmp_path, name, value):
    shutil.copytree(toy / "base", tmp_path / "base")
    config = json.loads((tmp_path / "base/config.json").read_text())
    (tmp_path / "base/config.json").write_text(json.dumps(config | {name: value}))
    with pytest.raises(InputError, match="expected a (model that reads a text|directory with config)|of another shape"):
        load_causal_lm(tmp_path / "base")


def test_a_tokenizer_that_cannot_split_a_text_is_refused(toy, tmp_path):
    shutil.copytree(toy / "base", tmp_path / "base")
    config = json.loads((tmp_path / "base/tokenizer_config.json").read_text())
    (tmp_path / "base/tokenizer_config.json").write_text(json.dumps(config | {"model_max_length": {}}))
    with pytest.raises(InputError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "base")


def test_gpt2_tokenizer():
    tokenizer = load_tokenizer(BASE_MODEL)
    assert len(tokenizer) == 50_258, "GPT-2's 50,257 tokens and the mask token"
    assert tokenizer.convert_tokens_to_ids(MASK_TOKEN) == 50_257
    assert tokenizer("Hello world")["input_ids"] == [15496, 995]  # as in GPT-2's documentation
    assert tokenizer("Hello world, naïve 🙂")["input_ids"] == [15496, 995, 11] + tokenizer(" naïve 🙂")["input_ids"]


def test_a_head_with_a_bias_is_refused(toy):
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = PhiForCausalLM(PhiConfig(vocab_size=26, **shape))
    with pytest.raises(InputError, match="expected a plain linear output layer"):
        Reconstructor(model, load_tokenizer(toy / "base"))


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
