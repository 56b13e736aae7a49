"""What a language model still knows of a passage of which it reads a part: which way to spend its tokens tells it most?

    python eval/evaluate_reader.py --reader smollm2 --model_path models/agent/released

A reader that was not trained here gets a context and a question. Contexts are the whole passage, none, and parts of it that cost
at most a share (`--budgets`) of the passage's tokens, counted in the reader's own: everyone drops whole words. Measured are the
nats of the gold answer, how much of the way from no passage to the whole one that is, and whether the answer's words are still
there; and the nats of the last 64 tokens of a passage of which only what is older was shortened. Intervals are 95 %, bootstrap-t,
over passages; leads are paired. What leaves a choice was chosen on a third of the passages, `--split choose`, which scores every
variant; the others are for reporting. Writes `reader_results.json`, with the nats of every question.
"""

import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from data.artifacts import InputError, Parser, run, write_json
from data.limits import BATCH, COUNT, RATIO
from data.scratch import claimed
from eval.contexts import METHODS, Contexts, Passage, taught, ways
from eval.inputs import add_model_flags, open_models
from eval.metrics import INTERVAL, JUDGED, SAMPLES, TEST, Bootstrap, correct, difference
from eval.peer import INSTALL, Peer, check_peer
from eval.reader import QUESTIONS, Reader
from eval.records import READER
from eval.report import format_reader

SCHEMA = READER.schema

CHOOSE_SHARE = 3  # one passage in so many is there to choose with
SHORT = 3  # words of a short answer: in sums of nats, a few long ones, word for word, weigh as much as all the others
TAIL, CONTINUATIONS = 64, 64  # reader's tokens of a continuation; passages, of 2 TAIL tokens or more, that are continued
FULL, NONE = "full", "none"
UNITS = {
    "budget": "reader's tokens per token of the passage, at most", "tokens": "reader's tokens per token of the passage, as sent",
    "nats": "nats per answer; of single questions: in their order, one list a run, as text",
    "recovered": "share of the way from no passage to the whole, in nats of the answer",
    "recovered_short": f"recovered, of answers of up to {SHORT} words alone",
    "survival": "share of answers that are found in the context, spaces and case apart", "interval": INTERVAL,
    "p": TEST,
    "continuation": f"nats per token of the last {TAIL}", "continuation_recovered": "share of the way, as of answers",
}


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add_model_flags(add, "reader_results.json")
    parser.set_defaults(against=[], gaps=None, unit=None)
    add("--reader", default="smollm2", help="causal LM: a directory, a name in the hub, or smollm2 or gemma3, of PyPI packages")
    add("--reader_batch", type=BATCH, default=8, help="texts per forward pass of the reader")
    add("--questions", type=Path, default=QUESTIONS, help="JSON Lines with context, question, answer")
    add("--split", choices=("choose", "report", "all"), default="report",
        help="choose: every variant, on the passages to choose with; all: the chosen ones, on all passages")
    add("--num_questions", type=COUNT, default=200, help="questions, drawn at random; all if there are fewer")
    add("--budgets", type=RATIO, nargs="+", default=[0.8, 0.7, 0.5, 0.3],
        help="reader's tokens per token of the passage, between 0 and 1")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS),
        help="contexts beside full and none; restored needs a reconstructor that restores from the kept tokens alone")
    add("--peer", help=f"llmlingua, live, in an environment of its own ({INSTALL}); another environment; or a file that it left")
    return parser.parse_args(argv)


def split_of(context):
    """The split of a passage, read off its hash: questions about one passage are never on both sides."""
    return "report" if int(hashlib.sha256(context.encode()).hexdigest(), 16) % CHOOSE_SHARE else "choose"


def load_questions(args):
    """The `--num_questions` of a split, in the order of the file: dicts with context, question, answer. Raises InputError."""
    found = []
    try:
        lines = args.questions.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{args.questions}: expected JSON Lines in UTF-8, found: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            row = {name: json.loads(line)[name] for name in ("context", "question", "answer")}
            blank = not all(value.strip() for value in row.values())
        except (ValueError, KeyError, TypeError, AttributeError):
            blank = True
        if blank:
            raise InputError(f"{args.questions}, line {number}: expected an object with context, question and answer, all text")
        found += [row] * (args.split in ("all", split_of(row["context"])))
    if not found:
        raise InputError(f"{args.questions}: expected questions of --split {args.split}, found none in {len(lines)} lines")
    order = np.random.default_rng(args.seed).permutation(len(found))[: args.num_questions]
    return [found[i] for i in np.sort(order)]


