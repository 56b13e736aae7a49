"""Ways to spend a budget of a reader's tokens on a passage: which of its whole words the reader gets.

Words keep their order, and the space that stood before each. Scores of words come from the methods of `methods.py`, token by
token, by where the tokens stand in the text. Shapes: `W` words, `T` tokens.
"""

import re
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch

from eval.inputs import Corpus, Scores
from eval.methods import Agent, CausalSurprisal, TokenFrequency, training_counts
from models.agent.worth import within_budget
from models.reconstructor.words import Words

METHODS = ("head", "tail", "random", "frequency", "causal", "sentences", "thinned", "agent", "restored")
# Chosen with `evaluate_reader.py --split choose`: how a word's score comes from its tokens'; the best thinning at a budget; how
# far a word's score reaches, in words, and how much later words must be worth more than the first, in standard deviations.
WORD_SCORE = {"frequency": "sum", "causal": "sum", "sentences": "mean", "thinned": "mean", "agent": "mean"}
RUNS, FRONT = 1.5, 3.0
PLACED = [(runs, front) for runs in (1.5, 4.0) for front in (1.5, 3.0)]
THINNING = {0.8: ("head", 0.8), 0.7: ("head", 0.65), 0.5: ("sentences", 0.65), 0.3: ("head", 0.65)}
THINNINGS = [(part, share) for part in ("head", "sentences") for share in (0.8, 0.65)]
TITLES = {
    "head": "head", "tail": "tail", "random": "random words", "frequency": "token frequency", "causal": "causal surprisal",
    "sentences": "whole sentences", "thinned": "thinned", "agent": "agent", "restored": "agent, restored",
}

WORD = re.compile(r"\S+")
TRAILING = re.compile(r"[^\w\s]+$")  # of a word: punctuation behind it, "end." or "(1856)," or "word)."
ENDS = re.compile(r"[.!?][\"'”’)\]]*$")  # of a word that ends a sentence
ABBREVIATED = re.compile(r"^[\"'“‘(\[]*(?:[A-Z]|[A-Z]\.[A-Z.]*|Mr|Mrs|Ms|Dr|St|No|vs|cf|ca|Jr|Sr|Prof|Gen|Col|Lt)$")
ROUNDING = 1e-9  # relative: scores that differ by less are alike
SURE = 1e-5  # keep probabilities nearer to 0 or 1 count as this
MAX_TRIES = 8  # words that are tried, one after another, where a budget is not spent to the last token


def words(text):
    """Spans (first character, the one behind the last) of a text's words.

    Punctuation behind a word is a word of its own, any in front of it or within it is not: "(well-known", "1,000", "don't".
    """
    spans = []
    for found in WORD.finditer(text):
        start, end = found.span()
        trailing = TRAILING.search(found[0])
        cut = start + trailing.start() if trailing else end
        spans += [span for span in ((start, cut), (cut, end)) if span[0] < span[1]]
    return spans


def sentences(text, spans):
    """The number of the sentence of every word. A new one begins with a capital letter after . ! or ?, not after "Dr."."""
    number, found = 0, []
    for i, (start, end) in enumerate(spans):
        if i > 1 and ENDS.search(text[slice(*spans[i - 1])]) and re.match(r"[\"'“‘(\[]*[A-Z0-9]", text[start:end]):
            number += not ABBREVIATED.match(text[slice(*spans[i - 2])])
        found.append(number)
    return np.array(found, dtype=int)


def by_word(scores, spans, token_spans, how):
    """Scores of words from those of tokens (T,) that stand at token_spans: of all that a word shares a character with.

    `how`: "sum" or "mean".
    """
    total, count = np.zeros(len(spans)), np.zeros(len(spans))
    starts, ends = np.array(spans).T
    for score, (first, last) in zip(scores, token_spans, strict=True):
        there = (starts < last) & (ends > first)
        total[there] += score
        count[there] += 1
    return total / np.maximum(count, 1) if how == "mean" else total


