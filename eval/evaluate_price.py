"""Evaluate every method at a price λ: J = λ (1 − R) − D, against masks that were searched for with the reconstructor.

    python eval/evaluate_price.py --model_path models/agent/released --data_path data/processed/test_data.json

The agent decides at λ as it was trained to. Every other method gets the best rule that its scores allow, found on
validation texts: one threshold for all texts, or one share of every text, whichever has the higher J. `verified` adds
masks verified at λ with the reconstructor (the practical oracle: what comes back dearer than λ is sent, from the best other
method's masks or from nothing sent, whichever ends higher), and the same from the first agent's masks. `search` adds local
search on one text each of 20 documents, as far as it goes, and everything on these texts (eval/search.py). Intervals are 95 %,
BCa, over documents; differences are paired. Several agents after `--model_path`, trained alike with other seeds, count as one
method, whose intervals allow for the differences between them; agents of another training go after `--against` and are one
more. Writes `price_results.json`.
"""

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from tqdm import tqdm

from data.artifacts import Parser, bounded, make_output_dir, run, write_json
from data.sequences import SPLITS
from eval.inputs import Scores, add_flags, draw_texts, open_models
from eval.methods import AGAINST, CHEAP, OPPONENTS, build_opponents
from eval.metrics import INTERVAL, SAMPLES, Bootstrap, reward
from eval.report import estimate, interval, markdown, number
from eval.search import LOCAL, room
from models.reconstructor.masking import KEEP_THRESHOLD
from models.reconstructor.scoring import score
from models.reconstructor.words import spread

SCHEMA = "rltc.price_evaluation/4"
UNITS = {
    "J": "nats per original token", "price": "nats per token saved", "keep_ratio": "kept tokens per original token",
    "interval": INTERVAL,
}
REFERENCE_RATIO = 0.7  # the keep ratio at which methods score whose scores depend on it
RATIOS = np.linspace(0, 1, 41)  # keep ratios among which a rule is looked for
COARSE = 4  # every so many of them first
SEARCH = "verified"  # of --methods, which gives the last two of these
AGENT, VERIFIED, AGENT_VERIFIED = "agent", "masks verified at λ", "the agent's masks, verified at λ"


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add_flags(add, "price_results.json")
    add("--methods", nargs="+", choices=(*OPPONENTS, SEARCH, LOCAL), default=[*CHEAP, "verified-once", SEARCH],
        help="what the agent is compared with; verified: masks searched for with the reconstructor; search: local search from "
             "the best of these; the last two and mean-nats take long")
    add("--prices", type=bounded(float, 0, 100, open_ends=True), nargs="+", default=[3.0, 6.0], help="λ, nats per token saved")
    add("--tune_sequences", type=bounded(int, 1, 10**9), default=64,
        help="texts of val_data.json, beside --data_path, on which the rules of the other methods are chosen")
    return parser.parse_args(argv)


class Rule(NamedTuple):
    """How a method's scores become masks at a price: keep what scores above `threshold`, or keep `keep_ratio` of every text."""

    threshold: float | None = None
    keep_ratio: float | None = None

    def __str__(self):
        if self.keep_ratio is None:
            return {-np.inf: "everything kept", np.inf: "nothing kept"}.get(self.threshold, f"scores above {self.threshold:.3g}")
        return f"{self.keep_ratio:.3f} of every text"

    def masks(self, scores):
        """Keep masks, one (B, T) per batch, from a method's Scores of a corpus."""
        if self.keep_ratio is not None:
            return scores.masks(self.keep_ratio)
        batches = zip(scores.at(REFERENCE_RATIO)[0], scores.corpus.batches, strict=True)
        return scores.corpus.sent([(s > self.threshold) | ~valid for s, (_, valid) in batches])


