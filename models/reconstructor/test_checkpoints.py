"""Tests of resuming and of checkpoints: `python models/reconstructor/test_checkpoints.py` or pytest."""

import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pytest
import torch

from data.artifacts import InputError
from data.scratch import make_scratch
from data.testing.toy import REPOSITORY, Planted, write_base
from models.reconstructor import train_cpu
from models.reconstructor.checkpoints import MANIFEST, checksums
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.training import parse_args


def command_line(toy, output, *words):
    paths = [f"--data_path={toy / 'data/processed_data.json'}", f"--base_model={toy / 'base'}", f"--output_dir={output}"]
    return [*paths, "--quiet", "--learning_rate=3e-3", "--eval_sequences=16", *map(str, words)]


def fine_tune(toy, output, *words):
    return train_cpu.main(command_line(toy, output, *words))


def train_cpu_args(*words):
    return parse_args(words, ("cpu",), train_cpu.__doc__)


def weights_of(*directories):
    return [Reconstructor.load(directory).state_dict() for directory in directories]


def test_a_resumed_run_ends_with_the_same_weights(toy, tmp_path, capsys):
    words = "--max_steps 6 --batch_size 4 --save_steps 2 --save_total_limit 3 --eval_steps 100".split()
    fine_tune(toy, tmp_path / "whole", *words)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    # The newest checkpoint was never finished, the one before it is damaged: the run goes on from the first.
    (tmp_path / "cut/checkpoint-6/checksums.json").unlink()
    damaged = tmp_path / "cut/checkpoint-4/state.pt"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    (tmp_path / "cut/model.safetensors").unlink()
    # Other weights in the base's place: only a run that really goes on from the checkpoint can end as the whole one did.
    shutil.copytree(toy / "base", tmp_path / "kept")
    try:
        write_base(toy / "base", seed=1)
        fine_tune(toy, tmp_path / "cut", *words, "--resume")
    finally:
        shutil.copytree(tmp_path / "kept", toy / "base", dirs_exist_ok=True)
    said = capsys.readouterr().out
    assert "skipped checkpoint-6 (checksums.json is missing or unreadable" in said
    assert "checkpoint-4 (state.pt not as written); going on from checkpoint-2" in said
    whole, cut = weights_of(tmp_path / "whole", tmp_path / "cut")
    assert all(torch.equal(whole[k], cut[k]) for k in whole)
    for path in (tmp_path / "cut").glob("checkpoint-*"):
        (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="found only damaged ones: checkpoint-6"):
        fine_tune(toy, tmp_path / "cut", *words, "--resume")


@pytest.mark.parametrize("policy", ["frequency", "random", "verified-once"])
def test_a_run_on_the_masks_of_a_method_is_resumed_to_the_same_weights(toy, tmp_path, policy):
    words = f"--max_steps 6 --batch_size 4 --save_steps 3 --eval_steps 4 --mask_policy {policy} --policy_share 0.7".split()
    fine_tune(toy, tmp_path / "whole", *words)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoint-6")
    fine_tune(toy, tmp_path / "cut", *words, "--resume")
    fine_tune(toy, tmp_path / "other", *words[:-4])
    whole, cut, other = weights_of(tmp_path / "whole", tmp_path / "cut", tmp_path / "other")
    assert all(torch.equal(whole[name], cut[name]) for name in whole) and whole["gap_head.out.weight"].any()
    assert not torch.equal(whole["gap_head.out.weight"], other["gap_head.out.weight"]), "the control: other masks"


def test_a_killed_run_goes_on_to_the_same_weights(toy, tmp_path):
    words = "--max_steps 60 --batch_size 4 --save_steps 7 --eval_steps 100".split()
    command = [sys.executable, REPOSITORY / "models/reconstructor/train_cpu.py", *command_line(toy, tmp_path / "cut", *words)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (tmp_path / "cut/checkpoint-14").exists():
        assert process.poll() is None, "the run ended by itself"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut/model.safetensors").exists()
    (make_scratch(tmp_path / "cut/.unfinished") / "checkpoint-99").mkdir(exist_ok=True)  # as if it had been killed while it saved
    fine_tune(toy, tmp_path / "cut", *words, "--resume")
    fine_tune(toy, tmp_path / "whole", *words)
    whole, cut = weights_of(tmp_path / "whole", tmp_path / "cut")
    assert all(torch.equal(whole[k], cut[k]) for k in whole)
    assert not list(tmp_path.glob("*/.unfinished"))


def test_a_planted_pickle_is_refused_and_runs_nothing(toy, tmp_path):
    words = "--max_steps 2 --batch_size 2 --save_steps 1 --eval_steps 100".split()
    fine_tune(toy, tmp_path / "out", *words)
    checkpoint, written = tmp_path / "out/checkpoint-2", tmp_path / "written"
    for content in (Planted(written), {"step": 1}, pickle.dumps(Planted(written))):
        if isinstance(content, bytes):
            (checkpoint / "state.pt").write_bytes(content)
        else:
            torch.save(content, checkpoint / "state.pt")
        (checkpoint / MANIFEST).write_text(json.dumps(checksums(checkpoint)))  # as if it had been written so
        with pytest.raises(InputError, match="expected a training's state in .*state.pt, found another content"):
            fine_tune(toy, tmp_path / "out", *words, "--resume")
        assert not written.exists()
    pickle.loads(pickle.dumps(Planted(written))).close()
    assert written.exists(), "the negative control: what this test plants does run where pickles are opened"


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
