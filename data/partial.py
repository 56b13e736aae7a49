"""A run in progress: what `output_dir/.rltc_partial` holds until the results are complete, so that an interrupted run can go on.

The split files are written there, beside one SQLite file with the texts seen so far (a digest each, so that memory does not
grow with the corpus) and the state of the last save. Every row carries the number of the batch that it came with. A save is one
transaction, made after the split files were flushed to the disk: a run that goes on cuts the files to the lengths saved,
forgets the rows of later batches, and reads on from the position saved.
"""

import json
import sqlite3
from pathlib import Path

from data.artifacts import InputError
from data.scratch import make_scratch, remove_scratch

FOLDER = ".rltc_partial"
PAGE_CACHE = 32_768  # KiB of SQLite's pages held in memory
TABLES = {
    "saved": "what TEXT PRIMARY KEY, value TEXT",
    "digests": "digest BLOB PRIMARY KEY, batch INTEGER",
    "sketches": "document INTEGER PRIMARY KEY, batch INTEGER, sketch BLOB",
    "bands": "band BLOB, document INTEGER, batch INTEGER, PRIMARY KEY (band, document)",
}


class Resumable(InputError):
    """What stopped the run lies outside of it: the folder stays, for --resume."""


class Partial:
    """The run in progress in `folder`, locked against others. `state` is that of the last save, None before the first.

    Raises InputError if another run holds it or if it is unreadable.
    """

    def __init__(self, folder):
        self.folder = make_scratch(folder)
        self.database = sqlite3.connect(self.folder / "state.sqlite", timeout=0)
        try:
            # A write-ahead log makes big transactions cheap; the exclusive lock is held until `close`.
            for setting in (f"cache_size=-{PAGE_CACHE}", "locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=NORMAL"):
                self.database.execute(f"PRAGMA {setting}")
            for name, columns in TABLES.items():
                self.database.execute(f"CREATE TABLE IF NOT EXISTS {name} ({columns}) WITHOUT ROWID")
            self.database.commit()
            self.state = self._read("state")
        except sqlite3.DatabaseError as error:
            self.database.close()
            if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                raise InputError(f"{self.folder} is in use: expected no other run that writes there; wait for it, or choose another --output_dir") from None
            raise InputError(f"{self.folder}: expected the state of an interrupted run, found: {error}; delete that folder and begin anew") from None

    def _read(self, what):
        row = self.database.execute("SELECT value FROM saved WHERE what = ?", (what,)).fetchone()
        return json.loads(row[0]) if row else None

    def _write(self, what, value):
        self.database.execute("REPLACE INTO saved VALUES (?, ?)", (what, json.dumps(value)))
        self.database.commit()

    def begin(self, settings):
        """Note the `settings`, {flag: value}, that a run which goes on must have in common with this one."""
        self._write("settings", settings)

    def go_on(self, settings):
        """Check that the interrupted run began with the same `settings` and forget what was read after the last save. Raises InputError."""
        for flag, began in (self._read("settings") or {}).items():
            if settings[flag] != began:
                raise InputError(f"--resume: expected --{flag} {began}, with which the interrupted run began, found {settings[flag]}; give the same arguments, or begin anew without --resume")
        for table in ("digests", "sketches", "bands"):
            self.database.execute(f"DELETE FROM {table} WHERE batch > ?", (self.state["batch"] if self.state else 0,))
        self.begin(settings)

    def save(self, state):
        """Make `state`, and with it the rows added so far, what a run that goes on finds."""
        self._write("state", state)

    def is_new(self, digest, batch):
        """Whether `digest` (bytes) was not seen before; from now on it was, since batch number `batch`."""
        return self.database.execute("INSERT OR IGNORE INTO digests VALUES (?, ?)", (digest, batch)).rowcount == 1

    def close(self):
        self.database.close()

    def discard(self):
        self.close()
        remove_scratch(self.folder)


def open_partial(output_dir, settings, resume):
    """The run in progress in `output_dir`: the interrupted one if `resume`, else a new one in place of any other.

    Raises InputError if there is nothing to resume, or if the interrupted run had other settings.
    """
    folder = Path(output_dir) / FOLDER
    if resume:
        if not (folder / "state.sqlite").is_file():
            raise InputError(f"--resume: expected an interrupted run in {folder}, found none; begin without --resume")
        partial = Partial(folder)
        try:
            partial.go_on(settings)
        except InputError:
            partial.close()
            raise
        return partial
    if folder.exists():
        Partial(folder).discard()
        print(f"discarded the interrupted run in {folder}, which --resume would have gone on with")
    partial = Partial(folder)
    partial.begin(settings)
    return partial
