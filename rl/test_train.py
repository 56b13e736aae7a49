"""Tests of agent training, and of all of rl/ as a script: `python rl/test_train.py` or pytest."""

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.artifacts import InputError, sha256_of
from data.testing.toy import check_refusal, seal
from models.agent.files import load_policy
from models.agent.test_files import bare_pickle, old_style, pickled_parts
from models.reconstructor import train_cpu
from models.reconstructor.gaps import GAP_HEAD
from models.reconstructor.reconstructor import find_device
from rl import benchmark, train
from rl.callbacks import mean_figures
from rl.conftest import agent_words, alike, train_agent, weights

SCALARS = {
    *(f"rollout/{name}" for name in ("J", "keep_ratio", "distortion", "gaps", "nats", "top1")),
    *(f"eval/{name}" for name in ("J", "keep_ratio", "distortion", "gaps", "nats", "top1")),
    *(f"eval/{name}_at_{price}" for name in ("J", "keep_ratio", "gaps") for price in (1, 2)),
    *(f"train/{name}" for name in ("policy_gradient_loss", "value_loss", "draft_loss", "loss", "entropy", "approx_kl")),
    *(f"train/{name}" for name in ("clip_fraction", "explained_variance", "learning_rate", "clip_range")),
    *(f"time/{name}" for name in ("decisions_per_second", "share_of_reconstructor", "share_of_policy", "share_of_update")),
}


def test_training_writes_models_logs_and_a_record(toy, tmp_path):
    flags = "--num_timesteps 96 --eval_freq 32 --n_epochs 2 --gamma 0.5 --learning_rate 2e-3"
    flags += " --min_price 0.7 --max_price 4 --max_length 12 --eval_prices 1 2 --seed 3"
    train_agent(toy, tmp_path, *flags.split())
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["schema"] == train.SCHEMA and record["seed"] == 3 and record["texts"] == 96 and record["max_length"] == 12
    assert [row["texts"] for row in record["evaluations"]] == [0, 32, 64, 96]
    assert record["best_J"] == max(row["J"] for row in record["evaluations"])
    assert record["weights"] == {str(toy / "tuned"): sha256_of(toy / "tuned/model.safetensors")}
    assert {p.name for p in (tmp_path / "checkpoints").glob("[!.]*")} == {f"checkpoint-{texts}" for texts in (32, 64, 96)}
    logged = set(EventAccumulator(str(tmp_path / "tb_logs")).Reload().Tags()["scalars"])
    assert logged - {"time/fps", "time/iterations", "time/time_elapsed", "time/total_timesteps"} == SCALARS
    page = (Path(train.__file__).parent / "README.md").read_text()
    assert not [name for name in SCALARS if f"`{name.replace('_at_1', '_at_L').replace('_at_2', '_at_L')}`" not in page]
    best = max(reversed(record["evaluations"]), key=lambda row: row["J"])  # the last of equals
    for name, row in (("best_model.zip", best), ("final_model.zip", record["evaluations"][-1])):
        policy = load_policy(tmp_path / name)
        config = policy.config
        assert policy.prices == (0.7, 4.0) and policy.tokenizer_fingerprint == record["tokenizer_fingerprint"]
        assert config["held_out"] == row and config["texts"] == row["texts"]
        assert config["max_length"] == 12 and config["seed"] == 3
        named = {"path": str(toy / "tuned"), "sha256": record["weights"][str(toy / "tuned")], "attention": "bidirectional"}
        assert config["reconstructor"] == named | {"config": sha256_of(toy / "tuned/config.json")}
        assert (config["gaps"], config["unit"]) == ("told", "token") and row["gaps"] == row["gaps_at_1"] == 0
        assert sum(p.numel() for p in policy.parameters() if p.requires_grad) == record["parameters"]


def test_flags_reach_the_algorithm(toy, tmp_path):
    flags = "--n_epochs 2 --gamma 0.5 --learning_rate 2e-3 --min_price 0.7 --max_price 4"
    args = train.parse_args([*agent_words(toy, tmp_path), *flags.split(), "--critic_only"])
    env, texts, _ = train.training_environment(args, "cpu")
    agent = train.build_agent(args, env, texts, "cpu")
    assert (agent.n_epochs, agent.gamma, agent.batch_size) == (2, 0.5, 16)
    assert agent.lr_schedule(1.0) == pytest.approx(2e-3) and agent.lr_schedule(0.0) == pytest.approx(2e-4)
    assert agent.n_steps * env.num_envs == 32 and env.stream.prices == agent.policy.prices == (0.7, 4.0)
    assert agent.policy.network.norm.normalized_shape == (16,) and agent.policy.critic_only
    assert not agent.policy.reader.found and agent.policy.reader.words.unit == env.judge.words.unit == "token"


