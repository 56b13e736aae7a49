"""Evaluate every method at a price λ: J = λ (1 − R) − D, against masks that were searched for with the reconstructor.

    python eval/evaluate_price.py --model_path models/agent/output/best_model.zip --data_path data/processed/test_data.json

The agent decides at λ as it was trained to. Every other method gets the best rule that its scores allow, found on
validation texts: one threshold for all texts, or one share of every text, whichever has the higher J. Beside them:
masks verified at λ with the reconstructor (the practical oracle: what comes back dearer than λ is sent, from the best other method's masks or from
nothing sent, whichever ends higher), the same from the first agent's masks, local search, and on texts of `--window` tokens the best of all
masks. Intervals are 95 %, bootstrapped over documents; differences are paired. Several agents after `--model_path`, trained
alike with other seeds, count as one method, whose intervals allow for the differences between them; masks that start from an
agent's start from the first one's. Writes `price_results.json`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from data.artifacts import SEED, Parser, bounded, make_output_dir, run, write_json
from data.sequences import SPLITS, load_sequences
from eval.evaluate import CHEAP, Corpus, Scores, build_opponents, draw_texts, open_models, text_length
from eval.methods import VerifiedOnce
from eval.metrics import Bootstrap, estimates
from eval.search import J_of_masks, local_search, optima, verified_mask
from models.reconstructor.masking import KEEP_THRESHOLD, keep_highest
from rl.train import token_counts

SCHEMA = "rltc.price_evaluation/3"
UNITS = {"J": "nats per original token", "price": "nats per token saved", "keep_ratio": "kept tokens per original token", "interval": "95 %, percentile bootstrap over documents; with several agents plus Student's t over them, interval_over_documents without", "share": "of the distance in J between two methods"}
REFERENCE_RATIO = 0.7  # the keep ratio at which methods score whose scores depend on it
RATIOS = np.linspace(0, 1, 41)  # keep ratios among which a rule is looked for
COARSE = 4  # every so many of them first
AGENT, VERIFIED, AGENT_VERIFIED, OPTIMUM = "agent", "masks verified at λ", "the agent's masks, verified at λ", "best of all masks"


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--model_path", type=Path, nargs="+", default=[Path("models/agent/output/best_model.zip")], help="agent written by rl/train.py; several: training runs of one agent")
    add("--data_path", type=Path, default=Path("data/processed/test_data.json"), help="held-out sequences written by data/prepare.py; val_data.json is expected beside them")
    add("--output_dir", type=Path, default=Path("eval/test_output"), help="directory for price_results.json")
    add("--reconstructor_path", type=Path, default=None, help="fine-tuned reconstructor; default: the one that the agent was trained with")
    add("--base_model", default=None, help="causal LM of the surprisal methods; default: the one the reconstructor was fine-tuned from")
    add("--methods", nargs="+", choices=[*CHEAP, "verified-once", "mean-nats"], default=[*CHEAP, "mean-nats"], help="what the agent is compared with, beside the searched masks")
    add("--prices", type=bounded(float, 0, 100, open_ends=True), nargs="+", default=[1.5, 3.0], help="values of λ, nats per token saved")
    add("--num_sequences", type=bounded(int, 1, 10**9), default=100, help="texts to evaluate on, drawn at random from the file")
    add("--tune_sequences", type=bounded(int, 1, 10**9), default=64, help="validation texts on which the rules of the other methods are chosen")
    add("--search_sequences", type=bounded(int, 0, 10**9), default=12, help="of the texts, those on which local search runs, about half a minute each; 0: leave it out")
    add("--window", type=bounded(int, 1, 12), default=10, help="tokens of the short texts whose 2^window masks are all tried, at most 12")
    add("--window_sequences", type=bounded(int, 0, 10**9), default=40, help="short texts, from the beginnings of the texts; 0: leave them out")
    add("--max_length", type=bounded(int, 2, 10**6), default=None, help="tokens per text, longer ones are cut into several; default: the agent's training length")
    add("--batch_size", type=bounded(int, 1, 10**6), default=20, help="texts per forward pass")
    add("--bootstrap_samples", type=bounded(int, 100, 10**7), default=5000, help="bootstrap samples behind every interval")
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("--seed", type=SEED, default=42, help="seeds the choice of texts, the random method and the bootstrap")
    add("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


class Rule:
    """How a method's scores become masks at a price: keep what scores above `threshold`, or keep `keep_ratio` of every text."""

    def __init__(self, threshold=None, keep_ratio=None):
        self.threshold, self.keep_ratio = threshold, keep_ratio

    def __str__(self):
        if self.keep_ratio is None:
            return {-np.inf: "everything kept", np.inf: "nothing kept"}.get(self.threshold, f"scores above {self.threshold:.3g}")
        return f"{self.keep_ratio:.3f} of every text"

    def masks(self, scores):
        """Keep masks, one (B, T) per batch, from a method's Scores of a corpus."""
        scored, _, _ = scores.at(REFERENCE_RATIO if self.keep_ratio is None else self.keep_ratio)
        batches = zip(scored, (valid for _, valid in scores.corpus.batches), strict=True)
        return [(s > self.threshold) | ~valid if self.keep_ratio is None else keep_highest(s, valid, self.keep_ratio) for s, valid in batches]


