"""Compress texts of any length with a trained agent, and restore them: what `eval/compress.py` does, from Python.

    from eval.compress import Compressor

    compressor = Compressor.from_pretrained("models/agent/released")
    short = compressor.compress(text, keep_ratio=0.6)       # short.text, short.tokens, short.kept_tokens, short.spans
    compressor.restore(short)                               # from short.text alone

Shapes: `T` tokens of a text, `U` units of it, words or tokens, which are kept or dropped as a whole.
"""

import functools
import threading

import numpy as np
import torch

from data.artifacts import InputError
from eval.compressed import Compressed, Job
from eval.deciding import Task, budget_of, check_ask, decide, fit, select, select_chain, unit_means, unit_sizes, worths
from eval.encoding import Encoder
from eval.protect import Protection, take_markers, with_markers
from eval.restoring import restore
from models.agent.files import RELEASED, check_reconstructor, load_policy, read_agent
from models.reconstructor.reconstructor import Reconstructor, find_device

GOALS = ("restore", "read")  # what is sent for: to be restored, or for a language model that reads it
SHORTEST = 8  # tokens; a shorter text has nothing to spare
# Share of tokens that are among the agent's COMMON_TOKENS: Korean has .17, Greek .00, French .50, base64 .78, English .94.
FAMILIAR = 0.25


