"""`kernel`: compiled loops over flat arrays, for what NumPy has no operation for.

A kernel holds no lock, looks at no clock and draws random numbers from a state that it is given.
What was compiled once is kept on disk beside the module, or in the user's cache folder.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numba  # pyright: ignore[reportMissingTypeStubs]


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled at its first call."""
    njit = cast(Any, numba).njit
    try:
        return njit(cache=True, nogil=True)(function)
    except RuntimeError:  # nowhere to keep what is compiled
        return njit(nogil=True)(function)
