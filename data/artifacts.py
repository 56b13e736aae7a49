"""Files that the stages hand to each other: stamped, checked, written whole or not at all.

Every JSON that a stage writes carries ``schema``, ``args``, ``seed``, ``versions`` and ``units``; every
reader checks ``schema`` and the shape (data/shapes.py) of what it uses, and names the stage that should have written the file.
"""

import _thread
import argparse
import codecs
import copy
import errno
import hashlib
import json
import logging
import os
import re
import shlex
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

from data.leftovers import remove_left_files
from data.letters import plain, shown
from data.provenance import commit, versions
from data.room import FULL, on_full_disk
from data.shapes import beginning, flaw

WEIGHTS_NAME = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
NO_MEMORY = ("out of memory", "can't allocate memory")  # in what PyTorch says


class InputError(ValueError):
    """Something the user gave is unusable; the message says what was expected, found, and how to mend it."""


def reason_of(error):
    """The first line of what an error, or the one behind it, says, or the name of its kind."""
    error = error.__cause__ or error
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def sha256_of(path):
    """The SHA-256 of a file; of a model directory, that of its weights: of their digests by name if they are in several files."""
    path = Path(path)
    if path.is_dir():
        digests = [sha256_of(part) for part in weight_files(path)]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weight_files(directory):
    """The files of weights in a model directory, as transformers names them, in order."""
    return [path for path in sorted(Path(directory).glob("model*.safetensors")) if WEIGHTS_NAME.fullmatch(path.name)]


