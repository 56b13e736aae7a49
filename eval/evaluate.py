"""Evaluate the agent against other ways of choosing tokens, at equal realised keep ratios.

    python eval/evaluate.py --model_path models/agent/released --data_path data/processed/test_data.json \\
        --output_dir eval/test_output --num_sequences 100

Every method keeps exactly the same number of tokens of each text, and one and the same reconstructor scores what
was masked: nothing is scored where the answer was sent. Intervals are 95 %, bootstrap-t, over documents. Several agents after
`--model_path`, trained alike with other seeds, are scored as one method: its figures are means over them, its intervals allow
for the differences between them, and the results have the figures of each. Agents of other trainings go after `--against`: those
that were trained alike are one more method. What other methods leave open is chosen on validation texts, for every keep ratio.
Writes `evaluation_results.json` and `examples.txt`, texts as the first agent decides them.
"""

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from data.artifacts import InputError, Parser, bounded, run, write_json, write_text
from data.limits import RATIO
from data.scratch import claimed
from eval.choosing import best_variant
from eval.inputs import Scores, add_flags, draw_texts, draw_validation, open_models, output_dirs
from eval.methods import CHEAP, OPPONENTS, Agent, build_opponents
from eval.metrics import INTERVAL, JUDGED, SAMPLES, TEST, Bootstrap, binary_entropy, correct, difference, figures
from eval.records import EVALUATION
from eval.report import examples, examples_as_text, format_table
from eval.restored import KINDS, restored_figures
from models.reconstructor.masking import keep_counts
from models.reconstructor.scoring import SUMS

SCHEMA = EVALUATION.schema
EXAMPLE_RATIO = 0.7  # keep ratio of the examples
UNITS = {
    "keep_ratio": "kept tokens per original token", "compression_ratio": "original tokens per kept token",
    "side_information": "bits per original token, at most: where the gaps are", "top1": "share of masked tokens restored",
    "nats": "nats per masked token", "distortion": "nats per original token, with those of the gaps where they are to be found",
    "gaps": "nats of gaps per original token",
    "exact_text": "share of texts restored without an error", "interval": INTERVAL, "p": TEST,
    "word_error_rate": "errors per word of the original, restored from what was sent", "chrf": "0 to 1, mean over texts",
    **{f"{kind}_sent": f"share of {kind} that are sent" for kind in KINDS},
    "seconds_per_1000_tokens": "seconds to score 1,000 tokens",
}


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add_flags(add, "evaluation_results.json and examples.txt")
    add("--methods", nargs="+", choices=OPPONENTS, default=list(CHEAP),
        help="what the agent is compared with; verified-once asks the reconstructor once per text, as the agent does, "
        "verified-twice twice, mean-nats dozens of times")
    add("--keep_ratios", type=RATIO, nargs="+", default=[0.9, 0.7, 0.5],
        help="kept tokens per original token, between 0 and 1")
    add("--num_examples", type=bounded(int, 0, 10**6), default=10, help="texts written out as sent and as restored")
    return parser.parse_args(argv)


def check_ratios(args, path, corpus):
    """Raises InputError unless every keep ratio masks a token of every document and keeps one."""
    lengths = np.array([len(t) for t in corpus.texts])
    for keep_ratio in args.keep_ratios:
        kept = np.concatenate([keep_counts(valid, keep_ratio) for _, valid in corpus.batches])
        if corpus.by_document((lengths - kept)[:, None]).min() == 0 or not kept.sum():
            raise InputError(
                f"{path} at --keep_ratios {keep_ratio:g}: expected a masked token in every document and a kept one, found "
                f"documents of {lengths.min()} tokens or more; use a ratio further from 0 and 1, or longer texts"
            )


def evaluate_method(runs, keep_ratios, corpus, reconstructor):
    """For each keep ratio: sums by document (runs, documents, 7), where gaps are found those of what is restored from the sent
    tokens alone (runs, documents, COLUMNS), the seconds that scoring took, its passes, and the form of the method, if it has any.

    `runs` of a keep ratio: the method, as many times as it was trained; `reconstructor`: its receiver.
    """
    found, scored = {}, {}
    for keep_ratio in keep_ratios:
        some = [scored.setdefault(method, Scores(method, corpus)) for method in runs(keep_ratio)]
        masks = [scores.masks(keep_ratio) for scores in some]
        sums = [corpus.by_document(corpus.sums(reconstructor, each)) for each in masks]
        restored = [corpus.by_document(corpus.restored(reconstructor, each)) for each in masks] if reconstructor.found else []
        _, seconds, passes = zip(*(scores.at(keep_ratio) for scores in some))
        form = str(some[0].method) if hasattr(some[0].method, "variants") else None
        found[keep_ratio] = np.stack(sums), np.array(restored), float(np.mean(seconds)), passes[0], form
    return found


