"""The street's second half: problems -> solutions -> the best plan, or why there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from xshard.describe import alternatives, describe
from xshard.diagnosis import OutOfTime, Statement, at_peak, blame, conflict, statements_of
from xshard.errors import InfeasibleError
from xshard.plan.plan import Plan
from xshard.plan.units import size
from xshard.prepare import Modelled, Prepared, model, prepare
from xshard.recall import NO_LIMIT, Models, answer_from, forced, keep, least_peak, start_of
from xshard.solve.memory import first_rows, violated
from xshard.solve.problem import Infeasible, Solution, Start
from xshard.solve.search import solve

ENOUGH_GAP = 0.005
"""Where memory binds or choices are many, the search ends at a plan proven to be this close to the
best: a tenth of what the cost model itself is off by."""
MOST_BLAME_S = 20.0
"""How long the pins at fault are looked for where nothing fits."""
_LEAST_S = 1.0
"""What a search gets even if the time limit has passed, so that it ends with an answer."""

MOST_ROUNDS = 12
"""How often rows of live memory that an answer violates are added before giving up."""


def make_plan(tried: Sequence[Prepared], on_step: Callable[[str], None] = lambda _: None) -> Plan:
    """The best plan over all meshes that are tried; see `planned`."""
    return planned(tried, on_step)[1]


def planned(
    tried: Sequence[Prepared], on_step: Callable[[str], None] = lambda _: None,
    models: Models | None = None,
) -> tuple[Modelled, Plan]:  # fmt: skip
    """The best plan over all meshes that are tried, and the model that it is of.

    Args:
      models: those that were made before, with what was found on them.

    Raises:
      InfeasibleError: nothing fits the memory limit, or the pins contradict each other.
      PinError: a constraint cannot hold on the mesh.
    """
    seconds: dict[str, float] = {}
    models = models or Models()
    with _clock("build", seconds, on_step):
        first, others = models.by_bound(tried)
        made = [models.of(prepared) for prepared in first]
    with _clock("solve", seconds, on_step):
        chosen, solution = _with_others(made, others, models) if others else fastest(made)
    with _clock("describe", seconds, on_step):
        plan = described(chosen, solution)
    return chosen, replace(plan, seconds=seconds)


def _with_others(
    made: Sequence[Modelled], others: Sequence[tuple[Prepared, int]], models: Models
) -> tuple[Modelled, Solution]:
    """The best model, of `made` or of others, whose bounds are known to be higher."""
    answer = fitting(relaxed(made))
    most = answer[1].objective if isinstance(answer, tuple) else NO_LIMIT
    rest = [models.of(prepared) for prepared, bound in others if bound < most]
    if rest or not isinstance(answer, tuple):
        answer = fastest([*made, *rest])
    chosen, solution = answer
    bounds = (bound for _, bound in others if bound >= most)
    return chosen, replace(solution, bound=min([solution.bound, *bounds]))


def described(chosen: Modelled, solution: Solution) -> Plan:
    """The plan of a solution."""
    request, prices = chosen.prepared.request, chosen.prepared.prices
    plan = describe(
        chosen.draft, chosen.timeline, solution, prices, request.traced,
        fingerprint=chosen.prepared.fingerprint, limit=request.memory_limit,
    )  # fmt: skip
    explain = alternatives(chosen.draft, chosen.timeline, plan, request.traced, solution,
                           lambda d: _other(forced(replace(chosen, draft=d), chosen)))  # fmt: skip
    return replace(
        plan,
        microbatches=request.microbatches,
        lanes=request.lanes,
        remat=request.remat,
        _alternatives=explain,
    )


def fastest(models: Sequence[Modelled]) -> tuple[Modelled, Solution]:
    """The best mesh and its solution, whose bound is about all meshes.

    Raises:
      InfeasibleError: nothing fits on any of them.
    """
    found = relaxed(models)
    answer = fitting(found)
    if isinstance(answer, tuple):
        return answer
    if answer.nearest is not None:
        others = [r.modelled for r in found]
        late = limited(answer.nearest, len(models), others)  # raises, or had too little time before
        least = late.bound if answer.at_least_ns is None else answer.at_least_ns
        return answer.nearest, replace(late, bound=min(late.bound, least))
    raise _infeasible(models[0], Infeasible(None), None, len(models))


Hints = dict[tuple[int, ...], tuple[int, ...]]
"""By the numbers of choices of a model's nodes, the best choices that were found last."""