def test_an_agent_is_trained_for_a_receiver_that_has_to_find_the_gaps(toy, finding, tmp_path):
    """The defaults of the command line; the record says so, and another gap head ends going on."""
    words = ("--gaps", "found", "--unit", "word", "--reconstructor_path", finding, "--eval_prices", 1.2)
    train_agent(toy, tmp_path / "out", "--num_timesteps", 64, *words)
    policy = load_policy(tmp_path / "out/final_model.zip")
    assert policy.reader.found and policy.reader.words.unit == "word" and policy.config["gaps"] == "found"
    assert policy.config["reconstructor"]["gap_head"] == sha256_of(finding / GAP_HEAD)
    row = policy.config["held_out"]
    assert row["gaps"] == row["gaps_at_1.2"] > 0
    assert row["J"] == pytest.approx(1.2 * (1 - row["keep_ratio"]) - row["distortion"], abs=1e-4)
    logged = EventAccumulator(str(tmp_path / "out/tb_logs")).Reload().Scalars("rollout/gaps")
    assert len(logged) == 2 and all(point.value > 0 for point in logged)
    train_agent(toy, tmp_path / "out", "--num_timesteps", 96, *words, "--resume")
    other = shutil.copytree(finding, tmp_path / "other")
    save_file({name: tensor + 0.01 for name, tensor in load_file(other / GAP_HEAD).items()}, other / GAP_HEAD)
    seal(other)
    words = [other if word == finding else word for word in words]
    begun = tmp_path / "begun"
    train_agent(toy, begun, "--num_timesteps", 32, *words)
    shutil.copy(finding / GAP_HEAD, other / GAP_HEAD)
    seal(other)
    with pytest.raises(InputError, match="expected the reconstructor .*SHA-256 of the gap head"):
        train_agent(toy, begun, "--num_timesteps", 64, *words, "--resume")
    with pytest.raises(InputError, match="expected a reconstructor that finds gaps, found no gap head"):
        train_agent(toy, tmp_path / "none", "--gaps", "found")


def test_there_are_25_flags_at_most(capsys):
    with pytest.raises(SystemExit, match="0"):
        train.parse_args(["--help"])
    flags = {word.strip(",]") for word in capsys.readouterr().out.split() if word.startswith("[--")}
    assert 15 < len(flags) <= 25, sorted(flags)


def test_a_seed_repeats_a_run(toy, tmp_path):
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_agent(toy, tmp_path / name, "--num_timesteps", 64, "--seed", seed)
        found.append(weights(tmp_path / name / "final_model.zip"))
    assert alike(found[0], found[1]) and not alike(found[0], found[2])


def test_gamma_changes_nothing(toy, tmp_path):
    for gamma in (0.1, 0.99):
        train_agent(toy, tmp_path / str(gamma), "--num_timesteps", 64, "--gamma", gamma)
    assert alike(weights(tmp_path / "0.1/final_model.zip"), weights(tmp_path / "0.99/final_model.zip"))


def test_the_critic_alone_trains_and_is_told_apart(toy, tmp_path):
    train_agent(toy, tmp_path, "--num_timesteps", 64, "--critic_only")
    policy = load_policy(tmp_path / "final_model.zip")
    assert policy.critic_only and policy.config["args"]["critic_only"] and policy.sharpness == 2.0
    assert not policy.action_net.weight.any() and policy.value_net.weight.any()
    logged = set(EventAccumulator(str(tmp_path / "tb_logs")).Reload().Tags()["scalars"])
    assert "train/value_loss" in logged and not {"train/policy_gradient_loss", "train/draft_loss"} & logged


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_training_and_going_on_on_a_card_and_deciding_there_and_here(toy, tmp_path):
    for words in (("--num_timesteps", 64), ("--num_timesteps", 128, "--resume")):
        train_agent(toy, tmp_path, "--device", "cuda", *words)
    here, there = (load_policy(tmp_path / "final_model.zip", device) for device in ("cpu", "cuda"))
    ids, valid = torch.randint(2, 26, (8, 16)), torch.arange(16) < torch.arange(16, 8, -1)[:, None]
    found = [policy.keep_probability(ids, valid, 1.5)[valid] for policy in (here, there)]
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)
    assert there.device.type == there.reader.reconstructor.device.type == "cuda"


