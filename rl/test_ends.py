"""Tests of trainings that can't begin, or end too early: pytest or `python rl/test_ends.py`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest

from data.artifacts import InputError
from data.scratch import claimed
from data.testing.toy import check_refusal
from eval import evaluate, evaluate_price
from models.reconstructor import train_cpu
from rl import read, train, train_proposer, train_worth
from rl.conftest import agent_words, alike, train_agent, weights


def test_logs_of_others_stay(toy, tmp_path):
    mine = tmp_path / "tb_logs/events.out.tfevents.mine"
    mine.parent.mkdir()
    mine.write_bytes(b"")
    train_agent(toy, tmp_path, "--num_timesteps", 32)
    assert mine.exists()


def test_what_no_memory_holds_is_refused(toy, tmp_path):
    with pytest.raises(InputError, match="--n_steps 1000000000: expected at most the .* GiB of memory"):
        train_agent(toy, tmp_path, "--n_steps", 10**9, "--num_timesteps", 10**12)


def test_an_interrupt_says_what_can_be_gone_on_with(toy, tmp_path, monkeypatch):
    for freq, expect in ((64, "no checkpoint was saved yet: begin anew"), (32, "checkpoint-32 is whole: go on .* --resume")):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match=expect):
            evaluate, calls = train.Run.evaluate, []

            def interrupted(run):
                calls.append(run)
                if len(calls) > 1 + (freq == 32):
                    raise KeyboardInterrupt
                evaluate(run)

            patch.setattr(train.Run, "evaluate", interrupted)
            train_agent(toy, tmp_path / str(freq), "--num_timesteps", 128, "--eval_freq", freq)


def test_a_run_killed_before_its_first_checkpoint_does_not_go_on_with_an_earlier_one(toy, tmp_path, monkeypatch):
    """Though it differs where a run that goes on may."""
    train_agent(toy, tmp_path, "--num_timesteps", 32)

    def killed(run):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="no checkpoint was saved yet"):
        patch.setattr(train.Run, "evaluate", killed)
        train_agent(toy, tmp_path, "--num_timesteps", 64, "--learning_rate", 1e-5)
    with pytest.raises(InputError, match="found checkpoint-32 of an earlier one"):
        train_agent(toy, tmp_path, "--num_timesteps", 64, "--learning_rate", 1e-5, "--resume")


def test_an_agent_goes_on_with_the_texts_that_it_is_chosen_by(toy, tmp_path):
    train_agent(toy, tmp_path / "out", "--num_timesteps", 32)
    shutil.copytree(toy / "data", tmp_path / "data")
    words = ["--num_timesteps", 64, "--data_path", tmp_path / "data/processed_data.json", "--resume"]
    (held_out := tmp_path / "data/val_data.json").write_bytes(b"".join(reversed(held_out.read_bytes().splitlines(keepends=True))))
    with pytest.raises(InputError, match="checkpoint-32 was made from another .*val_data.json than there is now"):
        train_agent(toy, tmp_path / "out", *words)
    shutil.copyfile(toy / "data/val_data.json", held_out)
    train_agent(toy, tmp_path / "out", *words)


def test_an_agent_of_an_earlier_run_is_not_taken_for_the_last(toy, tmp_path, monkeypatch):
    train_agent(toy, tmp_path / "used", "--num_timesteps", 32)
    save = train.Run.save_agent

    def killed(run, name):
        if name == "final_model.zip":
            raise KeyboardInterrupt
        save(run, name)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train.Run, "save_agent", killed)
        train_agent(toy, tmp_path / "used", "--num_timesteps", 32, "--seed", 7)
    train_agent(toy, tmp_path / "used", "--num_timesteps", 32, "--seed", 7, "--resume")
    train_agent(toy, tmp_path / "alone", "--num_timesteps", 32, "--seed", 7)
    ours, theirs = (weights(tmp_path / name / "final_model.zip") for name in ("used", "alone"))
    assert alike(ours, theirs)


@pytest.mark.parametrize("size, expect", [(0, "out: "), (40_000, "best_model.zip: "), (250_000, "expected room to write")])
def test_a_full_disk_is_one_line_that_names_it(toy, tmp_path, size, expect):
    """A disk of so many bytes, which takes the right to mount one."""
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={max(4096, size)}", "tmpfs", tmp_path]).returncode:
        pytest.skip("no right to mount a file system")
    try:
        words = ["--num_timesteps", "64", "--eval_freq", "32"]
        check_refusal("rl/train.py", *agent_words(toy, tmp_path / "out"), *words, expect=[expect, "found a full disk"])
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_two_runs_in_one_place_and_outputs_among_inputs_are_refused(toy, earlier, tmp_path):
    data = f"--data_path {toy / 'data/processed_data.json'}"
    proposer = f"{data} --reconstructor_path {toy / 'tuned'} --device cpu --quiet --output_dir".split()
    for out, flag in ((toy / "tuned", "reconstructor_path"), (toy / "data", "data_path")):
        with pytest.raises(InputError, match=f"expected another directory than --{flag}, which would be overwritten"):
            train_proposer.main([*proposer, str(out)])
    with claimed(tmp_path), pytest.raises(InputError, match="another run writes there"):
        train_proposer.main([*proposer, str(tmp_path)])
    words = f"--model_path {earlier} --data_path {toy / 'data/test_data.json'} --num_sequences 4 --methods random --output_dir"
    for main, more in ((evaluate.main, ""), (evaluate_price.main, "--tune_sequences 4 --prices 1")):
        with claimed(tmp_path), pytest.raises(InputError, match="another run writes there"):
            main([*words.split(), str(tmp_path), *more.split()])
    agent = tmp_path / "agent"
    agent.mkdir()
    with pytest.raises(InputError, match="expected another directory than --model_path"):
        train_worth.main(["--model_path", str(agent), "--output_dir", str(agent)])
    theirs = tmp_path / "notes.txt"
    theirs.write_text("mine, and the last line is no whole one")
    with pytest.raises(InputError, match="expected what rl/read.py wrote, found another content"):
        read.main([*data.split(), "--output", str(theirs), "--resume"])
    assert theirs.read_text() == "mine, and the last line is no whole one"
    tuned = f"{data} --base_model {toy / 'base'} --mask_policy {earlier} --output_dir {toy / 'tuned'} --gaps told --quiet"
    with pytest.raises(InputError, match="expected another directory than --mask_policy's reconstructor, which would be"):
        train_cpu.main(tuned.split())
    with pytest.raises(InputError, match="expected another directory than --model_path's reconstructor, which would be"):
        train_worth.main(["--model_path", str(earlier), "--output_dir", str(toy / "tuned")])
    with pytest.raises(InputError, match="expected none or an agent, found config.json of something else"):
        train_worth.main(["--model_path", str(earlier), "--output_dir", str(toy / "base")])
    (loop := tmp_path / "loop").symlink_to(loop)
    with pytest.raises(InputError, match="loop: expected a file, or a place for one, found a link that leads nowhere"):
        read.main([*data.split(), "--output", str(loop)])


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