class Rules:
    """The rules that a method's scores allow, thresholds and shares of a text, each asked about once for all prices.

    J hardly changes from one rule to the next, so the best of each kind is looked for among every fourth, then beside the best
    two. To keep everything, or nothing, is among the thresholds.
    """

    def __init__(self, scores, reconstructor):
        self.scores, self.reconstructor, self.totals = scores, reconstructor, {}
        batches = zip(scores.at(REFERENCE_RATIO)[0], scores.corpus.batches, strict=True)
        scored = np.concatenate([s[valid] for s, (_, valid) in batches])
        thresholds = [-np.inf, *np.unique(np.quantile(scored, 1 - RATIOS)), np.inf]
        self.kinds = [[Rule(threshold=t) for t in thresholds], [Rule(keep_ratio=r) for r in RATIOS[1:-1:2]]]

    def J(self, rule, price):
        """J of a rule's masks on the scores' texts."""
        if rule not in self.totals:
            self.totals[rule] = self.scores.corpus.sums(self.reconstructor, rule.masks(self.scores)).sum(0)
        return reward(self.totals[rule], price)

    def best(self, price):
        """The rule of the highest J at a price."""
        found = {}
        for rules in self.kinds:
            tried = {i: self.J(rules[i], price) for i in sorted({*range(0, len(rules), COARSE), len(rules) - 1})}
            for step in (COARSE // 2, COARSE // 4):
                for best in sorted(tried, key=tried.get)[-2:]:
                    tried |= {i: self.J(rules[i], price) for i in (best - step, best + step) if 0 <= i < len(rules)}
            best = max(tried, key=tried.get)
            found[rules[best]] = tried[best]
        return max(found, key=found.get)


class Evaluation:
    """Everything at any price: the models, the texts for testing and tuning, the methods' scores of them and their rules."""

    def __init__(self, args, models):
        self.args, self.models, self.reconstructor = args, models, models.reconstructor
        self.corpus = draw_texts(args, models)
        val = draw_texts(args, models, args.data_path.parent / SPLITS["val"], args.tune_sequences)
        self.methods = build_opponents(args, models)
        self.scores = {name: Scores(method, self.corpus) for name, method in self.methods.items()}
        self.rules = {name: Rules(Scores(method, val), models.receiver(name)) for name, method in self.methods.items()}
        self.bootstrap = Bootstrap(len(self.corpus.names), SAMPLES, args.seed)

    def agent_masks(self, policy, price):
        """An agent's own decisions at a price: keep where the probability of keeping exceeds one half."""
        scores = [policy.keep_probability(ids, valid, price).numpy() for ids, valid in self.corpus.batches]
        pairs = zip(self.corpus.by_word(scores), self.corpus.batches, strict=True)
        return self.corpus.sent([(some > KEEP_THRESHOLD) | ~valid for some, (_, valid) in pairs])

    def verified(self, starts, price):
        """The masks that verification makes of keep masks `starts`, one (B, T) per batch."""
        words, receiver, masks = self.models.words, self.models.receiver("agent"), [mask.copy() for mask in starts]
        texts, rows = self.corpus.texts, (row for mask in masks for row in mask)
        for text, row in tqdm(zip(texts, rows), desc="verify", total=len(texts), unit="text", disable=self.args.quiet):
            row[: len(text)] = ~verify(receiver, words, text, row[: len(text)], price).masked[0]
        return self.corpus.sent(masks)

    def summary(self, name, rule, rows, price, agents=None):
        """One result from rows (runs, texts, 7): J and keep ratio, and the paired difference of the agents' rows to it."""

        def of(theirs, its=None):
            return {"J": reward(theirs, price) - (0 if its is None else reward(its, price))}

        cells = [np.stack([self.corpus.by_document(run) for run in each]) for each in (rows, agents) if each is not None]
        J = self.bootstrap.estimate(of, cells[0])["J"]
        tokens, masked, *_ = rows.sum((0, 1))
        found = {"method": name, "rule": str(rule), "J": J.pop("value"), **J, "keep_ratio": float(1 - masked / tokens)}
        if len(rows) > 1:
            found["runs"] = reward(rows.sum(1), price).tolist()
        if agents is not None:
            found["agent_leads_by"] = self.bootstrap.estimate(of, cells[1], cells[0])["J"]
        return found

    def at(self, price):
        """All results at one price, on the texts for testing; local search's apart, on some of them."""
        found = {"price": price, "results": self.measured(price)[0]}
        return found | {LOCAL: room(self, price)} if LOCAL in self.args.methods else found

    def measured(self, price):
        """All results at one price; the first agent's masks and the verified ones, if asked for; the agents' rows."""
        receiver = self.models.receiver
        agents, others = (
            np.array([self.corpus.sums(receiver(name), self.agent_masks(policy, price)) for policy in policies])
            for name, policies in (("agent", self.models.policies), (AGAINST, self.models.against))
        )
        progress = tqdm(self.methods, desc=f"rules at λ={price:g}", unit="method", disable=self.args.quiet)
        rules = {name: self.rules[name].best(price) for name in progress}
        masks = {name: rule.masks(self.scores[name]) for name, rule in rules.items()}
        rows = {name: self.corpus.sums(receiver(name), found) for name, found in masks.items()}
        results = [self.summary(AGENT, "its own decisions", agents, price)]
        if len(others):
            results.append(self.summary(AGAINST, "its own decisions", others, price, agents))
        results += [
            self.summary(self.methods[name].name, rules[name], found[None], price, agents) for name, found in rows.items()
        ]
        starts = []
        if SEARCH in self.args.methods:
            best = max(rows, key=lambda name: reward(rows[name].sum(0), price), default=None)
            found, starts = self.searched(masks.get(best), price, agents)
            results += found
        return results, starts, agents

    def searched(self, best, price, agents):
        """The results of SEARCH: masks verified from `best`, another method's masks, or from nothing; the agent's, verified.

        And the masks behind them, the agent's own first.
        """
        own, nothing = self.agent_masks(self.models.policies[0], price), [~valid for _, valid in self.corpus.batches]
        starts = {"from the best method": best, "from nothing sent": nothing, "from the agent": own}
        masks = {start: self.verified(first, price) for start, first in starts.items() if first is not None}
        rows = {start: self.corpus.sums(self.models.receiver("agent"), found) for start, found in masks.items()}
        agents_own = rows.pop("from the agent")[None]
        start = max(rows, key=lambda start: reward(rows[start].sum(0), price))
        results = [
            self.summary(VERIFIED, start, rows[start][None], price, agents),
            self.summary(AGENT_VERIFIED, "what comes back dear is sent", agents_own, price, agents[:1]),
        ]
        return results, [own, *masks.values()]


def verify(reconstructor, words, text, first, price):
    """Start from a keep mask (T,) of a text, send the dearer half of what is dearer than λ, and again, until nothing is.

    What costs are whole words, in the mean of their tokens, with their shares of a gap. Returns the Score of the last mask: of
    all that it masks, nothing costs more than λ.
    """
    keep_mask, valid = first[None].copy(), np.ones((1, len(text)), dtype=bool)
    starts = words.starts(torch.as_tensor(text[None]), torch.as_tensor(valid))
    number = (starts.cumsum(1) - 1)[0].numpy()
    while True:
        found = score(reconstructor, text[None], keep_mask, valid)
        cost = spread(torch.as_tensor(found.nats + found.gaps), starts)[0].numpy()
        dear = np.flatnonzero(found.masked[0] & (cost > price) & starts[0].numpy())
        if not len(dear):
            return found
        dearest = dear[np.argsort(-cost[dear], kind="stable")[: (len(dear) + 1) // 2]]
        keep_mask[0] |= np.isin(number, number[dearest])


def format_price(at, agents):
    """The results at one price as lines of text."""
    over = " and agents" if agents > 1 else ""
    rows = [["method", "J", "keeps", "rule", "the agent leads by"]]
    for r in sorted(at["results"], key=lambda r: -r["J"]):
        name = f"{r['method']}, mean of {len(r['runs'])} runs" if "runs" in r else r["method"]
        lead = estimate(r["agent_leads_by"], 4) if "agent_leads_by" in r else ""
        rows.append([name, f"{number(r['J'], 4)} {interval(r, 4)}", number(r["keep_ratio"], 2), r["rule"], lead])
    some = f" of {at['texts']} texts of {at['documents']} documents" if "texts" in at else ""
    title = f"λ = {at['price']:g}: J{some} in nats per original token, 95 % over documents{over}; the agent's lead is paired"
    blocks = [title, markdown(rows)] + ([format_price(at[LOCAL], agents)] if LOCAL in at else [])
    return "\n\n".join(blocks)


def main(argv=None):
    args = parse_args(argv)
    evaluation = Evaluation(args, open_models(args))
    make_output_dir(args.output_dir)
    corpus = evaluation.corpus
    record = {
        "texts": len(corpus.texts), "documents": len(corpus.names),
        "gaps": "found" if evaluation.reconstructor.found else "told", "unit": evaluation.models.words.unit,
        "receivers": {name: str(evaluation.models.receiver(name).directory) for name in ("agent", *evaluation.methods)},
        "agents": [str(path) for path in args.model_path], "against": [str(path) for path in args.against],
        "prices": [evaluation.at(price) for price in args.prices],
    }
    write_json(args.output_dir / "price_results.json", SCHEMA, args, UNITS, evaluation.models.weights, **record)
    blocks = [format_price(at, len(args.model_path)) for at in record["prices"]]
    print("\n\n".join([f"{record['texts']} texts of {record['documents']} documents", *blocks, f"written to {args.output_dir}"]))


if __name__ == "__main__":
    run(main)
