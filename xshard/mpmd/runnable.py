"""`MpmdRunnable`: a planned pipeline, called as the step is called."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax

from xshard.errors import PlanError
from xshard.ir.trace import Traced
from xshard.mpmd.held import peaks
from xshard.mpmd.leaf import Part
from xshard.mpmd.lowered import LoweredPipeline, TracedPipeline
from xshard.mpmd.plan import PipelinePlan
from xshard.mpmd.portable import portable
from xshard.mpmd.step import Pipeline
from xshard.run.call import Call, as_tree, kind
from xshard.run.hosts import most_bytes
from xshard.run.step import StaleError
from xshard.stages.staged import PER_MICROBATCH
from xshard.verify.audit import Audit, audit
from xshard.verify.collectives import Collective
from xshard.verify.hlo import collectives_in
from xshard.verify.step import planned_collectives
from xshard.verify.verification import Memory


@dataclass(frozen=True)
class MpmdRunnable:
    """A pipeline for one signature of a step, in place of a `Runnable`.

    Attributes:
      static: places of the row that are compile-time constants, with their values.
      in_shardings: pytree of NamedShardings as the (non-static) arguments.
      out_shardings: as the result.
    """

    plan: PipelinePlan
    traced: Traced
    pipeline: Pipeline
    static: dict[int, Any]
    lead: tuple[Any, ...] = ()
    takes_row: ClassVar[bool] = True

    @property
    def in_shardings(self) -> Any:
        """Of the arguments; a list of leaves for a class that holds nothing but arrays."""
        leaves = iter(self.pipeline.in_shardings)
        trees = self.traced.in_tree.children()
        return tuple(as_tree(t, [next(leaves) for _ in range(t.num_leaves)]) for t in trees)

    @property
    def out_shardings(self) -> Any:
        """Of the result; a list of leaves for a class that holds nothing but arrays."""
        return as_tree(self.traced.out_tree, self.pipeline.out_shardings)

    def __call__(self, *row: Any) -> Any:
        """Runs the step."""
        leaves = self._leaves(row)
        del row
        return jax.tree.unflatten(self.traced.out_tree, self.pipeline(*leaves))

    def placed(self, row: Sequence[Any]) -> tuple[Any, ...]:
        """The row with all arrays where the step wants them."""
        placed = self.pipeline.placed(self._leaves(row))
        return self._row(jax.tree.unflatten(self.traced.in_tree, placed))

    def trace(self, _call: Call | None = None) -> TracedPipeline:
        """All programs, to be lowered."""
        return TracedPipeline(self.lower)

    def lower(self, _call: Call | None = None) -> LoweredPipeline:
        """All programs of this process's groups, lowered."""
        names = self.pipeline.staged.programs
        programs = {names[at].name: one for at, one in self.pipeline.lower().items()}
        return LoweredPipeline(programs, lambda *given: self(*self._row(given)))

    def compiled_bytes(self) -> int:
        """The most that a device of any group holds in a step, as XLA allocates it."""
        more: defaultdict[int, int] = defaultdict(int)  # of others' programs they know themselves
        for at, lowered in self.pipeline.lower().items():
            memory = Memory.of_compiled(lowered.compile())
            more[at] = memory.total - memory.arguments
        found = peaks(self.pipeline.tape, self.pipeline.local_bytes, more)
        return most_bytes(max(peak.bytes for peak in found.values()))

    def taken(self, row: Sequence[Any], static: Container[int] = ()) -> Sequence[Any]:
        """See `Runnable.taken`: a row is taken as it is."""
        del static
        return row

    def returned(self, result: Any) -> Any:
        """See `Runnable.returned`."""
        return result

    def audit(self) -> Audit:
        """Planned against compiled collectives of a step, over all stages of this process's groups.

        Transfers between stages are no collectives, and are not among them.
        """
        staged, plan, found = self.pipeline.staged, self.plan, list[Collective]()
        programs = {p.name: p for p in staged.programs}
        compiled = self.lower().compile().programs
        for name, one in compiled.items():
            often = staged.microbatches if programs[name].part in PER_MICROBATCH else 1
            some = collectives_in(one.as_text() or "", plan.mesh.sizes, plan.mesh.names)
            found += [replace(c, count=c.count * often) for c in some]
        stages = sorted({programs[name].stage for name in compiled})
        planned = [c for s in stages for c in planned_collectives(plan.programs[f"stage {s}"])]
        return audit(planned, found, target=jax.default_backend())

    def create(self, init_fn: Callable[..., Any], args: Sequence[Any]) -> Any:
        """The state that `init_fn(*args)` makes, each array made where it is wanted."""
        tree = self.traced.in_tree.children()[0]
        leaves = self.pipeline.inputs[: tree.num_leaves]
        on: defaultdict[int, list[tuple[int, Part]]] = defaultdict(list)
        for i, leaf in enumerate(leaves):
            for part in leaf.parts:
                on[part.group].append((i, part))
        made: dict[int, Any] = {}
        for group, parts in on.items():
            if self.pipeline.layout.is_here(group):
                arrays = _some(init_fn, parts)(*args)
                made.update((p.value, x) for (_, p), x in zip(parts, arrays, strict=True))
        return jax.tree.unflatten(tree, [leaf.found(made) for leaf in leaves])

    def portable(self, state: Any) -> Any:
        """The step's first argument as arrays over all devices; of types, the types of these."""
        leaves, tree = jax.tree.flatten(state)
        wanted = self.traced.in_tree.children()[0]
        if tree != wanted:
            raise PlanError(f"the step's state is {wanted}, but this is {tree}")
        found = [portable(leaf, x) for leaf, x in zip(self.pipeline.inputs, leaves, strict=False)]
        return jax.tree.unflatten(tree, found)

    def _row(self, dynamic: Sequence[Any]) -> tuple[Any, ...]:
        """The row of arguments that are not static."""
        given = iter(dynamic)
        count = len(dynamic) + len(self.static)
        return tuple(self.static[i] if i in self.static else next(given) for i in range(count))

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


def _some(fun: Callable[..., Any], parts: Sequence[tuple[int, Part]]) -> Any:
    """A jit that makes only these parts of the leaves of what `fun` makes."""

    def some(*args: Any) -> list[Any]:
        leaves = jax.tree.leaves(fun(*args))
        return [leaves[i] if p.start is None else leaves[i][p.rows] for i, p in parts]

    return jax.jit(some, out_shardings=[p.sharding for _, p in parts])
