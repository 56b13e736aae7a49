"""Full disks."""

import errno
import os
from contextlib import contextmanager

NO_ROOM = (os.strerror(errno.ENOSPC), "PytorchStreamWriter failed", "unexpected pos", "iostream error")  # in what libraries say
FULL = (errno.ENOSPC, errno.EDQUOT)


class FullDisk(OSError):
    """There is no room to write the file or directory that it names."""


@contextmanager
def on_full_disk(path):
    """A full disk, which libraries have words of their own for, becomes an OSError that names `path`."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, FullDisk) and any(text in str(error) for text in NO_ROOM):
            raise FullDisk(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        raise
