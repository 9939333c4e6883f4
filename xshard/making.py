"""From a call to the step that serves it: trace, plan, check, build."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh

from xshard._jax import auto_mesh
from xshard.asked import Asked, donated_values
from xshard.cost.measured import Measured
from xshard.cost.store import known
from xshard.errors import PlanError
from xshard.ir.trace import Traced, trace
from xshard.microbatching import Candidates, Number
from xshard.outer import Outer
from xshard.place import Place
from xshard.plan.plan import Plan
from xshard.plan.refuse import check_fits
from xshard.plan_cache import PlanCacheOption, best
from xshard.prepare import Prepared
from xshard.profile.quick import Costs
from xshard.profile.targets import Step
from xshard.replan import PlannedStep, Replan, for_mesh
from xshard.run.call import Arguments, Call, name_of
from xshard.run.constraints import constraints_of
from xshard.run.fit import within_limit
from xshard.run.hosts import agree, confirm, same_text
from xshard.run.step import Runnable, runnable
from xshard.ties import next_leaves


@dataclass(slots=True)
class Maker:
    """Makes the step of each call that is unlike those before.

    Attributes:
      given: the user's plan, used instead of planning.
      served: the calls that it served, but for weak types.
      plans: those that were made, by the fingerprints of what they were made for.
    """

    fun: Callable[..., Any]
    place: Place
    asked: Asked
    given: Plan | None
    costs: Costs
    microbatches: Number = 1
    batch_axes: Any = None
    remat: str = "none"
    plan_cache: PlanCacheOption = None
    plans: dict[tuple[str, ...], Plan] = field(default_factory=dict)
    served: set[Hashable] = field(default_factory=set)

    def __call__(self, call: Call) -> Runnable:
        """The step for a call's shapes and static arguments.

        A step may return a weakly typed state as a strongly typed one, for which it computes
        otherwise: where a given plan is not for that, one is made.

        Raises:
          XshardError: no plan can be made, or the given one is for something else.
        """
        alike = call.key(weak=False)
        try:
            made = self._step(call)
        except PlanError:
            if self.given is None or alike not in self.served:
                raise
            return replace(self, given=None)(call)
        self.served.add(alike)
        return made

    def _step(self, call: Call) -> Runnable:
        candidates = self._candidates(call)
        first = candidates.for_plan(self.given) if self.given else candidates.first()
        candidates.know(_shared(lambda: self.costs.of(steps(first), list(self.place.devices.flat))))
        same = tuple(p.fingerprint for p in first)  # weak types make no other plan
        kept = call.without_arrays()  # what is made stays
        under = partial(self._under, kept, Outer(candidates), self.plans.get(same))
        limit = self.asked.memory_limit
        if limit is None or self.given is not None or same in self.plans:
            made = under(limit)
        else:
            made = within_limit(under, call, limit, self.asked.time_limit_s)
        self.plans[same] = made.plan
        return made

    def _candidates(self, call: Call) -> Candidates:
        traced = trace(call.on_row(self.fun), call.row, call.static, call.labels)
        options = self.microbatches, self.batch_axes, self.remat
        return candidates_of(traced, call.without_arrays(), self.asked, *options)

    def _under(self, call: Call, outer: Outer, before: Plan | None, bound: int | None) -> Runnable:
        """The step of the plan that was given or made before, or else of the best one in bound."""
        plan = self.given or agree(lambda: before or best(outer, bound, self.plan_cache))
        prepared = for_mesh(outer.candidates.for_plan(plan), plan)
        limit = self.asked.memory_limit
        if self.given is not None:
            _check(plan, prepared)
        else:
            confirm(plan, prepared.fingerprint)
            plan = plan if plan.memory_limit == limit else replace(plan, memory_limit=limit)
        if before is None:
            outer.told = (plan, False) if self.given is not None else outer.told
            plan = replace(plan, _replan=Replan(self.fun, call, self.asked, outer))
        return built(
            self.fun, plan, prepared, call, self.place.mesh_of(plan),
            compiler_options=self.place.compiler_options(limit, recomputes=bool(plan.remat)),
        )  # fmt: skip


def candidates_of(
    traced: Traced, call: Call, asked: Asked, microbatches: Number, batch_axes: Any = None,
    remat: str = "none",
) -> Candidates:  # fmt: skip
    """The plans to choose from for a traced call."""
    return Candidates(
        traced,
        lambda t: asked.requests(t, call),
        microbatches, batch_axes, donated_values(traced, call), asked.time_limit_s, remat,
    )  # fmt: skip


def traced_for(
    plan: Plan, asked: Asked, fun: Callable[..., Any], avals: tuple[Any, ...], arguments: Arguments
) -> PlannedStep:
    """The function that a plan belongs to, traced again.

    Raises:
      PlanError: it is for another function, shapes, pins or cluster.
    """
    call = arguments.call(avals, {})
    candidates = candidates_of(trace(fun, avals, call.static), call, asked, plan.microbatches)
    candidates.know(known(None, asked.cluster))
    [prepared] = candidates.for_plan(plan)
    _check(plan, prepared)
    return PlannedStep(fun, call, prepared)


def built(
    fun: Callable[..., Any], plan: Plan, prepared: Prepared, call: Call, where: Mesh,
    *, compiler_options: dict[str, Any] | None = None, abstract: bool = False,
) -> Runnable:  # fmt: skip
    """The jit of a plan over the mesh `where`, which for `abstract` is of devices not here."""
    traced, classes = prepared.request.traced, prepared.classes
    constraints = constraints_of(
        plan, traced.graph, classes, prepared.rules, auto_mesh(where), prepared.prices.path
    )
    specs = [plan.values[int(classes.value_class[v])] for v in traced.graph.consts]
    return runnable(
        plan, traced, constraints, where, call,
        name=name_of(fun), const_specs=specs, compiler_options=compiler_options,
        abstract=abstract, returned={argument for _, argument in next_leaves(traced)},
    )  # fmt: skip


def steps(tried: Sequence[Prepared]) -> list[Step]:
    """What a profile measures."""
    return [Step(p.classes, p.rules, p.prices) for p in tried]


def _shared(make: Callable[[], Measured | None]) -> Measured | None:
    """What process 0 has measured, in every process: all must price alike."""
    if jax.process_count() == 1:
        return make()
    found: Measured | None = None

    def text() -> str:
        nonlocal found
        found = make()
        return found.to_json() if found else ""

    told = same_text(text)
    return found or (Measured.from_json(told) if told else None)


def _check(plan: Plan, prepared: Prepared) -> None:
    """That a plan given by the user is for what was traced.

    Raises:
      PlanError: it is not.
    """
    r = prepared.request
    check_fits(
        plan, prepared.fingerprint, r.mesh, r.traced.in_paths, r.traced.in_avals, str(r.cluster)
    )
