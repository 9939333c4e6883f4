"""The street's second half: problems -> solutions -> the best plan, or why there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from heapq import heappop, heappush

import numpy as np

from xshard.describe import alternatives, describe
from xshard.errors import InfeasibleError
from xshard.one_model import Hints, Rounds, search, unlimited
from xshard.plan.plan import Plan
from xshard.plan.records import Template
from xshard.prepare import Modelled, Prepared
from xshard.recall import NO_LIMIT, Models, forced
from xshard.refusal import infeasible, limited
from xshard.solve.problem import Infeasible, Solution
from xshard.templates.complete import completed, shown


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
        chosen.draft, chosen.timeline_of(solution.choices), solution, prices, request.traced,
        fingerprint=chosen.prepared.fingerprint, limit=request.memory_limit,
    )  # fmt: skip
    explain = alternatives(chosen.draft, chosen.peak_bytes, plan, request.traced, solution,
                           lambda d: _other(forced(replace(chosen, draft=d), chosen)))  # fmt: skip
    return replace(
        plan,
        microbatches=request.microbatches,
        lanes=request.lanes,
        remat=request.remat,
        _alternatives=explain,
        _templates=cache(partial(_templates, chosen)),
    )


def _templates(chosen: Modelled) -> tuple[Template, ...]:
    """What well-known ways to split the step take on the plan's mesh, run the plan's way."""
    return shown(completed(chosen), chosen)


def _other(modelled: Modelled) -> Solution:
    """The best choices of a draft with one value fixed otherwise, from the same crowded moments.

    Raises:
      InfeasibleError: none fit; no smaller limit is looked for.
    """
    answer = search(modelled, modelled.prepared.request.memory_limit, diagnose=False)
    if isinstance(answer, Infeasible):
        raise InfeasibleError("nothing fits with this sharding")
    return answer


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
    raise infeasible(models[0], Infeasible(None), None, len(models))


@dataclass(frozen=True, slots=True)
class Relaxed:
    """A model and its best choices without a memory limit, which bound all others."""

    modelled: Modelled
    free: Solution

    @property
    def peak_bytes(self) -> int:
        """Of the choices without a limit."""
        return self.modelled.peak_bytes(self.free.choices)

    @property
    def fits(self) -> bool:
        """Whether they fit their request's limit."""
        return self.modelled.fits(self.free.choices, self.modelled.prepared.request.memory_limit)


def relaxed(
    models: Sequence[Modelled], most_s: float = np.inf, hints: Hints | None = None
) -> list[Relaxed]:
    """Models without a limit, the fastest first.

    Left out are those whose pins contradict each other, and those that are proven to be no faster
    than one that fits.

    Args:
      most_s: a time limit for each, next to the request's.
      hints: choices for models that differ in numbers only; the search ends at ENOUGH_GAP then.
    """
    found, below = list[Relaxed](), None
    for modelled in models:
        free = unlimited(modelled, most_s, hints, below)
        if free is not None:
            found.append(Relaxed(modelled, free))
            below = min(below or NO_LIMIT, free.objective) if found[-1].fits else below
    return sorted(found, key=lambda r: r.free.objective)


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

    The model that has reached least is searched a round further; one whose bound is no less than
    the best plan needs no further look.

    Args:
      below: plans that take so many ns or more are not wanted.
    """
    best: tuple[int, Modelled, Solution] | None = None
    bounds, failures = list[int](), list[tuple[int, Modelled]]()
    searched: dict[int, Rounds] = {}
    waiting = [(r.free.objective, i) for i, r in enumerate(found)]
    while waiting:
        i = heappop(waiting)[1]
        r, rounds = found[i], searched.get(i)
        most = below if best is None else best[0]
        bound = r.free.bound if rounds is None else max(r.free.bound, rounds.bound)
        if most is not None and most <= bound:
            bounds.append(bound)
            continue
        limit = r.modelled.prepared.request.memory_limit
        if rounds is None and r.fits:
            answer: Solution | Infeasible = r.free
        else:
            rounds = searched.setdefault(i, rounds or Rounds(r.modelled, limit))
            if not rounds.done:
                rounds.go_on(most)
            answer = rounds.answer
            if not rounds.done and isinstance(answer, Solution):
                heappush(waiting, (answer.objective, i))
                continue
        if isinstance(answer, Solution):
            bounds.append(answer.bound)
            if best is None or answer.objective < best[0]:
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


@contextmanager
def _clock(name: str, seconds: dict[str, float], on_step: Callable[[str], None]) -> Iterator[None]:
    on_step(name)
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began
