"""Tests that files of one model stay together, and are not read otherwise: `python models/reconstructor/test_together.py`."""

import argparse
import contextlib
import json
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pytest

from data.artifacts import InputError, sha256_of
from data.testing.toy import overflow, seal
from eval.compressor import Compressor
from models.agent.conftest import make_policy, make_reconstructor
from models.agent.files import CONFIG, WEIGHTS, TrainedAgent, identity, load_policy
from models.agent.test_files import SIZES, config_of
from models.agent.worth import WORTH, Worth
from models.reconstructor.causal_lm import load_causal_lm
from models.reconstructor.gaps import GAP_HEAD
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.tokenizer import BASE_MODEL, locate

NOT_TOGETHER = "expected .* of the (model|agent) that (reconstructor|config).json describes, .*found"


def save(directory, seed=0, attention="bidirectional", found=True):
    """A random reconstructor, saved: those of two seeds differ in every weight."""
    made = make_reconstructor(attention=attention, found=found)
    with np.errstate(all="ignore"):
        for parameter in made.model.parameters():
            parameter.data.add_(0.1 * seed)
    made.save(directory, args=argparse.Namespace())
    return directory


def files(directory):
    return sorted(path.name for path in directory.iterdir())


class Killed(BaseException):
    pass


def killed_at(patch, number):
    """Have the replacement of the `number`th file kill the run."""
    replace, done = os.replace, []

    def counted(source, target):
        if len(done) == number:
            raise Killed
        replace(source, target)
        done.append(target)

    patch.setattr(os, "replace", counted)


def test_a_reconstructor_that_is_killed_at_any_file_is_old_new_or_refused(tmp_path, monkeypatch):
    """Never new weights with the old attention, head or config."""
    old, new = save(tmp_path / "old"), save(tmp_path / "new", 1, "causal")
    whole, refused = {identity(path, "found")["sha256"]: path for path in (old, new)}, 0
    for number in range(len(files(new)) + 2):
        folder = shutil.copytree(old, tmp_path / str(number))
        with monkeypatch.context() as patch:
            killed_at(patch, number)
            with contextlib.suppress(Killed):
                save(folder, 1, "causal")
        try:
            Reconstructor.load(folder, gaps="found")
            assert identity(folder, "found") == identity(whole[sha256_of(folder)], "found")
        except FileNotFoundError as error:
            assert "reconstructor.json is missing" in str(error)
            refused += 1
        save(folder, 1, "causal")
        assert Reconstructor.load(folder, gaps="found").attention == "causal" and files(folder) == files(new)
    assert refused > 4


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", GAP_HEAD, "tokenizer.json"])
@pytest.mark.parametrize("load", [lambda path: Reconstructor.load(path), load_causal_lm, Reconstructor.from_base])
def test_a_file_of_another_model_is_refused_in_one_line(tmp_path, name, load):
    old, new = save(tmp_path / "old"), save(tmp_path / "new", 1)
    load(old)
    content = (new / name).read_bytes()
    (old / name).write_bytes(content + b"\n" if name.endswith("json") else content.replace(content[-4:], b"\0\0\0\1"))
    with pytest.raises(InputError, match=NOT_TOGETHER) as refused:
        load(old)
    assert name in str(refused.value) and "\n" not in str(refused.value)
    (old / name).unlink()
    with pytest.raises(InputError, match="found none"):
        load(old)


def test_no_gap_head_of_an_earlier_model_stays(tmp_path):
    save(save(tmp_path / "model"), 1, found=False)
    assert not (tmp_path / "model" / GAP_HEAD).exists() and Reconstructor.load(tmp_path / "model").gap_head is None
    save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / GAP_HEAD, tmp_path / "model")
    with pytest.raises(InputError, match=f"expected {GAP_HEAD} .*none, found SHA-256"):
        Reconstructor.load(tmp_path / "model")


def test_of_a_record_without_hashes_nothing_is_known(tmp_path):
    """Those of earlier directories say nothing of the files, or of the model's place alone."""
    folder = save(tmp_path / "model")
    record = json.loads((folder / "reconstructor.json").read_text())
    for weights in ({}, {"models/reconstructor/base": "0" * 64}, None):
        some = {name: value for name, value in (record | {"weights": weights}).items() if value is not None}
        (folder / "reconstructor.json").write_text(json.dumps(some))
        assert Reconstructor.load(folder, gaps="found").found