@dataclass(frozen=True, slots=True)
class Relaxed:
    """A model and its best choices without a memory limit, which bound all others."""

    modelled: Modelled
    free: Solution

    @property
    def peak_bytes(self) -> int:
        """Of the choices without a limit."""
        return self.modelled.peak_bytes(self.free)


def relaxed(
    models: Sequence[Modelled], most_s: float = np.inf, hints: Hints | None = None
) -> list[Relaxed]:
    """Models without a limit, the fastest first, but for those whose pins contradict each other.

    Args:
      most_s: a time limit for each, next to the request's.
      hints: choices for models that differ in numbers only; the search ends at ENOUGH_GAP then.
    """
    free = [Relaxed(m, s) for m in models if (s := unlimited(m, most_s, hints)) is not None]
    return sorted(free, key=lambda r: r.free.objective)


@dataclass(frozen=True, slots=True)
class Unfit:
    """No model has a plan that is wanted.

    Attributes:
      nearest: the model that fits under the smallest limit, if one does not fit.
      at_least_ns: what all plans take that fit, if some model was not searched for them.
    """

    nearest: Modelled | None
    at_least_ns: int | None


def fitting(
    found: Sequence[Relaxed], below: int | None = None
) -> tuple[Modelled, Solution] | Unfit:
    """The best model and its solution within its request's limit; the bound is about all models.

    Models are taken in the order of what they would reach without a limit; one that would reach no
    more than the best so far needs no further look.

    Args:
      below: plans that take so many ns or more are not wanted.
    """
    best: tuple[int, Modelled, Solution] | None = None
    bounds, failures = list[int](), list[tuple[int, Modelled]]()
    for r in found:
        most = below if best is None else best[0]
        beaten = most is not None and most <= r.free.bound
        answer = r.free if beaten else _within_limit(r.modelled, r.free, most)
        if beaten or isinstance(answer, Solution):
            assert isinstance(answer, Solution)
            bounds.append(answer.bound)
            if not beaten and (best is None or answer.objective < best[0]):
                best = answer.objective, r.modelled, answer
        elif answer.bound is not None:
            bounds.append(answer.bound)
        else:
            failures.append((answer.smallest_limit or NO_LIMIT, r.modelled))
    if best is None:
        nearest = min(failures, key=lambda f: f[0])[1] if failures else None
        return Unfit(nearest, min(bounds, default=None))
    objective, modelled, solution = best
    return modelled, replace(solution, bound=min(objective, *bounds))


_CONTRADICTION = (
    "the pinned specs and sharding constraints contradict each other: no choice of the others "
    "satisfies all of them; drop one of in_specs, out_specs or the constraints."
)


def unlimited(
    modelled: Modelled, most_s: float = np.inf, hints: Hints | None = None
) -> Solution | None:
    """The best choices without a memory limit; None if pins contradict each other."""
    request = modelled.prepared.request
    effort_s = min(request.time_limit_s, most_s)
    known = answer_from(modelled, None, ENOUGH_GAP, effort_s)
    if known is not None:
        return known
    start = start_of(modelled, None)
    alike = tuple(len(node.costs) for node in modelled.draft.nodes)
    if start is None and hints is not None and alike in hints:
        start = Start(hints[alike])
    answer = solve(
        modelled.problem(None, ()),
        start=start,
        time_limit_s=effort_s,
        enough_gap=ENOUGH_GAP,
        quick=hints is not None,
    )
    keep(modelled, None, answer, effort_s if hints is None else 0.0)
    if isinstance(answer, Infeasible):
        return None
    if hints is not None:
        hints[alike] = answer.choices
    return answer


def _within_limit(m: Modelled, free: Solution, below: int | None = None) -> Solution | Infeasible:
    """The solution without limit if it fits, or else the best that does and is below `below` ns."""
    limit = m.prepared.request.memory_limit
    if limit is None or m.timeline.curve(m.draft, free.choices).max(initial=0) <= limit:
        return free
    return _search(m, limit, diagnose=False, below=below)


