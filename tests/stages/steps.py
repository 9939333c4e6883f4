"""Cutting a step for the tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

from tests.api.oracles import FAST_COMPILE, assert_close
from xshard.ir.trace import trace
from xshard.microbatch.split import divided, found_axes
from xshard.stages.cut import Cuttable, cuttable
from xshard.stages.sequential import run_in_sequence
from xshard.stages.staged import Staged

Step = Callable[..., Any]


def cuttable_step(fun: Step, args: tuple[Any, ...], microbatches: int, least: int = 1) -> Cuttable:
    """The step in so many microbatches; its first argument is the state."""
    traced = trace(fun, args)
    state = frozenset(range(traced.in_tree.children()[0].num_leaves))
    looped = divided(traced, found_axes(traced, state)).looped(microbatches)
    return cuttable(looped.closed_jaxpr, microbatches, least)


def results(staged: Staged, fun: Step, args: tuple[Any, ...]) -> Any:
    """Of the staged step, in the step's structure."""
    run = jax.jit(lambda flat: run_in_sequence(staged, flat), compiler_options=FAST_COMPILE)
    return jax.tree.unflatten(
        jax.tree.structure(jax.eval_shape(fun, *args)), run(jax.tree.leaves(args))
    )


CLOSE = partial(assert_close, factor=10.0)


def assert_alike(
    fun: Step, args: tuple[Any, ...], *stages: Sequence[int], microbatches: int,
    close: Callable[[Any, Any], None] = CLOSE,
) -> list[Staged]:  # fmt: skip
    """Stages of so many units, a program after the other, make what the step makes."""
    expected = jax.jit(fun, compiler_options=FAST_COMPILE)(*args)
    found = cuttable_step(fun, args, microbatches, max(map(len, stages)))
    cut = [found.into(counts) for counts in stages]
    for staged in cut:
        close(results(staged, fun, args), expected)
    return cut


def staged(
    fun: Step, args: tuple[Any, ...], stages: int | Sequence[int], microbatches: int
) -> Staged:
    """The step in so many balanced stages, or in stages of so many units."""
    number = stages if isinstance(stages, int) else len(stages)
    found = cuttable_step(fun, args, microbatches, number)
    return found.into(found.balanced(stages) if isinstance(stages, int) else stages)