def compare(cells, bootstrap):
    """The results of all cells, and the agent's paired differences to every other method at every keep ratio."""
    results, differences = [], []
    for (name, keep_ratio), (sums, restored, seconds, lm_passes, form) in cells.items():
        totals = dict(zip(SUMS, sums.mean(0).sum(0).tolist(), strict=True))
        realised = 1 - totals["masked"] / totals["tokens"]
        result = {
            "method": name, "keep_ratio_asked": keep_ratio, "keep_ratio": realised, "compression_ratio": 1 / realised,
            "side_information": binary_entropy(realised), "lm_passes": lm_passes,
            "seconds_per_1000_tokens": 1000 * seconds / totals["tokens"], "masked_tokens": int(totals["masked"]),
            **bootstrap.estimate(figures, sums), **({"form": form} if form else {}),
        }
        if len(restored):
            result |= bootstrap.estimate(restored_figures, restored)
        if len(sums) > 1:
            result["runs"] = [{figure: float(value) for figure, value in figures(run.sum(0)).items()} for run in sums]
        results.append(result)
        if name != Agent.name:
            ours = cells[Agent.name, keep_ratio]
            lead = difference(ours[0], sums, bootstrap)
            if len(restored):
                lead |= difference(ours[1], restored, bootstrap, restored_figures)
            differences.append({"method": name, "keep_ratio_asked": keep_ratio, **lead})
    judged = JUDGED["found" if any(len(restored) for _, restored, *_ in cells.values()) else "told"]
    correct([d[name] for d in differences for name in judged])
    return results, differences


class Methods:
    """What is compared, {name of a receiver: (title, keep ratio -> runs)}: agents, and other methods in their best forms."""

    def __init__(self, args, models):
        self.agents = [Agent(policy) for policy in models.policies]
        self.named = {"agent": (Agent.name, lambda _: self.agents)}
        self.named |= {kind: (runs[0].name, lambda _, runs=runs: runs) for kind, runs in models.against.items()}
        opponents = build_opponents(args, models)
        several = any(hasattr(method, "variants") for method in opponents.values())
        validation = draw_validation(args, models) if several else None

        def runs(name):
            choose = lambda keep_ratio: best_variant(opponents[name], keep_ratio, validation, models.receiver(name))
            best = functools.cache(choose)
            return lambda keep_ratio: [best(keep_ratio)]

        self.named |= {name: (method.name, runs(name)) for name, method in opponents.items()}


def evaluate_texts(args, models, methods, corpus):
    """The record of an evaluation on a Corpus, without its head."""
    cells = {}
    for name, (title, runs) in (progress := tqdm(methods.named.items(), desc="evaluate", unit="method", disable=args.quiet)):
        progress.set_postfix_str(title)
        found = evaluate_method(runs, args.keep_ratios, corpus, models.receiver(name))
        cells |= {(title, keep_ratio): cell for keep_ratio, cell in found.items()}
    results, differences = compare(cells, Bootstrap(len(corpus.names), SAMPLES, args.seed))
    some = corpus.some(args.num_examples)
    shown = examples(some, Scores(methods.agents[0], some).masks(EXAMPLE_RATIO), models.receiver("agent"))
    return {
        "texts": len(corpus.texts), "documents": len(corpus.names), "tokens": corpus.tokens, "base_model": models.base_name,
        "agents": [str(path) for path in args.model_path], "against": [str(path) for path in args.against],
        "gaps": "found" if models.reconstructor.found else "told", "unit": models.words.unit,
        "receivers": {name: str(models.receiver(name).directory) for name in methods.named},
        "results": results, "differences": differences, "examples": shown,
    }


def main(argv=None):
    args = parse_args(argv)
    folders, models = output_dirs(args), open_models(args)
    corpora = {path: draw_texts(args, models, path) for path in folders}
    for path, corpus in corpora.items():
        check_ratios(args, path, corpus)
    with claimed(*folders.values()):
        methods = Methods(args, models)
        for path, folder in folders.items():
            record = evaluate_texts(args, models, methods, corpora[path])
            write_json(folder / "evaluation_results.json", SCHEMA, args, UNITS, models.weights, **record)
            write_text(folder / "examples.txt", examples_as_text(record["examples"]))
            texts = f"{path}: {record['texts']} texts of {record['documents']} documents, {record['tokens']:,} tokens"
            print(f"{texts}; surprisal by {models.base_name}\n\n{format_table(record)}\n\nwritten to {folder}", flush=True)


if __name__ == "__main__":
    run(main)
