"""A run in progress: what `output_dir/.rltc_partial` holds until the results are complete, so that an interrupted run can go on.

The split files are written there, beside `state.json`: how many documents were read at the last save, and how long the files
were then. A run that goes on cuts the files to these lengths and reads the source from the beginning, as far as the last save
only to learn again which texts were there. Reading is quick, and nothing is tokenized twice. A run that was killed while it gave
its files their places begins anew.
"""

import os

from data.artifacts import InputError, check_resumed, read_json, write_json
from data.scratch import make_scratch, remove_scratch
from data.sequences import CACHE, INFO, MADE_BY, SPLITS
from data.shapes import ANY_KEY, OBJECT, TEXT, count

FOLDER = ".rltc_partial"
SCHEMA = "rltc.preparation/2"
COUNTS = ("read", "blank", "duplicates", "near_duplicates", "other_subreddits", "short")
SIZE = dict.fromkeys(("documents", "sequences", "tokens"), count())
WRITER = {
    "bytes": count(), "used": [count()],
    "size": {**SIZE, **dict.fromkeys(("characters", "shortest", "longest"), count()), "parts?": {ANY_KEY: SIZE}},
}
STATE = {
    "args": OBJECT, "tokenizer": TEXT, "counts": dict.fromkeys(COUNTS, count()), "writers": dict.fromkeys(SPLITS, WRITER),
}
FREE = ("output_dir", "resume", "retries", "quiet")  # flags that may change when a run goes on


class Resumable(InputError):
    """What stopped the run lies outside of it: the folder stays, for --resume."""


class Partial:
    """The run in progress in `args.output_dir`: the interrupted one if `args.resume`, else a new one in place of any other.

    Their flags must be the same, those in FREE apart, and so must the tokenizer's `fingerprint`. `state` is that of the last
    save, empty before the first. The directory must be `claimed`. Raises InputError if nothing is there, or flags differ.
    """

    def __init__(self, args, fingerprint):
        self.args, self.fingerprint, self.state = args, fingerprint, {}
        self.folder = args.output_dir / FOLDER
        self.file = self.folder / "state.json"
        if args.resume and not self.file.exists():
            raise InputError(f"--resume: expected an interrupted run in {self.folder}, found none; begin without --resume")
        make_scratch(self.folder)
        if args.resume:
            self.go_on()
        elif self.file.exists():
            self.file.unlink()
            print(f"discarded the interrupted run in {self.folder}, which --resume would have gone on with")

    def go_on(self):
        state = read_json(self.file, SCHEMA, MADE_BY, STATE)
        ours = vars(self.args) | {"tokenizer": self.fingerprint}
        check_resumed(self.folder, ours, state["args"] | {"tokenizer": state["tokenizer"]}, FREE)
        sizes = ((self.folder / name, state["writers"][split]["bytes"]) for split, name in SPLITS.items())
        if all(path.is_file() and path.stat().st_size >= size for path, size in sizes):
            self.state = state

    def save(self, **state):
        """Make `state` what a run that goes on finds."""
        write_json(self.file, SCHEMA, self.args, {"counts": "documents"}, tokenizer=self.fingerprint, **state)

    def publish(self, write_info):
        """Give the files their places, have `write_info(path)` describe them, and delete the rest."""
        remove_scratch(self.args.output_dir / CACHE)
        # Until the new description is there, no reader takes the old one for that of the new files.
        (self.args.output_dir / INFO).unlink(missing_ok=True)
        for name in SPLITS.values():
            os.replace(self.folder / name, self.args.output_dir / name)
        write_info(self.args.output_dir / INFO)
        self.discard()

    def discard(self):
        remove_scratch(self.folder)

    def way_on(self):
        """What a user can do whose run ended too early."""
        return f"go on with the same command and --resume{'' if self.file.exists() else ' left away: nothing was saved yet'}"


def check_place(folder):
    """Raise InputError if `folder` has files of the names that a preparation writes which none has written."""
    for name, head in {INFO: b'{\n "schema": "rltc.', **dict.fromkeys(SPLITS.values(), b'{"doc":')}.items():
        path = folder / name
        if not path.is_file():
            continue
        with path.open("rb") as file:
            found = file.read(len(head))
        if found not in (b"", head):
            expected = f"expected a file that {MADE_BY} wrote, which may be overwritten, found another one"
            raise InputError(f"{path}: {expected}; move it away, or choose another --output_dir")
