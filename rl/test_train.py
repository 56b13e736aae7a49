"""Tests of agent training, and of all of rl/ as a script: `python rl/test_train.py` or pytest."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.artifacts import InputError
from data.testing.toy import REPOSITORY, check_refusal
from models.reconstructor.reconstructor import find_device
from rl import benchmark, train
from rl.callbacks import mean_figures
from rl.env import TokenCompressionVecEnv
from rl.ppo import TokenPPO, load_policy


def agent_words(toy, output):
    command = f"--data_path {toy / 'data/processed_data.json'} --reconstructor_path {toy / 'tuned'} --output_dir {output} --quiet --device cpu"
    return f"{command} --width 16 --layers 1 --heads 2 --embedding_dim 8 --n_steps 32 --n_envs 16 --batch_size 16 --eval_sequences 8".split()


def train_agent(toy, output, *words):
    train.main([*agent_words(toy, output), *(str(w) for w in words)])


def test_training_writes_models_logs_and_a_record(toy, tmp_path):
    flags = "--num_timesteps 96 --eval_freq 32 --checkpoint_freq 64 --n_epochs 2 --gamma 0.5 --learning_rate 2e-3 --final_learning_rate 1e-4 --clip_range 0.3 --credit_window 2 --ent_coef 0.001 --vf_coef 0.4"
    flags += " --max_grad_norm 1 --target_kl 0.5 --min_price 0.7 --max_price 4 --max_length 12 --eval_prices 1 2 --seed 3"
    train_agent(toy, tmp_path, *flags.split())
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["schema"] == "rltc.agent/1" and record["seed"] == 3 and record["texts"] == 96 and record["max_length"] == 12
    assert [row["texts"] for row in record["evaluations"]] == [0, 32, 64, 96]
    agent = TokenPPO.load(tmp_path / "final_model.zip")
    assert (agent.clip_range(1), agent.ent_coef, agent.vf_coef, agent.max_grad_norm, agent.target_kl, agent.n_epochs, agent.gamma) == (0.3, 0.001, 0.4, 1, 0.5, 2, 0.5)
    assert agent.rollout_buffer.credit_window == 2
    assert agent.lr_schedule(1.0) == pytest.approx(2e-3) and agent.lr_schedule(0.0) == pytest.approx(1e-4)
    assert record["best_J"] == max(row["J"] for row in record["evaluations"])
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {f"agent_{n}_steps.{kind}" for n in (64, 96) for kind in ("zip", "pt")}
    assert list((tmp_path / "tb_logs").glob("events*"))
    for name in ("best_model.zip", "final_model.zip"):
        policy = load_policy(tmp_path / name)
        assert 0.7 <= policy.price_for(0.6) <= 4.0
        assert policy.features_extractor.tokenizer_fingerprint == record["tokenizer_fingerprint"]


def test_a_seed_repeats_a_run(toy, tmp_path):
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train_agent(toy, tmp_path / name, "--num_timesteps", 64, "--seed", seed)
        weights.append(load_policy(tmp_path / name / "final_model.zip").state_dict())
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert any(not torch.equal(weights[0][k], weights[2][k]) for k in weights[0])


def test_a_killed_run_goes_on_to_the_same_weights(toy, tmp_path):
    """kill -9 after the first checkpoint, then --resume: the same weights, evaluations and log as a run that was left alone."""
    flags = "--num_timesteps 320 --checkpoint_freq 64 --eval_freq 96 --save_total_limit 2 --seed 5"
    train_agent(toy, tmp_path / "whole", *flags.split())
    command = [sys.executable, REPOSITORY / "rl/train.py", *agent_words(toy, tmp_path / "cut"), *flags.split()]
    running = subprocess.Popen([str(w) for w in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None and not list((tmp_path / "cut/checkpoints").glob("agent_*.pt")):
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "cut/final_model.zip").exists(), "killed too late"
    time.sleep(1.1)  # TensorBoard orders log files by the second
    train_agent(toy, tmp_path / "cut", *flags.split(), "--resume")
    for name in ("final_model.zip", "best_model.zip"):
        weights = [load_policy(tmp_path / run / name).state_dict() for run in ("whole", "cut")]
        assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0]), name
    records = [json.loads((tmp_path / run / "training.json").read_text()) for run in ("whole", "cut")]
    evaluations = [[{k: v for k, v in row.items() if k != "seconds"} for row in record["evaluations"]] for record in records]
    assert evaluations[0] == evaluations[1] and len(evaluations[0]) == 5
    seconds = [row["seconds"] for row in records[1]["evaluations"]]
    assert seconds == sorted(seconds) and seconds[-1] <= records[1]["seconds"]
    curves = [[(p.step, p.value) for p in EventAccumulator(str(tmp_path / run / "tb_logs")).Reload().Scalars("rollout/J")] for run in ("whole", "cut")]
    assert curves[0] == curves[1] and [step for step, _ in curves[0]] == list(range(32, 321, 32))
    assert sorted(p.name for p in (tmp_path / "cut/checkpoints").glob("agent_*.pt")) == ["agent_256_steps.pt", "agent_320_steps.pt"]


def test_a_finished_run_trains_on_and_other_flags_or_damage_are_refused(toy, tmp_path, capsys):
    train_agent(toy, tmp_path, "--num_timesteps", 64)
    train_agent(toy, tmp_path, "--num_timesteps", 96, "--resume")
    assert json.loads((tmp_path / "training.json").read_text())["texts"] == 96
    with pytest.raises(InputError, match="with --learning_rate 0.001, found --learning_rate 0.01"):
        train_agent(toy, tmp_path, "--num_timesteps", 128, "--resume", "--learning_rate", 0.01)
    newest = tmp_path / "checkpoints/agent_96_steps.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    capsys.readouterr()
    train_agent(toy, tmp_path, "--num_timesteps", 96, "--resume")
    assert "skipped agent_96_steps" in capsys.readouterr().out
    for path in (tmp_path / "checkpoints").glob("agent_*.zip"):
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="found only damaged ones"):
        train_agent(toy, tmp_path, "--num_timesteps", 128, "--resume")
    with pytest.raises(FileNotFoundError, match="leave --resume away"):
        train_agent(toy, tmp_path / "none", "--num_timesteps", 64, "--resume")


def test_a_run_without_a_warm_start_begins_with_the_first_texts(toy, tmp_path, monkeypatch):
    """The seed alone says which texts are seen: nothing is drawn before training."""
    drawn = []
    monkeypatch.setattr(train, "TokenCompressionVecEnv", type("Watched", (TokenCompressionVecEnv,), {"reset": lambda self: drawn.append(self.stream.shuffle) or TokenCompressionVecEnv.reset(self)}))
    train_agent(toy, tmp_path, "--num_timesteps", 32)
    assert drawn.count(True) == 1


def test_training_stops_when_patience_ends(toy, tmp_path):
    """A learning rate of almost nothing: no evaluation beats the first, and the second without a new best ends it."""
    train_agent(toy, tmp_path, "--num_timesteps", 640, "--eval_freq", 32, "--patience", 2, "--learning_rate", 1e-12, "--final_learning_rate", 0)
    record = json.loads((tmp_path / "training.json").read_text())
    assert [row["texts"] for row in record["evaluations"]] == [0, 32, 64] and (tmp_path / "final_model.zip").exists()


@pytest.mark.parametrize("words", ["--credit text", "--passes 1", "--passes 3", "--without local importance", "--pretrained_layers 0", "--credit text --pretrained_layers 2", "--min_price 2 --max_price 2", "--init_from EARLIER"])
def test_every_variant_trains_goes_on_and_decides(toy, earlier, tmp_path, words):
    """And going on gives the weights of a run that was not cut."""
    words = words.replace("EARLIER", str(earlier))
    flags = [*words.split(), "--final_learning_rate", "1e-3"]  # the learning rate knows how long a run is meant to be
    train_agent(toy, tmp_path / "whole", "--num_timesteps", 96, *flags)
    train_agent(toy, tmp_path, "--num_timesteps", 64, *flags)
    train_agent(toy, tmp_path, "--num_timesteps", 96, "--resume", *flags)
    weights = [load_policy(folder / "final_model.zip").state_dict() for folder in (tmp_path / "whole", tmp_path)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0] if k != "calibration")
    keep = load_policy(tmp_path / "best_model.zip").keep_probability(np.array([[2, 3, 4]]), np.ones((1, 3), bool), 1.5)
    assert keep.shape == (1, 3) and np.isfinite(keep.numpy()).all()
    assert json.loads((tmp_path / "training.json").read_text())["texts"] == 96


@pytest.mark.parametrize("credit", ["token", "text"])
def test_pretrained_layers_learn_slowly_or_not_at_all(toy, tmp_path, credit):
    trained = {}
    for rate in (0, 0.01, 1):
        train_agent(toy, tmp_path / str(rate), "--num_timesteps", 32, "--credit", credit, "--pretrained_layers", 1, "--pretrained_rate", rate)
        trained[rate] = load_policy(tmp_path / str(rate) / "final_model.zip").state_dict()
    blocks = [name for name in trained[0] if ".pretrained.model.h." in name]
    start = torch.cat([trained[0][name].flatten() for name in blocks])
    moved = {rate: (torch.cat([trained[rate][name].flatten() for name in blocks]) - start).abs().max().item() for rate in (0.01, 1)}
    assert 0 < moved[0.01] < 0.05 * moved[1], moved  # Adam's steps are as long as its learning rate
    tuned = load_file(toy / "tuned/model.safetensors")
    block = next(name for name in blocks if name.endswith("h.0.mlp.c_fc.weight"))
    assert torch.equal(trained[0][block], tuned["transformer.h.0.mlp.c_fc.weight"])


@pytest.fixture(scope="module")
def earlier(toy, tmp_path_factory):
    """An agent to begin with."""
    folder = tmp_path_factory.mktemp("earlier")
    train_agent(toy, folder, "--num_timesteps", 64)
    return folder / "best_model.zip"


def test_training_goes_on_from_another_agent(toy, earlier, tmp_path):
    """At a learning rate of nothing the new agent is the old one; with other seeds it takes other decisions."""
    train_agent(toy, tmp_path, "--num_timesteps", 64, "--init_from", earlier, "--learning_rate", 1e-12, "--final_learning_rate", 0)
    first, second = (load_policy(path).state_dict() for path in (earlier, tmp_path / "final_model.zip"))
    for name in first:
        torch.testing.assert_close(first[name], second[name], msg=name)
    J = [json.loads((folder / "training.json").read_text())["evaluations"] for folder in (earlier.parent, tmp_path)]
    assert J[1][0]["J"] == pytest.approx(max(row["J"] for row in J[0]), abs=1e-6)
    states = []
    for words in (("--seed", 1), ("--seed", 2), ("--seed", 2, "--init_from", earlier)):
        args = train.parse_args([*agent_words(toy, tmp_path), *map(str, words)])
        env, reconstructor, texts, _ = train.training_environment(args, "cpu")
        train.build_agent(args, env, reconstructor, texts, "cpu")
        states.append(np.random.get_state()[1])
    assert (states[0] != states[1]).any() and (states[1] == states[2]).all(), "minibatches are drawn with the new agent's seed"


def test_drafts_are_read_by_the_reconstructor_of_today(toy, earlier, tmp_path):
    """An agent that goes on with an adapted reconstructor keeps its own blocks, and reads its drafts with the new one."""
    shutil.copytree(toy / "tuned", tmp_path / "adapted")
    weights = load_file(tmp_path / "adapted/model.safetensors")
    changed = "transformer.h.0.mlp.c_fc.weight"
    save_file({name: w + 0.25 if name == changed else w for name, w in weights.items()}, tmp_path / "adapted/model.safetensors", metadata={"format": "pt"})
    train_agent(toy, tmp_path / "on", "--num_timesteps", 64, "--init_from", earlier, "--reconstructor_path", tmp_path / "adapted", "--learning_rate", 1e-12, "--final_learning_rate", 0)
    before, after = (load_policy(path).features_extractor.network for path in (earlier, tmp_path / "on/final_model.zip"))
    name = changed.removeprefix("transformer.")
    torch.testing.assert_close(after.reader.model.state_dict()[name], weights[changed] + 0.25)
    torch.testing.assert_close(before.reader.model.state_dict()[name], weights[changed])
    torch.testing.assert_close(after.pretrained.model.state_dict()[name], before.pretrained.model.state_dict()[name])


def test_an_agent_that_cannot_be_gone_on_from_is_refused_before_anything_is_lost(toy, earlier, tmp_path, capsys):
    train_agent(toy, tmp_path, "--num_timesteps", 64)
    before = sorted((tmp_path / "checkpoints").iterdir())
    for words, said in ((("--passes", 1), "passes 1, found 2"), (("--draft_threshold", 0.5), "draft_threshold 0.5, found 0.85"), (("--credit", "text"), "credit text, found token"), (("--without", "local"), "without .'local'., found"), (("--pretrained_layers", 0), "pretrained blocks 0, found 1")):
        with pytest.raises(InputError, match=f"--init_from .*expected a policy with {said}"):
            train_agent(toy, tmp_path, "--num_timesteps", 64, "--init_from", earlier, *words)
    for path, error, said in ((tmp_path.parent / "nowhere.zip", FileNotFoundError, "is missing"), (earlier.parent, InputError, "found a directory; try .*best_model.zip")):
        with pytest.raises(error, match=said):
            train_agent(toy, tmp_path, "--num_timesteps", 64, "--init_from", path)
    assert sorted((tmp_path / "checkpoints").iterdir()) == before and before
    with pytest.raises(SystemExit, match="2"):
        train_agent(toy, tmp_path, "--num_timesteps", 64, "--init_from", tmp_path / "best_model.zip")
    assert "outside of --output_dir" in capsys.readouterr().err


def test_gamma_changes_nothing(toy, tmp_path):
    weights = []
    for gamma in (0.1, 0.99):
        train_agent(toy, tmp_path / str(gamma), "--num_timesteps", 64, "--gamma", gamma)
        weights.append(load_policy(tmp_path / str(gamma) / "final_model.zip").state_dict())
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_held_out_evaluation_runs_every_text_at_every_price_once():
    assert [train.environments(n) for n in (48 * 3, 22 * 3, 7, 131)] == [48, 33, 7, 1]


def test_figures_are_per_token_and_absent_where_nothing_is_masked():
    infos = [{"sums": (10, 2, 3.0, 1)}, {"sums": (30, 6, 1.0, 5)}]
    assert mean_figures(infos) == {"keep_ratio": 0.8, "distortion": 0.1, "nats": 0.5, "top1": 0.75}
    assert mean_figures([{"sums": (10, 0, 0.0, 0)}]) == {"keep_ratio": 1.0, "distortion": 0.0}


def test_a_second_run_starts_a_log_of_its_own(toy, tmp_path):
    for seed in (1, 2):
        train_agent(toy, tmp_path, "--num_timesteps", 64, "--seed", seed)
    events = EventAccumulator(str(tmp_path / "tb_logs")).Reload()
    assert [p.step for p in events.Scalars("rollout/J")] == [32, 64]
    assert [p.step for p in events.Scalars("eval/J")][-1] == 64


def test_the_benchmark_prints_its_ratios(toy, capsys):
    benchmark.main(f"--data_path {toy / 'data/processed_data.json'} --reconstructor_path {toy / 'tuned'} --base_model {toy / 'base'} --max_length 16 --texts 4 --n_envs 4 --turns 2 --device cpu --quiet".split())
    said = capsys.readouterr().out
    assert said.count("agent is") == 3 and said.count("TokenCompressionVecEnv is") == 1 and "decisions/s" in said


@pytest.mark.parametrize(
    "words", [["--num_timesteps", "10", "--n_steps", "64"], ["--min_price", "3", "--max_price", "2"], ["--width", "10", "--heads", "4"], ["--n_steps", "30", "--n_envs", "16"], ["--clip_range", "nan"], ["--seed", "-1"], ["--batch_size", "1"], ["--credit", "text", "--passes", "2"]]
)
def test_impossible_flags_are_refused(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        train.parse_args(words)
    assert "expected" in capsys.readouterr().err


def test_bad_input_is_refused(toy, tmp_path):
    check_refusal("rl/train.py", *agent_words(toy, tmp_path), "--num_timesteps", 32, "--pretrained_layers", 9, expect=["--pretrained_layers 9", "at most 2"])
    check_refusal("rl/train.py", "--data_path", toy / "data/processed_data.json", "--reconstructor_path", toy / "base", expect=["reconstructor.json is missing", "train_cpu.py"])
    with pytest.raises(InputError, match="expected at most 31"):
        train_agent(toy, tmp_path / "out", "--max_length", 400)
    (tmp_path / "broken.zip").write_bytes(b"PK not a zip")
    with pytest.raises(InputError, match="expected an agent"):
        load_policy(tmp_path / "broken.zip")
    train_agent(toy, tmp_path / "half", "--num_timesteps", 32)
    whole = (tmp_path / "half/best_model.zip").read_bytes()
    (tmp_path / "half/best_model.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="expected an agent"):
        load_policy(tmp_path / "half/best_model.zip")
    with pytest.raises(FileNotFoundError, match="Train one with"):
        load_policy(tmp_path / "nowhere.zip")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="--device cuda: expected"):
            find_device("cuda")


if __name__ == "__main__":
    sys.exit(pytest.main([str(Path(__file__).parent), "-v"]))