class Passage:
    """A text that is shortened: its words, its sentences, and what it and its parts cost in a reader's tokens."""

    def __init__(self, text, reader):
        self.text, self.reader, self.words = text, reader, words(text)
        self.length = reader.count([text])[0]

    @cached_property
    def sentences(self):
        return sentences(self.text, self.words)

    @cached_property
    def costs(self):
        """About what each word costs with the space before it, (W,): exact but for punctuation that merges with a neighbour's."""
        return np.array(self.reader.count([self.between(i) + self.text[slice(*span)] for i, span in enumerate(self.words)]))

    def between(self, i):
        """The space before word i."""
        return self.text[self.words[i - 1][1] if i else 0 : self.words[i][0]]

    def join(self, kept):
        """The text of the words that are kept, (W,) bool."""
        return "".join(self.between(i) + self.text[slice(*self.words[i])] for i in np.flatnonzero(kept)).strip()

    def cost(self, kept):
        """What the words that are kept cost the reader."""
        return self.reader.count([self.join(kept)])[0]

    def first(self, order, budget):
        """Keep the words of an order up to the last that fits `budget` tokens: nothing is left out on the way."""
        kept = np.zeros(len(self.words), dtype=bool)
        count = int(np.searchsorted(self.costs[order].cumsum(), budget, side="right"))
        kept[order[:count]] = True
        while kept.any() and self.cost(kept) > budget:
            count -= 1
            kept[order[count]] = False
        return kept

    def best(self, scores, budget, among=None):
        """Keep the words of the highest scores, never above `budget` tokens, and as near to it as MAX_TRIES smaller words come.

        among (W,) bool: the words that may be kept, default: all. Among equals the earlier word goes first.
        """
        order = np.argsort(-np.asarray(scores, dtype=float), kind="stable")
        order = order if among is None else order[among[order]]
        kept = self.first(order, budget)
        left = budget - self.cost(kept)
        for i in [i for i in order[~kept[order]] if self.costs[i] <= left][:MAX_TRIES]:
            kept[i] = True
            kept[i] = self.cost(kept) <= budget
        return kept

    def chain(self, words, pairs, budget):
        """Keep the words of the chain that is worth most, of worths of words and of neighbouring pairs."""
        most = budget
        while (kept := within_budget(words, pairs, self.costs, most)).any() and (spent := self.cost(kept)) > budget:
            most -= spent - budget
        return kept

    def head(self, budget):
        return self.first(np.arange(len(self.words)), budget)

    def tail(self, budget):
        return self.first(np.arange(len(self.words))[::-1], budget)

    def whole_sentences(self, scores, budget):
        """Whole sentences, those of the highest mean score first; the one that does not fit any more is cut off behind."""
        mean = np.bincount(self.sentences, scores) / np.bincount(self.sentences)
        return self.first(np.lexsort((np.arange(len(self.words)), -mean[self.sentences])), budget)

    def thinned(self, part, scores, budget, thinning):
        """Of a part, a way such as `head` that is given more than the budget, keep `thinning` by words of the highest scores."""
        return self.best(scores, budget, among=part(min(self.length, int(budget / thinning))))


def placed(scores, runs, front):
    """Scores of words (W,), averaged over neighbours within about `runs` words, standardised, less up to `front` by place.

    Answers are phrases: a phrase that loses one word in the middle is lost. And what a text is about comes first.
    """
    reach = np.arange(len(scores))
    weight = np.exp(-0.5 * ((reach[:, None] - reach) / runs) ** 2)
    smooth = weight @ np.asarray(scores, dtype=float) / weight.sum(1)
    smooth = smooth - smooth.mean()
    deviation = smooth.std()
    alike = deviation < ROUNDING * max(1.0, np.abs(scores).max())
    return (0.0 if alike else smooth / deviation) - front * reach / max(1, len(scores) - 1)


class LogOdds(Agent):
    """An agent's scores as logits: probabilities near 1 are all alike, and a mean over neighbours needs their differences."""

    def scores(self, ids, valid, keep_ratio):
        keep = super().scores(ids, valid, keep_ratio).astype(float).clip(SURE, 1 - SURE)
        return np.log(keep / (1 - keep))


class Way(NamedTuple):
    """A way to spend a budget: `part` of the passage goes whole, or is thinned; without a part, words go by their scores."""

    method: str  # one of METHODS
    scores: str = ""  # whose scores of words
    how: str = ""  # they come from tokens: sum or mean
    part: str = ""  # head, tail or sentences
    thinning: float | None = None  # share of the part that is kept
    variant: str = ""  # what tells it from others of its method
    runs: float = 0.0  # words over which scores are averaged, so that runs are kept rather than scattered words
    front: float = 0.0  # what the last word's score loses to the first one's

    @property
    def name(self):
        return f"{TITLES[self.method]}, {self.variant}" if self.variant else TITLES[self.method]

    def keep(self, passage, scores, budget):
        """Which words of a Passage are kept, (W,) bool, at most `budget` tokens of them."""
        if self.scores == "worth":
            return passage.chain(*scores, budget)
        if not self.part:
            return passage.best(placed(scores, self.runs, self.front) if self.runs else scores, budget)
        parts = {"head": passage.head, "tail": passage.tail, "sentences": partial(passage.whole_sentences, scores)}
        part = parts[self.part]
        return passage.thinned(part, scores, budget, self.thinning) if self.thinning else part(budget)