def test_training_goes_on_from_another_agent(toy, earlier, tmp_path):
    """At a learning rate of nothing the new agent is the old one; with other seeds it takes other decisions."""
    train_agent(toy, tmp_path, "--num_timesteps", 64, "--init_from", earlier, "--learning_rate", 1e-12)
    first, second = (load_policy(path) for path in (earlier, tmp_path / "final_model.zip"))
    for name, tensor in first.own_state().items():
        torch.testing.assert_close(tensor, second.own_state()[name], msg=name)
    assert torch.equal(first.reader.common, second.reader.common)
    J = [json.loads((folder / "training.json").read_text())["evaluations"] for folder in (earlier.parent, tmp_path)]
    assert J[1][0]["J"] == pytest.approx(max(row["J"] for row in J[0]), abs=1e-6)
    states = []
    for words in (("--seed", 1), ("--seed", 2), ("--seed", 2, "--init_from", earlier)):
        args = train.parse_args([*agent_words(toy, tmp_path / "none"), *map(str, words)])
        env, texts, _ = train.training_environment(args, "cpu")
        train.build_agent(args, env, texts, "cpu")
        states.append(np.random.get_state()[1])
    assert (states[0] != states[1]).any() and (states[1] == states[2]).all(), "minibatches are drawn with the new agent's seed"


def test_an_agent_reads_with_the_reconstructor_of_today(toy, earlier, tmp_path, capsys):
    """One that goes on with an adapted reconstructor reads with that one, and is tied to it."""
    shutil.copytree(toy / "tuned", tmp_path / "adapted")
    tuned, changed = load_file(toy / "tuned/model.safetensors"), "transformer.h.0.mlp.c_fc.weight"
    tuned[changed] += 0.25
    save_file(tuned, tmp_path / "adapted/model.safetensors", metadata={"format": "pt"})
    seal(tmp_path / "adapted")
    words = ("--init_from", earlier, "--reconstructor_path", tmp_path / "adapted", "--learning_rate", 1e-12)
    train_agent(toy, tmp_path / "on", "--num_timesteps", 32, *words)
    assert f"tuned as it was then, and goes on with {tmp_path}/adapted" in capsys.readouterr().out
    policy = load_policy(tmp_path / "on/final_model.zip")
    for model in (policy.reader.reconstructor.model.base_model, policy.reader.first):
        torch.testing.assert_close(model.state_dict()[changed.removeprefix("transformer.")], tuned[changed])
    with pytest.raises(InputError, match="expected the reconstructor that it was trained with"):
        load_policy(tmp_path / "on/final_model.zip", reconstructor=load_policy(earlier).reader.reconstructor)


def test_an_agent_that_cannot_be_begun_with_is_refused_before_anything_is_lost(toy, earlier, tmp_path, capsys):
    train_agent(toy, tmp_path, "--num_timesteps", 64)
    before = sorted((tmp_path / "checkpoints").iterdir())
    for path, words, error, said in (
        (earlier, ("--width", 32), InputError, "expected the weights of a network with .*width 32.*, found others"),
        (earlier.parent / "nowhere.zip", (), FileNotFoundError, "is missing"),
        (earlier.parent, (), InputError, "expected an agent"),
    ):
        with pytest.raises(error, match=said):
            train_agent(toy, tmp_path, "--num_timesteps", 64, "--init_from", path, *words)
    assert sorted((tmp_path / "checkpoints").iterdir()) == before and before
    with pytest.raises(SystemExit, match="2"):
        train_agent(toy, tmp_path, "--num_timesteps", 64, "--init_from", tmp_path / "best_model.zip")
    assert "outside of --output_dir" in capsys.readouterr().err


