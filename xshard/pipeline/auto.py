"""`pipeline="auto"`: one program over all devices, or stages, whichever is to be faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from xshard.errors import InfeasibleError, MicrobatchError, PipelineError
from xshard.mpmd.plan import PipelinePlan, PipelineTrial
from xshard.outer import Outer
from xshard.pipeline.search import PipelineSearch
from xshard.pipeline.step import PipelineMaker
from xshard.plan.plan import Plan
from xshard.plan.units import duration
from xshard.run.call import Call

WHOLE = "none"
"""How trials call the plan without stages."""


@dataclass(slots=True)
class AutoMaker:
    """Makes the faster of both for each call that is unlike those before.

    Attributes:
      whole: makes the step as one program.
      staged: makes it in stages, of any number of groups.
    """

    whole: Callable[[Call], Any]
    staged: PipelineMaker

    def __call__(self, call: Call) -> Any:
        """The step for a call's shapes and static arguments.

        Raises:
          XshardError: there is no plan in one program, and none in stages.
        """
        failure, one = None, None
        try:
            one = self.whole(call)
        except InfeasibleError as error:
            failure = error
        below = inf if one is None else one.plan.objective_ns
        search = self.staged.search(call, below)
        groups = self.staged.numbers()
        why = _looked(search, groups)
        if search.found is not None:
            first = _trial(one.plan if one else None)
            try:
                return self.staged.fitting(call, search, groups, (first,))
            except InfeasibleError as error:
                failure = failure or error
        if one is None:
            assert failure is not None
            raise _nearest(failure, search)
        return replace(one, plan=noted(one.plan, search, why))


def fastest(search: PipelineSearch, groups: Sequence[int], whole: Outer) -> PipelinePlan | Plan:
    """The faster plan for devices that are not here.

    Raises:
      InfeasibleError: neither one program nor stages fit the memory limit.
    """
    why = _looked(search, groups)
    best = search.plan() if search.found is not None else None
    limit = search.memory_limit
    least = whole.bound_ns(limit) if best is not None else 0
    if best is not None and least >= best.objective_ns:
        number = whole.candidates.stated().microbatches
        trial = PipelineTrial(WHOLE, 1, number, None, "at least", least)
        return replace(best, trials=(trial, *best.trials))
    try:
        plan = whole.best(limit)
    except InfeasibleError as error:
        if best is None:
            raise _nearest(error, search) from None
        return replace(best, trials=(_trial(None), *best.trials))
    if best is None or plan.objective_ns <= best.objective_ns:
        return noted(plan, search, why)
    return replace(best, trials=(_trial(plan), *best.trials))


def _looked(search: PipelineSearch, groups: Sequence[int]) -> str:
    """Looks at all numbers of groups; why there are no stages, if the step has none."""
    try:
        search.look(groups)
    except (PipelineError, MicrobatchError) as error:
        return str(error)
    return ""


def _nearest(whole: InfeasibleError, search: PipelineSearch) -> InfeasibleError:
    """Why neither one program nor stages fit: of what would work under the smaller limit."""
    staged = search.refusal()
    limits = [e.smallest_limit_bytes or inf for e in (whole, staged)]
    return whole if limits[0] <= limits[1] else staged


def _trial(plan: Plan | None) -> PipelineTrial:
    if plan is None:
        return PipelineTrial(WHOLE, 1, 1, None, "does not fit")
    return PipelineTrial(WHOLE, 1, plan.microbatches, plan.mesh, "planned", plan.objective_ns)


def noted(plan: Plan, search: PipelineSearch, why: str) -> Plan:
    """The plan of one program, with what stages would have taken."""
    told = [f"not in stages: {why}"] if why else []
    if search.trials:
        tried = ", ".join(map(str, search.trials))
        told.append(f"stages are no faster than {duration(plan.objective_ns)}: {tried}")
    bound = round(min(plan.bound_ns, search.bound_ns))
    return replace(plan, notes=(*plan.notes, *told), bound_ns=bound)
