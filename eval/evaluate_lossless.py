"""How small a text gets without loss: the container's lossless payload beside xz, zstd and an arithmetic coder.

    python eval/evaluate_lossless.py --model_path models/agent/released --data_path data/processed/wiki/test_data.json \\
        data/processed/addresses/test_data.json --num_sequences 60

Of every corpus: the share of tokens that the agent sends, bits per byte of each document by itself and of all of them as one text,
and seconds per 1,000 tokens. `ranks`: the lossless payload as bytes; `container`: the whole file, with base64, hashes and names.
`causal`: what an arithmetic coder on the causal LM's probabilities would need, the ideal -sum log2 p, in windows as long as ours.

It is a figure of merit, not a claim to be the smallest. What the arithmetic coder does better: it codes every token given all
tokens before it, where the kept tokens are read in a row with holes, and the masked ones all at one time, not given each other;
it spends -log2 p bits, where a rank forgets how the probability is spread; and it says nothing about gaps. What it can't do is
to send a part of the tokens as readable text first. With the model means that the receiver has to be sent the weights too.
Writes `lossless_results.json`.
"""

import json
import lzma
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from tqdm import tqdm

from data.artifacts import InputError, Parser, bounded, make_output_dir, run, write_json
from data.sequences import load_info
from eval.container import make_container, weights_of
from eval.inputs import add_model_flags, draw_texts, open_models
from eval.lossless import WINDOW, as_text, decode, encode, payload_size
from eval.methods import Agent, CausalSurprisal
from eval.report import markdown, number
from models.reconstructor.gaps import GAP_HEAD

SCHEMA = "rltc.lossless_evaluation/1"
CODERS = ("ranks", "container", "causal", "xz -9", "zstd -19")
NEEDS = {"ranks": "reconstructor", "container": "reconstructor", "causal": "base"}  # the model that a receiver needs
UNITS = {
    "bits_per_byte": "bits per byte of the original, over documents by themselves, or as one text", "sent": "kept tokens per token",
    "with_model": "the same with the bytes of the weights that the receiver needs", "bytes": "bytes",
    "seconds_per_1000_tokens": "seconds to encode, with the proof, and to decode 1,000 tokens", "keep_ratio": "asked of the agent",
}


def parse_args(argv=None):
    parser = Parser(__doc__)
    add = parser.add_argument
    add_model_flags(add, "lossless_results.json")
    parser.set_defaults(data_path=[Path("data/processed/test_data.json")])
    next(action for action in parser._actions if action.dest == "data_path").nargs = "+"
    add("--keep_ratio", type=bounded(float, 0, 1, open_ends=True), default=0.7, help="kept tokens per original token, between 0 and 1")
    add("--num_sequences", type=bounded(int, 1, 10**9), default=60, help="texts of each corpus, drawn at random; all if there are fewer")
    return parser.parse_args(argv)