def cut_tail(text, reader):
    """A text's older part and the rest, from the beginning of the word in which its last TAIL tokens begin."""
    passage = Passage(text, reader)
    start = reader.spans(text)[-TAIL][0]
    begins = max((span[0] for span in passage.words if span[0] <= start), default=0)
    return text[:begins].strip(), text[begins:]


def normal(text):
    return " ".join(text.casefold().split())


def answer_figures(totals):
    """Figures of totals (..., 8): nats without a passage, with the whole, with this context; the same of short answers alone;
    answers that survive; questions."""
    none, full, nats, *short, survived, questions = np.moveaxis(totals, -1, 0)
    of_short = np.divide(short[0] - short[2], short[0] - short[1], out=np.zeros_like(none), where=short[0] != short[1])
    recovered = {"recovered": (none - nats) / (none - full), "recovered_short": of_short}  # 0 where there are no short ones
    return {"nats": nats / questions, **recovered, "survival": survived / questions}


def continuation_figures(totals):
    """Figures of totals (..., 4): nats without the older part, with the whole, with this context; tokens."""
    none, full, nats, tokens = np.moveaxis(totals, -1, 0)
    return {"continuation": nats / tokens, "continuation_recovered": (none - nats) / (none - full)}


class Evaluation:
    """All contexts of the questions' passages, read once by the reader."""

    def __init__(self, args, models, reader):
        self.args, self.questions = args, load_questions(args)
        texts = list(dict.fromkeys(q["context"] for q in self.questions))
        self.document = [texts.index(q["context"]) for q in self.questions]
        self.short = np.array([len(q["answer"].split()) <= SHORT for q in self.questions])
        self.contexts = Contexts(texts, args, models, reader)
        long = [p.text for p in self.contexts.passages if p.length >= 2 * TAIL][: 0 if args.split == "choose" else CONTINUATIONS]
        self.cuts = [cut_tail(text, reader) for text in long]
        self.older = Contexts([older for older, _ in self.cuts], args, models, reader)
        passages = [*self.contexts.passages, *self.older.passages]
        self.peer = Peer(args.peer, reader, args.output_dir, passages, args.budgets) if args.peer else None
        self.taught, self.runs = taught(models), {"agent": len(models.policies), "restored": len(models.policies)}
        self.cells = self._read(reader)

    def _all(self, contexts):
        """{(name, budget): [[(text, tokens sent) of every passage] of every run]} of all that is read."""
        whole = [(p.text, p.length) for p in contexts.passages]
        found = {(FULL, None): [whole], (NONE, None): [[("", 0)] * len(whole)]}
        for budget in self.args.budgets:
            for method in self.args.methods:
                for way in ways(method, budget, self.args.split == "choose", self.taught):
                    runs, some = range(self.runs.get(method, 1)), range(len(whole))
                    found[way.name, budget] = [[contexts.text(way, budget, run, i) for i in some] for run in runs]
        return found | (self.peer.contexts(contexts.passages, self.args.budgets) if self.peer else {})

    def _read(self, reader):
        """{(name, budget): Cell}."""
        contexts, older = self._all(self.contexts), self._all(self.older)
        asked = list(zip(self.questions, self.document, strict=True))
        pairs = reader.questions([
            (texts[i][0], q["question"], q["answer"]) for runs in contexts.values() for texts in runs for q, i in asked
        ])
        pairs += [
            reader.continuation(left, tail, TAIL)
            for runs in older.values() for texts in runs for (left, _), (_, tail) in zip(texts, self.cuts, strict=True)
        ]
        nats, cells, start = reader.nats(pairs, "read"), {}, 0
        continued = len(asked) * sum(map(len, contexts.values()))
        for key, runs in contexts.items():
            answers = nats[start : (start := start + len(runs) * len(asked))].reshape(len(runs), -1)
            tails = nats[continued : (continued := continued + len(runs) * len(self.cuts))].reshape(len(runs), -1)
            cells[key] = self._cell(answers, tails, runs)
        for cell in cells.values():  # `none` and `full` are what every other is measured by
            for i, key in enumerate((NONE, FULL)):
                cell["sums"][..., [i, 3 + i]] = cells[key, None]["sums"][..., [2, 5]]
                cell["continued"][..., i] = cells[key, None]["continued"][..., 2]
        return cells

    def _by_passage(self, values, rows):
        """Values (runs, questions or tails) added up by passage: (runs, documents)."""
        document = self.document if rows == "answers" else np.arange(len(self.cuts))
        found = np.zeros((len(values), max(document, default=-1) + 1))
        for row, each in zip(found, values, strict=True):
            np.add.at(row, document, each)
        return found

    def _cell(self, answers, tails, runs):
        asked = list(zip(self.questions, self.document, strict=True))
        survived = np.array([[normal(q["answer"]) in normal(texts[i][0]) for q, i in asked] for texts in runs])
        rows = (answers, answers * self.short, survived, np.ones_like(answers))
        nats, brief, *rows = (self._by_passage(each, "answers") for each in rows)
        tail = self._by_passage(tails, "tails")
        zeros = np.zeros_like(nats)
        sums = np.stack([zeros, zeros, nats, zeros, zeros, brief, *rows], -1)
        sent = np.mean([sum(tokens for _, tokens in texts) for texts in runs]) / sum(p.length for p in self.contexts.passages)
        return {
            "answers": answers, "tails": tails, "tokens": float(sent), "sums": sums,
            "continued": np.stack([0 * tail, 0 * tail, tail, np.full_like(tail, TAIL)], -1),
        }

    def results(self):
        """Results of all contexts, and the agent's paired leads over all others at each budget."""
        seed, agent = self.args.seed, ways("agent", 0.5, False, self.taught)[0].name
        kinds = [("sums", answer_figures, Bootstrap(max(self.document) + 1, SAMPLES, seed))]
        if self.cuts:
            kinds.append(("continued", continuation_figures, Bootstrap(len(self.cuts), SAMPLES, seed)))
        found, leads = [], []
        for (name, budget), cell in self.cells.items():
            figures = [bootstrap.estimate(of, cell[kind]) for kind, of, bootstrap in kinds]
            each = {key: [" ".join(f"{x:.3f}" for x in run) for run in cell[key]] for key in ("answers", "tails")}
            found.append({"method": name, "budget": budget, "tokens": cell["tokens"], **merge(figures), "nats_of_each": each})
            for at in self.args.budgets if budget is None else [budget]:
                if (agent, at) in self.cells and name != agent:
                    pairs = [difference(self.cells[agent, at][kind], cell[kind], b, of) for kind, of, b in kinds]
                    leads.append({"method": name, "budget": at, **merge(pairs)})
        correct([lead[name] for lead in leads for name in JUDGED["reader"]])
        return found, leads


