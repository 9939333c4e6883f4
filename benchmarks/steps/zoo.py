"""All of the steps."""

from __future__ import annotations

from benchmarks.steps import (
    optimizers,
    plain,
    with_equinox,
    with_flax,
    with_haiku,
)

PROGRAMS = [
    *plain.PROGRAMS, *with_flax.PROGRAMS, *with_equinox.PROGRAMS, *with_haiku.PROGRAMS,
    *optimizers.PROGRAMS,
]  # fmt: skip
