"""A plan again with another memory limit or other pins, from where the last one ended.

The trace, the models of the ways and meshes that were looked at, their bounds and their best
choices are kept (`xshard.recall`): what is known to be slower is not looked at again, and the rest
is searched from the last answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import EllipsisType
from typing import Any

from xshard import garbage
from xshard.asked import Asked
from xshard.outer import Outer
from xshard.place import read_bytes
from xshard.plan.plan import Plan
from xshard.prepare import Prepared
from xshard.recall import Models
from xshard.run.call import Call


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """What a plan was made for, which `verify` compiles."""

    fun: Callable[..., Any]
    call: Call
    prepared: Prepared


def for_mesh(tried: list[Prepared], plan: Plan) -> Prepared:
    """The one for the plan's mesh; another if there is none, which the check then refuses."""
    return next((p for p in tried if p.request.mesh == plan.mesh), tried[0])


@dataclass(frozen=True, slots=True)
class Replan:
    """Plans `fun` for a call, again and again."""

    fun: Callable[..., Any]
    call: Call
    asked: Asked
    outer: Outer

    def __call__(
        self, memory_limit: int | float | str | EllipsisType | None = ...,
        in_specs: Any = ..., out_specs: Any = ...,
    ) -> Plan:  # fmt: skip
        """As `Plan.replan`."""
        began, asked, outer = time.perf_counter(), self.asked, self.outer
        if memory_limit is not ...:
            device = asked.cluster.device.memory_bytes
            limit = device if memory_limit is None else read_bytes(memory_limit)
            asked = replace(asked, memory_limit=limit)
        given = {"in_specs": in_specs, "out_specs": out_specs}
        changed = {name: specs for name, specs in given.items() if specs is not ...}
        with garbage.kept():
            outer.learned()
            if changed:
                asked = replace(asked, **changed)
                candidates = outer.candidates.asking(lambda t: asked.requests(t, self.call))
                outer = Outer(candidates, outer.before, Models(outer.models))
            found = replace(self, asked=asked, outer=outer)
            made = found.finished(outer.best(asked.memory_limit))
        return replace(made, seconds={**made.seconds, "total": time.perf_counter() - began})

    def finished(self, plan: Plan) -> Plan:
        """The plan, with what `xshard.verify` compiles and what plans it again."""
        prepared = for_mesh(self.outer.candidates.for_plan(plan), plan)
        return replace(plan, _step=PlannedStep(self.fun, self.call, prepared), _replan=self)
