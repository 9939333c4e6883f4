"""Pipelines for the tests, over the first devices of eight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from tests.api.oracles import FAST_COMPILE
from tests.stages.steps import staged
from xshard.mpmd.layout import Layout, submeshes
from xshard.mpmd.step import Pipeline
from xshard.schedules import build


def layout(groups: int, devices: int = 0) -> Layout:
    """Equal groups of so many devices; of one device each by default."""
    return Layout(submeshes(np.array(jax.devices()[: devices or groups]), ("d",), groups))


def pipeline(
    fun: Callable[..., Any], args: tuple[Any, ...], name: str, groups: int, microbatches: int,
    *, chunks: int = 1, devices: int = 0, donated: int = 0,
) -> Pipeline:  # fmt: skip
    """Over so many devices; of its flat arguments the first are donated."""
    cut = staged(fun, args, groups * chunks, microbatches)
    schedule = build(name, groups, microbatches, chunks)
    where = layout(groups, devices)
    return Pipeline(cut, schedule, where, donated=frozenset(range(donated)), options=FAST_COMPILE)


def run(found: Pipeline, args: tuple[Any, ...]) -> list[Any]:
    """The flat results."""
    return found(*found.placed(jax.tree.leaves(args)))
