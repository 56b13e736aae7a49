"""What the embedded base model knows of each kind of text, for its card: on test documents, which chose nothing in training.

    python models/reconstructor/pretraining/card.py --data_dir data/mixture --unseen_dir data/unseen --compare data/base-before
    python eval/pages.py --write

Reads the splits of data/prepare.py: of the mixture, and of kinds that are not in training. Writes `card.json` beside the model,
from which eval/pages.py makes the tables of its README.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import torch
from tqdm import tqdm
from transformers import GPT2LMHeadModel

from data.artifacts import SEED, Parser, bounded, run, write_json
from eval.metrics import MIN_DOCUMENTS, Bootstrap
from models.reconstructor.gaps import load_gap_head
from models.reconstructor.pretraining.draws import Streams, read_streams, word_ends
from models.reconstructor.pretraining.evaluation import MASK_RATIO, Base, by_document, causal_sums, gap_sums, masked_sums, windows
from models.reconstructor.tokenizer import BASE_MODEL, bos_id, load_tokenizer, locate, text_vocab_size

SCHEMA = "rltc.base_card/1"
UNITS = {
    "causal": "nats per token", "causal_long": "the same in windows of the whole length",
    "bits_per_byte": "bits per byte of UTF-8",
    "nats_*": "nats per masked token, * % of single tokens masked at random", "top1_*": "share of masked tokens",
    "gaps": "nats of gaps per original token, 70 % kept", "before_*": "of the model to compare with, same tokens",
    "interval": f"95 %, bootstrap-t over documents; none with fewer than {MIN_DOCUMENTS}", "tokens": "tokens scored causally",
}
MASK_RATIOS = (0.1, MASK_RATIO, 0.5)
WINDOW, LONG = 256, 1024  # tokens
SAMPLES = 1000  # of the bootstrap
TARGETS = {"mean causal": 4.6, "mean top1_30": 0.33, "moby-dick causal": 5.5, "addresses causal": 4.35}


def load_base(directory, bos, with_head=True):
    """The Base in a model directory, in float32."""
    model = GPT2LMHeadModel.from_pretrained(locate(directory), dtype=torch.float32).eval()
    head = load_gap_head(locate(directory), model.config.n_embd) if with_head else None
    return Base(model, head, model.get_input_embeddings().weight.detach(), bos)


def figures(sums, prefix, mask_ratios):
    """{name: value} of sums (..., columns): bytes, tokens, their nats; for each mask ratio masked tokens, nats, right ones."""
    found = {"causal": sums[..., 2] / sums[..., 1], "bits_per_byte": sums[..., 2] / sums[..., 0] / np.log(2)}
    for column, mask_ratio in enumerate(mask_ratios):
        masked, nats, right = np.moveaxis(sums[..., 3 + 3 * column :][..., :3], -1, 0)
        found |= {f"nats_{mask_ratio * 100:.0f}": nats / masked, f"top1_{mask_ratio * 100:.0f}": right / masked}
    return {prefix + name: value for name, value in found.items()}


def score_kind(base, other, streams, kind, sizes, args):
    """One kind's row of the card."""
    settings = streams, kind, WINDOW, args.tokens
    places = windows(*settings)
    of_bytes = by_document(base, streams, places, sizes[streams.tokens[places].long()])
    estimates = {}
    for prefix, model, ratios in (("before_", other, (MASK_RATIO,)), ("", base, MASK_RATIOS)):
        if model is not None:
            parts = [of_bytes, causal_sums(model, *settings), *(masked_sums(model, *settings, ratio) for ratio in ratios)]
            sums = torch.cat(parts, 1).numpy()
            bootstrap = Bootstrap(len(sums), SAMPLES, args.seed)
            estimates |= bootstrap.estimate(lambda totals: figures(totals, prefix, ratios), sums)
    for estimate in estimates.values():
        estimate["interval"] = estimate["interval"] if len(sums) >= MIN_DOCUMENTS else None
    counted, long = causal_sums(base, streams, kind, LONG, args.tokens).sum(0).tolist()
    whole, gaps = gap_sums(base, *settings).sum(0).tolist()
    counts = {"documents": len(sums), "bytes": int(sums[:, 0].sum()), "tokens": int(sums[:, 1].sum())}
    return counts | estimates | {"causal_long": long / counted, "gaps": gaps / whole}


def parse_args(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--base", default=BASE_MODEL, help="the model directory, where card.json is written")
    parser.add_argument("--compare", default=None, help="another GPT-2 with the same tokenizer, scored on the same tokens")
    parser.add_argument("--data_dir", type=Path, required=True, help="the mixture of training, written by data/prepare.py")
    parser.add_argument("--unseen_dir", type=Path, required=True, help="kinds that are not in training, from data/prepare.py")
    parser.add_argument("--tokens", type=bounded(int, WINDOW, 10**9), default=60_000, help="tokens of each kind, at most")
    parser.add_argument("--seed", type=SEED, default=0, help="draws the documents of the intervals")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    tokenizer = load_tokenizer(args.base)
    bos, ends = bos_id(tokenizer), word_ends(tokenizer)
    base, other = load_base(args.base, bos), load_base(args.compare, bos, with_head=False) if args.compare else None
    # Each character of a byte-level token stands for a byte.
    sizes = torch.tensor([len(tokenizer.convert_ids_to_tokens(i)) * (i != bos) for i in range(text_vocab_size(tokenizer))])
    bigrams = Streams(read_streams(args.data_dir, "train", bos), ends, "cpu").bigrams
    rows = []
    for directory, trained in ((args.data_dir, True), (args.unseen_dir, False)):
        streams = Streams(read_streams(directory, "test", bos), ends, "cpu", bigrams)
        for kind, name in enumerate(tqdm(streams.kinds, unit="kind")):
            rows.append({"kind": name, "trained": trained, **score_kind(base, other, streams, kind, sizes, args)})
    value = lambda figure: figure["value"] if isinstance(figure, dict) else figure
    trained, named = [row for row in rows if row["trained"]], [name for name in rows[0] if name not in ("kind", "trained")]
    mean = {name: float(np.mean([value(row[name]) for row in trained])) for name in named}
    weights = [locate(directory) for directory in (args.base, args.compare) if directory]
    write_json(Path(locate(args.base)) / "card.json", SCHEMA, args, UNITS, weights, kinds=rows, mean=mean)
    for what, target in TARGETS.items():
        of, name = what.split()
        found = mean[name] if of == "mean" else next((value(row[name]) for row in rows if row["kind"] == of), float("nan"))
        print(f"{what}: {found:.3f}, target {target}")


if __name__ == "__main__":
    run(main)
