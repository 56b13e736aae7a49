"""What the tests of data preparation share: texts to prepare, preparation in this process and in one that can be killed."""

import json
import os
import shutil
import subprocess
import sys

from data import prepare
from data.sequences import SPLITS
from data.testing.toy import REPOSITORY

HOSTILE = "  leading\r\nnaïve café 🙂 ﷽ \u2028 \x00 don't <|endoftext|> <|mask|>\t\ttabs   "
# Preparation with short waits, which saves its state after every few documents.
RESTLESS = """
import functools, sys
import datasets
from huggingface_hub import hf_file_system
from data import pipeline, prepare
from data.artifacts import run
pipeline.SAVE_EVERY, pipeline.BATCH_CHARACTERS = 0, 3000
datasets.config.STREAMING_READ_RETRY_INTERVAL = 0
hf_file_system.http_backoff = functools.partial(hf_file_system.http_backoff, max_retries=0)
"""
ONE_RUN = "run(prepare.main)"


def write_texts(folder, count=30):
    """`folder` with `count` texts, a copy of one of them and a blank one."""
    folder.mkdir()
    for i in range(count):
        text = f"Document {i}. " + f"The number {i * 7919} follows {HOSTILE}. " * 12
        (folder / f"{i:02d}.txt").write_text(text, encoding="utf-8")
    shutil.copy(folder / "03.txt", folder / "copy.txt")
    (folder / "blank.txt").write_text(" \n", encoding="utf-8")
    return folder


def write_jsonl(path, texts):
    """A .jsonl file with a text in each row."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def prepared(folder, *words, source="text"):
    """Prepare into `folder/out`, in this process. Returns that."""
    prepare.main(["--output_dir", str(folder / "out"), "--source", source, "--quiet", *map(str, words)])
    return folder / "out"


def restless(command, *words, **environment):
    """Start `command`, Python that runs preparation with the arguments `words`, in a process of its own."""
    arguments = [sys.executable, "-c", RESTLESS + command, "--quiet", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(arguments, cwd=REPOSITORY, env={**os.environ, **environment}, **pipes)


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def all_tokens(out):
    return [row["tokens"] for name in SPLITS.values() for row in rows(out / name)]


def split_bytes(out):
    return {name: (out / name).read_bytes() for name in SPLITS.values()}
