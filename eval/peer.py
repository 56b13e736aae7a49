"""LLMLingua itself among the contexts of `evaluate_reader.py`: run live, in an environment of its own, or as it was recorded.

`--peer llmlingua` starts `peer_worker.py` with the Python of `venv-llmlingua`, or of the environment that `--peer` names, and
hands it the passages, their budgets and the reader's model, saved for a transformers of another age. What comes back is left in
`peer.jsonl`, which the next `--peer` takes instead. Nothing of it is believed: the model there must read as the reader does, a
text must cost at most its budget in the reader's tokens, and be what is left of its passage.
"""

import json
import os
import subprocess
import tempfile
from itertools import combinations
from pathlib import Path

import numpy as np
from safetensors.torch import save_file
from tqdm import tqdm

from data.artifacts import InputError, write_text
from data.provenance import REPOSITORY

NAME = "llmlingua"
ENVIRONMENT = REPOSITORY / "venv-llmlingua"
INSTALL = f"python3 -m venv {ENVIRONMENT.name} && {ENVIRONMENT.name}/bin/pip install llmlingua==0.2.2 transformers==4.46.3"
WORKER = Path(__file__).with_name("peer_worker.py")
RECORD = "peer.jsonl"
CLOSE = 0.02  # relative: nats per token of one text by one model in 16 and in 32 bit differ by less, of another model by more
LOST = "\ufffd"  # what a tokenizer makes of a part of a character


def write_model(reader, folder):
    """Save a reader for any transformers: fields of the config under their old names too, and a tokenizer of the plain class."""
    folder.mkdir()
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in reader.model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = reader.model.config.to_dict() | {"architectures": [type(reader.model).__name__]}
    config.pop("quantization_config", None)  # a file in 4 bit was made whole when it was read
    if rope := config.get("rope_parameters"):
        config |= {"rope_theta": rope["rope_theta"], "rope_scaling": None if rope["rope_type"] == "default" else rope}
    (folder / "config.json").write_text(json.dumps(config, default=str))
    reader.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    special = {name: token for name, token in reader.tokenizer.special_tokens_map.items() if isinstance(token, str)}
    plain = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(plain | special))


def pieces(reader, text):
    """The tokens of a text as [(what they may leave, which of them)]: those that share a character in one, whole or in part."""
    ids, found = reader.encode(text), []
    for i, (start, end) in enumerate(reader.spans(text)):
        if found and start < found[-1][1]:
            found[-1] = found[-1][0], end, [*found[-1][2], i]
        else:
            found.append((start, end, [i]))
    for start, end, tokens in found:
        parts = [some for size in range(len(tokens), 0, -1) for some in combinations(tokens, size)] if len(tokens) > 1 else []
        yield [(text[start:end], tokens), *((reader.tokenizer.decode([ids[i] for i in some]), some) for some in parts[1:])]


def align(reader, text, sent):
    """The keep mask over the reader's tokens of a text (T,) that leaves `sent`, the first of several; None if none does."""
    reached = {0: (-1, None, ())}  # characters of `sent` that are explained: by which piece, from where on, with which tokens
    for number, piece in enumerate(pieces(reader, text)):
        for left, tokens in piece:
            start = sent.find(left) if left else -1
            while start >= 0:
                if start in reached and reached[start][0] < number:
                    reached.setdefault(start + len(left), (number, start, tokens))
                start = sent.find(left, start + 1)
    if len(sent) not in reached:
        return None
    kept, at = np.zeros(len(reader.encode(text)), dtype=bool), len(sent)
    while at:
        _, at, tokens = reached[at]
        kept[list(tokens)] = True
    return kept


def left_of(text, sent):
    """Whether the bytes of `sent` stand in the text in this order, spaces and lost characters apart; parts of two make one."""
    rest = iter(text.encode())
    return all(byte in rest for byte in "".join(sent.replace(LOST, "").split()).encode())


def find_python(where):
    """The Python of the environment that `--peer` names. Raises InputError."""
    python = (ENVIRONMENT if where == NAME else Path(where)) / "bin/python"
    if not python.is_file():
        raise InputError(f"--peer {where}: expected an environment's {python}, found none; install it with: {INSTALL}")
    return python


def check_peer(where):
    """Raises InputError or FileNotFoundError unless `--peer` names a record or an environment: before anything is read."""
    if Path(where).suffix != ".jsonl":
        find_python(where)
    elif not Path(where).is_file():
        raise FileNotFoundError(f"--peer {where}: expected a record of {WORKER.name}, found none; make one with: --peer {NAME}")


