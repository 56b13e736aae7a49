"""Tests of agents that read with a smaller model than the one that judges: `python rl/test_reader_path.py` or pytest."""

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.artifacts import InputError, sha256_of
from data.sequences import pad_batch
from data.testing.toy import check_refusal, seal, write_small
from models.agent.files import load_policy, load_receiver
from models.reconstructor.gaps import GAP_HEAD
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.scoring import score
from rl import train
from rl.conftest import agent_words, alike, train_agent, weights

PRICE = 4.0  # at which an agent that has hardly learned masks some


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """The folder of a reconstructor of one layer of width 16; those that judge have two of width 64."""
    return write_small(tmp_path_factory.mktemp("small"))


def words_of(judge, reader):
    """Flags of a training that finds gaps, and is judged at PRICE."""
    words = ("--gaps", "found", "--unit", "word", "--eval_prices", PRICE, "--reconstructor_path", judge)
    return (*words, "--reader_path", reader) if reader else words


@pytest.fixture(scope="module")
def folder(toy, finding, small, tmp_path_factory):
    """The folder of a training of two rollouts, judged by `finding`, by an agent that reads with `small`."""
    folder = tmp_path_factory.mktemp("two")
    train_agent(toy, folder, "--num_timesteps", 64, "--eval_freq", 32, *words_of(finding, small))
    return folder


def test_an_agents_file_names_its_reader_and_its_judge(folder, finding, small):
    policy, record = load_policy(folder / "final_model.zip"), json.loads((folder / "training.json").read_text())
    for name, path in (("reconstructor", finding), ("reader", small)):
        hashes = {"sha256": sha256_of(path / "model.safetensors"), "gap_head": sha256_of(path / GAP_HEAD)}
        hashes |= {"config": sha256_of(path / "config.json"), "attention": "bidirectional"}
        assert policy.config[name] == {"path": str(path), **hashes} and record["weights"][str(path)] == hashes["sha256"]
    receiver = load_receiver(policy)
    assert policy.reader.reconstructor.directory == small and receiver.directory == finding and receiver.found
    assert policy.reader.states == 2 * 16, "states of the small one"
    policy.keep_probability([[2, 3, 4, 5]], [[True] * 4], PRICE)
    assert policy.lm_passes == 1 + 1 + policy.reader.sent, "its one block reads the text, the draft and what the draft sends"
    loaded = load_policy(folder / "final_model.zip", reconstructor=receiver)
    assert loaded.reader.reconstructor.directory == small and alike(loaded.own_state(), policy.own_state())


def test_an_agent_without_a_reader_of_its_own_reads_with_its_judge(toy, finding, tmp_path):
    train_agent(toy, tmp_path, "--num_timesteps", 32, *words_of(finding, None))
    policy = load_policy(tmp_path / "final_model.zip")
    assert "reader" not in policy.config and load_receiver(policy) is policy.reader.reconstructor
    assert policy.reader.reconstructor.directory == finding


def test_what_it_is_paid_is_what_the_judge_says(toy, finding, small, folder):
    """The held-out figures are those of the judge's reading of its masks; by its reader's they would be others."""
    args = train.parse_args([*agent_words(toy, folder), *map(str, words_of(finding, small))])
    env, _, held_out = train.training_environment(args, "cpu")
    policy = load_policy(folder / "final_model.zip")
    ids, valid = (torch.as_tensor(x) for x in pad_batch(held_out, 0))
    keep_mask = (policy.keep_probability(ids, valid, PRICE) > 0.5) | ~valid
    J = []
    for judge in (load_receiver(policy), policy.reader.reconstructor):
        scored = score(judge, ids, keep_mask, valid)
        costs = (scored.nats * ~keep_mask.numpy() + scored.gaps).sum(1) / valid.sum(1).numpy()
        J.append(float((PRICE * (1 - (keep_mask & valid).sum(1) / valid.sum(1)).numpy() - costs).mean()))
    assert policy.config["held_out"]["J"] == pytest.approx(J[0], abs=1e-4) and abs(J[1] - J[0]) > 0.1
    assert env.judge.reconstructor.directory == finding and (keep_mask & valid).sum() < 0.9 * valid.sum()


