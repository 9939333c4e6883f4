"""`solve_spans`: problems with spans, of any size. Contraction, annealing, a bound, a check.

Workers are threads (kernels hold no lock), each with a seed of its own; they meet once, before the
last cycle, which all begin at the best answer of any. Python's own part of the work is small.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from xshard.solve.anneal import SUMS_PER_S, Anneal, Clock
from xshard.solve.check import check
from xshard.solve.contract import Contraction, contract, contracted, relevant
from xshard.solve.diffuse import Diffusion
from xshard.solve.dominate import undominated
from xshard.solve.flat import Flat
from xshard.solve.net import Net, priced
from xshard.solve.problem import FORBIDDEN, Edge, Infeasible, Ints, Node, Problem, Solution
from xshard.solve.ranks import ranks
from xshard.solve.spans import peak_of_spans

ORDERS = 8
MOST_DROPS = 3
CYCLES = ((0.7, 0.4),)
"""Shares of the time, and of that the part without the limit; the last cycle has the rest."""
BOUND_SHARE = 0.08
BOUND_WEIGHTS = (0.0, 0.25, 0.5, 1.0)
BOUND_SWEEPS = 40
MOST_NODES_TO_BOUND = 1500
TICK_S = 0.5
Report = Callable[[float, str, int | None, int], None]
"""(seconds, stage, objective, bound)"""


@dataclass(slots=True)
class _Core:
    """What is left of a problem, and the way back."""

    problem: Problem
    flat: Flat
    steps: tuple[Contraction, ...]
    net: Net
    orders: Ints

    def invert(self, choices: Ints) -> tuple[int, ...]:
        """Choices of the problem."""
        for step in reversed(self.steps):
            choices = step.invert(choices)
        return tuple(choices.tolist())


@dataclass(slots=True)
class _Crew:
    """Workers, when they began and how long they have."""

    core: _Core
    anneals: list[Anneal]
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

    def together(self, stage: str, work: Callable[[Anneal], None]) -> None:
        """All workers at the same time; an interrupt ends their work early."""
        failures: list[BaseException] = []

        def guarded(anneal: Anneal) -> None:
            try:
                work(anneal)
            except BaseException as failure:  # raised again below, in the caller's thread
                failures.append(failure)

        threads = [threading.Thread(target=guarded, args=(a,)) for a in self.anneals]
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
) -> Solution | Infeasible:
    """Good choices within the limit, and a bound; see `xshard.solve.anneal` for how.

    Args:
      problem: without rows and edges with usage.
      time_limit_s: counted from `began_s` (a reading of time.monotonic(); default: now). On a
        machine that does SUMS_PER_S in that time, the answer does not depend on the clock.

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
    crew = _Crew(core, anneals, began_s, time_limit_s, report, _least(core.flat))
    if len(core.net.free):
        _search(crew)
    best = crew.best()
    best.keep()
    if not best.fits:
        return _nothing(crew)
    choices = core.invert(best.walker.best)
    objective = check(problem, choices)
    _raise_bound(crew, best)
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
    return _Core(problem, flat, tuple(steps), Net.of(flat), ranks(flat, ORDERS))


def _search(crew: _Crew) -> None:
    crew.together("memory", lambda a: a.settle(crew.clock(1.0)))
    room = 1 - BOUND_SHARE - (time.monotonic() - crew.began_s) / crew.limit_s
    spent = 0.0
    for share, free in CYCLES:
        clock, effort = crew.clock(share * room), SUMS_PER_S * crew.limit_s * share
        for a in crew.anneals:
            a.prices = np.zeros_like(a.prices)
        crew.together("cooling", lambda a, c=clock, e=effort, f=free: a.cycle(c, e, f))
        spent += share
    best = crew.best()
    if best.fits:
        start, prices = best.walker.best.copy(), best.prices.copy()
        for a in crew.anneals:
            a.go(start)
            a.prices = prices.copy()
    clock, effort = crew.clock((1 - spent) * room), SUMS_PER_S * crew.limit_s * (1 - spent)
    crew.together("closing in", lambda a: a.cycle(clock, effort, 0.0))


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


def _raise_bound(crew: _Crew, best: Anneal) -> None:
    """The Lagrangian of the limit at shares of the last prices, by diffusion."""
    free, flat = crew.core.net.free, crew.core.flat
    if not 0 < len(free) <= MOST_NODES_TO_BOUND:
        return
    small = _bare(flat, free)
    engine = Diffusion.of(small)
    tables = engine.edge_tables([e.costs for e in small.edges])
    for weight in BOUND_WEIGHTS:
        prices = best.prices * weight
        extra = np.floor(priced(crew.core.net, prices) * (1 - 1e-9)).astype(np.int64)
        parts = [extra[flat.offsets[i] : flat.offsets[i + 1]] for i in free]
        costs = [n.costs + p for n, p in zip(small.nodes, parts, strict=True)]
        least = engine.raised(costs, tables, BOUND_SWEEPS, lambda: crew.left_s() > 0)
        paid = float(prices @ flat.room)
        bound = flat.constant + least - int(np.ceil(paid + 1e-9 * abs(paid)))
        crew.bound = max(crew.bound, bound)
        if crew.left_s() <= 0:
            return


def _bare(flat: Flat, free: Ints) -> Problem:
    """The core's nodes and edges, without memory."""
    number = np.full(len(flat.sizes), -1)
    number[free] = np.arange(len(free))
    zero = np.zeros(int(flat.sizes.max()), np.int64)
    nodes = [
        Node("", flat.costs[flat.offsets[i] : flat.offsets[i + 1]], zero[: flat.sizes[i]])
        for i in free
    ]
    edges: list[Edge] = []
    for k, (a, b) in enumerate(flat.ends.tolist()):
        table = flat.tables[flat.starts[k] : flat.starts[k + 1]]
        shape = (flat.sizes[a], flat.sizes[b])
        edges.append(Edge(int(number[a]), int(number[b]), table.reshape(shape)))
    return replace(Problem((), ()), nodes=tuple(nodes), edges=tuple(edges))
