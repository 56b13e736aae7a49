"""The files of a base model: a reconstructor without fine-tuning, as stock transformers load it, and a gap head beside it.

And the checkpoints of its training, from which a run that was cut off goes on. How they are written and read:
`models/reconstructor/checkpoints.py`.
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from data.artifacts import InputError, check_resumed
from data.shapes import NUMBER, OBJECT, count, optional
from models.reconstructor.checkpoints import FLAGS, TENSOR, TENSORS, read_newest, restoring, write_checkpoint
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.tokenizer import bos_id

SCHEMA = "rltc.pretraining/4"
MADE_BY = "models/reconstructor/pretraining/pretrain.py"
LIMIT = 2  # newest checkpoints to keep
# Flags that may change when a run goes on.
FREE = ("resume", "data_dir", "output_dir", "tokenizer", "device", "max_steps", "max_minutes", "eval_minutes")
NUMBERS = ("step", "minutes", "tokens", "log")  # of a run, as they stand in its checkpoint
STATE = {
    "step": count(), "minutes": NUMBER, "tokens": count(), "log": [OBJECT], "args": FLAGS, "counts": TENSOR,
    "kinds": {"start": optional(TENSOR), "factor": TENSOR}, **dict.fromkeys(("model", "head", "average"), TENSORS),
    "optimizers": [OBJECT, ...],
}


def gpt2_config(args, rows, bos=None):
    """The shape of a base model: `rows` of its embedding, `bos` the number of BOS and EOS (None: in a cut vocabulary)."""
    return GPT2Config(
        vocab_size=rows, n_positions=args.n_positions, n_embd=args.n_embd, n_layer=args.n_layer, n_head=args.n_head,
        activation_function="gelu_pytorch_tanh",  # GPT-2's GELU, fused
        resid_pdrop=args.dropout, embd_pdrop=args.dropout, attn_pdrop=0.0, bos_token_id=bos, eos_token_id=bos,
    )


def save_base(model, head, embedding, tokenizer, args):
    """Write `model` with `embedding` (V + 1, D) for its own to `args.output_dir`, in 16 bit, with tokenizer and gap head."""
    full = GPT2LMHeadModel(gpt2_config(args, len(embedding), bos_id(tokenizer)))
    state = model.state_dict() | {"transformer.wte.weight": embedding, "lm_head.weight": embedding}
    full.load_state_dict(state)
    Reconstructor(full.half(), tokenizer, gap_head=head).save(args.output_dir, args=args)


def save_checkpoint(training):
    """Write all that the future of a Pretraining depends on to its --output_dir, when it has just looked.

    There are no random states in it: every step draws from a seed of its own.
    """
    state = {name: getattr(training, name) for name in NUMBERS}
    state |= {name: getattr(training, name).state_dict() for name in ("model", "head", "average")}
    state |= {
        "args": {name: str(value) for name, value in vars(training.args).items()},
        "counts": torch.as_tensor(training.vocabulary.counts), "kinds": training.weights.state(),
        "optimizers": [optimizer.state_dict() for optimizer in training.optimizers],
    }
    write_checkpoint(training.args.output_dir, training.step, state, LIMIT)


def go_on(training):
    """Put a new Pretraining where the newest whole checkpoint was.

    Raises FileNotFoundError if there is none, InputError if none can be read or it was made with other flags or other text.
    """
    path, state = read_newest(training.args.output_dir, STATE)
    check_resumed(path, vars(training.args), state["args"], FREE)
    if not torch.equal(state["counts"], torch.as_tensor(training.vocabulary.counts)):
        found = f"other text in {training.args.data_dir}"
        raise InputError(f"--resume: expected the training text of {path}, found {found}; prepare the same, or start anew")
    with restoring(path):
        for name in NUMBERS:
            setattr(training, name, state[name])
        for name in ("model", "head", "average"):
            getattr(training, name).load_state_dict(state[name])
        for optimizer, its in zip(training.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(its)
        training.weights.restore(state["kinds"])