def ways(method, budget, choosing, taught=False):
    """The ways of one of `--methods` at a budget: the chosen one, or all that there are to choose among.

    `taught`: whether the agents know what words are worth to a reader.
    """
    if method in ("head", "tail"):
        return [Way(method, part=method)]
    if method == "random":
        return [Way(method, "random")]
    if method == "sentences":
        return [Way(method, "frequency", WORD_SCORE[method], "sentences")]
    if method == "thinned":
        chosen = THINNING[min(THINNING, key=lambda known: abs(known - budget))]
        some = THINNINGS if choosing else [chosen]
        variants = [f"{part} to {share:g}" if choosing else "" for part, share in some]
        return [Way(method, "frequency", WORD_SCORE[method], *pair, name) for pair, name in zip(some, variants, strict=True)]
    if method in ("agent", "restored"):
        scattered = Way(method, "agent", WORD_SCORE["agent"], variant="scattered" * (method == "agent" and taught))
        if method == "restored" or not taught:
            return [scattered]
        return [Way(method, "worth"), scattered]
    if choosing:
        grid = [(f"runs of {runs:g}, front {front:g}", runs, front) for runs, front in PLACED]
        by_place = [Way(method, method, "mean", variant=name, runs=runs, front=front) for name, runs, front in grid]
        return [*by_place, *(Way(method, method, how, variant=how) for how in ("sum", "mean"))]
    return [Way(method, method, "mean", runs=RUNS, front=FRONT), Way(method, method, WORD_SCORE[method], variant="scattered")]


def taught(models):
    """Whether all agents know what words are worth to a reader."""
    return all(policy.reader.worth is not None for policy in models.policies)


class Contexts:
    """Texts and what is left of them: `text(way, budget, run, i)`."""

    def __init__(self, texts, args, models, reader):
        self.passages = [Passage(text, reader) for text in texts]
        self.seed, self.reconstructor = args.seed, models.receiver("agent")
        tokenizer = models.reconstructor.tokenizer
        read = [tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False) for text in texts]
        self.spans = [each["offset_mapping"] for each in read]
        # Texts of similar length are scored together.
        self.order = np.argsort([len(each["input_ids"]) for each in read], kind="stable")
        ids = [np.array(read[i]["input_ids"]) for i in self.order]
        corpus = Corpus(ids, np.arange(len(ids)), args.reader_batch, Words(tokenizer, "token"), as_text=False)
        makers = {
            "frequency": lambda: [TokenFrequency(training_counts(args, models.reconstructor))],
            "causal": lambda: [CausalSurprisal(models.base, models.reconstructor.bos_id)],
            "agent": lambda: [LogOdds(policy) for policy in models.policies],
        }
        self.policies, self.taught = models.policies, taught(models)
        needed = {way.scores for method in args.methods for way in ways(method, 0.5, False)}
        self.scores = {name: [Scores(method, corpus) for method in make()] for name, make in makers.items() if name in needed}
        self.ids, self.found = [row["input_ids"] for row in read], {}

    def token_scores(self, name, run, budget):
        """Scores of the tokens of all texts, in their order."""
        found = [row for batch in self.scores[name][run].at(budget)[0] for row in batch]
        by_text = [None] * len(found)
        for row, i in zip(found, self.order, strict=True):
            by_text[i] = row[: len(self.spans[i])]
        return by_text

    def worths(self, run, i):
        """What the words of text i and their neighbouring pairs are worth to a reader, by an agent."""
        if (run, i) not in self.found:
            reader, ids = self.policies[run].reader, torch.tensor([self.ids[i]], device=self.reconstructor.device)
            states = reader.read(ids, torch.ones_like(ids, dtype=torch.bool))[0]
            ends = np.array(self.spans[i])[:, 1]
            first = np.searchsorted(ends, [start for start, _ in self.passages[i].words], "right")
            self.found[run, i] = reader.worth.of(states, first, np.diff([*first, len(ends)]))
        return self.found[run, i]

    def word_scores(self, way, budget, run, i):
        if way.scores == "random":
            return np.random.default_rng([self.seed, i]).random(len(self.passages[i].words))
        if not way.scores:
            return None
        if way.scores == "worth":
            return self.worths(run, i)
        key = way.scores, run, budget
        if key not in self.found:
            self.found[key] = self.token_scores(way.scores, run, budget)
        return by_word(self.found[key][i], self.passages[i].words, self.spans[i], way.how)

    def text(self, way, budget, run, i):
        """What the reader gets of text i, and what was sent for it, in the reader's tokens."""
        passage = self.passages[i]
        kept = way.keep(passage, self.word_scores(way, budget, run, i), int(budget * passage.length))
        sent = passage.join(kept)
        if way.method != "restored" or not sent:
            return sent, passage.cost(kept)
        tokenizer = self.reconstructor.tokenizer
        restored = self.reconstructor.restore(tokenizer(sent, add_special_tokens=False)["input_ids"])
        return tokenizer.decode(restored), passage.cost(kept)
