"""`solve_spans`: problems with spans, of any size. Contraction, annealing, a bound, a check.

Workers are threads (kernels hold no lock), each with a seed of its own; they meet once, before the
last cycle, which all begin at the best answer of any. Python's own part of the work is small.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from xshard.solve.anneal import SUMS_PER_S, Anneal, Clock
from xshard.solve.ascent import Ascent
from xshard.solve.check import check
from xshard.solve.contract import Contraction, contract, contracted, relevant
from xshard.solve.dominate import undominated
from xshard.solve.flat import Flat
from xshard.solve.net import Net
from xshard.solve.problem import FORBIDDEN, Infeasible, Ints, Problem, Solution, Start
from xshard.solve.ranks import ranks
from xshard.solve.spans import peak_of_spans

ORDERS, FEW_ORDERS = 8, 2
MANY_NODES = 1000
"""Of a core with more nodes, orders are costly and blocks that follow them seldom."""
MOST_DROPS = 3
ASCENT_SHARE = 0.15
CYCLES = ((0.1, 1.0, False), (0.15, 1.0, True), (0.5, 1.0, False), (0.25, 0.1, False))
"""Shares of the time left after that, the heat with which each begins, and whether afresh; the last
begins at the best answer of all workers."""
NEAR_CYCLES = ((0.4, 0.1, False), (0.6, 0.1, False))
"""The same where choices are given to begin with: what is near them is looked at."""
BOUND_SHARE = 0.05
TICK_S = 0.5
Report = Callable[[float, str, int | None, int], None]
"""(seconds, stage, objective, bound)"""


@dataclass(slots=True)
class _Core:
    """What is left of a problem, `free` of its nodes, and the way back."""

    problem: Problem
    flat: Flat
    free: Ints
    nodes: int
    steps: tuple[Contraction, ...]
    net: Net
    orders: Ints

    def apply(self, choices: tuple[int, ...]) -> Ints:
        """Choices of the core near choices of the problem."""
        found = np.array(choices, np.int64)
        for step in self.steps:
            found = step.apply(found)
        return found[self.free]

    def invert(self, choices: Ints) -> tuple[int, ...]:
        """Choices of the problem."""
        all_choices = np.zeros(self.nodes, np.int64)
        all_choices[self.free] = choices
        choices = all_choices
        for step in reversed(self.steps):
            choices = step.invert(choices)
        return tuple(choices.tolist())


@dataclass(slots=True)
class _Crew:
    """Workers, when they began and how long they have."""

    core: _Core
    anneals: list[Anneal]
    ascents: list[Ascent]
    began_s: float
    limit_s: float
    report: Report
    bound: int
    stop: threading.Event = field(default_factory=threading.Event)

    def left_s(self) -> float:
        """Seconds of the limit that are left."""
        return self.began_s + self.limit_s - time.monotonic()

    def best(self) -> Anneal:
        """The worker with the best answer; the first of equal ones."""
        return min(self.anneals, key=lambda a: float(a.walker.state[1]))

    def objective(self) -> int | None:
        """That of the best answer so far."""
        cost = float(self.best().walker.state[1])
        return self.core.flat.constant + round(cost) if np.isfinite(cost) else None

    def together(self, stage: str, work: Callable[[int], None]) -> None:
        """All workers at the same time; an interrupt ends their work early."""
        failures: list[BaseException] = []

        def guarded(worker: int) -> None:
            try:
                work(worker)
            except BaseException as failure:  # raised again below, in the caller's thread
                failures.append(failure)

        count = len(self.anneals)
        threads = [threading.Thread(target=guarded, args=(k,)) for k in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            self._wait(thread, stage)
        if failures:
            raise failures[0]

    def _wait(self, thread: threading.Thread, stage: str) -> None:
        while thread.is_alive():
            try:
                thread.join(TICK_S)
                self.tell(stage)
            except KeyboardInterrupt:
                self.stop.set()

    def tell(self, stage: str) -> None:
        """Reports progress."""
        self.report(time.monotonic() - self.began_s, stage, self.objective(), self.bound)

    def clock(self, share: float) -> Clock:
        """A clock for a share of the limit from now on, and no more than is left."""
        limit_s = min(self.limit_s * share, self.left_s())
        return Clock(time.monotonic(), limit_s, self.stop.is_set)


def solve_spans(
    problem: Problem,
    *,
    time_limit_s: float,
    workers: int,
    seed: int,
    report: Report,
    began_s: float | None = None,
    start: Start | None = None,
) -> Solution | Infeasible:
    """Good choices within the limit, and a bound; see `xshard.solve.anneal` for how.

    Args:
      problem: without rows and edges with usage.
      time_limit_s: counted from `began_s` (a reading of time.monotonic(); default: now). On a
        machine that does SUMS_PER_S in that time, the answer does not depend on the clock.
      start: choices to begin with, which need not fit, and a bound.

    Returns:
      A Solution that `check` accepts; an interrupt (Ctrl-C) returns the best so far. Infeasible,
      with the least peak that was found, if no choices within the limit were.
    """
    began_s = time.monotonic() if began_s is None else began_s
    core = _core(problem)
    if core is None:
        return Infeasible(None)
    limit = problem.limit or 0
    count = max(1, workers)
    anneals = [Anneal.of(core.net, core.orders, limit, seed * 1000 + k) for k in range(count)]
    ascents = [Ascent.of(core.net, rank) for rank in _orders(core, count)]
    crew = _Crew(core, anneals, ascents, began_s, time_limit_s, report, _least(core.flat))
    crew.bound = max(crew.bound, start.bound if start else 0)
    if len(core.net.free):
        _search(crew, core.apply(start.choices) if start and start.choices else None)
    best = crew.best()
    best.keep()
    if not best.fits:
        return _nothing(crew)
    choices = core.invert(best.walker.best)
    objective = check(problem, choices)
    crew.tell("done")
    notes: dict[str, int | float | str] = {
        "core_nodes": len(core.net.free), "core_choices": int(core.flat.sizes[core.net.free].sum()),
    }  # fmt: skip
    wall_s = time.monotonic() - began_s
    return Solution(choices, objective, min(crew.bound, objective), wall_s, notes)


def _core(problem: Problem) -> _Core | None:
    found = contracted(Flat.of(problem))
    if found is None:
        return None
    flat, steps = relevant(found[0]), list(found[1])
    for _ in range(MOST_DROPS):
        step = undominated(flat)
        if step is None:
            break
        flat = contract(flat, step)
        steps.append(step)
    free = np.flatnonzero(flat.sizes > 1)
    left = flat.of_nodes(free)
    orders = ranks(left, ORDERS if len(free) <= MANY_NODES else FEW_ORDERS)
    return _Core(problem, left, free, len(flat.sizes), tuple(steps), Net.of(left), orders)


def _orders(core: _Core, count: int) -> list[Ints]:
    """Orders of the nodes for ascents: the problem's own, then orders of elimination."""
    own = np.arange(len(core.flat.sizes))
    return [own, *(core.orders[k % len(core.orders)] for k in range(count - 1))]