class Peer:
    """What the peer made of passages: `contexts(passages, budgets)`."""

    def __init__(self, where, reader, folder, passages, budgets):
        """`passages`: a list of Passage; `folder`: where a live run leaves its record. Raises InputError or FileNotFoundError."""
        self.where, self.reader = where, reader
        asked = list(dict.fromkeys((p.text, int(budget * p.length)) for p in passages for budget in budgets))
        recorded = Path(where).suffix == ".jsonl"
        try:
            lines = Path(where).read_text(encoding="utf-8").splitlines() if recorded else self._run(asked)
            self.header, *rows = (json.loads(line) for line in lines)
            self.rows = {(row["method"], row["text"], row["budget"]): row for row in rows}
            self.methods = list(dict.fromkeys(row["method"] for row in rows))
            self._check_model()
            found = (key for key in ((m, *pair) for m in self.methods for pair in asked) if key in self.rows)
            self.masks = {key: self._mask(**self.rows[key]) for key in found}
        except (ValueError, KeyError, TypeError, IndexError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"--peer {where}: expected the rows of {WORKER.name}, found: {error}; use --peer {NAME}") from None
        if missing := sum((m, *pair) not in self.rows for m in self.methods for pair in asked):
            raise InputError(f"--peer {where}: {missing} texts at a budget are missing, of {len(asked)}; use --peer {NAME}")
        if not recorded:
            write_text(folder / RECORD, "".join(line.rstrip("\n") + "\n" for line in lines))

    def _run(self, asked):
        """The lines of the worker. Raises InputError."""
        python = find_python(self.where)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_model(self.reader, folder / "model")
            rows = [json.dumps({"text": text, "budget": budget}) + "\n" for text, budget in asked]
            (folder / "texts.jsonl").write_text("".join(rows))
            command, offline = [python, WORKER, folder], {**os.environ, "HF_HUB_OFFLINE": "1"}
            with (
                (folder / "errors").open("w+") as errors,
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=offline, encoding="utf-8") as process,
            ):
                try:
                    lines = list(tqdm(process.stdout, "peer", unit="line", disable=self.reader.quiet))
                except BaseException:
                    process.kill()
                    raise
                code = process.wait()
                errors.seek(0)
                last = (errors.read().strip().splitlines() or [f"status {code}"])[-1]
        if code:
            raise InputError(f"--peer {self.where}: {WORKER.name} ended with: {last}; versions that work: {INSTALL}")
        return lines

    def _check_model(self):
        """Raises InputError if the peer's model does not read a text as the reader does."""
        ids = self.reader.encode(self.header["text"])
        ours = self.reader.nats([(ids[:1], ids[1:])], "")[0] / (len(ids) - 1)
        if abs(self.header["nats"] / ours - 1) > CLOSE:
            found = f"expected {ours:.3f} nats per token of its text, as by --reader, found {self.header['nats']:.3f}"
            raise InputError(f"--peer {self.where}: {found}; record it with this reader: --peer {NAME}")

    def _mask(self, text, budget, sent, **_):
        """The mask of what was sent, or None. Raises InputError if it costs more than its budget or is not of the text."""
        if (cost := self.reader.count([sent])[0]) > budget:
            raise InputError(f"--peer {self.where}: expected at most {budget} tokens of the reader, found {cost}: {sent[:60]!r}")
        if not left_of(text, sent):
            raise InputError(f"--peer {self.where}: expected a part of {text[:40]!r}, found other words: {sent[:60]!r}")
        return align(self.reader, text, sent)

    def contexts(self, passages, budgets):
        """{(method, budget): [[(text, tokens sent) of every passage]]}."""
        sent = lambda *key: (self.rows[key]["sent"].strip(), self.reader.count([self.rows[key]["sent"].strip()])[0])
        cells = [(method, budget) for budget in budgets for method in self.methods]
        return {(m, budget): [[sent(m, p.text, int(budget * p.length)) for p in passages]] for m, budget in cells}

    def record(self):
        """What a results file says of the peer: versions, and the share of texts of which it kept whole tokens, found again."""
        found = {m: [mask is not None for (of, *_), mask in self.masks.items() if of == m] for m in self.methods}
        aligned = {method: float(np.mean(some)) for method, some in found.items()}
        return {"versions": self.header["versions"], "aligned": aligned}
