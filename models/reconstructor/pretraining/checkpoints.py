"""The files of a base model: a reconstructor without fine-tuning, as stock transformers load it, and a gap head beside it."""

from transformers import GPT2Config, GPT2LMHeadModel

from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.tokenizer import bos_id

SCHEMA = "rltc.pretraining/4"
MADE_BY = "models/reconstructor/pretraining/pretrain.py"


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
