"""Tests of records that were damaged, value by value: `python eval/test_records.py` or pytest.

Every value of every record that the stages write is left out, and replaced by null, text, a list, an object, -1 and NaN. What
reads it goes on or says in one line what is wrong.
"""

import copy
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib.pyplot as plt
import pytest
import torch

from data.artifacts import InputError
from data.provenance import REPOSITORY
from data.sequences import INFO, load_sequences
from eval import pages
from eval.conftest import agents, stages  # fixtures
from eval.inputs import first_base_model
from eval.methods import Agent
from eval.records import EVALUATION, KINDS, read_any
from eval.report import format_table, verdicts
from models.agent.files import load_policy, read_agent
from models.reconstructor.causal_lm import load_causal_lm
from models.reconstructor.checkpoints import FINE_TUNING, STATE, by_age, read_state
from models.reconstructor.pretraining.draws import read_streams
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.tokenizer import fingerprint, load_tokenizer
from plots import visualize
from rl.checkpoints import PARTS

OTHERS = (None, "text", [], {}, -1, float("nan"))
LONGEST = 1  # entries of a list that are damaged; the others are alike


def places(value, path=()):
    """The paths of all values in a record, as tuples of keys and indices."""
    inner = value.items() if isinstance(value, dict) else enumerate(value[:LONGEST]) if isinstance(value, list) else ()
    for key, part in inner:
        yield (*path, key)
        yield from places(part, (*path, key))


def damaged(record, skip=()):
    """(what was done, a record with one value left out or replaced), for all values but those behind the keys in `skip`."""
    for path in places(record):
        if path[0] in skip:
            continue
        for other in ("left out", *OTHERS):
            found = copy.deepcopy(record)
            holder = found
            for key in path[:-1]:
                holder = holder[key]
            if other == "left out":
                del holder[path[-1]]
            else:
                holder[path[-1]] = other
            yield f"{path}: {other}", found


def survives(read, records):
    """Have `read` take every damaged record: nothing but a line of an error comes of it. Returns how many were refused."""
    refused = 0
    for what, record in records:
        try:
            read(record)
        except (InputError, OSError) as error:
            assert "\n" not in str(error), what
            refused += 1
        except Exception as error:
            pytest.fail(f"{what}: {type(error).__name__}: {error}")
        finally:
            plt.close("all")
    return refused


STAMP = ("args", "versions", "commit", "units", "seed", "weights")  # of records whose readers don't use them


def test_data_sets(stages, tmp_path):
    folder = Path(shutil.copytree(stages[0] / "data", tmp_path / "data"))
    known = fingerprint(load_tokenizer(stages[0] / "base"))

    def read(info):
        (folder / INFO).write_text(json.dumps(info))
        sequences = load_sequences(folder / "val_data.json", known)
        assert len(sequences) and sequences[0].ndim == 1 and len(sequences.docs)

    def read_by_pretraining(info):
        (folder / INFO).write_text(json.dumps(info))
        read_streams(folder, "train", 0)

    info = json.loads((folder / INFO).read_text())
    for reader in (read, read_by_pretraining):
        reader(info)
        assert survives(reader, damaged(info, STAMP)) > 20


def test_sequence_files(stages, tmp_path):
    folder = Path(shutil.copytree(stages[0] / "data", tmp_path / "data"))
    known = fingerprint(load_tokenizer(stages[0] / "base"))
    info, path = json.loads((folder / INFO).read_text()), folder / "processed_data.json"
    first, *rest = path.read_text().splitlines(keepends=True)

    def read(row):
        path.write_text(json.dumps(row) + "\n" + "".join(rest))
        sequences = load_sequences(path, known)
        assert all(0 <= sequences[0]) and all(sequences[0] < info["tokenizer"]["vocab_size"])
        assert all(isinstance(doc, str) for doc in sequences.docs)

    def read_by_pretraining(row):
        path.write_text(json.dumps(row) + "\n" + "".join(rest))
        read_streams(folder, "train", 0)

    row = json.loads(first)
    for reader in (read, read_by_pretraining):
        reader(row)
        assert survives(reader, damaged(row)) > 15


def test_reconstructors(stages, tmp_path):
    folder = Path(shutil.copytree(stages[0] / "tuned", tmp_path / "tuned"))

    def read(name):
        def reader(record):
            (folder / name).write_text(json.dumps(record))
            Reconstructor.load(folder, gaps="found")
            first_base_model(folder)

        return reader

    record = json.loads((folder / "reconstructor.json").read_text())
    read("reconstructor.json")(record)
    kept = ("versions", "commit", "units", "seed", "metrics")
    some = record | {"args": {name: record["args"][name] for name in ("data_path", "base_model")}}
    assert survives(read("reconstructor.json"), damaged(some, kept)) > 25
    (folder / "reconstructor.json").write_text(json.dumps(record | {"weights": {}}))  # of a directory whose hashes nobody knows
    config = json.loads((folder / "config.json").read_text())
    read("config.json")(config)
    assert survives(read("config.json"), damaged(config)) > 20