class Compressor:
    """An agent that compresses texts, one, many or a batch of columns: a callable for `datasets.map(batched=True)`
    and Ray Data's `map_batches`.

    `model_path`: the agent, a directory or a .zip. `reconstructor_path`: where its receiver lies, or another one that restores;
    default: the one that it names. An agent with a reader of its own compresses without it. `goal`: "restore", what is sent
    is best restored, or "read", a language model that reads what is sent answers best. `unit`: "word" or "token", default: the
    agent's. `batch_size`: windows per forward pass. What `compress` takes may be given here, for all texts. Models are loaded
    when the first text comes. Threads may share one. A pickle of it has the paths and settings, and loads anew.

    Raises FileNotFoundError or InputError if there is no such agent.
    """

    def __init__(
        self, model_path=RELEASED, device="cpu", reconstructor_path=None, goal="restore", unit=None, batch_size=8,
        text_column="text", keep_ratio=None, target_tokens=None, price=None, protection=Protection(),
    ):
        self.settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.model_path, self.reconstructor_path, self.batch_size = model_path, reconstructor_path, batch_size
        self.device, self.unit, self.text_column = find_device(device), unit, text_column
        self.ask, self.protection = check_ask(keep_ratio, target_tokens, price), protection
        if goal not in GOALS:
            raise InputError(f"goal: expected one of {', '.join(GOALS)}, found {goal}")
        self.config, self.goal = read_agent(model_path)[0], goal
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(cls, model_path=RELEASED, device="cpu", **settings):
        """A Compressor whose models are loaded."""
        self = cls(model_path, device, **settings)
        self.load()
        return self

    def __reduce__(self):
        return unpickled, (type(self), tuple(self.settings.items()))

    def load(self):
        """Load the agent now; otherwise the first text does."""
        with self._lock:
            return self._policy

    @functools.cached_property
    def reconstructor(self):
        """What restores, and, unless the agent has a reader of its own, what it reads with. A restoration needs no agent, so any
        other one will do that is named; where the agent's file says it must be the agent's."""
        named = self.config["reconstructor"]
        found = Reconstructor.load(self.reconstructor_path or named["path"], self.device, self.config["gaps"])
        if self.reconstructor_path is None:
            check_reconstructor(named, self.model_path, found)
        return found

    @functools.cached_property
    def _agent(self):
        return load_policy(self.model_path, self.device, None if self.config.get("reader") else self.reconstructor)

    @functools.cached_property
    def encoder(self):
        reads = self._agent.reader.reconstructor if self.config.get("reader") else self.reconstructor
        return Encoder(reads.tokenizer, self.unit or self.config["unit"])

    @functools.cached_property
    def _restoring(self):
        """The receiver and its Encoder, which has the agent's tokenizer."""
        if self.config.get("reader"):
            return self.reconstructor, Encoder(self.reconstructor.tokenizer, self.unit or self.config["unit"])
        return self.reconstructor, self.encoder

    @functools.cached_property
    def _policy(self):
        policy = self._agent
        policy.reader.words = self.encoder.words
        if self.goal == "read" and policy.reader.worth is None:
            raise InputError(
                f"{self.model_path}: expected an agent that knows what words are worth to a reader, found no worths beside its "
                "weights; teach it: python rl/train_worth.py"
            )
        self._common = np.zeros(policy.reader.reconstructor.vocab_size, dtype=bool)
        self._common[policy.reader.common.cpu()] = True
        return policy

    def compress(
        self, text: str, keep_ratio: float | None = None, target_tokens: int | None = None,
        price: float | None = None, protection: Protection | None = None, explain: bool = False,
    ) -> Compressed:
        """A text with fewer tokens, at most as many as asked for; what is protected stays whatever is asked for.

        keep_ratio: tokens kept per original token, above 0, at most 1; target_tokens: tokens kept; price: λ, nats that a token
        costs to send: tokens that are dearer to restore stay, however many. One of them; default: the Compressor's own, else .7.
        Raises InputError if more than one is given or one is out of range, or if the text has half a surrogate pair.
        """
        return self.compress_many([text], keep_ratio, target_tokens, price, protection, explain)[0]

    def compress_many(
        self, texts: list[str], keep_ratio: float | None = None, target_tokens: int | None = None,
        price: float | None = None, protection: Protection | None = None, explain: bool = False, progress=None,
    ) -> list[Compressed]:
        """Compressed texts, in their order; windows of similar length are decided together. Arguments as of `compress`.

        `progress`: called with the number of tokens that were read, after every batch.
        """
        given = check_ask(keep_ratio, target_tokens, price)
        ask, protection = given if any(x is not None for x in given) else self.ask, protection or self.protection
        if self.goal == "read" and ask[2] is not None:
            raise InputError("price: is of what is restored; where the goal is to be read, ask for keep_ratio or target_tokens")
        self.load()
        jobs = [self._open(text, ask, protection) for text in texts]
        make = worths if self.goal == "read" else decide
        found = iter(make(self._policy, [job.task for job in jobs if not job.note], self.batch_size, progress))
        return [self._close(job, None if job.note else next(found), explain) for job in jobs]

    def __call__(self, batch):
        """A batch of columns with the columns `compressed`, `tokens` and `kept_tokens` added or replaced."""
        if self.text_column not in batch:
            raise InputError(f"expected a column '{self.text_column}', found {', '.join(batch)}; name it with text_column")
        texts = list(batch[self.text_column])
        if wrong := [i for i, text in enumerate(texts) if not isinstance(text, str)]:
            found = f"{texts[wrong[0]]!r} in row {wrong[0]} of a batch"
            raise InputError(f"column '{self.text_column}': expected texts, found {found}")
        found = self.compress_many(texts)
        columns = {
            "compressed": [each.text for each in found], "tokens": [each.tokens for each in found],
            "kept_tokens": [each.kept_tokens for each in found],
        }
        if isinstance(batch[self.text_column], np.ndarray):
            kinds = {"compressed": object}
            columns = {name: np.array(values, dtype=kinds.get(name, np.int64)) for name, values in columns.items()}
        return {**batch, **columns}

    def keep_mask(self, ids):
        """Which of a text's tokens stay, (T,) bool, at what all texts were asked for: for lossless.encode."""
        self.load()
        if not len(ids):
            return np.zeros(0, dtype=bool)
        known = torch.as_tensor(np.asarray(ids, dtype=np.int64))[None]
        starts = self.encoder.words.starts(known, torch.ones_like(known, dtype=torch.bool))[0].numpy()
        budget, price = budget_of(len(ids), self.ask)
        task = Task(np.asarray(ids, dtype=np.int32), starts, price, None if budget is None else budget / len(ids))
        decided, size = decide(self._policy, [task], self.batch_size)[0], unit_sizes(starts)[1]
        scores, none = unit_means(decided.logits, starts), np.zeros(len(size), dtype=bool)
        kept = scores > 0 if budget is None else select(scores, size, none, budget)
        return np.repeat(kept, size)

    def _why_whole(self, ids):
        """Why a text of ids (T,) is not worth compressing; empty if it is."""
        if len(ids) < SHORTEST:
            return f"{len(ids)} tokens, too few to compress: passed through whole"
        if (share := self._common[ids].mean()) < FAMILIAR:
            known = f"{share:.0%} of the tokens are common in its texts"
            return f"another script than the agent knows, {known}: passed through whole"
        return ""

    def _open(self, text, ask, protection):
        """The Job of a text."""
        plain, marked, cuts = take_markers(text) if protection.markers else (text, [], [])
        encoded = self.encoder.encode(plain)
        length = len(encoded.ids)
        budget, price = budget_of(length, ask)
        job = Job(plain, cuts, encoded, np.zeros(int(encoded.starts.sum()), dtype=bool), budget, price, "")
        note = "" if ask[1] is not None else self._why_whole(encoded.ids)  # a number of tokens is kept to by any text
        if budget is not None and budget >= length:
            note = note or f"{length} tokens, no fewer were asked for: passed through whole"
        return job._replace(note=note, protected=job.protected if note else job.covered([*marked, *protection.spans(plain)]))

    def _fit(self, job, decided, count):
        """The units (U,) that stay of a Job, and what `count` says of their tokens."""
        if self.goal == "read":
            choose = functools.partial(select_chain, *decided, job.size, job.protected)
        else:
            scores = unit_means(decided.logits, job.encoded.starts)
            choose = functools.partial(select, scores, job.size, job.protected)
        if job.budget is None:
            kept = (scores > 0) | job.protected
            return kept, count(kept)
        return fit(choose, job.size, job.protected, job.budget, count)

    def _close(self, job, decided, explain):
        """The Compressed of a Job from its Decided, None if it passes through whole."""
        length, note = len(job.encoded.ids), job.note
        kept, count = np.ones(len(job.protected), dtype=bool), length
        if decided is not None:
            count_of = lambda kept: self.encoder.count(job.sent(kept))
            kept, count = self._fit(job, decided, count_of)
            if job.budget is not None and count > job.budget:
                note = f"what is protected has {count} tokens, more than the {job.budget} asked for: it alone was kept"
            if count >= length:
                kept[:], count = True, length
                note = note or "nothing would be gained: passed through whole"
        reasons = job.reasons(kept, decided) if explain and decided is not None else ()
        ratio, spans = count / length if length else 1.0, with_markers(job.spans(kept), job.cuts)
        text = job.text if kept.all() else job.sent(kept)
        return Compressed(text, length, count, ratio, tuple(spans), job.budget, note, reasons)

    def restore(self, sent: str | Compressed) -> str:
        """A text from what was sent alone, a str or a Compressed's `text`, which comes back in it character for character.

        Raises InputError if the reconstructor can't find gaps.
        """
        with self._lock:
            models = self._restoring
        return restore(*models, sent.text if isinstance(sent, Compressed) else sent, self.batch_size)


@functools.lru_cache(maxsize=2)
def unpickled(kind, settings):
    """The Compressor of a pickle. Ray unpickles one for every task: a process loads its models once."""
    return kind(**dict(settings))
