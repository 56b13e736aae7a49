"""What the tests of this folder share: small random reconstructors and policies that read with them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from models.agent.actor_critic import TokenCompressionPolicy
from models.agent.policy import observation_space
from models.agent.reader import Reader
from models.reconstructor.gaps import GapHead
from models.reconstructor.reconstructor import Reconstructor

V, T = 50, 12  # tokens of the vocabulary, the mask token apart, and of the longest text


def toy_tokenizer(pieces=False):
    """Every token is a word; with `pieces` every third one goes on with the word before it."""
    names = ["<|endoftext|>", *(f"##{i}" if pieces and i % 3 == 0 else f"w{i}" for i in range(1, V))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=names[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=names[0], eos_token=names[0], unk_token=names[0])


def causal_lm(family, layers):
    """A small causal LM with random weights for V tokens and the mask token; width 16."""
    torch.manual_seed(0)
    if family == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=V + 1, n_positions=80, n_embd=16, n_layer=layers, n_head=2))
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.2)  # biases and positions count, too
        return model
    sizes = {"vocab_size": V + 1, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 80}
    return LlamaForCausalLM(LlamaConfig(**sizes)) if family == "llama" else Qwen2ForCausalLM(Qwen2Config(**sizes))


def make_reconstructor(family="gpt2", layers=2, attention="bidirectional", found=False):
    """With random weights. If it has to find gaps, with a gap head that is not sure of them, and words of several tokens."""
    model, head = causal_lm(family, layers), random_gap_head(16) if found else None
    return Reconstructor(model, toy_tokenizer(found), attention, head, found).eval()


def random_gap_head(width):
    head = GapHead(width, 8)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return head


def make_policy(reconstructor, critic_only=False, common=range(V), unit="token", **sizes):
    """An untrained policy of width 16 with 1 layer."""
    torch.manual_seed(0)
    reader = Reader(reconstructor, np.array(common), 1, reconstructor.found, unit)
    kwargs = {"reader": reader, "embedding_dim": 8, "width": 16, "layers": 1, "heads": 2, **sizes}
    spaces_and_rate = observation_space(V, T, 6.0), spaces.Box(0.0, 1.0, (T,), np.float32), lambda _: 1e-3
    return TokenCompressionPolicy(*spaces_and_rate, critic_only=critic_only, features_extractor_kwargs=kwargs)


@pytest.fixture(scope="session")
def reconstructor():
    return make_reconstructor()


@pytest.fixture
def policy(reconstructor):
    return make_policy(reconstructor)


@pytest.fixture(scope="session")
def finder():
    """A reconstructor that has to find the gaps."""
    return make_reconstructor(found=True)


@pytest.fixture
def by_word(finder):
    """A policy that decides words, whose tokens are estimated differently, for a receiver that has to find the gaps."""
    policy = make_policy(finder, unit="word")
    for layer in (policy.value_net, policy.action_net, policy.network.draft, policy.network.evidence):
        torch.nn.init.normal_(layer.weight, std=0.3)
    return policy


@pytest.fixture
def texts():
    """ids (3, T), valid (3, T) and price (3, 1) of texts of unequal length."""
    torch.manual_seed(0)
    valid = torch.arange(T) < torch.tensor([12, 7, 1])[:, None]
    return torch.randint(0, V, (3, T)), valid, torch.tensor([[0.6], [2.0], [5.0]])


def observation(ids, valid, price):
    return {"tokens": ids.float(), "valid": valid.float(), "price": price}