def test_agents(stages, agents, tmp_path):
    folder = Path(shutil.copytree(agents[1], tmp_path / "agent"))
    reconstructor = Reconstructor.load(stages[0] / "tuned", gaps="found")
    ids = torch.arange(2, 14)[None]

    def read(config):
        (folder / "config.json").write_text(json.dumps(config))
        policy = load_policy(folder, reconstructor=reconstructor)
        assert Agent(policy).scores(ids, torch.ones_like(ids, dtype=torch.bool), 0.5).shape == ids.shape
        assert read_agent(folder)[0]["args"]["seed"] >= 0

    config = json.loads((folder / "config.json").read_text())
    read(config)
    some = config | {"args": {"seed": 43}}
    assert survives(read, damaged(some, ("versions", "commit", "units", "seed", "held_out", "texts"))) > 60


RESULTS = {
    "reader/all/reader_results.json": "{{ by_budget(r, figures=['recovered', 'recovered_short']) }}{{ verdicts(r) }}",
    "fresh/recipes/price_results.json": "{{ verdicts(r) }}",
    "lossless/lossless_results.json":
        "% for c in r.corpora\n{{ c.corpus }} {{ c.sent | number }} {{ c.bits_per_byte.joined.ranks }}\n% endfor",
}


def shorter(value):
    """A record with lists of at most LONGEST + 1 entries, so that every kind of value is there and few are alike."""
    if isinstance(value, dict):
        return {key: shorter(part) for key, part in value.items() if key != "nats_of_each"}
    return [shorter(part) for part in value[: LONGEST + 1]] if isinstance(value, list) else value


@pytest.mark.parametrize("checkpoints, shape", [("agent/checkpoints", PARTS), ("tuned", FINE_TUNING)], ids=["agent", "tuned"])
def test_states_of_trainings(stages, tmp_path, checkpoints, shape):
    """What is not a state is refused before anything of it is used; of tensors one by one nothing is said here."""
    newest = by_age(stages[0] / checkpoints)[-1]
    state = read_state(newest / STATE, shape)
    some = {name: dict(list(state[name].items())[:1]) for name in ("policy", "optimizer") if name in state}
    state = state | some | {"args": dict(list(state["args"].items())[:2])}

    def read(record):
        torch.save(record, tmp_path / STATE)
        assert read_state(tmp_path / STATE, shape).keys() == shape.keys()

    read(state)
    assert survives(read, damaged(state, ("optimizer",))) > 60


def test_evaluations(record_of_two, tmp_path):
    path = tmp_path / "results.json"

    def read(record):
        path.write_text(json.dumps(record))
        found = read_any(path)
        if found.get("schema") == EVALUATION.schema:
            format_table(found)
            verdicts(found)
            visualize.figures_of([path], 2)

    read(record_of_two)
    assert survives(read, damaged(record_of_two, STAMP)) > 60


@pytest.fixture
def record_of_two(stages):
    """The toy evaluation of two methods at two keep ratios, with an example."""
    record = json.loads((stages[0] / "results/evaluation_results.json").read_text())
    few = lambda rows: [r for r in rows if r["method"] in ("agent", "random") and r["keep_ratio_asked"] in (0.9, 0.5)]
    judged = ("method", "keep_ratio_asked", "keep_ratio", "top1", "distortion", "word_error_rate")
    rows = lambda name: [{key: r[key] for key in judged if key in r} for r in few(record[name])]
    examples = [e | {"pieces": e["pieces"][:2]} for e in record["examples"][:1]]
    return record | {"results": rows("results"), "differences": rows("differences"), "examples": examples}


@pytest.mark.parametrize("path, template", RESULTS.items(), ids=lambda value: Path(value).stem)
def test_tables_of_damaged_results(path, template, tmp_path):
    record = json.loads((REPOSITORY / "eval/results" / path).read_text())
    record = shorter({key: value for key, value in record.items() if key not in (*STAMP, "passage_of_each", "models")})

    def read(found):
        (tmp_path / "results.json").write_text(json.dumps(found))
        pages.make_table(f"r={tmp_path}/results.json", template)

    read(record)
    assert record["schema"] in KINDS and survives(read, damaged(record)) > 20


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
