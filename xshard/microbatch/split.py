"""A traced step -> the same step as a loop over microbatches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from xshard._jax import is_array_aval, retraced, solves_called, without_dead_code
from xshard.errors import MicrobatchError
from xshard.ir.trace import Traced, build_graph
from xshard.microbatch.emit import run
from xshard.microbatch.program import Program, divide
from xshard.microbatch.status import Const, Rows, Status
from xshard.microbatch.work import check


@dataclass(frozen=True, slots=True)
class Divided:
    """A traced step that can be cut into microbatches.

    Attributes:
      batch: rows of the full batch.
    """

    traced: Traced
    program: Program
    batch: int

    def into(self, microbatches: int, lanes: int = 1) -> Traced:
        """The step as a loop over so many microbatches, with equal arguments and results.

        Args:
          lanes: blocks of a microbatch whose sums are kept apart until the loop ends.

        Raises:
          MicrobatchError: the batch does not divide by that.
        """
        return self.traced if microbatches == 1 else self.looped(microbatches, lanes)

    def looped(self, microbatches: int, lanes: int = 1) -> Traced:
        """As `into`, but with a loop even for one microbatch."""
        check_number(microbatches, self.batch)
        jaxpr = retraced(
            lambda *args: run(self.program, microbatches, args, lanes), self.traced.closed_jaxpr
        )
        jaxpr = without_dead_code(jaxpr)
        graph, consts = build_graph(jaxpr, self.traced.in_paths)
        return replace(self.traced, closed_jaxpr=jaxpr, graph=graph, consts=consts)


def check_number(microbatches: int, batch: int) -> None:
    """Raises a MicrobatchError if the batch does not divide by the number."""
    if batch % microbatches:
        fits = [n for n in range(1, batch + 1) if batch % n == 0]
        raise MicrobatchError(
            f"microbatches={microbatches} does not divide the batch of {batch} rows; "
            f"use one of {', '.join(map(str, fits[:12]))}{', ...' * (len(fits) > 12)}"
        )


def divided(traced: Traced, axes: Sequence[int | None]) -> Divided:
    """Divides a step whose flattened arguments have the batch in these dimensions.

    Raises:
      MicrobatchError: no argument has one, they differ in size, or the step is no sum over it.
    """
    sizes = {
        a.shape[d]: path
        for a, d, path in zip(traced.in_avals, axes, traced.in_paths, strict=True)
        if d is not None
    }
    if not sizes:
        raise MicrobatchError(
            "no argument was found that has the batch as its leading dimension; name it with "
            "batch_axes, as in_axes of jax.vmap: batch_axes=(None, 0)"
        )
    if len(sizes) > 1:
        (a, first), (b, second) = list(sizes.items())[:2]
        raise MicrobatchError(
            f"the batch has {a} rows in {first} and {b} in {second}; "
            "name the arguments that have it with batch_axes, as in_axes of jax.vmap"
        )
    batch = next(iter(sizes))
    statuses: list[Status] = [Const() if d is None else Rows(d) for d in axes]
    program = divide(solves_called(traced.closed_jaxpr), statuses, batch)
    return Divided(traced, check(program), batch)


def found_axes(traced: Traced, held: frozenset[int]) -> list[int | None]:
    """Which arguments have the batch as their leading dimension, by what they look like.

    Those that the step does not keep (neither donated nor handed on as its state, nor beside such
    arrays in one argument) and that share their leading dimension's size with most others. A wrong
    guess makes no wrong results.

    Args:
      held: positions of the flattened arguments that are the state.
    """
    held = _with_their_arguments(traced, held)
    sizes = {
        i: aval.shape[0]
        for i, aval in enumerate(traced.in_avals)
        if i not in held and is_array_aval(aval) and aval.ndim and aval.shape[0] > 1
        and not jnp.issubdtype(aval.dtype, jax.dtypes.extended)
    }  # fmt: skip
    if not sizes:
        return [None] * len(traced.in_avals)
    most = max(Counter(sizes.values()).items(), key=lambda item: (item[1], item[0]))[0]
    return [0 if sizes.get(i) == most else None for i in range(len(traced.in_avals))]


def _with_their_arguments(traced: Traced, held: frozenset[int]) -> frozenset[int]:
    """All that stands in an argument with a held array: frozen weights beside trained ones.

    Where that is everything, as of a function of one argument, only what is held.
    """
    found, at = set[int](), 0
    for tree in traced.in_tree.children():
        places = range(at, at := at + tree.num_leaves)
        if not held.isdisjoint(places):
            found.update(places)
    return frozenset(found) if len(found) < at else held


def stated_axes(traced: Traced, batch_axes: Any) -> list[int | None]:
    """The dimensions that `batch_axes`, a prefix of the arguments, states for their leaves.

    Raises:
      MicrobatchError: it is no prefix, or names a dimension that an argument lacks.
    """
    tree = jax.tree.unflatten(traced.in_tree, range(len(traced.in_avals)))
    found: list[int | None] = [None] * len(traced.in_avals)

    def state(axis: Any, part: Any) -> None:
        for i in jax.tree.leaves(part):
            found[i] = _dimension(axis, traced.in_avals[i], traced.in_paths[i])

    try:
        jax.tree.map(state, batch_axes, tree, is_leaf=lambda x: x is None)
    except ValueError as error:
        raise MicrobatchError(
            f"batch_axes is no prefix of the arguments: {str(error).splitlines()[0]}; "
            "write it as in_axes of jax.vmap, for instance (None, 0)"
        ) from error
    return found


def _dimension(axis: Any, aval: Any, path: str) -> int | None:
    if axis is None:
        return None
    if type(axis) is not int or not -aval.ndim <= axis < aval.ndim:
        raise MicrobatchError(
            f"batch_axes states {axis!r} for {path}, which has the shape {tuple(aval.shape)}; "
            "state one of its dimensions, or None"
        )
    return axis % aval.ndim
