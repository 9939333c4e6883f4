"""A small training step for the tests of `verify`, under names that the command line finds."""

from __future__ import annotations

from typing import Any

from tests.steps import array, mlp, mlp_params, train

PARAMS = [mlp_params(256, 1024)] * 2
STATE = (PARAMS, PARAMS, PARAMS)
BATCH = array(1024, 256)

step = train([mlp, mlp])


def avals() -> tuple[Any, ...]:
    """The step's arguments."""
    return STATE, BATCH
