"""Numbers that a user may give: what each kind of them can be, and what this machine's memory allows."""

import math
import os

from data.artifacts import InputError, bounded

COUNT = bounded(int, 1, 10**9)  # of what there may be less of
BATCH = bounded(int, 1, 4096)  # texts in one forward pass
LEARNING_RATE = bounded(float, 1e-12, 1)  # smaller ones are lost in 32 bit
RATIO = bounded(float, 0.001, 0.999)  # of tokens kept or masked; outside there may be nothing to keep, or to restore
PRICE = bounded(float, 0.001, 1000)  # λ, nats per token: nothing costs less, or more
WEIGHT = bounded(float, 1e-6, 1e6)  # of a part of a mixture


def check_memory(size, what, remedy):
    """Raise InputError if `what` takes more bytes than this machine has memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else math.inf
    if size > memory:
        found = f"expected at most the {memory / 2**30:,.1f} GiB of memory that this machine has, found {size / 2**30:,.1f} GiB"
        raise InputError(f"{what}: {found}; {remedy}")
