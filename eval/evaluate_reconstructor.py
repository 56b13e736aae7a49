"""Evaluate reconstructors alone: how well random masks are restored at every rate.

    python eval/evaluate_reconstructor.py --model_paths models/reconstructor/fine-tuned --data_path data/processed/test_data.json

Several models are compared on the same texts and masks; differences are paired, to the first. Intervals are 95 %, BCa, over
documents. Writes `reconstructor_results.json`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from data.artifacts import InputError, Parser, bounded, make_output_dir, run, write_json
from eval.evaluate import UNITS
from eval.inputs import add_text_flags, draw_texts
from eval.metrics import Bootstrap, difference, figures
from eval.report import half, markdown, number
from models.reconstructor.masking import random_keep_mask
from models.reconstructor.reconstructor import Reconstructor, find_device

SCHEMA = "rltc.reconstructor_evaluation/1"


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model_paths", type=Path, nargs="+", default=[Path("models/reconstructor/fine-tuned")],
        help="directories written by train_cpu.py or train_gpu.py")
    add_text_flags(add, "reconstructor_results.json", num_sequences=200)
    add("--mask_ratios", type=bounded(float, 0, 1, open_ends=True), nargs="+",
        default=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], help="masked tokens per original token, between 0 and 1")
    return parser.parse_args(argv)


def random_masks(corpus, mask_ratio, seed):
    """Keep masks for the corpus' batches, single tokens masked at random. Raises InputError if some document has none."""
    rng = np.random.default_rng([seed, round(mask_ratio * 10**6)])
    masks = [random_keep_mask(valid, mask_ratio, rng) for _, valid in corpus.batches]
    masked = np.concatenate([(~m & valid).sum(1) for m, (_, valid) in zip(masks, corpus.batches, strict=True)])
    if corpus.by_document(masked[:, None]).min() == 0:
        raise InputError(
            f"mask ratio {mask_ratio:g}: expected a masked token in every document, found none in a short one; "
            "use larger ratios or longer texts"
        )
    return masks


def score_curve(models, corpus, args):
    """One result per model and mask ratio: top-1 and nats, and the paired difference to the first model."""
    bootstrap, results, first = Bootstrap(len(corpus.names), args.bootstrap_samples, args.seed), [], {}
    cells = [(path, mask_ratio) for path in models for mask_ratio in args.mask_ratios]
    for path, mask_ratio in tqdm(cells, desc="mask ratios", unit="cell", disable=args.quiet):
        sums = corpus.by_document(corpus.sums(models[path], random_masks(corpus, mask_ratio, args.seed)))
        result = {"model": path, "attention": models[path].attention, "mask_ratio": mask_ratio}
        result |= {"masked_tokens": int(sums[:, 1].sum()), **bootstrap.estimate(figures, sums)}
        if mask_ratio in first:
            result["difference_to_first"] = difference(sums, first[mask_ratio], bootstrap)
        first.setdefault(mask_ratio, sums)
        results.append(result)
    return results


def format_curve(results):
    """The results as a Markdown table; behind ± stands half of the interval."""
    rows = [["model", "attention", "masked", "top-1", "nats per masked token", "nats less the first's"]]
    for r in results:
        found = (r["top1"], r["nats"], r.get("difference_to_first", {}).get("nats"))
        cells = (f"{number(figure)} ±{half(figure)}" if figure else "" for figure in found)
        rows.append([r["model"], r["attention"], f"{r['mask_ratio']:g}", *cells])
    return markdown(rows)


def main(argv=None):
    args = parse_args(argv)
    device = find_device(args.device)
    models = {str(path): Reconstructor.load(path, device) for path in args.model_paths}
    corpus = draw_texts(args, list(models.values()), longest=None)
    make_output_dir(args.output_dir)
    curve = score_curve(models, corpus, args)
    content = {"texts": len(corpus.texts), "documents": len(corpus.names), "tokens": corpus.tokens, "curve": curve}
    units = UNITS | {"mask_ratio": "masked tokens per original token"}
    write_json(args.output_dir / "reconstructor_results.json", SCHEMA, args, units, args.model_paths, **content)
    texts = f"{len(corpus.texts)} texts of {len(corpus.names)} documents, {corpus.tokens:,} tokens"
    print(f"{texts}; intervals 95 %, over documents\n\n{format_curve(curve)}\n\nwritten to {args.output_dir}")


if __name__ == "__main__":
    run(main)