@contextmanager
def written_aside(path):
    """A temporary name beside `path`, which it takes when the block ends without an error: readers never see half a file."""
    path = Path(path)
    before, after = f".{path.stem}.", f".tmp{path.suffix}"
    remove_left_files(path.parent, before, after)
    temporary = path.with_name(f"{before}{os.getpid()}{after}")
    try:
        with on_full_disk(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Write `text` to `path`, whole or not at all; names that are not UTF-8 so that, in JSON, they come back as they were."""
    with written_aside(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def command_line(script, args):
    """The command that runs `script` as the namespace `args` says, for model cards; flags that are off or empty are left out."""
    words = ["python", script]
    for name, value in vars(args).items():
        if name not in ("resume", "quiet") and value is not None and value is not False and value != []:
            values = [] if value is True else value if isinstance(value, list) else [value]
            words += [f"--{name}", *map(str, values)]
    return shlex.join(words)


def stamped(schema, args, units, weights=(), **content):
    """A stage's result as a dict, with all that says where it comes from.

    `args` is the argparse namespace it ran with; `units` says what each figure means; `weights` are the files or model
    directories whose weights went into it: the record has their SHA-256.
    """
    settings = json.loads(json.dumps(vars(args), default=str))  # paths become text
    return {
        "schema": schema,
        "args": settings,
        "seed": settings.get("seed"),
        "versions": versions(),
        "commit": commit(),
        "weights": {str(path): sha256_of(path) for path in weights},
        "units": units,
        **content,
    }


def write_json(path, schema, args, units, weights=(), **content):
    """Write a stage's result, `stamped`. Weights that lie in its folder are recorded by their name there."""
    record = stamped(schema, args, units, weights, **content)
    folder = f"{Path(path).parent}{os.sep}"
    record["weights"] = {name.removeprefix(folder): digest for name, digest in record["weights"].items()}
    # allow_nan=False: NaN is not JSON, and a NaN in a result is a bug that must not reach a reader.
    write_text(path, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def check_shape(name, found, shape, remedy):
    """Raises InputError unless what was found in the file `name` has a shape, as of data/shapes.py."""
    if wrong := flaw(found, shape):
        raise InputError(f"{name}: {wrong}; {remedy}")


def read_json(path, schema, made_by, shape={}):
    """Read a stage's result and check that it is one, of the shape that the reader needs.

    Raises FileNotFoundError if there is no such file, InputError if it is not JSON, or of another schema or shape.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected the file that {made_by} writes. Run: python {made_by} --help")
    return parse_json(path, path.read_bytes(), schema, made_by, shape)


def parse_json(name, content, schema, made_by, shape={}):
    """As `read_json`, of the bytes of a file that messages call `name`."""
    remedy = f"write it again with: python {made_by}"
    record = plain_json(name, content, remedy)
    found = record.get("schema") if isinstance(record, dict) else type(record).__name__
    if found != schema:
        raise InputError(f"{name}: expected schema '{schema}', found {beginning(found)}; {remedy}")
    check_shape(name, record, shape, remedy)
    return record


def plain_json(name, content, remedy):
    """The value of JSON in UTF-8, in which NaN and infinity are no numbers. Raises InputError."""
    try:
        return json.loads(content.decode("utf-8"), parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits or a depth of 10,000 are neither
        raise InputError(f"{name} is not JSON ({error}); {remedy}") from None


def refuse_constant(name):
    raise ValueError(f"{name} is no number")


def different_setting(ours, theirs, free=()):
    """The first flag of `ours` that `theirs` has otherwise, both {flag: value}, those in `free` apart; None if they are alike."""
    return next((name for name in ours if name not in free and str(theirs.get(name)) != str(ours[name])), None)


def check_resumed(path, ours, began, free=()):
    """A run goes on with the flags that it `began` with, those in `free` apart; `path` is what it left. Raises InputError."""
    if name := different_setting(ours, began, free):
        before = began.get(name, "nothing of the kind")
        raise InputError(
            f"--resume: {path} was made with --{name} {before}, found --{name} {ours[name]}; "
            "give the same, or leave --resume away to start anew"
        )


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults behind every flag, as one would type them, and the script's own lines in front of them."""

    def _expand_help(self, action):
        if isinstance(action.default, list):
            action = copy.copy(action)
            action.default = " ".join(map(str, action.default)) or "none"
        return super()._expand_help(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose --help is the script's docstring and its flags with defaults; its errors are one line.

    Names must be UTF-8, as libraries want them that open models, but those of a user's texts, the flags in `any_bytes`.
    """

    def __init__(self, doc, any_bytes=(), **kwargs):
        self.any_bytes = any_bytes
        super().__init__(description=doc, formatter_class=HelpFormatter, allow_abbrev=False, **kwargs)

    def parse_args(self, args=None, namespace=None):
        for word in sys.argv[1:] if args is None else args:
            if str(word) == "--" or str(word).startswith("--") and str(word).endswith("=--"):
                self.error(f"'{word}': expected a value, found two dashes; leave them away")  # argparse would drop them
            if str(word) == "" or str(word).startswith("--") and str(word).endswith("="):
                self.error(f"'{word}': expected a value, found an empty one; is it a variable that was not set?")
        found = super().parse_args(args, namespace)
        for name, value in vars(found).items():
            values = value if isinstance(value, list) else [value]
            if name not in self.any_bytes and any(str(one) != shown(one) for one in values):
                self.error(f"--{name} {shown(value)}: expected names in UTF-8, found other bytes; rename them")
        return found

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}; see --help\n")


def bounded(kind, low, high, open_ends=False):
    """An argparse type: a number of `kind` in [low, high], or in (low, high) if `open_ends`."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {kind.__name__}, found '{text}'") from None
        inside = low < value < high if open_ends else low <= value <= high
        if not inside:  # also refuses NaN, for which every comparison is false
            ends = f"between {low} and {high}" if open_ends else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"expected a number {ends}, found {text}")
        return value

    parse.kind, parse.low, parse.high = kind, low, high
    return parse


def quieten_libraries():
    """Leave the screen to the scripts' own progress bars. `datasets` takes a second to import: not all scripts need it."""
    import transformers

    if datasets := sys.modules.get("datasets"):
        datasets.disable_progress_bars()
        datasets.utils.logging.set_verbosity(logging.CRITICAL)  # its errors come as exceptions, too
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


SEED = bounded(int, 0, 2**32 - 1)  # what NumPy takes


def line_of(error):
    """What a user reads of an InputError or OSError, in one line."""
    if isinstance(error, OSError) and error.errno in FULL:
        where = error.filename or "the disk"
        full = "a limit on the size of files (ulimit -f)" if error.errno == errno.EFBIG else "a full disk"
        return f"{where}: expected room to write, found {full}; free some, or write elsewhere; what was finished is whole"
    return " ".join(str(error).split())


def run(main):
    """Run a script's `main()`; a user's mistake ends in one line on stderr and exit status 2, never in a traceback."""
    codecs.register_error("plain", plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plain")
    quieten_libraries()
    # What a thread could not write, TensorBoard's say, it tells the main one.
    threading.excepthook = lambda failed: None if isinstance(failed.exc_value, OSError) else sys.__excepthook__(*failed[:3])
    sys.unraisablehook = interrupt_again
    try:
        try:
            main()
        finally:
            if sys.stdout:
                sys.stdout.flush()  # what argparse printed, too
    except BrokenPipeError:  # who read the output has enough
        leave(141)
    except (InputError, OSError) as error:
        leave(2, f"error: {line_of(error)}")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in NO_MEMORY):
            raise
        leave(2, f"error: expected enough memory, found too little ({reason_of(error)}); give smaller sizes")
    except KeyboardInterrupt as interrupt:
        leave(130, f"interrupted; {interrupt or 'what was already saved is whole'}")


def interrupt_again(lost):
    """Python drops an interrupt that comes while it frees an object: let it come once more, when that is done."""
    if not issubclass(lost.exc_type, KeyboardInterrupt):
        return sys.__unraisablehook__(lost)
    again = threading.Timer(0.01, _thread.interrupt_main)
    again.daemon = True
    again.start()


def leave(status, line=None):
    """Exit with a status and a line on stderr. A screen that can't take what was written is given up, or Python tries again."""
    for stream, text in ((sys.stderr, line and f"{Path(sys.argv[0]).name}: {line}\n"), (sys.stdout, None)):
        try:
            if stream and text:
                stream.write(text)
            if stream:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)
