"""Weights of a base model as a run leaves them: three 16-bit parts and the gap head, each a safetensors file of at most 16 MiB.

`assemble` makes a model directory of them that stock `AutoModelForCausalLM` and `AutoTokenizer` load:

    python models/reconstructor/pretraining/checkpoints.py --input_dir run --output_dir models/reconstructor/base
"""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from data.artifacts import Parser, make_output_dir, read_json, written_aside
from models.reconstructor.pretraining.network import GapHead
from models.reconstructor.tokenizer import BASE_MODEL, locate

SCHEMA = "rltc.pretraining/3"
MADE_BY = "models/reconstructor/pretraining/pretrain.py"
PARTS = ("embedding-1", "embedding-2", "blocks")
GAP_HEAD = "gap_head.safetensors"
EMBEDDING = "transformer.wte.weight"


def write_parts(model, head, embedding, directory):
    """Write the weights of `model` with `embedding` (V + 1, D) for its own, and of the gap head."""
    state = {name: value for name, value in model.state_dict().items() if name not in (EMBEDDING, "lm_head.weight")}
    first, second = embedding.tensor_split(2)
    files = dict(zip(PARTS, ({EMBEDDING: first}, {EMBEDDING: second}, state), strict=True)) | {Path(GAP_HEAD).stem: head.state_dict()}
    for name, tensors in files.items():
        with written_aside(directory / f"{name}.safetensors") as temporary:
            save_file({key: value.detach().half().cpu().contiguous() for key, value in tensors.items()}, temporary)


def gpt2_config(args, rows, bos):
    """The shape of a base model: `rows` of its embedding, `bos` the number of BOS and EOS (None: in a cut vocabulary)."""
    return GPT2Config(
        vocab_size=rows, n_positions=args["n_positions"], n_embd=args["n_embd"], n_layer=args["n_layer"], n_head=args["n_head"],
        activation_function="gelu_pytorch_tanh",  # GPT-2's GELU, fused
        resid_pdrop=args["dropout"], embd_pdrop=args["dropout"], attn_pdrop=0.0, bos_token_id=bos, eos_token_id=bos,
    )


def assemble(directory, output_dir, tokenizer):
    """Make a model directory of the parts in `directory`. Raises FileNotFoundError if one is missing."""
    record = read_json(directory / "pretraining.json", SCHEMA, MADE_BY)
    parts = [load_file(directory / f"{name}.safetensors") for name in PARTS]
    embedding = torch.cat([part[EMBEDDING] for part in parts[:2]])
    model = GPT2LMHeadModel(gpt2_config(record["args"], len(embedding), record["bos"])).half()
    model.load_state_dict(parts[2] | {EMBEDDING: embedding, "lm_head.weight": embedding})
    make_output_dir(output_dir)
    model.save_pretrained(output_dir)
    for path in (directory / GAP_HEAD, directory / "pretraining.json", *(Path(locate(tokenizer)) / name for name in ("tokenizer.json", "tokenizer_config.json"))):
        if path.resolve() != (output_dir / path.name).resolve():
            shutil.copyfile(path, output_dir / path.name)


def load_gap_head(directory):
    """The gap head that lies beside a base model, in float32. Raises FileNotFoundError."""
    path = Path(locate(directory)) / GAP_HEAD
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected the gap head that {MADE_BY} writes. Run: python {MADE_BY} --help")
    state = load_file(path)
    head = GapHead(state["before.weight"].shape[1], len(state["before.weight"]))
    head.load_state_dict({name: value.float() for name, value in state.items()})
    return head.eval()


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--input_dir", type=Path, required=True, help="directory written by pretrain.py")
    parser.add_argument("--output_dir", type=Path, default=Path(BASE_MODEL), help="directory for the model")
    parser.add_argument("--tokenizer", default=BASE_MODEL, help="directory with the tokenizer, copied beside the weights")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    assemble(args.input_dir, args.output_dir, args.tokenizer)
    print(f"written to {args.output_dir}")


if __name__ == "__main__":
    from data.artifacts import run

    run(main)