def test_the_embedded_base_and_the_agent_that_ships_have_hashes():
    record = json.loads((Path(locate(BASE_MODEL)) / "reconstructor.json").read_text())
    assert {"model.safetensors", "config.json", "tokenizer.json", GAP_HEAD} <= record["weights"].keys()
    config = json.loads((Path(locate("models/agent/released")) / CONFIG).read_text())
    assert config["weights"].keys() == {WEIGHTS, WORTH}
    assert config["reconstructor"] == {"path": BASE_MODEL, **identity(locate(BASE_MODEL), "found")}


@pytest.fixture
def agent(tmp_path):
    """A reconstructor in `reader`, and the agent in `agent` that reads with it, with worths."""
    save(tmp_path / "reader")
    reconstructor = Reconstructor.load(tmp_path / "reader", gaps="found")
    policy = make_policy(reconstructor, unit="word")
    policy.reader.worth, policy.config = Worth(policy.reader.states).eval(), config_of(reconstructor, SIZES)
    TrainedAgent(policy).save_pretrained(tmp_path / "agent")
    return tmp_path, policy


@pytest.mark.parametrize("name", [WEIGHTS, WORTH])
def test_an_agents_files_belong_together(agent, name):
    folder, policy = agent
    assert load_policy(folder / "agent").reader.worth is not None
    damage(folder / "agent" / name)
    with pytest.raises(InputError, match=NOT_TOGETHER) as refused:
        load_policy(folder / "agent")
    assert "\n" not in str(refused.value)
    policy.reader.worth = None
    TrainedAgent(policy).save_pretrained(folder / "agent")
    assert load_policy(folder / "agent").reader.worth is None, "worths of another agent went"


def test_an_agent_that_is_killed_while_it_is_written_is_none(agent, monkeypatch):
    folder, policy = agent
    for number in range(3):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            killed_at(patch, number)
            TrainedAgent(policy).save_pretrained(folder / "agent")
        with pytest.raises(InputError, match="expected an agent, .* found: not both of them"):
            load_policy(folder / "agent")


def damage(path):
    """Change the last weight in a file."""
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")


OTHERWISE = {
    "attention": lambda path: change(path / "reconstructor.json", attention="causal"),
    "SHA-256 of config.json": lambda path: change(path / "config.json", n_head=4),
    "SHA-256 of the gap head": lambda path: damage(path / GAP_HEAD),
    "SHA-256": lambda path: save(path, 1),
}


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("what", OTHERWISE)
def test_an_agent_is_refused_where_its_reconstructor_is_another(agent, what):
    """Its weights, its head, and how it reads: all of one model, only not of the agent's."""
    folder, _ = agent
    OTHERWISE[what](folder / "reader")
    seal(folder / "reader")
    with pytest.raises(InputError, match=f"reader, {what} .*, found .*; bring that one back, or train anew") as refused:
        load_policy(folder / "agent")
    assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match="expected the reconstructor that it was trained with"):
        Compressor(folder / "agent").restore("w1 w2")
    assert Compressor(folder / "agent", reconstructor_path=folder / "reader").reconstructor, "one that is named restores"
    config = json.loads((folder / "agent" / CONFIG).read_text())
    known = {name: config["reconstructor"][name] for name in ("path", "sha256", "gap_head")}
    change(folder / "agent" / CONFIG, reconstructor=known)  # as of agents that do not say how it reads
    if what in ("attention", "SHA-256 of config.json"):
        load_policy(folder / "agent")


@pytest.mark.parametrize("token", [7, 8])
def test_infinities_of_finite_weights_are_refused_where_they_enter(agent, token):
    """Of a token that is in the text, and of one that is not: deciding, scoring and restoring."""
    folder, policy = agent
    ids = np.array([[7, 3, 5, 9, 11, 2, 4, 6]])
    whole, reconstructor = np.ones(ids.shape, bool), policy.reader.reconstructor
    keep_mask = np.arange(8)[None] % 3 > 0
    calls = [
        lambda: reconstructor.predict(ids, keep_mask), lambda: reconstructor.restore(ids[0]),
        lambda: policy.keep_probability(ids, whole, 1.5), lambda: policy.keep_probability_at(ids, whole, 0.5),
    ]
    for call in calls:
        call()
    overflow(reconstructor.model, token)
    for call in calls:
        with pytest.raises(InputError, match="the reconstructor .*/reader: expected finite numbers for every token"):
            call()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
