"""Tests of runs in a directory that was used before: `python models/reconstructor/test_again.py` or pytest."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pytest

from data.artifacts import InputError
from data.scratch import LOCK, MARK, claimed
from models.reconstructor import train_cpu, training
from models.reconstructor.checkpoints import RUN
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.test_checkpoints import command_line, fine_tune

WORDS = "--max_steps 4 --batch_size 4 --save_steps 2 --eval_steps 100".split()


def contents(folder):
    """Every file below a folder but the lock, with its bytes and time."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != LOCK)
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture(scope="module")
def finished(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "used"
    fine_tune(toy, folder, *WORDS)
    return folder


@pytest.fixture
def used(finished, tmp_path):
    """A directory with a finished run."""
    return Path(shutil.copytree(finished, tmp_path / "used"))


@pytest.mark.parametrize("flag", ["--mask_ratio 0.5", "--seed 7", "--weight_decay 0.5", "--warmup_ratio 0.5", "--span_share 1"])
def test_a_fresh_start_does_not_go_on_with_another_run(toy, used, flag):
    """It was killed before its first checkpoint: what lies there is another run's, and stays as it is."""
    before = contents(used)
    with pytest.raises(InputError, match=rf"--resume: .*checkpoint-4 was made with {flag.split()[0]} .*, found {flag}"):
        fine_tune(toy, used, *WORDS, *flag.split(), "--resume")
    with pytest.raises(InputError, match="checkpoint-4 has 4 texts a step, found 8"):
        fine_tune(toy, used, *WORDS, "--batch_size", 8, "--resume")
    assert contents(used) == before


def test_resuming_a_finished_run_changes_nothing(toy, used, capsys):
    before = contents(used)
    fine_tune(toy, used, *WORDS, "--resume")
    assert "has taken its 4 steps; nothing was changed" in capsys.readouterr().out
    changed = {path for path, content in contents(used).items() if before.get(path) != content}
    assert all(path.parent.name == "tb_logs" for path in changed)
    fine_tune(toy, used, *WORDS, "--max_steps", 6, "--resume")
    assert (used / "checkpoint-6").is_dir(), "the control: more steps are more"


def test_a_run_killed_before_its_model_is_there_does_not_leave_an_earlier_one(toy, used, tmp_path, monkeypatch):
    """Its last checkpoint was saved, and what it would have replaced is a finished run's."""
    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training.Training, "publish", killed)
        fine_tune(toy, used, *WORDS, "--seed", 7)
    earlier = (used / "model.safetensors").read_bytes()
    fine_tune(toy, used, *WORDS, "--seed", 7, "--resume")
    fine_tune(toy, tmp_path / "alone", *WORDS, "--seed", 7)
    assert (used / "model.safetensors").read_bytes() == (tmp_path / "alone/model.safetensors").read_bytes() != earlier


def interrupt(*args):
    raise KeyboardInterrupt


