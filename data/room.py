"""Full disks."""

import errno
import os
from contextlib import contextmanager

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_ROOM = (*map(os.strerror, FULL), "PytorchStreamWriter failed", "unexpected pos", "iostream error")  # in what libraries say


class FullDisk(OSError):
    """There is no room to write the file or directory that it names."""


@contextmanager
def on_full_disk(path):
    """A full disk, which libraries have words of their own for, becomes an OSError that names `path`."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, FullDisk) and any(text in str(error) for text in NO_ROOM):
            number = errno.EFBIG if os.strerror(errno.EFBIG) in str(error) else errno.ENOSPC
            raise FullDisk(number, os.strerror(number), str(path)) from None
        raise
