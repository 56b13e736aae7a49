"""What the tests of this folder share: toy data and a toy base model, made once; tiny reconstructors and masks of chance."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from data.testing.toy import write_toy
from models.reconstructor.gaps import GapHead
from models.reconstructor.reconstructor import Reconstructor

WIDTH = 8  # of tiny reconstructors


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A folder with the toy base model in `base` and the toy data in `data`."""
    return write_toy(tmp_path_factory.mktemp("toy"))


def random_head(seed=0):
    torch.manual_seed(seed)
    head = GapHead(WIDTH, 6)
    for parameter in head.parameters():
        parameter.data.normal_(std=0.4)
    return head


def tiny(vocabulary=3, seed=0, found=True, positions=12):
    """A reconstructor of so many tokens, the mask token apart, with random weights that make it sure of itself."""
    names = ["<|endoftext|>", *"abcdef"[: vocabulary - 1]]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=names[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=names[0], eos_token=names[0], unk_token=names[0])
    config = GPT2Config(
        vocab_size=vocabulary + 1, n_positions=positions, n_embd=WIDTH, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(config)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.5)
    return Reconstructor(model, tokenizer, gap_head=random_head(seed), found=found).eval()


def some_masks(seed=0, rows=40, length=9):
    """ids, keep_mask, valid (rows, length) of random texts; the first: all kept, nothing kept, one token kept, one masked."""
    torch.manual_seed(seed)
    lengths = torch.randint(1, length + 1, (rows,))
    keep_mask = torch.rand(rows, length) < torch.rand(rows, 1)
    lengths[:6], keep_mask[0], keep_mask[1] = torch.tensor([length, length, 1, 1, 5, 5]), True, False
    keep_mask[2], keep_mask[3], keep_mask[4], keep_mask[5] = True, False, True, False
    return torch.randint(0, 3, (rows, length)), keep_mask, torch.arange(length) < lengths[:, None]