def limited(modelled: Modelled, meshes: int = 1, models: Sequence[Modelled] = ()) -> Solution:
    """The best choices under the request's memory limit.

    Args:
      meshes: how many were tried, of which this one came nearest.
      models: of the others, whose answers may hold less.

    Raises:
      InfeasibleError: with the smallest limit that is feasible, or the least that was found.
    """
    limit = modelled.prepared.request.memory_limit
    answer = _search(modelled, limit, diagnose=True)
    if isinstance(answer, Solution):
        return answer
    known = least_peak([modelled, *models])
    if known is None or known[1].peak_bytes >= (answer.smallest_limit or NO_LIMIT):
        raise _infeasible(modelled, answer, limit, meshes)
    nearest, least = known
    told = Infeasible(least.peak_bytes, least.choices, proven=False)
    raise _infeasible(nearest, told, limit, meshes)


def _other(modelled: Modelled) -> Solution:
    """The best choices of a draft with one value fixed otherwise, from the same crowded moments.

    Raises:
      InfeasibleError: none fit; no smaller limit is looked for.
    """
    answer = _search(modelled, modelled.prepared.request.memory_limit, diagnose=False)
    if isinstance(answer, Infeasible):
        raise InfeasibleError("nothing fits with this sharding")
    return answer


def _search(
    modelled: Modelled, limit: int | None, *, diagnose: bool, enough_gap: float = ENOUGH_GAP,
    end: float = np.inf, below: int | None = None,
) -> Solution | Infeasible:  # fmt: skip
    """Solves, and again with more rows where the answer exceeds its limit at another moment.

    The limit of an answer that nothing fits is the smallest one that it found.
    """
    effort_s = modelled.prepared.request.time_limit_s
    known = answer_from(modelled, limit, enough_gap, effort_s)
    if known is not None:
        return known
    effort_s = effort_s if below is None else 0.0
    d, timeline = modelled.draft, modelled.timeline
    began = time.monotonic()
    limit_s = max(min(modelled.prepared.request.time_limit_s, end - began), _LEAST_S)
    rows = (*first_rows(d, timeline), *modelled.crowded) if limit is not None else ()
    start = start_of(modelled, limit)
    answer: Solution | Infeasible = Infeasible(None)
    for _ in range(MOST_ROUNDS):
        answer = solve(
            modelled.problem(limit, rows), start=start,
            time_limit_s=limit_s, enough_gap=enough_gap, diagnose=diagnose, began_s=began,
            below=below,
        )  # fmt: skip
        most = limit if isinstance(answer, Solution) else answer.smallest_limit
        told = isinstance(answer, Infeasible) and not diagnose
        if told or most is None or answer.choices is None or limit is None:
            keep(modelled, limit, answer, effort_s)
            return answer
        more = violated(d, timeline, answer.choices, most)
        if not more:
            keep(modelled, limit, answer, effort_s)
            return answer
        modelled.crowded.extend(more)
        rows = (*rows, *more)
        start = _further(start, answer)
    if isinstance(answer, Solution):
        answer = Infeasible(int(timeline.curve(d, answer.choices).max()), answer.choices)
    return replace(answer, proven=False)


def _further(start: Start | None, answer: Solution | Infeasible) -> Start:
    """Where the search goes on after an answer to the problem with fewer rows."""
    low = 0 if start is None else start.bound
    if isinstance(answer, Infeasible):
        return Start(answer.choices, low)
    return Start(answer.choices, max(low, answer.bound), answer.prices)


def _infeasible(
    modelled: Modelled, answer: Infeasible, limit: int | None, meshes: int
) -> InfeasibleError:
    culprits = _culprits(modelled)
    if answer.smallest_limit is None or answer.choices is None or limit is None:
        return InfeasibleError(_CONTRADICTION + blame(culprits, "at all"))
    d, timeline = modelled.draft, modelled.timeline
    smallest = max(answer.smallest_limit, int(timeline.curve(d, answer.choices).max()))
    about = "" if answer.proven else " (about: the search for it was cut short)"
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
    if free is None or limit is None or m.timeline.curve(m.draft, free.choices).max() <= limit:
        return free is not None
    answer = _search(m, limit, diagnose=False, enough_gap=1.0, end=end)
    if isinstance(answer, Infeasible) and time.monotonic() > end:
        raise OutOfTime
    return isinstance(answer, Solution)


@contextmanager
def _clock(name: str, seconds: dict[str, float], on_step: Callable[[str], None]) -> Iterator[None]:
    on_step(name)
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began