def merge(dicts):
    return {key: value for each in dicts for key, value in each.items()}


def main(argv=None):
    args = parse_args(argv)
    if args.peer:
        check_peer(args.peer)
    models = open_models(args)
    if "restored" in args.methods and models.receiver("agent").gap_head is None:
        args.methods.remove("restored")
    reader = Reader.load(args.reader, args.reader_batch, str(models.reconstructor.device), args.quiet)
    with claimed(args.output_dir):
        evaluation = Evaluation(args, models, reader)
        results, leads = evaluation.results()
        record = {
            "reader": args.reader, "dtype": str(reader.model.dtype), "agents": [str(path) for path in args.model_path],
            "questions": len(evaluation.questions), "short": int(evaluation.short.sum()),
            "passages": max(evaluation.document) + 1, "continuations": len(evaluation.cuts),
            "passage_of_each": evaluation.document, "results": results, "leads": leads,
            **({"peer": evaluation.peer.record()} if evaluation.peer else {}),
        }
        weights = [*models.weights, *[path for path in reader.paths if path.exists()]]
        write_json(args.output_dir / "reader_results.json", SCHEMA, args, UNITS, weights, **record)
        print(f"{format_reader(record)}\n\nwritten to {args.output_dir}")


if __name__ == "__main__":
    run(main)