def killed_early(toy, used, monkeypatch, *words):
    """A run that is killed when it took a step, in a directory with another's checkpoints."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="no checkpoint was saved yet: begin anew"):
        patch.setattr(training.Training, "take_step", interrupt)
        fine_tune(toy, used, *WORDS, *words)


@pytest.mark.parametrize("flag", ["--learning_rate 1e-5", "--max_steps 6", "--save_steps 3"])
def test_what_was_begun_last_does_not_go_on_with_another_run_that_differs_where_it_may(toy, used, monkeypatch, flag):
    killed_early(toy, used, monkeypatch, *flag.split())
    before = contents(used)
    with pytest.raises(InputError, match="of the run that was begun last, found checkpoint-4 of an earlier one"):
        fine_tune(toy, used, *WORDS, *flag.split(), "--resume")
    assert contents(used) == before
    (used / RUN).unlink()
    fine_tune(toy, used, *WORDS, "--resume")


def test_a_loss_that_is_nan_before_the_first_checkpoint_does_not_lead_to_another_run(toy, used, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(InputError, match="lower --learning_rate$"):
        forward = Reconstructor.forward
        patch.setattr(Reconstructor, "forward", lambda self, *batch: forward(self, *batch) * float("nan"))
        fine_tune(toy, used, *WORDS, "--learning_rate", 1)


def test_a_model_of_others_is_not_overwritten(toy, tmp_path, used):
    """Without our record it is not ours; and of a name that transformers does not load nothing is deleted."""
    shutil.copytree(toy / "base", tmp_path / "theirs")
    (tmp_path / "theirs/reconstructor.json").unlink(missing_ok=True)
    before = contents(tmp_path / "theirs")
    with pytest.raises(InputError, match="found config.json without a reconstructor.json, which would be overwritten"):
        fine_tune(toy, tmp_path / "theirs", *WORDS)
    assert contents(tmp_path / "theirs") == before
    (used / "model-backup.safetensors").write_bytes(b"mine")
    fine_tune(toy, used, *WORDS, "--seed", 7)
    assert (used / "model-backup.safetensors").read_bytes() == b"mine"
    assert Reconstructor.load(used, gaps="found")


@pytest.mark.parametrize("step, expect", [(1, "no checkpoint was saved yet"), (3, "checkpoint-2 is whole: go on .* --resume")])
def test_an_interrupt_says_what_can_be_gone_on_with(toy, tmp_path, monkeypatch, step, expect):
    """And what goes on from there is what was never interrupted."""
    take, taken = training.Training.take_step, []

    def interrupted(self, *args):
        taken.append(take(self, *args))
        if len(taken) == step:
            raise KeyboardInterrupt
        return taken[-1]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match=expect):
        patch.setattr(training.Training, "take_step", interrupted)
        fine_tune(toy, tmp_path / "out", *WORDS)
    fine_tune(toy, tmp_path / "out", *WORDS, *["--resume"] * (step > 2))
    fine_tune(toy, tmp_path / "alone", *WORDS)
    assert len({(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "alone")}) == 1


@pytest.mark.parametrize("spoil", [Path.unlink, lambda mark: mark.write_bytes(b"half")])
def test_a_checkpoint_that_lost_its_mark_is_named_before_anything_is_done(toy, used, spoil):
    spoil(used / "checkpoint-4" / MARK)
    before = contents(used)
    with pytest.raises(InputError, match=f"expected a checkpoint with its mark, found {MARK} not as written; move it"):
        fine_tune(toy, used, *WORDS, "--max_steps", 6, "--resume")
    assert contents(used) == before


@pytest.mark.parametrize("name", ["processed_data.json", "val_data.json"])
def test_other_texts_are_named(toy, used, name):
    texts = toy / "data" / name
    whole = texts.read_bytes()
    try:
        texts.write_bytes(b"".join(reversed(whole.splitlines(keepends=True))))
        with pytest.raises(InputError, match=f"checkpoint-4 was made from another .*{name} than there is now"):
            fine_tune(toy, used, *WORDS, "--resume")
    finally:
        texts.write_bytes(whole)


def test_a_lower_learning_rate_is_what_goes_on(toy, used):
    """As the advice says where a loss is not finite."""
    fine_tune(toy, used, *WORDS, "--max_steps", 8, "--learning_rate", 1e-5, "--logging_steps", 1, "--resume")
    log = json.loads((used / "training.json").read_text())["log"]
    rates = {row["step"]: row["learning_rate"] for row in log if "loss" in row}
    assert max(rate for step, rate in rates.items() if step > 4) < 1e-5


def test_what_is_not_ours_is_not_deleted(toy, tmp_path):
    """A folder with the name of a checkpoint, or of an unfinished one, but without the mark."""
    mine = tmp_path / "out/checkpoint-1"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("mine")
    fine_tune(toy, tmp_path / "out", *WORDS, "--save_total_limit", 1)
    assert (mine / "thesis.txt").read_text() == "mine" and not (tmp_path / "out/checkpoint-2").exists()
    for name in (".unfinished", "checkpoint-2"):
        (tmp_path / "out" / name).mkdir()
        with pytest.raises(InputError, match=f"{name}: expected a scratch folder with {MARK} in it, found something else"):
            fine_tune(toy, tmp_path / "out", *WORDS)
        (tmp_path / "out" / name).rmdir()


def hold(path, ready):
    with claimed(path):
        ready.set()
        signal.pause()


def test_two_runs_in_one_directory(toy, tmp_path):
    """The second is refused in one line; what a dead process left is no obstacle."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=hold, args=(tmp_path / "out", ready))
    other.start()
    assert ready.wait(30)
    with pytest.raises(InputError, match="out: another run writes there; wait for it, or choose another --output_dir"):
        fine_tune(toy, tmp_path / "out", *WORDS)
    os.kill(other.pid, signal.SIGKILL)
    other.join()
    assert (tmp_path / "out" / LOCK).exists()
    fine_tune(toy, tmp_path / "out", *WORDS)


def test_no_run_overwrites_what_it_reads(toy, tmp_path):
    with pytest.raises(InputError, match="expected another directory than --base_model, which would be overwritten"):
        train_cpu.main([*command_line(toy, toy / "base"), *WORDS])
    assert not (toy / "base/training.json").exists() and (toy / "base/model.safetensors").is_file()


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
