"""Evaluate the agent against other ways of choosing tokens, at equal realised keep ratios.

    python eval/evaluate.py --model_path models/agent/output/best_model.zip --data_path data/processed/test_data.json \\
        --output_dir eval/test_output --num_sequences 100

Every method keeps exactly the same number of tokens of each text, and one and the same reconstructor scores what
was masked: nothing is scored where the answer was sent. Intervals are 95 %, bootstrapped over documents. Several agents after
`--model_path`, trained alike with other seeds, are scored as one method: its figures are means over them, its intervals allow
for the differences between them, and the results have the figures of each. Writes `evaluation_results.json` and
`examples.txt`, texts as the first agent decides them.
"""

import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from data.artifacts import SEED, InputError, Parser, bounded, make_output_dir, read_json, run, write_json, write_text
from data.sequences import SPLITS, load_sequences, pad_batch
from eval.methods import Agent, CausalSurprisal, IterativeSurprisal, MeanMaskedNats, Random, TokenFrequency, VerifiedMasks, VerifiedOnce
from eval.metrics import MIN_DOCUMENTS, SUMS, Bootstrap, binary_entropy, difference, figures, mean_over_runs, with_intervals
from models.reconstructor.masking import keep_counts, keep_highest
from models.reconstructor.reconstructor import SCHEMA as RECONSTRUCTOR_SCHEMA
from models.reconstructor.reconstructor import Reconstructor, check_head, find_device, load_causal_lm
from models.reconstructor.tokenizer import bos_id, fingerprint, load_tokenizer, locate
from models.agent.files import load_policy
from rl.train import token_counts

