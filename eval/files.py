"""What is compressed comes from files, folders, patterns and stdin, and goes to files or stdout; nothing is ever half written."""

import errno
import glob
import json
import os
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

from data.artifacts import InputError, written_aside

STD = "-"  # stdin or stdout
ROWS = (".jsonl", ".ndjson")  # endings of JSON Lines
GROUP = 1024, 4_000_000  # texts, and characters, that are compressed together at most


def sources(given):
    """The inputs that the command line names, in order: paths, or "-". Raises FileNotFoundError."""
    if given == STD or Path(given).is_file():
        return [given]
    if Path(given).is_dir():
        hidden = lambda path: any(part.startswith(".") for part in path.relative_to(given).parts)
        found = [path for path in Path(given).rglob("*") if not hidden(path)]
    else:
        found = map(Path, glob.glob(given, recursive=True))
    found = sorted(str(path) for path in found if path.is_file())
    if not found:
        raise FileNotFoundError(f"{given}: expected a file, a folder with files in it, or a pattern that finds some, found none")
    return found


def targets(inputs, given, output, rename=str):
    """{input: output}, paths or "-"; `rename`: the name in a folder, of the input's. Raises InputError if there is none."""
    many = given != STD and not Path(given).is_file()
    if many and (output == STD or Path(output).is_file()):
        raise InputError(f"--output {output}: expected a folder for the {len(inputs)} files of {given}; name one, or one file")
    if many:
        root = given if Path(given).is_dir() else os.path.commonpath([Path(path).parent for path in inputs])
        found = {path: Path(output) / rename(str(Path(path).relative_to(root))) for path in inputs}
    elif output != STD and Path(output).is_dir():
        if given == STD:
            raise InputError(f"--output {output}: expected a file for what comes from stdin, found a folder; name a file in it")
        found = {given: Path(output) / rename(Path(given).name)}
    else:
        found = {given: output if output == STD else Path(output)}
        if output != STD and not Path(output).parent.is_dir():
            raise InputError(f"--output {output}: expected a folder {Path(output).parent} for it, found none; make it")
    return found


def check_apart(reads, writes):
    """Raises InputError if a file would be written over one that is read, or that is written, too: both [(flag, path), …]."""
    taken = {os.path.realpath(path): (flag, path) for flag, path in reads if path != STD}
    for flag, path in writes:
        if path == STD:
            continue
        if (place := os.path.realpath(path)) in taken:
            other = "{} {}".format(*taken[place])
            raise InputError(f"--{flag} {path}: would be written over --{other}; expected a file of its own, name another")
        taken[place] = flag, path


def read_bytes(path):
    return sys.stdin.buffer.read() if path == STD else Path(path).read_bytes()


def called(path):
    """What messages call a file."""
    return "stdin" if path == STD else path


def decoded(name, content):
    """Bytes as text, every character as it is. Raises InputError if they are no UTF-8."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        found = f"found other bytes at byte {error.start:,}"
        raise InputError(f"{name}: expected text in UTF-8, {found}; convert it, or take --lossless, which takes any") from None


def json_lines(path, column):
    """Rows of a file of JSON Lines, or of stdin: (object, text). Raises InputError, which names the line."""
    name = called(path)
    with ExitStack() as stack:
        file = sys.stdin.buffer if path == STD else stack.enter_context(Path(path).open("rb"))
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                text = row[column]
                text.encode("utf-8")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                expected = f"expected a JSON object with a text in '{column}'"
                raise InputError(f"{name}, line {number}: {expected}, found {what(error, line)}; mend it") from None
            yield row, text


def what(error, line):
    """What is wrong with a line of JSON, in words."""
    if isinstance(error, KeyError):
        return "no such field"
    if isinstance(error, UnicodeEncodeError):
        return "half of a surrogate pair"
    if isinstance(error, ValueError):
        return f"no JSON ({error})"
    return f"another value in {line[:40].decode('utf-8', 'replace').strip()!r}"


def groups(named):
    """Lists of (anything, text) pairs, as many as GROUP allows."""
    group, size = [], 0
    for pair in named:
        if group and (len(group) >= GROUP[0] or size + len(pair[1]) > GROUP[1]):
            yield group
            group, size = [], 0
        group.append(pair)
        size += len(pair[1])
    if group:
        yield group


class Output:
    """A file that is written whole or not at all, or stdout, or a device. Raises InputError where that can't be written."""

    def __init__(self, path):
        self.path, self.stack = path, ExitStack()

    @contextmanager
    def named(self):
        """An OSError inside becomes an InputError that names the file."""
        try:
            yield
        except OSError as error:
            if self.path == STD:  # or Python flushes it once more when it ends, and fails again
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            name = "stdout" if self.path == STD else f"--output {self.path}"
            found = f"found: {error.strerror}; make room or name another"
            raise InputError(f"{name}: expected a place that can be written, {found}") from None

    def __enter__(self):
        with self.named():
            if self.path == STD:
                self.file = sys.stdout.buffer
            elif self.path.exists() and not self.path.is_file():  # a device is no file to put another one in the place of
                self.file = self.stack.enter_context(self.path.open("wb"))
            else:
                place = Path(os.path.realpath(self.path))  # a link, such as /dev/stdout, stays one
                if place.is_symlink():
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                aside = self.stack.enter_context(written_aside(place))
                self.file = self.stack.enter_context(aside.open("wb"))
        return self

    def write(self, content):
        """Write bytes."""
        with self.named():
            self.file.write(content)

    def write_row(self, row):
        try:
            line = json.dumps(row, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:  # half a surrogate pair in another field
            line = json.dumps(row).encode("utf-8")
        self.write(line + b"\n")

    def __exit__(self, *error):
        with self.named():
            if not error[0]:
                self.file.flush()
                if self.path == STD and sys.stdout.isatty():
                    print()
            self.stack.__exit__(*error)