def _search(crew: _Crew, start: Ints | None) -> None:
    anneals, ascents = crew.anneals, crew.ascents
    sums = SUMS_PER_S * crew.limit_s
    _climb(crew, "pricing memory", ASCENT_SHARE)
    for anneal, ascent in zip(anneals, ascents, strict=True):
        anneal.begin(ascent, start)
    cycles = CYCLES if start is None else NEAR_CYCLES
    crew.together("fitting", lambda k: anneals[k].repair(crew.clock(1.0)))
    room = max(0.0, crew.left_s() / crew.limit_s - BOUND_SHARE)
    for cycle, (share, heat, afresh) in enumerate(cycles):
        _meet(crew, everyone=cycle == len(cycles) - 1)
        clock, effort = crew.clock(share * room), sums * share * (1 - ASCENT_SHARE - BOUND_SHARE)
        crew.together(
            "cooling",
            lambda k, c=clock, e=effort, h=heat, a=afresh: anneals[k].cool(c, e, h, afresh=a),
        )
    for ascent in ascents:
        ascent.again(float(crew.best().walker.state[1]))
    _climb(crew, "bounding", BOUND_SHARE)


def _climb(crew: _Crew, stage: str, share: float) -> None:
    """All ascents, for a share of the time."""
    clock, effort = crew.clock(share), SUMS_PER_S * crew.limit_s * share
    begun = [ascent.sums for ascent in crew.ascents]

    def work(k: int) -> None:
        crew.ascents[k].climb(lambda sums: clock.share(sums - begun[k], effort))

    crew.together(stage, work)
    raised = max(ascent.bound for ascent in crew.ascents)
    if np.isfinite(raised):
        crew.bound = max(crew.bound, crew.core.flat.constant + int(np.floor(raised)))


def _meet(crew: _Crew, *, everyone: bool) -> None:
    """Workers go on from the best answer of any: everyone, or those that have none."""
    best = crew.best()
    if best.fits:
        start = best.walker.best.copy()
        for anneal in crew.anneals:
            if everyone or not anneal.fits:
                anneal.go(start)


def _nothing(crew: _Crew) -> Infeasible:
    """The least peak that the workers are at."""
    problem = crew.core.problem
    found = [crew.core.invert(a.walker.choices) for a in crew.anneals]
    peaks = [peak_of_spans(problem, choices)[0] for choices in found]
    at = int(np.argmin(peaks))
    return Infeasible(peaks[at], found[at], proven=False)


def _least(flat: Flat) -> int:
    """No choices cost less than the least of every table."""
    costs = np.minimum.reduceat(flat.costs, flat.offsets[:-1])
    tables = np.minimum.reduceat(flat.tables, flat.starts[:-1]) if len(flat.ends) else costs[:0]
    return min(flat.constant + int(costs.sum()) + int(tables.sum()), FORBIDDEN)
