"""A lock between the processes of a machine, held by an open file: killed processes hold none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

try:
    import fcntl
except ImportError:  # Windows, where the files that two processes open are not renamed anyway
    fcntl = None


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Holds the lock that stands beside `path`; a folder that cannot be written needs none."""
    if fcntl is None:
        yield
        return
    try:
        file = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR, 0o644)
    except OSError:
        yield
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
