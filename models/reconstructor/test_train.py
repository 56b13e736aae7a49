"""Tests of the reconstructor: `python models/reconstructor/test_train.py` or pytest."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM

from data.artifacts import InputError
from data.testing.toy import REPOSITORY, check_refusal, free_port, run_module, write_base, write_toy
from models.reconstructor import train_cpu, train_gpu
from models.reconstructor.loss import summed_nats
from models.reconstructor.masking import draw_mask_ratios, keep_highest, random_keep_mask
from models.reconstructor.pretraining.optimizer import Muon
from models.reconstructor.reconstructor import Reconstructor
from models.reconstructor.tokenizer import BASE_MODEL, MASK_TOKEN, load_tokenizer
from models.reconstructor.training import ReconstructorTrainer, parse_args


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A folder with the toy base model in `base` and the toy data in `data`."""
    return write_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def reconstructor(toy):
    return Reconstructor.from_base(toy / "base").eval()


def random_batch(reconstructor, seed=0, lengths=(16, 9, 1)):
    """ids, keep_mask and valid of texts of unequal length."""
    rng = np.random.default_rng(seed)
    valid = np.arange(max(lengths)) < np.array(lengths)[:, None]
    ids = np.where(valid, rng.integers(2, reconstructor.vocab_size, valid.shape), 0)
    return ids, random_keep_mask(valid, 0.4, rng), valid


def fine_tune(toy, output, *words):
    command = f"--data_path {toy / 'data/processed_data.json'} --base_model {toy / 'base'} --output_dir {output} --quiet --learning_rate 3e-3 --eval_sequences 16"
    return train_cpu.main(command.split() + [str(w) for w in words])


def train_cpu_args(*words):
    return parse_args(words, ("cpu",), train_cpu.__doc__)


# --- masks


@pytest.mark.parametrize("span_share", [0.0, 1.0])
def test_random_masks_are_exact_and_never_mask_padding(span_share):
    valid = np.arange(50) < np.array([50, 20, 7])[:, None]
    keep_mask = random_keep_mask(valid, np.array([0.3, 0.5, 0.1]), np.random.default_rng(0), span_share)
    assert (~keep_mask).sum(1).tolist() == [15, 10, 1] and keep_mask[~valid].all()


def test_spans_are_longer_than_single_tokens():
    valid = np.ones((200, 64), bool)
    runs = []
    for share in (0.0, 1.0):
        masked = ~random_keep_mask(valid, 0.25, np.random.default_rng(1), share)
        starts = masked & ~np.pad(masked, ((0, 0), (1, 0)))[:, :-1]
        runs.append(masked.sum() / starts.sum())
    # Independent masking at 0.25 has runs of mean 1 / 0.75; segments of mean 3 tokens give runs well over 2.
    assert runs[0] == pytest.approx(1 / 0.75, abs=0.1) and runs[1] > 2.5


def test_keep_highest_is_exact_and_prefers_earlier_tokens_among_equals():
    valid = np.array([[True] * 5, [True, True, True, False, False]])
    scores = np.array([[1, 5, 5, 0, 5], [0, 0, 9, 99, 99]])
    assert keep_highest(scores, valid, 0.4).tolist() == [[False, True, True, False, False], [False, False, True, True, True]]


def test_mask_ratios_stay_in_range():
    ratios = draw_mask_ratios(1000, 0.3, 0.5, np.random.default_rng(0))
    assert ratios.min() == 0.01 and 0.7 < ratios.max() <= 0.8


# --- loss and prediction


def test_fused_loss_and_gradients_equal_torch(monkeypatch):
    monkeypatch.setattr("models.reconstructor.loss.CHUNK", 7)
    torch.manual_seed(0)
    inputs = torch.randn(25, 6, dtype=torch.float64), torch.randn(40, 6, dtype=torch.float64), torch.randint(40, (25,))
    found, expected = ([x.clone().requires_grad_(x.is_floating_point()) for x in inputs] for _ in range(2))
    a, b = summed_nats(*found) * 0.3, F.cross_entropy(expected[0] @ expected[1].T, expected[2], reduction="sum") * 0.3
    a.backward(), b.backward()
    # The total is summed in float32.
    torch.testing.assert_close(a, b, check_dtype=False)
    for x, y in zip(found[:2], expected[:2], strict=True):
        torch.testing.assert_close(x.grad, y.grad, rtol=1e-6, atol=1e-8)


