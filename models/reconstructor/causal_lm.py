"""Causal language models from the disk, the hub or its cache: what is loaded is what was saved, tensor by tensor, or nothing.

A reconstructor's directory has a record, `reconstructor.json`, with the SHA-256 of its files: what does not belong together is
not loaded.
"""

from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM

from data.artifacts import InputError, read_json, reason_of, sha256_of, weight_files
from data.shapes import ANY_KEY, TEXT
from models.reconstructor.gaps import GAP_HEAD
from models.reconstructor.tokenizer import locate

SCHEMA = "rltc.reconstructor/1"
MADE_BY = "models/reconstructor/train_cpu.py"
RECORD = "reconstructor.json"
BUFFERS = (".attn.bias", ".attn.masked_bias")  # of GPT-2's old files: constants that a model has by itself
# What opening a directory can raise that is no model, or half of one.
WRONG_KINDS = (TypeError, AttributeError, ArithmeticError, StrictDataclassError)  # of values in its config
UNREADABLE = (OSError, ValueError, LookupError, RuntimeError, SafetensorError, *WRONG_KINDS)


def load_causal_lm(name_or_dir):
    """A causal language model in float32, from a directory or by name from the Hugging Face hub or its cache.

    Its weights must be safetensors: older files are pickles, which run code when they are opened. Raises InputError in one line
    if there is none, if its files don't belong together, if its weights are not those of its config, each one there, of its
    name and shape, and finite, or if it can't read two tokens.
    """
    check_together(locate(name_or_dir))
    try:
        config = AutoConfig.from_pretrained(locate(name_or_dir))
        if getattr(config, "activation_function", None) == "gelu_new":
            config.activation_function = "gelu_pytorch_tanh"  # the same function in one kernel, in a quarter of the time
        kwargs = {"config": config, "dtype": torch.float32, "use_safetensors": True}
        model, found = AutoModelForCausalLM.from_pretrained(
            locate(name_or_dir), output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
        )
    except UNREADABLE as error:
        raise InputError(
            f"no causal language model at '{name_or_dir}': expected a directory with config.json and model.safetensors, or the "
            f"name of a model in the Hugging Face hub or cache ({reason_of(error).split(' For details look at')[0]})"
        ) from None
    check_tensors(name_or_dir, model, found)
    check_reads(name_or_dir, model)
    return model


def read_record(directory, shape):
    """The record of a reconstructor's directory. Raises FileNotFoundError or InputError."""
    return read_json(Path(directory) / RECORD, SCHEMA, MADE_BY, shape)


def check_together(directory):
    """Raises InputError unless the files of a directory belong together: if it has a record, each is that which this names.

    Of a file that the record has no SHA-256 of nothing is known; but where it has any, there may be no other weights.
    """
    directory = Path(directory)
    if not (directory / RECORD).is_file():
        return
    named = read_record(directory, {"weights?": {ANY_KEY: TEXT}}).get("weights", {})
    named = {name: digest for name, digest in named.items() if Path(name).name == name}  # the others lie elsewhere
    weights = [path.name for path in (*weight_files(directory), directory / GAP_HEAD) if path.is_file()]
    for name, expected in {**dict.fromkeys(weights if named else ()), **named}.items():
        found = sha256_of(directory / name) if (directory / name).is_file() else None
        if found != expected:
            said, there = (f"SHA-256 {digest[:16]}…" if digest else "none" for digest in (expected, found))
            raise InputError(
                f"{directory}: expected {name} of the model that {RECORD} describes, {said}, found {there}; get its files anew, "
                "all of one model, or train it anew"
            )


def check_tensors(name, model, found):
    """Raises InputError unless a model's tensors, and no others, were in its file, by transformers' loading info, all finite."""
    wrong = {
        "missing": found["missing_keys"], "of another shape": [key for key, *_ in found["mismatched_keys"]],
        "unknown": [key for key in found["unexpected_keys"] if not str(key).endswith(BUFFERS)],
        "not finite": [key for key, value in model.state_dict().items() if not value.isfinite().all()],
    }
    for what, keys in wrong.items():
        if keys:
            some = ", ".join(sorted(map(str, keys))[:3]) + ", …" * (len(keys) > 3)
            raise InputError(
                f"{name}: expected the finite tensors that its config.json asks for, found {len(keys)} {what}: {some}; "
                "get the model's files anew, or train it anew"
            )


@torch.no_grad()
def check_reads(name, model):
    """Raises InputError unless a model reads two tokens: a config of possible kinds may have impossible values."""
    try:
        finite = model.base_model(torch.zeros(1, 2, dtype=torch.long))[0].isfinite().all()
        wrong = None if finite else "hidden states that are not finite"
    except UNREADABLE as error:
        wrong = reason_of(error)
    if wrong:
        raise InputError(f"{name}: expected a model that reads a text, found: {wrong}; get its config.json or train it anew")


def check_head(model):
    """Logits must be hidden states times the output embedding, nothing else. Raises InputError."""
    head, config = model.get_output_embeddings(), model.config
    extras = [name for name in ("final_logit_softcapping", "logit_scale", "logits_scaling") if getattr(config, name, None)]
    if getattr(head, "bias", None) is not None or extras:
        raise InputError(
            f"{type(model).__name__}: expected a plain linear output layer, found {', '.join(extras) or 'one with a bias'}; "
            "choose another --base_model, such as GPT-2 or Llama"
        )