def test_the_judge_alone_teaches_another_agent(toy, finding, small, folder, tmp_path):
    """Two trainings that differ in nothing but the judge: the same beginning, readings and first decisions, other weights."""
    other = shutil.copytree(finding, tmp_path / "other")
    head = load_file(other / GAP_HEAD)
    head["out.bias"][:4] += torch.tensor([0.0, 3.0, 0.0, 3.0])  # gaps of one and three tokens cost less, others more
    save_file(head, other / GAP_HEAD)
    seal(other)
    found = []
    for name, judge in (("again", finding), ("otherwise", other)):
        train_agent(toy, tmp_path / name, "--num_timesteps", 64, "--eval_freq", 32, *words_of(judge, small))
        found.append(weights(tmp_path / name / "final_model.zip"))
    assert alike(found[0], weights(folder / "final_model.zip")) and not alike(found[0], found[1])


def test_a_training_goes_on_with_its_reader_and_no_other(toy, finding, small, folder, tmp_path):
    run, reader = shutil.copytree(folder, tmp_path / "run"), shutil.copytree(small, tmp_path / "reader")
    words = ("--num_timesteps", 64, "--eval_freq", 32, *words_of(finding, small))
    shutil.rmtree(run / "checkpoints/checkpoint-64")
    (run / "final_model.zip").unlink()
    train_agent(toy, run, *words, "--resume")
    assert alike(weights(run / "final_model.zip"), weights(folder / "final_model.zip"))
    with pytest.raises(InputError, match="was made with --reader_path .*, found --reader_path None"):
        train_agent(toy, run, *words[:4], *words_of(finding, None), "--resume")
    words = (*words[:4], *words_of(finding, reader))
    train_agent(toy, tmp_path / "begun", *words)
    head = load_file(reader / GAP_HEAD)
    save_file({name: tensor + 0.01 for name, tensor in head.items()}, reader / GAP_HEAD)
    seal(reader)
    said = "expected the reconstructor that it was trained with .*reader, SHA-256 of the gap head"
    with pytest.raises(InputError, match=said) as refused:
        train_agent(toy, tmp_path / "begun", *words, "--resume")
    with pytest.raises(InputError, match=said):
        load_policy(tmp_path / "begun/final_model.zip")
    assert "\n" not in str(refused.value)


def with_other_words(folder):
    """A small reader that gives two words each other's numbers."""
    write_small(folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    Reconstructor.from_base(seal(folder), gaps="found").save(folder, args=train.parse_args([]))


UNFIT = [
    (with_other_words, "expected the receiver's tokenizer .*, found"),
    (lambda folder: write_small(folder, gaps="told"), "expected a reconstructor that finds gaps, found no gap head"),
    (lambda folder: write_small(folder, n_positions=16), "expected one that reads the 16 tokens of a text, found 15"),
]


@pytest.mark.parametrize("write, said", UNFIT, ids=["tokenizer", "gap head", "positions"])
def test_a_reader_that_is_unfit_is_refused_in_one_line(toy, finding, tmp_path, write, said):
    write(tmp_path / "reader")
    with pytest.raises(InputError, match=said) as refused:
        train_agent(toy, tmp_path / "out", *words_of(finding, tmp_path / "reader"))
    assert "\n" not in str(refused.value) and not (tmp_path / "out").exists()


def test_a_reader_that_is_none_is_refused_in_one_line(toy, finding, tmp_path):
    words = [*agent_words(toy, tmp_path / "out"), *words_of(finding, tmp_path / "nowhere")]
    check_refusal("rl/train.py", *words, expect=["nowhere/reconstructor.json is missing", "train_cpu.py"])


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
