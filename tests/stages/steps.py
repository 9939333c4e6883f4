"""Cutting a step for the tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from tests.api.oracles import assert_close
from xshard.ir.trace import trace
from xshard.microbatch.split import divided, found_axes
from xshard.stages.cut import Cuttable, cuttable
from xshard.stages.sequential import run_in_sequence
from xshard.stages.staged import Staged

Step = Callable[..., Any]


def cuttable_step(fun: Step, args: tuple[Any, ...], microbatches: int) -> Cuttable:
    """The step in so many microbatches; its first argument is the state."""
    traced = trace(fun, args)
    state = frozenset(range(traced.in_tree.children()[0].num_leaves))
    looped = divided(traced, found_axes(traced, state)).looped(microbatches)
    return cuttable(looped.closed_jaxpr, microbatches)


def staged(
    fun: Step, args: tuple[Any, ...], stages: int | Sequence[int], microbatches: int
) -> Staged:
    """The step in so many balanced stages, or in stages of so many units."""
    found = cuttable_step(fun, args, microbatches)
    return found.into(found.balanced(stages) if isinstance(stages, int) else stages)


def assert_alike(
    fun: Step, args: tuple[Any, ...], stages: int | Sequence[int], microbatches: int,
    factor: float = 4.0,
) -> Staged:  # fmt: skip
    """A program after the other makes what the step makes."""
    found = staged(fun, args, stages, microbatches)
    got = run_in_sequence(found, jax.tree.leaves(args))
    assert_close(got, jax.tree.leaves(jax.jit(fun)(*args)), factor)
    return found