SCHEMA = "rltc.evaluation/3"
CHEAP = ("causal", "iterative", "frequency", "random")  # methods that never ask the reconstructor
OPPONENTS = (*CHEAP, "verified-once", "mean-nats", "verified")
FREE = ("seed", "output_dir", "device", "quiet", "resume", "checkpoint_freq", "save_total_limit")  # flags in which training runs of one agent may differ
UNITS = {
    "keep_ratio": "kept tokens per original token", "compression_ratio": "original tokens per kept token",
    "side_information": "bits per original token, at most: where the gaps are", "top1": "share of masked tokens restored",
    "nats": "nats per masked token", "distortion": "nats per original token", "exact_text": "share of texts restored without an error",
    "importance": "the agent's attention to a token, as a multiple of the text's mean",
    "interval": "95 %, percentile bootstrap over documents; with several agents plus Student's t over them, interval_over_documents without", "seconds_per_1000_tokens": "seconds to score 1,000 tokens",
}


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model_path", type=Path, nargs="+", default=[Path("models/agent/output/best_model.zip")], help="agent written by rl/train.py; several: training runs of one agent")
    add("--data_path", type=Path, default=Path("data/processed/test_data.json"), help="held-out sequences written by data/prepare.py")
    add("--output_dir", type=Path, default=Path("eval/test_output"), help="directory for evaluation_results.json and examples.txt")
    add("--reconstructor_path", type=Path, default=None, help="fine-tuned reconstructor; default: the one that the agent was trained with")
    add("--base_model", default=None, help="causal LM of the causal-surprisal method; default: the one the reconstructor was fine-tuned from")
    add("--methods", nargs="+", choices=OPPONENTS, default=list(CHEAP), help="what the agent is compared with; verified-once asks the reconstructor once per text, as the agent does, mean-nats and verified dozens of times")
    add("--num_sequences", type=bounded(int, 1, 10**9), default=100, help="texts to evaluate on, drawn at random from the file; all if there are fewer")
    add("--keep_ratios", type=bounded(float, 0, 1, open_ends=True), nargs="+", default=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4], help="kept tokens per original token, between 0 and 1")
    add("--max_length", type=bounded(int, 2, 10**6), default=None, help="tokens per text, longer ones are cut into several; default: the agent's training length")
    add("--batch_size", type=bounded(int, 1, 10**6), default=20, help="texts per forward pass")
    add("--bootstrap_samples", type=bounded(int, 100, 10**7), default=5000, help="bootstrap samples behind every interval")
    add("--num_examples", type=bounded(int, 0, 10**6), default=10, help="texts written out with what was kept, restored and wrong")
    add("--example_keep_ratio", type=bounded(float, 0, 1, open_ends=True), default=0.7, help="keep ratio of the examples")
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("--seed", type=SEED, default=42, help="seeds the choice of texts, the random method and the bootstrap")
    add("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


class Corpus:
    """The texts of an evaluation in padded batches: ids and valid (B, T), and the document number of every text."""

    def __init__(self, texts, docs, batch_size):
        self.names, self.document = np.unique(docs, return_inverse=True)
        self.texts = texts
        self.batches = [pad_batch(texts[i : i + batch_size], 0) for i in range(0, len(texts), batch_size)]
        self.tokens = sum(len(t) for t in texts)

    def sums_by_document(self, rows):
        """Rows (texts, len(SUMS)) added up by document: (documents, len(SUMS))."""
        sums = np.zeros((len(self.names), rows.shape[1]))
        np.add.at(sums, self.document, rows)
        return sums


def draw_texts(sequences, count, args):
    """A Corpus of `count` of the sequences, drawn with `args.seed`; of all if there are fewer."""
    chosen = np.sort(np.random.default_rng(args.seed).permutation(len(sequences))[:count])
    return Corpus([sequences[int(i)] for i in chosen], sequences.docs[chosen], args.batch_size)


def choose_texts(args, policy_length, reconstructor):
    """Draw the texts. Raises InputError if there are none."""
    corpus = draw_texts(load_sequences(args.data_path, reconstructor.fingerprint, text_length(args, policy_length, reconstructor)), args.num_sequences, args)
    for keep_ratio in args.keep_ratios:
        kept = np.concatenate([keep_counts(valid, keep_ratio) for _, valid in corpus.batches])
        lengths = np.array([len(t) for t in corpus.texts])
        masked = corpus.sums_by_document((lengths - kept)[:, None])
        if masked.min() == 0 or not kept.sum():
            raise InputError(f"--keep_ratios {keep_ratio:g}: expected a masked token in every document and a kept one, found documents of {lengths.min()} tokens or more; use a ratio further from 0 and 1, or longer texts")
    return corpus


def score_masks(restore, corpus, keep_masks):
    """One row of SUMS per text for a list of keep masks, one per batch of the corpus.

    `restore(ids, keep_mask, valid)` returns a Prediction: a reconstructor's `predict`, or its `reconstruct` in several rounds.
    """
    rows = []
    for (ids, valid), keep_mask in zip(corpus.batches, keep_masks, strict=True):
        prediction = restore(ids, keep_mask, valid)
        masked = valid & ~keep_mask
        right = (prediction.top1.cpu().numpy() == ids) & masked
        count, hits = masked.sum(1), right.sum(1)
        rows.append(np.stack([valid.sum(1), count, prediction.nats.cpu().numpy().sum(1), hits, count == hits, np.ones(len(ids))], 1))
    return np.concatenate(rows)


class Scores:
    """A method's scores of the texts of a corpus at any keep ratio, each computed once."""

    def __init__(self, method, corpus):
        self.method, self.corpus, self.found = method, corpus, {}

    def at(self, keep_ratio):
        """Scores, one (B, T) per batch, the seconds that they took, and language-model passes per text."""
        rate = keep_ratio if self.method.depends_on_rate else None
        if rate not in self.found:
            start = time.monotonic()
            scores = [self.method.scores(ids, valid, keep_ratio) for ids, valid in self.corpus.batches]
            self.found[rate] = scores, time.monotonic() - start, self.method.lm_passes
        return self.found[rate]


def evaluate_method(runs, keep_ratios, corpus, reconstructor):
    """For each keep ratio: sums by document (runs, documents, len(SUMS)), the seconds that scoring took, and its passes.

    `runs`: the method, as many times as it was trained.
    """
    found, scored = {}, [Scores(method, corpus) for method in runs]
    for keep_ratio in keep_ratios:
        sums = []
        for scores in scored:
            keep_masks = [keep_highest(s, valid, keep_ratio) for s, (_, valid) in zip(scores.at(keep_ratio)[0], corpus.batches, strict=True)]
            sums.append(corpus.sums_by_document(score_masks(reconstructor.predict, corpus, keep_masks)))
        _, seconds, passes = zip(*(scores.at(keep_ratio) for scores in scored))
        found[keep_ratio] = np.stack(sums), float(np.mean(seconds)), passes[0]
    return found


def compare(cells, bootstrap):
    """The results of all cells, and the agent's paired differences to every other method at every keep ratio."""
    results, differences = [], []
    for (name, keep_ratio), (sums, seconds, lm_passes) in cells.items():
        totals = dict(zip(SUMS, mean_over_runs(sums).sum(0).tolist(), strict=True))
        realised = 1 - totals["masked"] / totals["tokens"]
        results.append(
            {
                "method": name, "keep_ratio_asked": keep_ratio, "keep_ratio": realised, "compression_ratio": 1 / realised,
                "side_information": binary_entropy(realised), "lm_passes": lm_passes, "seconds_per_1000_tokens": 1000 * seconds / totals["tokens"],
                "masked_tokens": int(totals["masked"]), **with_intervals(sums, bootstrap),
            }
        )
        if len(sums) > 1:
            results[-1]["runs"] = [{figure: float(value) for figure, value in figures(run.sum(0)).items()} for run in sums]
        if name != Agent.name:
            differences.append({"method": name, "keep_ratio_asked": keep_ratio, **difference(cells[Agent.name, keep_ratio][0], sums, bootstrap)})
    return results, differences


def examples(method, corpus, reconstructor, keep_ratio, count):
    """Texts token by token: `state` is "kept", "right" or "wrong"; `restored` is what the reconstructor put there.

    `importance` is the weight that the agent's TokenImportanceAttention gives the token, as a multiple of the mean; absent
    where the agent was trained without it.
    """
    found = []
    decode = reconstructor.tokenizer.decode
    for text, document in list(zip(corpus.texts, corpus.document, strict=True))[:: max(1, len(corpus.texts) // max(count, 1))][:count]:
        ids, valid = pad_batch([text], 0)
        keep_mask = keep_highest(method.scores(ids, valid, keep_ratio), valid, keep_ratio)
        restored = reconstructor.predict(ids, keep_mask).top1[0].cpu().numpy()
        state = np.where(keep_mask[0], "kept", np.where(restored == text, "right", "wrong"))
        pieces = [{"token": decode([int(t)]), "restored": decode([int(r)]), "state": str(s)} for t, r, s in zip(text, restored, state, strict=True)]
        if (importances := method.importances(ids, valid, keep_ratio)) is not None:
            for piece, importance in zip(pieces, importances[0].tolist(), strict=True):
                piece["importance"] = round(importance, 3)
        found.append({"doc": str(corpus.names[document]), "keep_ratio": float(keep_mask.mean()), "pieces": pieces})
    return found


def examples_as_text(found):
    """The examples for a reader: what was sent (gaps as _), and what came back (wrong tokens as [restored|true])."""
    blocks = []
    for e in found:
        sent = "".join(p["token"] if p["state"] == "kept" else "_" for p in e["pieces"])
        back = "".join(f"[{p['restored']}|{p['token']}]" if p["state"] == "wrong" else p["restored"] for p in e["pieces"])
        blocks.append(f"=== {e['doc']}, {e['keep_ratio']:.0%} of the tokens kept\n--- sent\n{sent}\n--- restored\n{back}\n")
    return "\n".join(blocks)


def format_table(record):
    """Top-1 and nats per masked token of every method at every keep ratio, as lines of text."""
    ratios = sorted({r["keep_ratio_asked"] for r in record["results"]}, reverse=True)
    names = list(dict.fromkeys(r["method"] for r in record["results"]))
    cell = {(r["method"], r["keep_ratio_asked"]): r for r in record["results"]}
    lead_over = {(d["method"], d["keep_ratio_asked"]): d for d in record["differences"]}
    several = len(record["agents"]) > 1
    width = 2 + max(map(len, ["keep ratio", *names]))

    def pair(top1, nats, before="", after=" "):
        return f"{f'{before}{top1:.3f} / {before}{nats:.2f}{after}':^22s}"

    lines = ["masked top-1 / nats per masked token, 95 % intervals over documents" + (" and agents" if several else "") + "; * the agent's lead is significant in both", ""]
    lines.append(f"{'keep ratio':{width}s}" + "".join(f"{r:^22g}" for r in ratios))
    for name in names:
        row, low = f"{name:{width}s}", " " * width
        for r in ratios:
            c, d = cell[name, r], lead_over.get((name, r))
            lead = d and d["top1"]["significant"] and d["nats"]["significant"] and d["top1"]["value"] > 0 > d["nats"]["value"]
            row += pair(c["top1"]["value"], c["nats"]["value"], after="*" if lead else " ")
            low += pair(np.ptp(c["top1"]["interval"]) / 2, np.ptp(c["nats"]["interval"]) / 2, before="±")
        lines += [row, low]
    if several:
        ranges = [[np.ptp([run[figure] for run in cell[Agent.name, r]["runs"]]) for figure in ("top1", "nats")] for r in ratios]
        lines += ["", f"{'agents apart':{width}s}" + "".join(pair(*apart) for apart in ranges)]
        lines += [f"agent: the mean of {len(record['agents'])} training runs; agents apart: from the lowest of them to the highest"]
    lost = [f"{d['method']} at {d['keep_ratio_asked']:g}" for d in record["differences"] if d["top1"]["value"] <= 0 or d["nats"]["value"] >= 0]
    if record["documents"] < MIN_DOCUMENTS:
        lines += ["", f"only {record['documents']} documents: intervals over fewer than {MIN_DOCUMENTS} say little, and no difference counts as significant"]
    lines += ["", "the agent leads everywhere in top-1 and nats" if not lost else "the agent does NOT lead against: " + ", ".join(lost)]
    return "\n".join(lines)


class Models(NamedTuple):
    """What an evaluation needs: the agents' policies and training length, the reconstructor, and the causal LM for surprisal."""

    policies: list
    length: int
    reconstructor: Reconstructor
    base: object
    base_name: str
    bos: int


def check_trained_alike(paths, settings):
    """Raises InputError unless the agents at `paths`, trained with `settings`, are runs of one training with different seeds."""
    for i, (path, found) in enumerate(zip(paths, settings, strict=True)):
        different = [name for name in settings[0] if name not in FREE and found.get(name) != settings[0][name]]
        if different:
            raise InputError(f"{path}: expected an agent trained as {paths[0]} was, with --{different[0]} {settings[0][different[0]]}, found {found.get(different[0])}; evaluate it by itself")
        if found["seed"] in [earlier["seed"] for earlier in settings[:i]]:
            raise InputError(f"{path}: expected agents trained with different seeds, found --seed {found['seed']} a second time; leave one away")


def first_base_model(path):
    """The causal LM that the reconstructor in `path` comes from, even if it was fine-tuned several times. Raises InputError if that is not to be found."""
    seen = []
    while (Path(path) / "reconstructor.json").is_file():
        seen.append(str(path))
        path = locate(read_json(Path(path) / "reconstructor.json", RECONSTRUCTOR_SCHEMA, "models/reconstructor/train_cpu.py")["args"]["base_model"])
        if path in seen:
            raise InputError(f"{path}: expected the causal language model that it was fine-tuned from, found that it was fine-tuned from itself; name it with --base_model")
    return path


def text_length(args, trained_length, reconstructor):
    """Tokens per text. Raises InputError if `--max_length` is more than the reconstructor reads."""
    if args.max_length and args.max_length > reconstructor.max_length:
        raise InputError(f"--max_length {args.max_length}: expected at most {reconstructor.max_length}, the reconstructor's positions less one")
    return min(reconstructor.max_length, args.max_length or trained_length)


def open_models(args):
    """The models that the command line names, all with one tokenizer. Raises FileNotFoundError or InputError."""
    device = find_device(args.device)
    policies = [load_policy(path, device) for path in args.model_path]
    trained = [policy.config for policy in policies]
    check_trained_alike(args.model_path, [record["args"] for record in trained])
    path = args.reconstructor_path or Path(trained[0]["args"]["reconstructor_path"])
    reconstructor = Reconstructor.load(path, device)
    for model_path, policy in zip(args.model_path, policies, strict=True):
        if policy.tokenizer_fingerprint != reconstructor.fingerprint:
            raise InputError(f"{model_path}: expected an agent for tokenizer {reconstructor.fingerprint}, found {policy.tokenizer_fingerprint}; train it with: python rl/train.py --reconstructor_path {path}")
    name = args.base_model or first_base_model(path)
    base, tokenizer = load_causal_lm(name), load_tokenizer(name)
    check_head(base)
    if fingerprint(tokenizer) != reconstructor.fingerprint:
        raise InputError(f"--base_model {name}: expected the reconstructor's tokenizer {reconstructor.fingerprint}, found {fingerprint(tokenizer)}")
    return Models(policies, int(trained[0]["max_length"]), reconstructor, base.to(device), str(name), bos_id(tokenizer))


def build_opponents(args, base, bos, reconstructor, counts):
    """The `--methods` in their order."""
    makers = {
        "causal": lambda: CausalSurprisal(base, bos), "iterative": lambda: IterativeSurprisal(base, bos),
        "frequency": lambda: TokenFrequency(counts), "random": lambda: Random(args.seed),
        "verified-once": lambda: VerifiedOnce(reconstructor, CausalSurprisal(base, bos)),
        "mean-nats": lambda: MeanMaskedNats(reconstructor, args.seed), "verified": lambda: VerifiedMasks(reconstructor, MeanMaskedNats(reconstructor, args.seed)),
    }
    return [makers[name]() for name in dict.fromkeys(args.methods)]


def main(argv=None):
    args = parse_args(argv)
    policies, length, reconstructor, base, base_name, bos = open_models(args)
    corpus = choose_texts(args, length, reconstructor)
    train = load_sequences(args.data_path.parent / SPLITS["train"], reconstructor.fingerprint)
    make_output_dir(args.output_dir)

    agents = [Agent(policy) for policy in policies]
    opponents = build_opponents(args, base, bos, reconstructor, token_counts(train, reconstructor.vocab_size))
    cells = {}
    for runs in (progress := tqdm([agents, *([method] for method in opponents)], desc="evaluate", unit="method", disable=args.quiet)):
        progress.set_postfix_str(runs[0].name)
        cells |= {(runs[0].name, keep_ratio): cell for keep_ratio, cell in evaluate_method(runs, args.keep_ratios, corpus, reconstructor).items()}
    results, differences = compare(cells, Bootstrap(len(corpus.names), args.bootstrap_samples, args.seed, len(agents)))
    found = examples(agents[0], corpus, reconstructor, args.example_keep_ratio, args.num_examples)
    record = {
        "texts": len(corpus.texts), "documents": len(corpus.names), "tokens": corpus.tokens, "base_model": base_name, "agents": [str(path) for path in args.model_path],
        "rate_counts": "tokens sent with the gaps known (side_information beside it)",
        "results": results, "differences": differences, "examples": found,
    }
    write_json(args.output_dir / "evaluation_results.json", SCHEMA, args, UNITS, **record)
    write_text(args.output_dir / "examples.txt", examples_as_text(found))
    print(f"{record['texts']} texts of {record['documents']} documents, {record['tokens']:,} tokens; surprisal by {base_name}\n\n{format_table(record)}\n\nwritten to {args.output_dir}")


if __name__ == "__main__":
    run(main)
