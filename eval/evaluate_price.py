"""Evaluate every method at a price λ: J = λ (1 − R) − D, against masks that were searched for with the reconstructor.

    python eval/evaluate_price.py --model_path models/agent/released --data_path data/processed/test_data.json

The agent decides at λ as it was trained to. Every other method gets the best rule that its scores allow, found on
validation texts (`eval/choosing.py`): one threshold for all texts, or one share of every text. `verified` adds
masks verified at λ with the reconstructor (the practical oracle: what comes back dearer than λ is sent, from the best other
method's masks or from nothing sent, whichever ends higher), and the same from the first agent's masks. `search` adds local
search on one text each of 20 documents, as far as it goes, and everything on these texts (eval/search.py). Intervals are 95 %,
bootstrap-t, over documents; differences are paired. Several agents after `--model_path`, trained alike with other seeds, count as
one method, whose intervals allow for the differences between them; of agents of other trainings, after `--against`, those that
were trained alike are one more method. Writes `price_results.json`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from data import limits
from data.artifacts import Parser, run, write_json
from data.scratch import claimed
from eval.choosing import Rules
from eval.inputs import Scores, add_flags, draw_texts, draw_validation, open_models, output_dirs
from eval.methods import CHEAP, OPPONENTS, build_opponents
from eval.metrics import INTERVAL, SAMPLES, TEST, Bootstrap, correct, difference, reward
from eval.records import PRICE
from eval.report import estimate, interval, markdown, number, paired, sentences
from eval.search import LOCAL, room
from models.reconstructor.masking import KEEP_THRESHOLD
from models.reconstructor.scoring import verify

SCHEMA = PRICE.schema
UNITS = {
    "J": "nats per original token", "price": "nats per token saved", "keep_ratio": "kept tokens per original token",
    "interval": INTERVAL, "p": TEST,
}
SEARCH = "verified"  # of --methods, which gives the last two of these
AGENT, VERIFIED, AGENT_VERIFIED = "agent", "masks verified at λ", "the agent's masks, verified at λ"


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add_flags(add, "price_results.json")
    add("--methods", nargs="+", choices=(*OPPONENTS, SEARCH, LOCAL), default=[*CHEAP, "verified-once", SEARCH],
        help="what the agent is compared with; verified: masks searched for with the reconstructor; search: local search from "
             "the best of these; the last two and mean-nats take long")
    add("--prices", type=limits.PRICE, nargs="+", default=[3.0, 6.0], help="λ, nats per token saved")
    return parser.parse_args(argv)


def choose_rules(args, models, methods):
    """{price: {name of a method: its best Rule on validation texts}}."""
    val = draw_validation(args, models) if methods else None
    progress = tqdm(methods.items(), desc="rules", unit="method", disable=args.quiet)
    rules = {name: Rules(method, val, models.receiver(name)) for name, method in progress}
    some = tqdm([(price, name) for price in args.prices for name in rules], desc="rules", unit="rule", disable=args.quiet)
    found = {price: {} for price in args.prices}
    for price, name in some:
        found[price][name] = rules[name].best(price)
    return found


class Evaluation:
    """Everything on the texts of one file at any price: the models, the methods and their scores, rules chosen before."""

    def __init__(self, args, models, methods, rules, corpus):
        self.args, self.models, self.methods, self.rules, self.corpus, self.scores = args, models, methods, rules, corpus, {}
        self.bootstrap = Bootstrap(len(self.corpus.names), SAMPLES, args.seed)

    def masks(self, rule):
        """Keep masks by a rule; the scores are kept for others of the same method."""
        return rule.masks(self.scores.setdefault(rule.method, Scores(rule.method, self.corpus)))

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

        of = lambda sums: {"J": reward(sums, price)}
        cells = [np.stack([self.corpus.by_document(run) for run in each]) for each in (rows, agents) if each is not None]
        J = self.bootstrap.estimate(of, cells[0])["J"]
        tokens, masked, *_ = rows.sum((0, 1))
        found = {"method": name, "rule": str(rule), "J": J.pop("value"), **J, "keep_ratio": float(1 - masked / tokens)}
        if len(rows) > 1:
            found["runs"] = reward(rows.sum(1), price).tolist()
        if agents is not None:
            found["agent_leads_by"] = difference(cells[1], cells[0], self.bootstrap, of)["J"]
        return found

    def at(self, price):
        """All results at one price, on the texts for testing; local search's apart, on some of them."""
        found = {"price": price, "results": self.measured(price)[0]}
        return found | {LOCAL: room(self, price)} if LOCAL in self.args.methods else found

    def measured(self, price):
        """All results at one price; the first agent's masks and the verified ones, if asked for; the agents' rows."""
        receiver = self.models.receiver
        decided = {"agent": self.models.policies}
        decided |= {kind: [run.policy for run in runs] for kind, runs in self.models.against.items()}
        decided = {
            kind: np.array([self.corpus.sums(receiver(kind), self.agent_masks(policy, price)) for policy in policies])
            for kind, policies in decided.items()
        }
        agents = decided.pop("agent")
        rules = self.rules[price]
        masks = {name: self.masks(rule) for name, rule in rules.items()}
        rows = {name: self.corpus.sums(receiver(name), found) for name, found in masks.items()}
        results = [self.summary(AGENT, "its own decisions", agents, price)]
        results += [
            self.summary(self.models.against[kind][0].name, "its own decisions", theirs, price, agents)
            for kind, theirs in decided.items()
        ]
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
    folders, models = output_dirs(args), open_models(args)
    corpora = {path: draw_texts(args, models, path) for path in folders}
    with claimed(*folders.values()):
        methods = build_opponents(args, models)
        rules = choose_rules(args, models, methods)
        for path, folder in folders.items():
            corpus = corpora[path]
            evaluation = Evaluation(args, models, methods, rules, corpus)
            record = {
                "texts": len(corpus.texts), "documents": len(corpus.names),
                "gaps": "found" if models.reconstructor.found else "told", "unit": models.words.unit,
                "receivers": {name: str(models.receiver(name).directory) for name in ("agent", *models.against, *methods)},
                "agents": [str(path) for path in args.model_path], "against": [str(path) for path in args.against],
                "prices": [evaluation.at(price) for price in args.prices],
            }
            correct([lead["J"] for _, _, lead in paired(record)[-1]])
            write_json(folder / "price_results.json", SCHEMA, args, UNITS, models.weights, **record)
            blocks = [format_price(at, len(args.model_path)) for at in record["prices"]]
            blocks += ["\n".join(sentences(record)), f"written to {folder}"]
            print("\n\n".join([f"{path}: {record['texts']} texts of {record['documents']} documents", *blocks]), flush=True)


if __name__ == "__main__":
    run(main)
