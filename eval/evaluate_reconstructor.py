"""Evaluate reconstructors alone: how well random masks are restored at every rate.

    python eval/evaluate_reconstructor.py --model_paths models/reconstructor/fine-tuned --data_path data/processed/test_data.json

Several models are compared on the same texts and masks; differences are paired, to the first. Writes `reconstructor_results.json`; intervals are 95 %,
bootstrapped over documents.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from data.artifacts import SEED, InputError, Parser, bounded, make_output_dir, run, write_json
from data.sequences import load_sequences
from eval.evaluate import UNITS, draw_texts, score_masks
from eval.metrics import Bootstrap, difference, with_intervals
from models.reconstructor.masking import random_keep_mask
from models.reconstructor.reconstructor import Reconstructor, find_device

SCHEMA = "rltc.reconstructor_evaluation/1"


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model_paths", type=Path, nargs="+", default=[Path("models/reconstructor/fine-tuned")], help="directories written by train_cpu.py or train_gpu.py")
    add("--data_path", type=Path, default=Path("data/processed/test_data.json"), help="held-out sequences written by data/prepare.py")
    add("--output_dir", type=Path, default=Path("eval/test_output"), help="directory for reconstructor_results.json")
    add("--mask_ratios", type=bounded(float, 0, 1, open_ends=True), nargs="+", default=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9], help="masked tokens per original token, between 0 and 1")
    add("--num_sequences", type=bounded(int, 1, 10**9), default=200, help="texts, drawn at random from the file; all if there are fewer")
    add("--max_length", type=bounded(int, 2, 10**6), default=None, help="tokens per text, longer ones are cut into several; default: the data's, or the models' positions less one")
    add("--batch_size", type=bounded(int, 1, 10**6), default=16, help="texts per batch")
    add("--bootstrap_samples", type=bounded(int, 100, 10**7), default=5000, help="bootstrap samples behind every interval")
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("--seed", type=SEED, default=42, help="seeds the choice of texts, the masks and the bootstrap")
    add("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


def open_corpus(args, models):
    """The texts that every model is scored on. Raises InputError if the models differ in tokenizer or texts are too long."""
    longest = min(m.max_length for m in models.values())
    if args.max_length and args.max_length > longest:
        raise InputError(f"--max_length {args.max_length}: expected at most {longest}, the models' positions less one")
    for path, model in models.items():
        sequences = load_sequences(args.data_path, model.fingerprint, min(args.max_length or 10**9, longest))
    return draw_texts(sequences, args.num_sequences, args)


def random_masks(corpus, mask_ratio, seed):
    """Keep masks for the corpus' batches, single tokens masked at random. Raises InputError if some document has none."""
    rng = np.random.default_rng([seed, round(mask_ratio * 10**6)])
    masks = [random_keep_mask(valid, mask_ratio, rng) for _, valid in corpus.batches]
    masked = np.concatenate([(~m & valid).sum(1) for m, (_, valid) in zip(masks, corpus.batches, strict=True)])
    if corpus.sums_by_document(masked[:, None]).min() == 0:
        raise InputError(f"mask ratio {mask_ratio:g}: expected a masked token in every document, found none in a short one; use larger ratios or longer texts")
    return masks


def table(rows, columns):
    """Rows of dicts as lines of a Markdown table."""
    return "\n".join(["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns), *("| " + " | ".join(str(row[c]) for c in columns) + " |" for row in rows)])


def cell(figure, digits=3):
    """A figure and half the width of its interval."""
    return f"{figure['value']:.{digits}f} ±{np.ptp(figure['interval']) / 2:.{digits}f}"


def score_curve(models, corpus, bootstrap, args):
    """One result per model and mask ratio: top-1 and nats, and the paired difference to the first model."""
    results, first = [], {}
    for path, mask_ratio in tqdm([(p, r) for p in models for r in args.mask_ratios], desc="mask ratios", unit="cell", disable=args.quiet):
        sums = corpus.sums_by_document(score_masks(models[path].predict, corpus, random_masks(corpus, mask_ratio, args.seed)))
        result = {"model": path, "attention": models[path].attention, "mask_ratio": mask_ratio, "masked_tokens": int(sums[:, 1].sum()), **with_intervals(sums, bootstrap)}
        if mask_ratio in first:
            result["difference_to_first"] = difference(sums, first[mask_ratio], bootstrap)
        first.setdefault(mask_ratio, sums)
        results.append(result)
    return results


def main(argv=None):
    args = parse_args(argv)
    device = find_device(args.device)
    models = {str(path): Reconstructor.load(path, device) for path in args.model_paths}
    corpus = open_corpus(args, models)
    make_output_dir(args.output_dir)
    bootstrap = Bootstrap(len(corpus.names), args.bootstrap_samples, args.seed)
    curve = score_curve(models, corpus, bootstrap, args)
    write_json(
        args.output_dir / "reconstructor_results.json", SCHEMA, args, UNITS | {"mask_ratio": "masked tokens per original token"},
        texts=len(corpus.texts), documents=len(corpus.names), tokens=corpus.tokens, curve=curve,
    )
    print(f"{len(corpus.texts)} texts of {len(corpus.names)} documents, {corpus.tokens:,} tokens; intervals 95 %, bootstrap over documents\n")
    rows = [{"model": r["model"], "attention": r["attention"], "masked": f"{r['mask_ratio']:g}", "top-1": cell(r["top1"]), "nats per masked token": cell(r["nats"]), "nats less the first's": cell(r["difference_to_first"]["nats"]) if "difference_to_first" in r else ""} for r in curve]
    print(table(rows, list(rows[0])))
    print(f"\nwritten to {args.output_dir}")


if __name__ == "__main__":
    run(main)