def test_an_agent_that_was_trained_otherwise_is_said_to_be(toy, earlier, finding, tmp_path, capsys):
    """For another receiver its network is another; single tokens or words it can be asked for either."""
    words = ("--num_timesteps", 32, "--init_from", earlier)
    with pytest.raises(InputError, match="expected an agent trained with --gaps found, found one .* --gaps told") as refused:
        train_agent(toy, tmp_path, *words, "--gaps", "found", "--reconstructor_path", finding)
    assert "\n" not in str(refused.value) and not (tmp_path / "tb_logs").exists()
    for unit, said in (("word", f"{earlier}: was trained with --unit token, and goes on with --unit word"), ("token", None)):
        train_agent(toy, tmp_path / unit, *words, "--unit", unit)
        lines = [line for line in capsys.readouterr().out.splitlines() if "--init_from" in line]
        assert len(lines) == bool(said) and all(line.endswith(said) for line in lines)
        assert load_policy(tmp_path / unit / "final_model.zip").config["unit"] == unit


@pytest.mark.parametrize("write", [old_style, pickled_parts, bare_pickle])
def test_a_planted_pickle_is_refused_by_all_who_take_an_agent(toy, tmp_path, write):
    path = write(tmp_path / "agent.zip", tmp_path / "planted")
    flags = [*agent_words(toy, tmp_path / "out")[:6], "--quiet"]
    base = ["--base_model", str(toy / "base")]
    readers = {
        "--init_from": lambda: train.main([*flags, "--gaps", "told", "--init_from", str(path)]),
        "--mask_policy": lambda: train_cpu.main([*flags[:2], *flags[4:], *base, "--mask_policy", str(path)]),
    }
    for flag, reader in readers.items():
        with pytest.raises(InputError, match="expected an agent, config.json and model.safetensors"):
            reader()
        assert not (tmp_path / "planted").exists(), flag


def test_held_out_evaluation_runs_every_text_at_every_price_once():
    assert [train.environments(n) for n in (48 * 3, 22 * 3, 7, 131)] == [48, 33, 7, 1]


def test_figures_are_per_token_and_absent_where_nothing_is_masked():
    infos = [{"sums": (10, 2, 3.0, 1, 0, 1, 5.0)}, {"sums": (30, 6, 1.0, 5, 0, 1, 3.0)}]
    assert mean_figures(infos) == {"keep_ratio": 0.8, "distortion": 0.3, "gaps": 0.2, "nats": 0.5, "top1": 0.75}
    assert mean_figures([{"sums": (10, 0, 0.0, 0, 1, 1, 4.0)}]) == {"keep_ratio": 1.0, "distortion": 0.4, "gaps": 0.4}


def test_a_second_run_starts_a_log_of_its_own(toy, tmp_path):
    for seed in (1, 2):
        train_agent(toy, tmp_path, "--num_timesteps", 64, "--seed", seed)
    events = EventAccumulator(str(tmp_path / "tb_logs")).Reload()
    assert [p.step for p in events.Scalars("rollout/J")] == [32, 64]
    assert [p.step for p in events.Scalars("eval/J")][-1] == 64


def test_the_benchmark_prints_its_ratios(toy, capsys):
    paths = f"--data_path {toy / 'data/processed_data.json'} --reconstructor_path {toy / 'tuned'} --base_model {toy / 'base'}"
    flags = "--gaps told --max_length 16 --texts 4 --n_envs 4 --turns 2 --batches 1 8 --device cpu --quiet"
    benchmark.main(f"{paths} {flags}".split())
    said = capsys.readouterr().out
    assert said.count("agent is") == 3 and said.count("TokenCompressionVecEnv is") == 1 and "decisions/s" in said
    assert "batches of 8 is" in said and "peak memory" in said


@pytest.mark.parametrize(
    "words",
    [
        "--num_timesteps 10 --n_steps 64", "--min_price 3 --max_price 2", "--width 10", "--learning_rate nan", "--seed -1",
        "--batch_size 1", "--n_steps 1", "--learning_rate 0",
    ],
)
def test_impossible_flags_are_refused(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        train.parse_args(words.split())
    assert "expected" in capsys.readouterr().err


def test_bad_input_is_refused(toy, tmp_path):
    words = agent_words(toy, tmp_path / "out")
    expected = ["reconstructor.json is missing", "train_cpu.py"]
    check_refusal("rl/train.py", *words, "--reconstructor_path", toy / "base", expect=expected)
    with pytest.raises(InputError, match="expected at most 31"):
        train_agent(toy, tmp_path / "out", "--max_length", 400)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="--device cuda: expected"):
            find_device("cuda")


if __name__ == "__main__":
    sys.exit(pytest.main([str(Path(__file__).parent), "-v"]))
