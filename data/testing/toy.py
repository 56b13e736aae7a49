"""A toy language, a toy corpus and a toy base model for the tests: small, real, and with a known answer.

The language has 20 words in 4 classes of 5, and one echo per class. A text is a row of random words, each followed by
the echo of its class. An echo says nothing new: after its word it costs 0 nats, without it ln 4 = 1.4. A word costs
ln 5 = 1.6 nats if its echo is known, ln 20 = 3.0 if not.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed

from data import prepare
from data.artifacts import sha256_of
from models.reconstructor.reconstructor import Reconstructor

REPOSITORY = Path(__file__).resolve().parents[2]
WORDS = [chr(ord("a") + i) for i in range(20)]
ECHO = {word: "ABCD"[i % 4] for i, word in enumerate(WORDS)}
PAIRS = 8  # pairs per text, 16 tokens


def write_corpus(path, texts=300, seed=0):
    """A .jsonl file of toy texts."""
    rng = np.random.default_rng(seed)
    rows = [" ".join(f"{w} {ECHO[w]}" for w in rng.choice(WORDS, PAIRS)) for _ in range(texts)]
    Path(path).write_text("".join(json.dumps({"text": row}) + "\n" for row in rows), encoding="utf-8")
    return Path(path)


def write_base(directory, n_positions=32, seed=0, width=64, layers=2):
    """A GPT-2 with random weights and the toy tokenizer, in standard form."""
    names = ["<|endoftext|>", "?", *WORDS, *"ABCD"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": names[0], "eos_token": names[0], "unk_token": "?"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)
    set_seed(seed)
    config = GPT2Config(
        vocab_size=len(names), n_positions=n_positions, n_embd=width, n_layer=layers, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(directory)
    return Path(directory)


def write_small(directory, gaps="found", n_positions=32):
    """A reconstructor smaller than those that are made from `write_base`, with random weights."""
    write_base(directory, n_positions, seed=1, width=16, layers=1)
    Reconstructor.from_base(directory, gaps=gaps).save(directory, args=argparse.Namespace())
    return Path(directory)


def seal(directory):
    """Have the record of a reconstructor's directory describe the files that are there, as if they had been saved together."""
    path = Path(directory) / "reconstructor.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    there = [name for name in record["weights"] if (path.parent / name).is_file()]
    path.write_text(json.dumps(record | {"weights": {name: sha256_of(path.parent / name) for name in there}}, indent=1) + "\n")
    return Path(directory)


def overflow(model, token):
    """Have a model whose weights are finite say NaN or infinity of a token, and of texts with it."""
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = torch.finfo(torch.float32).max
    return model


def write_byte_base(directory, n_positions=64, dropout=0.0, seed=0):
    """A GPT-2 with random weights and a byte-level BPE, in standard form: every byte string has tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["do not restart the server, and never delete the logs there " * 2], trainer)
    special = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(directory)
    set_seed(seed)
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(), n_positions=n_positions, n_embd=32, n_layer=2, n_head=2,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, bos_token_id=0, eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(directory)
    return Path(directory)


def write_toy(folder):
    """`folder` with the toy base model in `base` and the toy corpus, prepared, in `data`."""
    write_base(folder / "base")
    corpus = write_corpus(folder / "toy.jsonl")
    words = f"--source text --input {corpus} --tokenizer {folder / 'base'} --output_dir {folder / 'data'} --quiet"
    prepare.main([*words.split(), "--max_length", str(2 * PAIRS)])
    return folder


def pipeline(folder):
    """The five stages as command lines over a toy corpus in `folder`: a list of (script, words)."""
    write_base(folder / "base")
    write_corpus(folder / "toy.jsonl", texts=400)
    data, tuned, agent = folder / "data", folder / "tuned", folder / "agent"
    processed = data / "processed_data.json"
    return [
        (
            "data/prepare.py",
            f"--source text --input {folder / 'toy.jsonl'} --tokenizer {folder / 'base'} --output_dir {data} "
            "--max_length 16 --max_sequences 400",
        ),
        (
            "models/reconstructor/train_cpu.py",
            f"--data_path {processed} --output_dir {tuned} --base_model {folder / 'base'} --epochs 12 --batch_size 16 "
            "--mask_ratio 0.4 --learning_rate 3e-3 --eval_sequences 8",
        ),
        (
            "rl/train.py",
            f"--data_path {processed} --output_dir {agent} --reconstructor_path {tuned} --num_timesteps 1280 --n_steps 64 "
            "--batch_size 16 --gamma 0.99 --width 32 --learning_rate 3e-3 --eval_sequences 8 --device cpu",
        ),
        (
            "eval/evaluate.py",
            f"--model_path {agent}/best_model.zip --data_path {data}/test_data.json --output_dir {folder}/results "
            "--num_sequences 30 --keep_ratios 0.9 0.8 0.7 0.6 0.5 0.4 --device cpu",
        ),
        (
            "plots/visualize.py",
            f"--log_dir {agent}/tb_logs --results_path {folder}/results/evaluation_results.json --output_dir {folder}/plots",
        ),
    ]


def run_pipeline(folder):
    """Run `pipeline` and return what each stage printed. Any stage that fails ends in an AssertionError with its words."""
    printed = []
    for script, words in pipeline(folder):
        done = run_script(script, *words.split())
        assert done.returncode == 0, f"{script}: {done.stderr[-3000:]}"
        printed.append(done.stdout)
    return printed


def run_script(script, *words, **environment):
    """Run a script of the repository as a user would. Returns the finished process, with its output as text."""
    return run_python(str(REPOSITORY / script), *words, **environment)


def run_module(module, *words, **environment):
    """Run an installed module, as `run_script`."""
    return run_python("-m", module, *words, **environment)


def run_python(*words, **environment):
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env={**os.environ, **environment}, timeout=600)


class Planted:
    """What a pickle can do: to open it is to run it. Unpickled, it writes the file that it is made for."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def free_port():
    """A TCP port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def check_refusal(script, *words, expect, **environment):
    """Assert that a script refuses its input: one line on stderr that has every string of `expect`, exit status 2."""
    done = run_script(script, *words, **environment)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr[-2000:]
    assert len(lines) == 1 and "error:" in lines[0], done.stderr[-2000:]
    for part in expect:
        assert part in lines[0], lines[0]
