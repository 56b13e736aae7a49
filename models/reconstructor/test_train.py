"""Tests of fine-tuning: `python models/reconstructor/test_train.py`, with those of resuming and of prediction, or pytest."""

import copy
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.artifacts import InputError, sha256_of
from data.testing.toy import REPOSITORY, check_refusal, free_port, run_module
from models.reconstructor import benchmark, test_checkpoints, test_reconstructor, test_texts, train_cpu, train_gpu
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.test_checkpoints import command_line, fine_tune, train_cpu_args, weights_of
from models.reconstructor.test_reconstructor import llama
from models.reconstructor.tokenizer import MASK_TOKEN
from models.reconstructor.training import Training


def test_fine_tuning_learns_the_echo_and_stock_transformers_load_it(toy, tmp_path):
    metrics = fine_tune(toy, tmp_path, *"--gaps told --max_steps 250 --batch_size 32 --eval_steps 250".split())
    # Without context a token costs (ln 20 + ln 4) / 2 = 2.2 nats; with its neighbour (ln 5 + 0) / 2 = 0.8.
    assert metrics["eval_nats_at_0.3"] < 1.5, metrics
    assert metrics["eval_top1_at_0.3"] > 0.4, metrics
    tuned, tokenizer = Reconstructor.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert tokenizer.convert_tokens_to_ids(MASK_TOKEN) == tuned.mask_id not in (tokenizer.pad_token_id, tokenizer.eos_token_id)
    for name, weight in tuned.model.state_dict().items():
        assert torch.equal(weight, stock.state_dict()[name]), name
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["schema"] == "rltc.finetuning/1" and record["metrics"] == metrics and record["args"]["max_steps"] == 250
    assert record["weights"] == {str(path): sha256_of(path) for path in (toy / "base", tmp_path)} and record["commit"]
    assert tuned.gap_head is None and not any("gaps" in name for name in metrics)


def test_two_processes_train_as_one_with_twice_the_batch(toy, tmp_path):
    words = "--max_steps 8 --logging_steps 1 --eval_steps 100 --save_steps 100 --gradient_accumulation_steps 2".split()
    script, two = REPOSITORY / "models/reconstructor/train_cpu.py", command_line(toy, tmp_path / "two", *words, "--batch_size", 3)
    done = run_module("torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}", script, *two)
    assert done.returncode == 0, done.stderr[-3000:]
    fine_tune(toy, tmp_path / "one", *words, "--batch_size", 6)
    logs = [json.loads((tmp_path / name / "training.json").read_text())["log"] for name in ("one", "two")]
    losses = [[row["loss"] for row in log if "loss" in row] for log in logs]
    assert len(losses[0]) == 8 and losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    one, two = weights_of(tmp_path / "one", tmp_path / "two")
    assert "gap_head.out.weight" in one and one["gap_head.out.weight"].any()
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)
    assert len(list((tmp_path / "two/tb_logs").glob("events*"))) == 1, "both processes wrote logs"


def test_a_llama_is_fine_tuned_by_the_same_command(toy, tmp_path):
    llama(toy).model.save_pretrained(tmp_path / "llama")
    AutoTokenizer.from_pretrained(toy / "base").save_pretrained(tmp_path / "llama")
    words = "--max_steps 120 --batch_size 32 --eval_steps 200 --gradient_checkpointing".split()
    metrics = fine_tune(toy, tmp_path / "out", "--base_model", tmp_path / "llama", *words)
    before = json.loads((tmp_path / "out/training.json").read_text())["before"]
    assert metrics["eval_nats_at_0.3"] < 2.3 < before["eval_nats_at_0.3"], "not even the frequencies were learnt"
    assert Reconstructor.load(tmp_path / "out").model.config.model_type == "llama"


def test_the_last_validation_is_a_curve_and_tensorboard_has_the_speed(toy, tmp_path):
    words = "--max_steps 4 --batch_size 4 --save_steps 2 --eval_steps 2 --logging_steps 2 --mask_spread 0".split()
    metrics = fine_tune(toy, tmp_path, *words)
    checkpoint = tmp_path / "checkpoint-4"
    assert {"model.safetensors", "reconstructor.json", "checksums.json", "state.pt"} <= {p.name for p in checkpoint.iterdir()}
    record, curve = (json.loads(path.read_text()) for path in (checkpoint / "reconstructor.json", tmp_path / "training.json"))
    assert record["step"] == 4 and record["metrics"] == metrics
    assert curve["curve"]["0.3"]["nats"] == metrics["eval_nats_at_0.3"] and len(curve["curve"]) == 9
    events = EventAccumulator(str(tmp_path / "tb_logs")).Reload()
    expected = {"train/loss", "train/learning_rate", "train/tokens_per_second", "eval/top1_at_0.1", "eval/nats_at_0.5"}
    expected |= {"eval/gaps_at_0.3"}
    assert expected <= set(events.Tags()["scalars"])
    speed = [e.value for e in events.Scalars("train/tokens_per_second")]
    assert len(speed) == 2 and min(speed) > 0