def agent_masks(policy, corpus, price):
    """An agent's own decisions at a price, one (B, T) per batch: keep where the probability of keeping exceeds one half."""
    return [(policy.keep_probability(ids, valid, price).numpy() > KEEP_THRESHOLD) | ~valid for ids, valid in corpus.batches]


def rewards(reconstructor, corpus, keep_masks, price):
    """(texts, 3): tokens, kept tokens, and J times tokens."""
    rows = []
    for (ids, valid), keep_mask in zip(corpus.batches, keep_masks, strict=True):
        nats = reconstructor.predict(ids, keep_mask, valid).nats.cpu().numpy()
        masked = (valid & ~keep_mask).sum(1)
        rows.append(np.stack([valid.sum(1), valid.sum(1) - masked, price * masked - nats.sum(1)], 1))
    return np.concatenate(rows)


def mean_J(rows):
    """J of rows (texts, 3) or (runs, texts, 3)."""
    return rows[..., 2].sum() / rows[..., 0].sum()


class Rules:
    """The rules that a method's scores allow, thresholds and shares of a text, and what they cost on the scores' texts: asked once, for all prices.

    J hardly changes from one rule to the next, so the best of each kind is looked for among every fourth, then beside the best two.
    To keep everything, or nothing, is among the thresholds.
    """

    def __init__(self, scores, reconstructor):
        self.scores, self.reconstructor, self.rows = scores, reconstructor, {}
        scored = np.concatenate([s[valid] for s, (_, valid) in zip(scores.at(REFERENCE_RATIO)[0], scores.corpus.batches, strict=True)])
        thresholds = [-np.inf, *np.unique(np.quantile(scored, 1 - RATIOS)), np.inf]
        self.kinds = [[Rule(threshold=t) for t in thresholds], [Rule(keep_ratio=r) for r in RATIOS[1:-1:2]]]

    def J(self, rule, price):
        if rule not in self.rows:
            self.rows[rule] = rewards(self.reconstructor, self.scores.corpus, rule.masks(self.scores), 0.0)
        tokens, kept, minus_nats = self.rows[rule].sum(0)
        return (price * (tokens - kept) + minus_nats) / tokens

    def best(self, price):
        """The rule of the highest J at a price."""
        found = []
        for rules in self.kinds:
            tried = {i: self.J(rules[i], price) for i in sorted({*range(0, len(rules), COARSE), len(rules) - 1})}
            for step in (COARSE // 2, COARSE // 4):
                for best in sorted(tried, key=tried.get)[-2:]:
                    tried |= {i: self.J(rules[i], price) for i in (best - step, best + step) if 0 <= i < len(rules)}
            best = max(tried, key=tried.get)
            found.append((tried[best], rules[best]))
        return max(found, key=lambda J_and_rule: J_and_rule[0])[1]


def searched_rows(reconstructor, corpus, starts, price, search, count, quiet):
    """As `rewards`, for the masks that `search(reconstructor, text, first, price)` finds from keep masks, one text at a time."""
    rows, first = [], [mask[: len(text)] for mask, text in zip((m for masks in starts for m in masks), corpus.texts, strict=True)]
    for text, start in tqdm(list(zip(corpus.texts, first, strict=True))[:count], desc=search.__name__, unit="text", disable=quiet):
        keep_mask = search(reconstructor, text, start, price)
        rows.append([len(text), keep_mask.sum(), len(text) * J_of_masks(reconstructor, text, keep_mask[None], price)[0]])
    return np.array(rows, dtype=float)


def summary(name, rule, rows, corpus, bootstrap, agents=None):
    """One result from rows (runs, texts, 3): J and keep ratio, and the paired difference of the agents to it."""
    estimated = lambda rows: estimates(np.stack([corpus.sums_by_document(run) for run in rows]), bootstrap, of=lambda sums: sums[..., 2] / sums[..., 0])
    J, resampled, by_run = estimated(rows)
    found = {"method": name, "rule": str(rule), "J": float(J), **bootstrap.intervals(resampled, by_run), "keep_ratio": float(rows[..., 1].sum() / rows[..., 0].sum())}
    if len(rows) > 1:
        found["runs"] = by_run.tolist()
    if agents is not None:
        lead, resampled, by_run = (theirs - its for theirs, its in zip(estimated(agents), (J, resampled, by_run), strict=True))
        found["agent_leads_by"] = {"value": float(lead), **bootstrap.intervals(resampled, by_run)}
    return found


def share_of_distance(J, goal):
    """How far the agent gets from the best method that scores tokens to `goal`, from {method: J}: 1 is all of the way; None if there is no way to go.

    Methods that ask the reconstructor about a mask are not where the way begins.
    """
    best = max(value for name, value in J.items() if name not in (AGENT, VerifiedOnce.name, VERIFIED, AGENT_VERIFIED, OPTIMUM))
    return (J[AGENT] - best) / (J[goal] - best) if J[goal] > best + 1e-6 else None


def evaluate_at(price, policies, opponents, corpora, scored, candidates, reconstructor, args):
    """All results at one price, on the texts of `corpora["test"]`; of {(opponent, corpus): …}, `scored` holds the Scores and `candidates` the Rules."""
    corpus, bootstrap = corpora["test"], Bootstrap(len(corpora["test"].names), args.bootstrap_samples, args.seed, len(policies))
    own = [agent_masks(policy, corpus, price) for policy in policies]
    agents = np.stack([rewards(reconstructor, corpus, masks, price) for masks in own])
    rules = {method.name: candidates[method.name, "val"].best(price) for method in tqdm(opponents, desc=f"rules at λ={price:g}", unit="method", disable=args.quiet)}
    masks = {name: rule.masks(scored[name, "test"]) for name, rule in rules.items()}
    rows = {name: rewards(reconstructor, corpus, found, price) for name, found in masks.items()}
    best = max(rows, key=lambda name: mean_J(rows[name]))
    nothing_sent = [~valid for _, valid in corpus.batches]
    starts = {"from the best method": masks[best], "from nothing sent": nothing_sent, "from the agent": own[0]}
    checked = {start: searched_rows(reconstructor, corpus, first, price, verified_mask, None, args.quiet) for start, first in starts.items()}
    agents_own = checked.pop("from the agent")
    start = max(checked, key=lambda s: mean_J(checked[s]))
    results = [summary(AGENT, "its own decisions", agents, corpus, bootstrap)]
    results += [summary(name, rules[name], found[None], corpus, bootstrap, agents) for name, found in rows.items()]
    results.append(summary(VERIFIED, start, checked[start][None], corpus, bootstrap, agents))
    results.append(summary(AGENT_VERIFIED, "what comes back dear is sent", agents_own[None], corpus, bootstrap, agents[:1]))
    J = {r["method"]: r["J"] for r in results}
    found = {"price": price, "results": results, "share_of_the_distance_to_verified": share_of_distance(J, VERIFIED), "share_of_the_distance_to_the_agents_verified": share_of_distance(J | {AGENT: float(mean_J(agents[0]))}, AGENT_VERIFIED)}
    if args.search_sequences:
        searched = searched_rows(reconstructor, corpus, own[0], price, local_search, args.search_sequences, args.quiet)
        texts = len(searched)
        found["local_search"] = {"texts": texts, "documents": len(set(corpus.document[:texts])), "J": float(mean_J(searched)), "agent": float(mean_J(agents[0, :texts])), "verified": float(mean_J(checked[start][:texts]))}
    return found


def short_windows(policies, opponents, corpora, scored, candidates, reconstructor, args):
    """On short texts, at every price: J of the best of all masks, of the agent, and of the best other method."""
    corpus = corpora["short"]
    best = [optima(reconstructor, text, args.prices) for text in tqdm(corpus.texts, desc="all masks", unit="text", disable=args.quiet)]
    found = []
    for i, price in enumerate(args.prices):
        J = {OPTIMUM: float(np.average([b[i][0] for b in best], weights=[len(text) for text in corpus.texts]))}
        J[AGENT] = float(np.mean([mean_J(rewards(reconstructor, corpus, agent_masks(policy, corpus, price), price)) for policy in policies]))
        for method in opponents:
            rule = candidates[method.name, "short val"].best(price)
            J[method.name] = float(mean_J(rewards(reconstructor, corpus, rule.masks(scored[method.name, "short"]), price)))
        found.append({"price": price, "texts": len(corpus.texts), "J": J, "share_of_the_distance_to_the_optimum": share_of_distance(J, OPTIMUM)})
    return found


def draw(path, reconstructor, length, count, args):
    return draw_texts(load_sequences(path, reconstructor.fingerprint, length), count, args)


def format_report(record):
    """The results as lines of text."""
    lines, share = [], lambda s: "none to go" if s is None else f"{s:.0%}"
    for at in record["prices"]:
        lines += [f"λ = {at['price']:g}: J in nats per original token, 95 % over documents{' and agents' if len(record['agents']) > 1 else ''}; the agent's lead is paired", ""]
        for r in sorted(at["results"], key=lambda r: -r["J"]):
            lead = r.get("agent_leads_by")
            beside = f"  agent leads by {lead['value']:+.4f} ({lead['interval'][0]:+.4f} to {lead['interval'][1]:+.4f})" if lead else ""
            name = f"{r['method']}, mean of {len(r['runs'])} runs" if "runs" in r else r["method"]
            lines.append(f"  {name:30s} {r['J']:.4f} ({r['interval'][0]:.4f} to {r['interval'][1]:.4f})  keeps {r['keep_ratio']:.2f}: {r['rule']}{beside}")
        lines.append(f"  share of the distance from the best method to verified masks: {share(at['share_of_the_distance_to_verified'])}; to the agent's, verified: {share(at['share_of_the_distance_to_the_agents_verified'])}")
        if "local_search" in at:
            s = at["local_search"]
            lines.append(f"  on {s['texts']} texts: local search {s['J']:.4f}, {'first ' if len(record['agents']) > 1 else ''}agent {s['agent']:.4f}, verified {s['verified']:.4f}")
        lines.append("")
    for w in record["windows"]:
        lines.append(f"λ = {w['price']:g}, {w['texts']} texts of {record['window']} tokens: " + ", ".join(f"{name} {J:.4f}" for name, J in w["J"].items()))
        lines.append(f"  share of the distance from the best method to the best of all masks: {share(w['share_of_the_distance_to_the_optimum'])}")
    return "\n".join(lines)


def main(argv=None):
    args = parse_args(argv)
    loaded = open_models(args)
    reconstructor, length = loaded.reconstructor, text_length(args, loaded.length, loaded.reconstructor)
    folder = args.data_path.parent
    corpora = {"test": draw(args.data_path, reconstructor, length, args.num_sequences, args), "val": draw(folder / SPLITS["val"], reconstructor, length, args.tune_sequences, args)}
    for name, source in (("short", "test"), ("short val", "val")):
        count = args.window_sequences if name == "short" else None
        texts = [t[: args.window] for t in corpora[source].texts]
        corpora[name] = Corpus(texts[:count], corpora[source].names[corpora[source].document][:count], args.batch_size)
    counts = token_counts(load_sequences(folder / SPLITS["train"], reconstructor.fingerprint), reconstructor.vocab_size)
    policies, opponents = loaded.policies, build_opponents(args, loaded.base, loaded.bos, reconstructor, counts)
    make_output_dir(args.output_dir)
    scored = {(method.name, name): Scores(method, corpus) for method in opponents for name, corpus in corpora.items()}
    candidates = {key: Rules(scores, reconstructor) for key, scores in scored.items() if key[1] in ("val", "short val")}
    record = {
        "texts": len(corpora["test"].texts), "documents": len(corpora["test"].names), "window": args.window, "agents": [str(path) for path in args.model_path],
        "prices": [evaluate_at(price, policies, opponents, corpora, scored, candidates, reconstructor, args) for price in args.prices],
        "windows": short_windows(policies, opponents, corpora, scored, candidates, reconstructor, args) if args.window_sequences else [],
    }
    write_json(args.output_dir / "price_results.json", SCHEMA, args, UNITS, **record)
    print(f"{record['texts']} texts of {record['documents']} documents\n\n{format_report(record)}\n\nwritten to {args.output_dir}")


if __name__ == "__main__":
    run(main)
