"""`kernel`: compiled loops over flat arrays, for what NumPy has no operation for.

A kernel holds no lock, looks at no clock and draws random numbers from a state that it is given.
What was compiled once is kept on disk beside the module, or in the user's cache folder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba  # pyright: ignore[reportMissingTypeStubs]

P = ParamSpec("P")
R = TypeVar("R")


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """The function, compiled at its first call."""
    try:
        compiled = numba.njit(cache=True, nogil=True)(function)  # pyright: ignore
    except RuntimeError:  # nowhere to keep what is compiled
        compiled = numba.njit(nogil=True)(function)  # pyright: ignore
    return cast(Callable[P, R], compiled)
