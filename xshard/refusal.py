"""Where no plan fits: whether one does after all, and otherwise what the error says."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from xshard.diagnosis import OutOfTime, Statement, at_peak, blame, conflict, statements_of
from xshard.errors import InfeasibleError
from xshard.one_model import search, unlimited
from xshard.plan.units import size
from xshard.prepare import Answer, Modelled, model, prepare
from xshard.recall import NO_LIMIT, bound_under, least_peak
from xshard.solve.problem import Infeasible, Solution
from xshard.templates.complete import NEAR, completed

MOST_BLAME_S = 20.0
"""How long the pins at fault are looked for where nothing fits."""
_CONTRADICTION = (
    "the pinned specs and sharding constraints contradict each other: no choice of the others "
    "satisfies all of them; drop one of in_specs, out_specs or the constraints."
)


def limited(modelled: Modelled, meshes: int = 1, models: Sequence[Modelled] = ()) -> Solution:
    """The best choices under the request's memory limit.

    Args:
      meshes: how many were tried, of which this one came nearest.
      models: of the others, whose answers may hold less.

    Raises:
      InfeasibleError: with the smallest limit that is feasible, or the least that was found.
    """
    limit = modelled.prepared.request.memory_limit
    answer = search(modelled, limit, diagnose=True)
    if isinstance(answer, Solution):
        return answer
    by_template = None if answer.proven else _by_template(modelled, limit)
    if by_template is not None:
        return by_template
    known = least_peak([modelled, *models])
    if known is None or known[2] >= (answer.smallest_limit or NO_LIMIT):
        raise infeasible(modelled, answer, limit, meshes)
    nearest, least, peak_bytes = known
    told = Infeasible(peak_bytes, least.choices, proven=False)
    raise infeasible(nearest, told, limit, meshes)


def _by_template(m: Modelled, limit: int | None) -> Solution | None:
    """The fastest template that fits, of a model on which no search found anything."""
    found = completed(m, NEAR)
    m.answers.extend(Answer(None, 0, c.choices, c.objective_ns) for c in found)
    best = next((c for c in found if limit is None or c.peak_bytes <= limit), None)
    if best is None:
        return None
    bound = min(bound_under(m, limit), best.objective_ns)
    return Solution(best.choices, best.objective_ns, bound)


def infeasible(
    modelled: Modelled, answer: Infeasible, limit: int | None, meshes: int
) -> InfeasibleError:
    culprits = _culprits(modelled)
    if answer.smallest_limit is None or answer.choices is None or limit is None:
        return InfeasibleError(_CONTRADICTION + blame(culprits, "at all"))
    d, timeline = modelled.draft, modelled.timeline_of(answer.choices)
    smallest = max(answer.smallest_limit, modelled.peak_bytes(answer.choices))
    about = "" if answer.proven else " (about: the search for it was cut short)"
    if not about and modelled.retime is not None:
        about = " (about: XLA's order of ops goes by the sizes of the arrays)"
    if meshes > 1:
        about += f" with the mesh {d.mesh}, which came nearest of {meshes}"
    return InfeasibleError(
        f"no plan fits {size(limit)} per device; the smallest limit that works is {smallest} bytes "
        f"({size(smallest)}){about}. {at_peak(d, timeline, answer.choices)}"
        + blame(culprits, f"within {size(limit)}"),
        smallest,
    )


def _culprits(modelled: Modelled) -> list[Statement]:
    """The pins that leave no plan; none where that is so without them, or time runs out."""
    r = modelled.prepared.request
    end = time.monotonic() + min(r.time_limit_s, MOST_BLAME_S)

    def can_hold(kept: Sequence[Statement]) -> bool:
        if time.monotonic() > end:
            raise OutOfTime
        values = {v for s in kept for v in s.values}
        results = {i for s in kept for i in s.results}
        request = replace(
            r,
            pins={v: pin for v, pin in r.pins.items() if v in values},
            results={i: pin for i, pin in r.results.items() if i in results},
        )
        return _can_fit(model(prepare(request)), end)

    stated = statements_of(r.traced, dict(r.pins), dict(r.results), r.mesh.names)
    try:
        return conflict(stated, can_hold)
    except OutOfTime:
        return []


def _can_fit(m: Modelled, end: float) -> bool:
    """Whether any plan fits the limit.

    Raises:
      OutOfTime: nothing was found before `end`.
    """
    free = unlimited(m)
    limit = m.prepared.request.memory_limit
    if free is None or m.fits(free.choices, limit):
        return free is not None
    answer = search(m, limit, diagnose=False, enough_gap=1.0, end=end)
    if isinstance(answer, Infeasible) and time.monotonic() > end:
        raise OutOfTime
    return isinstance(answer, Solution)
