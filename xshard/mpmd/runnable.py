"""`MpmdRunnable`: a planned pipeline, called as the step is called."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import NamedSharding

from xshard.errors import PlanError
from xshard.ir.trace import Traced
from xshard.mpmd.plan import PipelinePlan
from xshard.mpmd.step import Pipeline
from xshard.mpmd.transfer import empty
from xshard.run.call import Call, kind
from xshard.run.step import StaleError


@dataclass(frozen=True)
class MpmdRunnable:
    """A pipeline for one signature of a step, in place of a `Runnable`.

    Attributes:
      static: places of the row that are compile-time constants, with their values.
      in_shardings: pytree of NamedShardings as the (non-static) arguments, each on one group.
      out_shardings: as the result.
    """

    plan: PipelinePlan
    traced: Traced
    pipeline: Pipeline
    static: dict[int, Any]
    lead: tuple[Any, ...] = ()

    @property
    def in_shardings(self) -> Any:
        """Of the arguments."""
        return jax.tree.unflatten(self.traced.in_tree, self.pipeline.in_shardings)

    @property
    def out_shardings(self) -> Any:
        """Of the result."""
        return jax.tree.unflatten(self.traced.out_tree, self.pipeline.out_shardings)

    def __call__(self, *row: Any) -> Any:
        """Runs the step."""
        leaves = self._leaves(row)
        del row
        return jax.tree.unflatten(self.traced.out_tree, self.pipeline(*leaves))

    def placed(self, row: Sequence[Any]) -> tuple[Any, ...]:
        """The row with all arrays where the step wants them."""
        dynamic = jax.tree.unflatten(self.traced.in_tree, self.pipeline.placed(self._leaves(row)))
        given = iter(dynamic)
        return tuple(x if i in self.static else next(given) for i, x in enumerate(row))

    def lower(self, _call: Call) -> Any:
        """Raises a PlanError: there is no one program."""
        raise PlanError(
            "a step in pipeline stages has a program for each stage and no single lowering; "
            "step.plan.programs has their plans"
        )

    def create(self, init_fn: Callable[..., Any], args: Sequence[Any]) -> Any:
        """The state that `init_fn(*args)` makes, each array made where it is wanted."""
        tree = self.traced.in_tree.children()[0]
        shardings = self.pipeline.in_shardings[: tree.num_leaves]
        avals = jax.tree.leaves(jax.eval_shape(init_fn, *args))
        found: list[Any] = [
            None if s.addressable_devices else empty(a.shape, a.dtype, s)
            for a, s in zip(avals, shardings, strict=True)
        ]
        for places in _by_mesh(shardings):
            if found[places[0]] is None:
                made = _some(init_fn, places, [shardings[i] for i in places])(*args)
                for i, x in zip(places, made, strict=True):
                    found[i] = x
        return jax.tree.unflatten(tree, found)

    def _leaves(self, row: Sequence[Any]) -> list[Any]:
        """The flat arguments, if they are what was planned for."""
        leaves, tree = jax.tree.flatten(tuple(x for i, x in enumerate(row) if i not in self.static))
        same = tree == self.traced.in_tree and all(
            kind(x)[:2] == (a.shape, a.dtype)  # type: ignore[index]
            for x, a in zip(leaves, self.traced.in_avals, strict=True)
        )
        if not same or any(row[i] != value for i, value in self.static.items()):
            raise StaleError
        return leaves


def _by_mesh(shardings: Sequence[NamedSharding]) -> list[list[int]]:
    found: defaultdict[Any, list[int]] = defaultdict(list)
    for i, sharding in enumerate(shardings):
        found[sharding.mesh].append(i)
    return list(found.values())


def _some(fun: Callable[..., Any], places: Sequence[int], to: Sequence[NamedSharding]) -> Any:
    """A jit that makes only these leaves of what `fun` makes."""

    def some(*args: Any) -> list[Any]:
        leaves = jax.tree.leaves(fun(*args))
        return [leaves[i] for i in places]

    return jax.jit(some, out_shardings=list(to))
