"""Tests of runs that go on from a checkpoint: `python rl/test_resume.py` or pytest."""

import contextlib
import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.artifacts import InputError
from data.testing.toy import REPOSITORY, Planted, seal
from models.reconstructor.checkpoints import MANIFEST, checksums
from rl.conftest import agent_words, alike, train_agent, weights


def test_a_killed_run_goes_on_to_the_same_weights(toy, tmp_path):
    """kill -9 after the first checkpoint, then --resume: the same weights, evaluations and log as a run that was left alone."""
    flags = "--num_timesteps 320 --eval_freq 96 --seed 5".split()
    train_agent(toy, tmp_path / "whole", *flags)
    command = [sys.executable, REPOSITORY / "rl/train.py", *agent_words(toy, tmp_path / "cut"), *flags]
    running = subprocess.Popen([str(w) for w in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None and not list((tmp_path / "cut/checkpoints").glob("checkpoint-*")):
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (tmp_path / "cut/final_model.zip").exists(), "killed too late"
    time.sleep(1.1)  # TensorBoard orders log files by the second
    train_agent(toy, tmp_path / "cut", *flags, "--resume")
    for name in ("final_model.zip", "best_model.zip"):
        assert alike(weights(tmp_path / "whole" / name), weights(tmp_path / "cut" / name)), name
    records = [json.loads((tmp_path / run / "training.json").read_text()) for run in ("whole", "cut")]
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in record["evaluations"]] for record in records]
    assert rows[0] == rows[1] and len(rows[0]) == 5
    seconds = [row["seconds"] for row in records[1]["evaluations"]]
    assert seconds == sorted(seconds) and seconds[-1] <= records[1]["seconds"]
    logs = [EventAccumulator(str(tmp_path / run / "tb_logs")).Reload().Scalars("rollout/J") for run in ("whole", "cut")]
    curves = [[(p.step, p.value) for p in log] for log in logs]
    assert curves[0] == curves[1] and [step for step, _ in curves[0]] == list(range(32, 321, 32))
    names = [f"checkpoint-{texts}" for texts in (192, 288, 320)]
    assert sorted(p.name for p in (tmp_path / "cut/checkpoints").glob("[!.]*")) == names, "the newest three"


@pytest.mark.parametrize("words", ["--critic_only", "--min_price 2 --max_price 2", "--init_from EARLIER"])
def test_every_variant_goes_on_to_the_same_weights(toy, earlier, tmp_path, words):
    flags = [*words.replace("EARLIER", str(earlier)).split(), "--num_timesteps", 128, "--eval_freq", 64]
    train_agent(toy, tmp_path, *flags)
    whole = weights(tmp_path / "final_model.zip")
    shutil.rmtree(tmp_path / "checkpoints/checkpoint-128")
    (tmp_path / "final_model.zip").unlink()
    train_agent(toy, tmp_path, *flags, "--resume")
    assert alike(whole, weights(tmp_path / "final_model.zip"))


@pytest.fixture(scope="module")
def finished(toy, tmp_path_factory):
    """The folder of a run that has ended."""
    folder = tmp_path_factory.mktemp("finished")
    train_agent(toy, folder, "--num_timesteps", 96, "--eval_freq", 64)
    return folder


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, to be spoilt."""
    return shutil.copytree(finished, tmp_path / "run")


def refused(toy, folder, *words, error=InputError):
    """In what words training refuses to go on, in one line; nothing is written."""
    before = sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file())
    with pytest.raises(error) as found:
        train_agent(toy, folder, "--num_timesteps", 128, "--eval_freq", 64, "--resume", *words)
    assert sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()) == before
    assert "\n" not in str(found.value)
    return str(found.value)


def test_a_finished_run_trains_on(toy, run):
    train_agent(toy, run, "--num_timesteps", 128, "--resume", "--eval_freq", 64)
    assert json.loads((run / "training.json").read_text())["texts"] == 128


CHANGED = [("n_epochs", "4", "2"), ("critic_only", "False", "True"), ("width", "16", "32"), ("seed", "42", "7")]


@pytest.mark.parametrize("flag, before, now", [*CHANGED, ("eval_prices", "[1.5, 3.0, 6.0]", "[1.0]")])
def test_a_flag_that_changed_is_named(toy, run, flag, before, now):
    words = [f"--{flag}"] if now == "True" else [f"--{flag}", now.strip("[]")]
    assert f"was made with --{flag} {before}, found --{flag} {now}; give the same" in refused(toy, run, *words)


def test_damaged_checkpoints_are_skipped_and_named(toy, run, capsys):
    newest = run / "checkpoints/checkpoint-96/state.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    whole = weights(run / "final_model.zip")
    train_agent(toy, run, "--num_timesteps", 96, "--eval_freq", 64, "--resume")
    assert "skipped checkpoint-96 (state.pt not as written); going on from checkpoint-64" in capsys.readouterr().out
    assert alike(weights(run / "final_model.zip"), whole)
    for path in (run / "checkpoints").glob("checkpoint-*"):
        (path / "state.pt").write_bytes(b"")
    assert "found only damaged ones" in refused(toy, run)
    shutil.rmtree(run / "checkpoints")
    assert "leave --resume away" in refused(toy, run, error=FileNotFoundError)


@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_a_planted_pickle_is_refused_and_runs_nothing(toy, run, write):
    path = sign(run, lambda path: write({"args": Planted(run.parent / "planted")}, path))
    said = refused(toy, run)
    assert "expected a training's state" in said and "UnpicklingError" in said
    assert not (run.parent / "planted").exists()
    with contextlib.suppress(RuntimeError):
        torch.load(path, weights_only=False)  # the control: one that is opened does write
    assert (run.parent / "planted").exists()


def sign(run, write):
    """Let `write(path)` put another state into the newest checkpoint, as if it had been written so."""
    newest = run / "checkpoints/checkpoint-96"
    write(newest / "state.pt")
    (newest / MANIFEST).write_text(json.dumps(checksums(newest)))
    return newest / "state.pt"


@pytest.mark.parametrize("content", [[1, 2], {"args": {}}])
def test_a_checkpoint_of_something_else_is_refused(toy, run, content):
    sign(run, lambda path: torch.save(content, path))
    assert "expected a training's state" in refused(toy, run)


def test_a_checkpoint_belongs_to_its_reconstructor(toy, run, tmp_path):
    other = shutil.copytree(toy, tmp_path / "toy")
    train_agent(other, tmp_path / "out", "--num_timesteps", 32)
    tuned = load_file(other / "tuned/model.safetensors")
    save_file({name: w + 0.01 for name, w in tuned.items()}, other / "tuned/model.safetensors", metadata={"format": "pt"})
    seal(other / "tuned")
    with pytest.raises(InputError, match="expected the reconstructor that it was trained with .*bring that one back"):
        train_agent(other, tmp_path / "out", "--num_timesteps", 64, "--resume")


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