def test_the_gap_head_alone_is_trained_and_the_model_stays_as_it_is(toy, tmp_path):
    words = "--batch_size 32 --eval_steps 100 --mask_policy frequency --policy_share 1".split()
    fine_tune(toy, tmp_path / "whole", "--max_steps", 40, "--gaps", "told", *words)
    heads = [*words, "--base_model", tmp_path / "whole", "--gap_head_only"]
    metrics = fine_tune(toy, tmp_path / "head", *heads, "--max_steps", 60)
    before = json.loads((tmp_path / "head/training.json").read_text())["before"]
    whole, head = weights_of(tmp_path / "whole", tmp_path / "head")
    assert all(torch.equal(whole[name], head[name]) for name in whole) and len(whole) > 20
    assert all(name.startswith("gap_head.") for name in head.keys() - whole.keys()) and head["gap_head.out.weight"].any()
    assert sha256_of(tmp_path / "whole/model.safetensors") == sha256_of(tmp_path / "head/model.safetensors")
    for ratio in (0.1, 0.3, 0.5):
        assert metrics[f"eval_gaps_at_{ratio}"] < 0.2 * before[f"eval_gaps_at_{ratio}"]
        assert metrics[f"eval_nats_at_{ratio}"] == before[f"eval_nats_at_{ratio}"]
    fine_tune(toy, tmp_path / "cut", *heads, "--max_steps", 60, "--save_steps", 30)
    for path in (tmp_path / "cut/checkpoint-60", tmp_path / "cut/tb_logs"):
        shutil.rmtree(path)
    fine_tune(toy, tmp_path / "cut", *heads, "--max_steps", 60, "--resume")
    cut = weights_of(tmp_path / "cut")[0]
    assert all(torch.equal(cut[name], head[name]) for name in head)
    with pytest.raises(InputError, match="was made with --gap_head_only True"):
        fine_tune(toy, tmp_path / "cut", *heads[:-1], "--max_steps", 90, "--resume")


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_compiling_changes_nothing_but_the_time(toy, tmp_path):
    words = ["--max_steps", 3, "--batch_size", 4, "--eval_steps", 100]
    plain, compiled = fine_tune(toy, tmp_path / "a", *words), fine_tune(toy, tmp_path / "b", *words, "--torch_compile")
    assert compiled == pytest.approx(plain, rel=1e-3)