def full_model_log_probabilities(reconstructor, ids, keep_mask):
    """An independent reference: the stock model's forward over [BOS, text], with a full 4-D mask, at every position."""
    ids, keep_mask = torch.as_tensor(ids), torch.as_tensor(keep_mask)
    shown = torch.where(keep_mask, ids, reconstructor.mask_id)
    inputs = F.pad(shown, (1, 0), value=reconstructor.bos_id)
    mask = torch.zeros(len(ids), 1, inputs.shape[1], inputs.shape[1])
    with torch.no_grad():
        logits = reconstructor.model(input_ids=inputs, attention_mask=mask).logits[:, :-1, : reconstructor.vocab_size]
    return logits.log_softmax(-1)


def llama(toy):
    config = LlamaConfig(vocab_size=26, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=32, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    return Reconstructor(LlamaForCausalLM(config), load_tokenizer(toy / "base")).eval()


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_logits_at_masked_positions_equal_the_full_models(toy, reconstructor, architecture):
    model = reconstructor if architecture == "gpt2" else llama(toy)
    ids, keep_mask, valid = random_batch(model, lengths=(16, 16))
    reference = full_model_log_probabilities(model, ids, keep_mask)
    prediction = model.predict(ids, keep_mask, valid)
    truth = torch.as_tensor(ids)
    nats = -reference.gather(2, truth[..., None])[..., 0]
    masked = ~torch.as_tensor(keep_mask)
    torch.testing.assert_close(prediction.nats[masked], nats[masked], rtol=1e-4, atol=1e-4)
    assert (prediction.nats[~masked] == 0).all() and (prediction.top1[~masked] == truth[~masked]).all()
    assert (prediction.top1[masked] == reference.argmax(-1)[masked]).all()
    torch.testing.assert_close(prediction.confidence[masked], reference.exp().amax(-1)[masked], rtol=1e-4, atol=1e-5)
    batch = truth, torch.as_tensor(keep_mask), torch.as_tensor(valid)
    with torch.no_grad():
        (total, count), (causal, _) = model(*batch), model(*batch, as_causal_lm=True)
        stock = model.model(F.pad(truth, (1, 0), value=model.bos_id)).logits[:, :-1, : model.vocab_size].log_softmax(-1)
    assert count == masked.sum() and float(total) == pytest.approx(float(nats[masked].sum()), rel=1e-4)
    assert float(causal) == pytest.approx(-float(stock.gather(2, truth[..., None])[..., 0][masked].sum()), rel=1e-4)


def test_padding_changes_nothing(reconstructor):
    ids, keep_mask, valid = random_batch(reconstructor)
    together = reconstructor.predict(ids, keep_mask, valid)
    for row, length in enumerate(valid.sum(1)):
        alone = reconstructor.predict(ids[row : row + 1, :length], keep_mask[row : row + 1, :length])
        torch.testing.assert_close(together.nats[row, :length], alone.nats[0], rtol=1e-4, atol=1e-4)
        assert (together.nats[row, length:] == 0).all()


def test_the_answer_does_not_leak(reconstructor):
    ids, keep_mask, valid = random_batch(reconstructor)
    other = np.where(keep_mask, ids, 2 + (ids + 5) % 20)
    first, second = (reconstructor.predict(x, keep_mask, valid) for x in (ids, other))
    masked = torch.as_tensor(valid & ~keep_mask)
    assert (first.top1[masked] == second.top1[masked]).all() and torch.equal(first.confidence[masked], second.confidence[masked])
    assert not torch.equal(first.nats, second.nats), "the truth is not looked up at all"


@pytest.mark.parametrize("attention, sees_future", [("bidirectional", True), ("causal", False)])
def test_attention_direction(toy, attention, sees_future):
    model = Reconstructor.from_base(toy / "base", attention).eval()
    ids, keep_mask = np.full((1, 8), 5), np.arange(8)[None] != 2
    changed = ids.copy()
    changed[0, 6] = 9
    same = torch.allclose(model.predict(ids, keep_mask).nats, model.predict(changed, keep_mask).nats, atol=1e-6)
    assert same != sees_future


def test_reconstruct_is_predict_where_the_text_fits(reconstructor):
    ids, keep_mask, valid = random_batch(reconstructor)
    one, single = reconstructor.reconstruct(ids, keep_mask, valid), reconstructor.predict(ids, keep_mask, valid)
    assert all(torch.equal(a, b) for a, b in zip(one, single, strict=True))


def test_long_texts_go_through_in_windows(reconstructor):
    ids, keep_mask, valid = random_batch(reconstructor, lengths=(75,))
    long = reconstructor.reconstruct(ids, keep_mask, valid)
    assert long.nats.shape == (1, 75) and (long.nats[torch.as_tensor(~keep_mask)] > 0).all()
    # The first tokens are furthest from an edge in the first window, which is what `predict` sees of it.
    first = reconstructor.predict(ids[:, : reconstructor.max_length], keep_mask[:, : reconstructor.max_length])
    torch.testing.assert_close(long.nats[:, :10], first.nats[:, :10], rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="expected at most 31"):
        reconstructor.predict(ids, keep_mask)


def test_gpt2_tokenizer():
    tokenizer = load_tokenizer(BASE_MODEL)
    assert len(tokenizer) == 50_258 and tokenizer.convert_tokens_to_ids(MASK_TOKEN) == 50_257, "GPT-2's 50,257 tokens and the mask token"
    assert tokenizer("Hello world, naïve 🙂")["input_ids"] == [15496, 995, 11, 41492, 303, 12520, 25, 247][:3] + tokenizer(" naïve 🙂")["input_ids"]
    assert tokenizer("Hello world")["input_ids"] == [15496, 995]  # as in GPT-2's documentation


# --- training


def test_muon_takes_the_steps_of_torchs():
    """The reference orthogonalises in bfloat16, whose rounding is 0.4 %."""
    torch.manual_seed(0)
    starts = [torch.randn(8, 24), torch.randn(24, 8), torch.randn(8, 24)]
    mine, theirs = ([torch.nn.Parameter(s.clone()) for s in starts] for _ in range(2))
    optimizers = Muon(mine, lr=0.05, weight_decay=0.1), torch.optim.Muon(theirs, lr=0.05, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        gradients = [torch.randn_like(s) for s in starts]
        for params, optimizer in zip((mine, theirs), optimizers, strict=True):
            for p, g in zip(params, gradients, strict=True):
                p.grad = g.clone()
            optimizer.step()
    for start, a, b in zip(starts, mine, theirs, strict=True):
        assert ((a - b).norm() / (b - start).norm()).item() < 0.02


def test_fine_tuning_learns_the_echo_and_stock_transformers_load_it(toy, tmp_path):
    metrics = fine_tune(toy, tmp_path, "--max_steps", 250, "--batch_size", 32, "--eval_steps", 250)
    # Without context a token costs (ln 20 + ln 4) / 2 = 2.2 nats; with its neighbour (ln 5 + 0) / 2 = 0.8.
    assert metrics["eval_nats_at_0.3"] < 1.5, metrics
    assert metrics["eval_top1_at_0.3"] > 0.4, metrics
    tuned, stock, tokenizer = Reconstructor.load(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.convert_tokens_to_ids(MASK_TOKEN) == tuned.mask_id not in (tokenizer.pad_token_id, tokenizer.eos_token_id)
    for name, weight in tuned.model.state_dict().items():
        assert torch.equal(weight, stock.state_dict()[name]), name
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["schema"] == "rltc.finetuning/1" and record["metrics"] == metrics and record["args"]["max_steps"] == 250
    assert list((tmp_path / "tb_logs").glob("events*"))
    assert not (tmp_path / "runs").exists(), "the Trainer opened a log of its own"


def weights_of(*directories):
    return [Reconstructor.load(directory).state_dict() for directory in directories]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_ends_with_the_same_weights(toy, tmp_path, optimizer, capsys):
    words = ["--max_steps", 6, "--batch_size", 4, "--save_steps", 2, "--save_total_limit", 3, "--eval_steps", 100, "--optimizer", optimizer]
    fine_tune(toy, tmp_path / "whole", *words)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    # The newest checkpoint was never finished, the one before it is damaged: the run goes on from the first.
    (tmp_path / "cut/checkpoint-6/checksums.json").unlink()
    damaged = tmp_path / "cut/checkpoint-4/optimizer.pt"
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
    assert "skipped checkpoint-6 (checksums.json is missing or unreadable" in said and "checkpoint-4 (optimizer.pt not as written); going on from checkpoint-2" in said
    whole, cut = weights_of(tmp_path / "whole", tmp_path / "cut")
    assert all(torch.equal(whole[k], cut[k]) for k in whole)
    for path in (tmp_path / "cut").glob("checkpoint-*"):
        (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="found only damaged ones: checkpoint-6"):
        fine_tune(toy, tmp_path / "cut", *words, "--resume")


def command_line(toy, output, *words):
    return [f"--data_path={toy / 'data/processed_data.json'}", f"--base_model={toy / 'base'}", f"--output_dir={output}", "--quiet", "--learning_rate=3e-3", "--eval_sequences=16", *map(str, words)]


def test_a_killed_run_goes_on_to_the_same_weights(toy, tmp_path):
    words = ["--max_steps", 60, "--batch_size", 4, "--save_steps", 7, "--eval_steps", 100, "--causal_share", 0.3]
    command = [sys.executable, str(REPOSITORY / "models/reconstructor/train_cpu.py"), *command_line(toy, tmp_path / "cut", *words)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (tmp_path / "cut/checkpoint-14").exists():
        assert process.poll() is None, "the run ended by itself"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "cut/model.safetensors").exists()
    (tmp_path / "cut/.unfinished/checkpoint-99").mkdir(parents=True, exist_ok=True)  # as if it had been killed while it saved
    fine_tune(toy, tmp_path / "cut", *words, "--resume")
    fine_tune(toy, tmp_path / "whole", *words)
    whole, cut = weights_of(tmp_path / "whole", tmp_path / "cut")
    assert all(torch.equal(whole[k], cut[k]) for k in whole)
    assert not list(tmp_path.glob("*/.unfinished"))


def test_two_processes_train_as_one_with_twice_the_batch(toy, tmp_path):
    words = ["--max_steps", 8, "--logging_steps", 1, "--eval_steps", 100, "--save_steps", 100, "--gradient_accumulation_steps", 2]
    done = run_module("torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}", REPOSITORY / "models/reconstructor/train_cpu.py", *command_line(toy, tmp_path / "two", *words, "--batch_size", 3))
    assert done.returncode == 0, done.stderr[-3000:]
    fine_tune(toy, tmp_path / "one", *words, "--batch_size", 6)
    losses = [[row["loss"] for row in json.loads((tmp_path / name / "training.json").read_text())["log"] if "loss" in row] for name in ("one", "two")]
    assert len(losses[0]) == 8 and losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    one, two = weights_of(tmp_path / "one", tmp_path / "two")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)
    assert len(list((tmp_path / "two/tb_logs").glob("events*"))) == 1, "both processes wrote logs"


def test_a_llama_is_fine_tuned_by_the_same_command(toy, tmp_path):
    llama(toy).model.save_pretrained(tmp_path / "llama")
    AutoTokenizer.from_pretrained(toy / "base").save_pretrained(tmp_path / "llama")
    metrics = fine_tune(toy, tmp_path / "out", "--base_model", tmp_path / "llama", "--max_steps", 120, "--batch_size", 32, "--eval_steps", 200, "--gradient_checkpointing")
    before = json.loads((tmp_path / "out/training.json").read_text())["before"]
    assert metrics["eval_nats_at_0.3"] < 2.3 < before["eval_nats_at_0.3"], "not even the frequencies were learnt"
    assert Reconstructor.load(tmp_path / "out").model.config.model_type == "llama"


def test_checkpoints_have_a_card_and_tensorboard_has_the_speed(toy, tmp_path):
    fine_tune(toy, tmp_path, *"--max_steps 4 --batch_size 4 --save_steps 2 --eval_steps 2 --logging_steps 2 --mask_spread 0".split())
    checkpoint = tmp_path / "checkpoint-4"
    assert {"README.md", "training_args.bin", "reconstructor.json", "checksums.json", "optimizer.pt"} <= {p.name for p in checkpoint.iterdir()}
    record, card = json.loads((checkpoint / "reconstructor.json").read_text()), (checkpoint / "README.md").read_text()
    assert f"| 0.3 | {record['metrics']['eval_nats_at_0.3']:.3f} |" in card and "--max_steps 4" in card and "--mask_spread 0.0" in card and str(record["step"]) == "4"
    assert (tmp_path / "README.md").read_text().count("\n| 0.") == 9, "the curve from 0.1 to 0.9"
    events = EventAccumulator(str(tmp_path / "tb_logs")).Reload()
    assert {"train/loss", "train/learning_rate", "train/tokens_per_second", "eval/top1_at_0.1", "eval/nats_at_0.5"} <= set(events.Tags()["scalars"])
    speed = [e.value for e in events.Scalars("train/tokens_per_second")]
    assert len(speed) == 2 and min(speed) > 0


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_compiling_changes_nothing_but_the_time(toy, tmp_path):
    words = ["--max_steps", 3, "--batch_size", 4, "--eval_steps", 100]
    plain, compiled = fine_tune(toy, tmp_path / "a", *words), fine_tune(toy, tmp_path / "b", *words, "--torch_compile")
    assert compiled == pytest.approx(plain, rel=1e-3)


def test_flags_reach_the_trainer(toy, tmp_path):
    fine_tune(
        toy, tmp_path, *"--epochs 0.02 --batch_size 2 --gradient_accumulation_steps 2 --max_length 8 --mask_ratio 0.4 --mask_spread 0 --span_share 1 --attention causal --causal_share 0.5".split(),
        *"--warmup_ratio 0.5 --weight_decay 0.1 --max_grad_norm 0.5 --gradient_checkpointing --use_amp --save_total_limit 1 --save_steps 1 --logging_steps 1 --eval_steps 1 --seed 7".split(),
    )
    assert Reconstructor.load(tmp_path).attention == "causal"
    assert len(list(tmp_path.glob("checkpoint-*"))) == 1
    record, used = json.loads((tmp_path / "training.json").read_text()), torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert record["seed"] == used.seed == 7 and record["steps"] == used.max_steps > 1
    assert (used.per_device_train_batch_size, used.gradient_accumulation_steps, used.weight_decay, used.max_grad_norm) == (2, 2, 0.1, 0.5)
    assert used.warmup_steps == used.max_steps // 2 and (used.save_steps, used.logging_steps, used.eval_steps, used.save_total_limit) == (1, 1, 1, 1)
    with pytest.raises(InputError, match="was trained with --attention causal"):
        fine_tune(toy, tmp_path, "--resume")


def test_masks_follow_the_flags():
    """The trainer's masks: exactly --mask_ratio without spread, others in another step, the same however texts are batched."""
    valid = np.ones((4, 16), bool)

    def masks(step, numbers):
        trainer = SimpleNamespace(settings=train_cpu_args("--mask_ratio", "0.25", "--mask_spread", "0"), state=SimpleNamespace(global_step=step), mask_policy=None)
        return ReconstructorTrainer.draw_masks(trainer, numbers, np.zeros((len(numbers), 16)), valid[: len(numbers)])

    first = masks(0, [3, 1, 4, 5])
    assert ((~first).sum(1) == 4).all()
    assert np.array_equal(first, np.concatenate([masks(0, [3, 1]), masks(0, [4, 5])]))
    assert not np.array_equal(first, masks(1, [3, 1, 4, 5]))


# --- bad input


def test_a_head_with_a_bias_is_refused(toy):
    model = PhiForCausalLM(PhiConfig(vocab_size=26, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(InputError, match="expected a plain linear output layer"):
        Reconstructor(model, load_tokenizer(toy / "base"))


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


@pytest.mark.parametrize("words", [["--mask_ratio", "1.7"], ["--learning_rate", "nan"], ["--batch_size", "0"], ["--device", "cuda"]])
def test_impossible_flags_are_refused(words):
    with pytest.raises(SystemExit, match="2"):
        train_cpu.main(words)


def test_nan_in_the_loss_stops_the_run(toy, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(toy / "base")
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = float("nan")
    model.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(toy / "base").save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match="the loss is nan at step 0, learning rate .*; lower"):
        fine_tune(toy, tmp_path / "out", "--max_steps", 2, "--base_model", tmp_path / "base")


def test_a_directory_without_a_model_is_one_line(toy, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    check_refusal("models/reconstructor/train_cpu.py", "--base_model", tmp_path, "--data_path", toy / "data/processed_data.json", expect=["no causal language model", str(tmp_path)])
    with pytest.raises(FileNotFoundError, match="reconstructor.json is missing"):
        Reconstructor.load(tmp_path)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-v"]))
