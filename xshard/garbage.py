"""Garbage collection put off while a plan is made: nearly all that is made then stays."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept() -> Iterator[None]:
    """No collection inside, which would look through every op and value again and again.

    A third of the time that it takes to trace and to prepare a step of fifty thousand ops.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
