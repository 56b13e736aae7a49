"""The tokenizer that every stage shares: loading it, telling two of them apart, and its mask token."""

import hashlib
import json
from pathlib import Path

from transformers import AutoTokenizer

from data.artifacts import InputError, reason_of
from data.provenance import REPOSITORY

BASE_MODEL = "models/reconstructor/base"  # the embedded base model, relative to the repository
MASK_TOKEN = "<|mask|>"  # stands for "a token was here and was not sent"; neither padding nor end of text
PROBE = "It's 3.14159 €uro — naïve\n\n\tTokens 🙂!"  # a text on which different tokenizers differ


def locate(name_or_dir):
    """A local directory as it is or relative to the repository; anything else is a name for the Hugging Face hub."""
    inside = REPOSITORY / name_or_dir
    return str(inside) if inside.is_dir() and not Path(name_or_dir).is_dir() else str(name_or_dir)


def load_tokenizer(name_or_dir):
    """Load a tokenizer from a local directory or, by name, from the Hugging Face hub or its cache.

    Raises InputError in one line if there is none, or if it can't split a text.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(locate(name_or_dir))
        tokenizer(PROBE, add_special_tokens=False)
        return tokenizer
    except Exception as error:  # `tokenizers` raises nothing more special
        raise InputError(
            f"no tokenizer at '{name_or_dir}': expected a local directory with tokenizer.json or the name of a model "
            f"in the Hugging Face hub or cache ({reason_of(error)}); the embedded one is {BASE_MODEL}"
        ) from None


def fingerprint(tokenizer):
    """16 hexadecimal digits that change with the vocabulary or the splitting rules, not with the mask token."""
    vocabulary = {t: i for t, i in tokenizer.get_vocab().items() if t != MASK_TOKEN}
    probe = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    record = json.dumps([sorted(vocabulary.items()), probe])
    return hashlib.sha256(record.encode()).hexdigest()[:16]


def text_vocab_size(tokenizer):
    """How many token ids a text can have: all but the mask token, which comes last."""
    return sum(token != MASK_TOKEN for token in tokenizer.get_vocab())


def bos_id(tokenizer):
    """The id put in front of every text, so that its first token is predicted from something.

    GPT-2's `<|endoftext|>`. Raises InputError if the tokenizer has neither BOS nor EOS.
    """
    for token_id in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token_id is not None:
            return token_id
    raise InputError("the tokenizer has neither a BOS nor an EOS token; one of them must stand in front of every text")