def test_flags_reach_the_training(toy, tmp_path):
    words = "--epochs 0.02 --batch_size 2 --gradient_accumulation_steps 2 --max_length 8 --attention causal"
    more = "--warmup_ratio 0.5 --weight_decay 0.1 --gradient_checkpointing --use_amp --save_total_limit 1"
    often = "--save_steps 1 --logging_steps 1 --eval_steps 1 --seed 7"
    fine_tune(toy, tmp_path, *words.split(), *more.split(), *often.split())
    assert Reconstructor.load(tmp_path).attention == "causal"
    assert len(list(tmp_path.glob("checkpoint-*"))) == 1
    record = json.loads((tmp_path / "training.json").read_text())
    rates = [row["learning_rate"] for row in record["log"] if "loss" in row]
    assert record["seed"] == 7 and record["steps"] == len(rates) > 1
    assert rates[0] == 0 and max(rates) == rates[len(rates) // 2] == 3e-3, "half of it warms up"
    with pytest.raises(InputError, match="was made with --attention causal"):
        fine_tune(toy, tmp_path, *words.replace("causal", "bidirectional").split(), *more.split(), *often.split(), "--resume")


def test_a_step_is_the_one_of_torch(toy, tmp_path, monkeypatch):
    """Two steps of the whole loop against the same written out with torch: clipping, decay, accumulation, falling rate."""
    monkeypatch.setattr("models.reconstructor.training.MAX_GRAD_NORM", 0.05)
    words = "--max_steps 2 --batch_size 3 --gradient_accumulation_steps 2 --warmup_ratio 0 --weight_decay 0.1"
    training = Training(train_cpu_args(*command_line(toy, tmp_path, *words.split())))
    model, reference = training.reconstructor, copy.deepcopy(training.reconstructor)
    decay = [[p for p in reference.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False)]
    groups = [{"params": decay[0], "weight_decay": 0.1}, {"params": decay[1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95))
    for rate in (3e-3, 1.5e-3):
        batches = list(training.batches())
        nats = sum(reference(*batch) for batch in batches)
        (nats / sum((valid & ~keep_mask).sum() for _, keep_mask, valid in batches)).backward()
        torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.05)
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        training.take_step()
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(weight, reference.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_every_text_is_read_once_an_epoch_by_every_number_of_processes(toy, tmp_path):
    training = Training(train_cpu_args(*command_line(toy, tmp_path, "--batch_size", 7, "--gradient_accumulation_steps", 3)))
    training.texts, training.rarity = [np.array([i]) for i in range(100)], None
    training.per_epoch = 5  # of 21 texts
    training.accelerator = SimpleNamespace(num_processes=1, process_index=0, device="cpu")
    read = []
    for training.step in range(10):
        read.append([int(i) for ids, *_ in training.batches() for i in ids[:, 0]])
    assert sorted(sum(read[:5], [])) == sorted(sum(read[5:], [])) == list(range(100)) and read[0] != read[5]
    training.step_size, training.per_epoch = 42, 3
    for training.step in range(3):
        parts = []
        for index in range(2):
            training.accelerator = SimpleNamespace(num_processes=2, process_index=index, device="cpu")
            parts.append([ids[:, 0].tolist() for ids, *_ in training.batches()])
        assert len(parts[0]) == len(parts[1]), "a process waits for another"
        assert sorted(sum(parts[0] + parts[1], [])) == sorted(sum(read[:5][2 * training.step : 2 * training.step + 2], []))


def test_the_benchmark_takes_the_same_steps_on_both_sides(toy, tmp_path):
    paths = ["--data_path", str(toy / "data/processed_data.json"), "--base_model", str(toy / "base")]
    benchmark.main([*paths, *f"--max_length 16 --steps 2 --turns 2 --quiet --output {tmp_path / 'speed.json'}".split()])
    figures = json.loads((tmp_path / "speed.json").read_text())["figures"]
    assert len(figures["ours"]["losses"]) == 4 and min(figures["ours"]["tokens_per_second"]) > 0
    # Stock practice takes the mask token for an answer, one of 27 here.
    assert figures["ours"]["losses"] == pytest.approx(np.array(figures["stock"]["losses"]) - np.log(27 / 26), abs=2e-3)


# --- bad input


def test_a_truncated_model_is_refused(toy, tmp_path):
    shutil.copytree(toy / "base", tmp_path / "base")
    weights = (tmp_path / "base/model.safetensors").read_bytes()
    (tmp_path / "base/model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(InputError, match="no causal language model"):
        fine_tune(toy, tmp_path / "out", "--base_model", tmp_path / "base")


@pytest.mark.parametrize(
    "words, expect",
    [
        (["--max_length", 500], "expected at most 31"),
        (["--max_length", 2], "expected a masked token"),
        (["--resume"], "expected a checkpoint"),
        (["--data_path", "nowhere.json"], "is missing"),
        (["--base_model", "nowhere/at/all"], "no causal language model"),
    ],
)
def test_bad_input_is_refused(toy, tmp_path, words, expect):
    with pytest.raises((InputError, FileNotFoundError), match=expect):
        fine_tune(toy, tmp_path / "out", *words, "--max_steps", 1)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(toy, tmp_path, device):
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has an accelerator")
    with pytest.raises(InputError, match=f"--device {device}: expected"):
        train_gpu.main(["--device", device, "--output_dir", str(tmp_path)])


@pytest.mark.parametrize(
    "words", ["--mask_ratio 1.7", "--learning_rate nan", "--batch_size 0", "--device cuda", "--gap_head_only --gaps told"]
)
def test_impossible_flags_are_refused(words):
    with pytest.raises(SystemExit, match="2"):
        train_cpu.main(words.split())


def test_nan_in_the_loss_stops_the_run(toy, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(toy / "base")
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = float("nan")
    model.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(toy / "base").save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match="found 1 not finite: transformer.ln_f.weight"):
        fine_tune(toy, tmp_path / "out", "--max_steps", 2, "--base_model", tmp_path / "base")
    training = Training(train_cpu_args(*command_line(toy, tmp_path / "out")))
    with torch.no_grad():
        training.reconstructor.model.transformer.ln_f.weight[0] = float("nan")
    with pytest.raises(InputError, match="the loss is nan at step 0, learning rate .*; lower"):
        training.take_step()
    with pytest.raises(InputError, match="the weights are not finite at step 0"):
        training.save()


def test_a_directory_without_a_model_is_one_line(toy, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    words = ["--base_model", tmp_path, "--data_path", toy / "data/processed_data.json"]
    check_refusal("models/reconstructor/train_cpu.py", *words, expect=["no causal language model", str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="reconstructor.json is missing"):
        Reconstructor.load(tmp_path)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, *(test.__file__ for test in (test_checkpoints, test_reconstructor, test_texts)), "-v"]))
