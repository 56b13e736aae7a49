"""Tests of an agent's file, that it is small, whole and runs nothing: `python models/agent/test_files.py` or pytest."""

import argparse
import json
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pytest
import safetensors.torch
import torch
from gymnasium import spaces
from safetensors.torch import load_file, save_file

from data.artifacts import InputError, sha256_of
from data.testing.toy import Planted, seal
from models.agent.actor_critic import TokenCompressionPolicy
from models.agent.conftest import V, make_policy, make_reconstructor
from models.agent.files import OLDER, RELEASED, SCHEMA, TrainedAgent, digest_of, identity, load_policy, save_agent
from models.agent.policy import observation_space
from models.agent.reader import Reader
from models.reconstructor.gaps import GAP_HEAD
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.tokenizer import BASE_MODEL, locate
from rl import train

SIZES = {"embedding_dim": 8, "width": 16, "layers": 1, "heads": 2}


def config_of(reconstructor, sizes, path=None):
    """A config as rl/train.py writes it."""
    directory, gaps = reconstructor.directory, "found" if reconstructor.found else "told"
    read_with = {"path": str(path or directory), **identity(directory, gaps)}
    return {
        "schema": SCHEMA, "args": {"seed": 0}, "reconstructor": read_with, "tokenizer_fingerprint": reconstructor.fingerprint,
        "max_length": 12, "sizes": sizes, "blocks": 1, "critic_only": False, "prices": [0.15, 12.0],
        "gaps": gaps, "unit": "word" if reconstructor.found else "token",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a reconstructor in `reader` and an untrained agent that reads with it, agent.zip."""
    folder = tmp_path_factory.mktemp("agent")
    make_reconstructor().save(folder / "reader", args=argparse.Namespace())
    reconstructor = Reconstructor.load(folder / "reader")
    policy = make_policy(reconstructor, common=range(3, 20))
    torch.nn.init.normal_(policy.network.draft.weight)
    save_agent(policy, config_of(reconstructor, SIZES), folder / "agent.zip")
    return folder


def decide(policy):
    ids = torch.arange(20).view(2, 10)
    return policy.keep_probability(ids, torch.ones(2, 10, dtype=torch.bool), 1.5)


def parts_of(path):
    """config and tensors of an agent's file."""
    with zipfile.ZipFile(path) as file:
        return json.loads(file.read("config.json")), safetensors.torch.load(file.read("model.safetensors"))


def write_parts(path, config, tensors):
    weights = safetensors.torch.save(tensors)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", json.dumps(config | {"weights": {"model.safetensors": digest_of(weights)}}))
        file.writestr("model.safetensors", weights)
    return path


def test_an_agent_is_two_files_and_comes_back_as_it_was(folder):
    with zipfile.ZipFile(folder / "agent.zip") as file:
        assert sorted(file.namelist()) == ["config.json", "model.safetensors"]
    policy = load_policy(folder / "agent.zip")
    reconstructor = Reconstructor.load(folder / "reader")
    before = make_policy(reconstructor, common=range(3, 20))
    before.load_state_dict(policy.own_state(), strict=False)
    assert torch.equal(decide(policy), decide(before)) and policy.reader.common.tolist() == list(range(3, 20))
    assert policy.config["max_length"] == 12 and policy.tokenizer_fingerprint == reconstructor.fingerprint
    assert policy.lm_passes == 1.5 and policy.prices == (0.15, 12.0)
    assert torch.equal(decide(load_policy(folder / "agent.zip", reconstructor=reconstructor)), decide(policy))


def test_an_agent_on_the_embedded_base_takes_10_megabytes_at_most(tmp_path):
    """The default network, a vocabulary of 50,257 tokens."""
    base = Reconstructor.load(BASE_MODEL)
    sizes = {"embedding_dim": train.EMBEDDING_DIM, "width": 96, "layers": train.LAYERS, "heads": train.HEADS}
    reader = Reader(base, Reader.common_tokens(np.arange(base.vocab_size)))
    box = spaces.Box(0.0, 1.0, (1,), np.float32)
    policy = TokenCompressionPolicy(
        observation_space(base.vocab_size, 1, 12.0), box, lambda _: 1e-3, features_extractor_kwargs={"reader": reader, **sizes}
    )
    path = tmp_path / "best_model.zip"
    save_agent(policy, config_of(base, sizes, BASE_MODEL) | {"blocks": reader.blocks}, path)
    assert base.vocab_size == 50_257 and 6e6 < path.stat().st_size <= 10e6
    assert load_policy(path).reader.reconstructor.directory == Path(locate(BASE_MODEL))


def test_an_agent_goes_through_a_directory_as_the_hub_has_it(folder, tmp_path):
    policy = load_policy(folder / "agent.zip")
    TrainedAgent(policy).save_pretrained(tmp_path / "shared")
    assert {p.name for p in (tmp_path / "shared").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    for found in (TrainedAgent.from_pretrained(tmp_path / "shared").policy, load_policy(tmp_path / "shared")):
        assert torch.equal(decide(found), decide(policy)) and found.config == policy.config
    (tmp_path / "shared/README.md").write_text("mine")
    TrainedAgent.from_pretrained(tmp_path / "shared").save_pretrained(tmp_path / "shared")
    assert (tmp_path / "shared/README.md").read_text() == "mine"
    assert OLDER | parts_of(folder / "agent.zip")[0] == json.loads((tmp_path / "shared/config.json").read_text())


def old_style(path, planted):
    """A .zip as Stable-Baselines3 writes it, whose data and tensors are pickles."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("data", pickle.dumps(Planted(planted)))
        file.writestr("policy.pth", pickle.dumps(Planted(planted)))
    return path


def pickled_parts(path, planted):
    """The names of today, and pickles in them."""
    with zipfile.ZipFile(path, "w") as file:
        for name in ("config.json", "model.safetensors"):
            file.writestr(name, pickle.dumps(Planted(planted)))
    return path


def bare_pickle(path, planted):
    path.write_bytes(pickle.dumps(Planted(planted)))
    return path


@pytest.mark.parametrize("write", [old_style, pickled_parts, bare_pickle])
def test_a_planted_pickle_is_refused_and_runs_nothing(folder, tmp_path, write):
    path = write(tmp_path / "agent.zip", tmp_path / "planted")
    with pytest.raises(InputError, match="expected an agent, config.json and model.safetensors") as refused:
        load_policy(path)
    assert "\n" not in str(refused.value) and not (tmp_path / "planted").exists()
    pickle.loads(pickle.dumps(Planted(tmp_path / "planted"))).close()  # the control: one that is opened does write
    assert (tmp_path / "planted").exists()


def test_another_reconstructor_is_refused(folder, tmp_path):
    other = make_reconstructor()
    with torch.no_grad():
        other.model.transformer.wpe.weight[3, 3] += 1e-3
    other.save(tmp_path / "other", args=argparse.Namespace())
    with pytest.raises(InputError, match="expected the reconstructor that it was trained with .*SHA-256"):
        load_policy(folder / "agent.zip", reconstructor=Reconstructor.load(tmp_path / "other"))
    shutil.copytree(folder, tmp_path / "moved")
    config, tensors = parts_of(folder / "agent.zip")
    config["reconstructor"]["path"] = str(tmp_path / "other")
    with pytest.raises(InputError, match="bring that one back, or train anew"):
        load_policy(write_parts(tmp_path / "agent.zip", config, tensors))
    config["reconstructor"]["path"] = str(tmp_path / "moved/reader")  # the same weights in another place
    moved = load_policy(write_parts(tmp_path / "agent.zip", config, tensors))
    assert torch.equal(decide(moved), decide(load_policy(folder / "agent.zip")))
    config["reconstructor"]["path"] = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="reconstructor.json is missing"):
        load_policy(write_parts(tmp_path / "agent.zip", config, tensors))


def test_an_agent_that_does_not_say_it_is_told_and_decides_tokens(folder, tmp_path):
    """Agents from before gaps could be found: they load, decide as they did, and say so when they are written again."""
    config, tensors = parts_of(folder / "agent.zip")
    older = {name: value for name, value in config.items() if name not in OLDER}
    policy = load_policy(write_parts(tmp_path / "agent.zip", older, tensors))
    assert policy.config == OLDER | config and not policy.reader.found and policy.reader.words.unit == "token"
    assert torch.equal(decide(policy), decide(load_policy(folder / "agent.zip")))
    released = load_policy(RELEASED)
    assert {"gaps", "unit"} <= released.config.keys()


@pytest.fixture
def finding(finder, tmp_path):
    """A folder as `folder`, of an agent that decides words for a receiver that has to find the gaps."""
    finder.save(tmp_path / "reader", args=argparse.Namespace())
    reconstructor = Reconstructor.load(tmp_path / "reader", gaps="found")
    policy = make_policy(reconstructor, unit="word")
    torch.nn.init.normal_(policy.network.draft.weight)
    save_agent(policy, config_of(reconstructor, SIZES), tmp_path / "agent.zip")
    return tmp_path, policy


def test_an_agent_that_finds_gaps_comes_back_as_it_was(finding):
    folder, before = finding
    policy = load_policy(folder / "agent.zip")
    assert torch.equal(decide(policy), decide(before)) and policy.reader.found and policy.reader.words.unit == "word"
    assert policy.reader.reconstructor.found and policy.lm_passes == before.lm_passes
    config, tensors = parts_of(folder / "agent.zip")
    assert config["reconstructor"]["gap_head"] == sha256_of(folder / "reader" / GAP_HEAD) and len(tensors["value_net.bias"]) == 2
    config["gaps"] = "told"
    with pytest.raises(InputError, match="found others at"):
        load_policy(write_parts(folder / "agent.zip", config, tensors))


def test_another_gap_head_is_refused(finding):
    folder, _ = finding
    path, config = folder / "reader" / GAP_HEAD, parts_of(folder / "agent.zip")[0]
    head = load_file(path)
    head["out.bias"][0] += 1e-3
    save_file(head, path)
    seal(path.parent)
    with pytest.raises(InputError, match="expected the reconstructor .*SHA-256 of the gap head .*bring that one back") as refused:
        load_policy(folder / "agent.zip")
    assert "\n" not in str(refused.value) and config["reconstructor"]["gap_head"][:16] in str(refused.value)
    path.unlink()
    seal(path.parent)
    with pytest.raises(InputError, match="found no gap head"):
        load_policy(folder / "agent.zip")
    with pytest.raises(InputError, match="SHA-256 of the gap head .*found None"):
        load_policy(folder / "agent.zip", reconstructor=Reconstructor.load(folder / "reader"))


SHARPNESS, COMMON = "sharpness", "common_tokens"
NOT_FINITE = torch.tensor(float("nan"))
DAMAGE = {
    "another schema": (lambda c, t: c.update(schema="rltc.agent/1"), "schema 'rltc.agent/2', found 'rltc.agent/1'"),
    "no sizes": (lambda c, t: c.pop("sizes"), "expected sizes, found none"),
    "too many blocks": (lambda c, t: c.update(blocks=9), "blocks 9: expected at most 2"),
    "not a number": (lambda c, t: t.update({SHARPNESS: NOT_FINITE}), "expected finite weights"),
    "a tensor missing": (lambda c, t: t.pop(SHARPNESS), "found others at sharpness"),
    "a tensor too many": (lambda c, t: t.update(another=torch.zeros(1)), "found others at another"),
    "gaps that are neither": (lambda c, t: c.update(gaps="guessed"), "gaps: expected one of found, told, found 'guessed'"),
    "a unit that is none": (lambda c, t: c.update(unit="letter"), "unit: expected one of word, token, found 'letter'"),
    "another width": (lambda c, t: c["sizes"].update(width=32), "width 32.*found others at action_net.weight"),
    "no common tokens": (lambda c, t: t.pop(COMMON), "expected common_tokens"),
    "common tokens of another vocabulary": (lambda c, t: t.update({COMMON: torch.tensor([V])}), "ids from 0 to 49"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_in_one_line(folder, tmp_path, name):
    change, said = DAMAGE[name]
    config, tensors = parts_of(folder / "agent.zip")
    change(config, tensors)
    with pytest.raises(InputError, match=said) as refused:
        load_policy(write_parts(tmp_path / "agent.zip", config, tensors))
    assert "\n" not in str(refused.value)


def test_what_is_no_agent_is_refused_in_one_line(folder, tmp_path):
    whole = (folder / "agent.zip").read_bytes()
    for content in (b"", b"PK no zip", whole[: len(whole) // 2], whole[:-40], b"\x93" * 1000):
        (tmp_path / "agent.zip").write_bytes(content)
        with pytest.raises(InputError, match="expected an agent") as refused:
            load_policy(tmp_path / "agent.zip")
        assert "\n" not in str(refused.value)
    with pytest.raises(InputError, match="expected an agent"):
        load_policy(folder / "reader")  # a directory, of another kind
    with pytest.raises(FileNotFoundError, match="is missing; expected an agent"):
        load_policy(tmp_path / "nowhere.zip")
    corrupted = bytearray(whole)
    corrupted[len(whole) // 2] ^= 255
    (tmp_path / "agent.zip").write_bytes(corrupted)
    with pytest.raises(InputError, match="Bad CRC-32"):
        load_policy(tmp_path / "agent.zip")


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
