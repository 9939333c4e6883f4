"""Where the layers are cut into stages, and which of them are recomputed, by a search with a bound.

The first boundaries give all stages equal work. Their stages are planned, and the step is
simulated; then the boundaries that have the least bound (`xshard.pipeline.bounds`) by what is known
so far, until that is no better than the best step. Each stage is planned for its own least time.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, inf

from xshard.pipeline.bounds import TOO_LARGE, Bound, Counts, StageTable
from xshard.pipeline.solver import StagePlans, StageSolver, TooLargeError, part_ns_of
from xshard.planning import ENOUGH_GAP
from xshard.schedules import Schedule, Times, in_flight, simulate
from xshard.stages.cut import Cuttable
from xshard.stages.staged import PER_MICROBATCH, Staged

MOST_PLANNED = 6
"""Boundaries whose stages are planned."""
MOST_SIMULATED = 500
"""Boundaries whose step is simulated."""

Parts = Mapping[str, int]
"""The time of each part of a stage, for one microbatch or for the step."""


@dataclass(frozen=True, slots=True)
class Found:
    """Boundaries and what they give.

    Attributes:
      counts: units on each stage.
      recomputed: of them, how many are run again in the backward pass.
    """

    counts: Counts
    recomputed: Counts
    plans: StagePlans


@dataclass(slots=True)
class BoundarySearch:
    """The search for one schedule.

    Attributes:
      ties: result -> the argument whose next value it is, by position.
      donated: positions of arguments whose memory may be reused.
      paths: of the arguments.
      remat: "none", "all", or "auto": of each stage as much as the memory limit asks for.
      tried: units on each stage -> predicted time of a step.
      bound_ns: no boundaries give a shorter step.
    """

    cut: Cuttable
    schedule: Schedule
    solver: StageSolver
    ties: Mapping[int, int]
    donated: frozenset[int]
    paths: Sequence[str]
    remat: str = "none"
    tried: dict[Counts, float] = field(default_factory=dict)
    bound_ns: float = 0
    parts: dict[Hashable, Parts] = field(default_factory=dict)
    again: dict[Hashable, int] = field(default_factory=dict)
    too_large: list[TooLargeError] = field(default_factory=list)
    _plans: dict[tuple[Counts, Counts], StagePlans] = field(default_factory=dict)

    def run(self, below: float = inf) -> Found | None:
        """The best boundaries; None if none give a step of less than so many ns.

        Raises:
          TooLargeError: a stage does not fit the memory limit, wherever it was looked at.
        """
        table = self._table()
        counts, bound = self.cut.balanced(self.schedule.num_stages), table.least(())[1]
        planned = 0
        while counts and bound < min(below, *self.tried.values(), inf) * (1 - ENOUGH_GAP):
            if any(key not in table.known for key in table.keys(counts)):
                if planned == MOST_PLANNED:
                    break
                planned += 1
                self._plan(counts, table)
            self.tried[counts] = self._step_ns(table.keys(counts))
            if len(self.tried) == MOST_SIMULATED:
                break
            counts, bound = table.least(self.tried)
        self.bound_ns = bound
        return self._best(table, below)

    def _best(self, table: StageTable, below: float) -> Found | None:
        counts = min(self.tried, key=lambda c: self.tried[c], default=())
        best = self.tried.get(counts, inf)
        if best >= below or best == inf:
            if below == inf or best == inf:
                raise self.too_large[0]
            return None
        again = tuple(self.again[key] for key in table.keys(counts))
        plans = self.planned(counts, again)
        if not plans.stages:
            plans.make()
        share = min(s.plan.bound_ns / max(s.plan.objective_ns, 1) for s in plans.stages)
        self.bound_ns = min(self.bound_ns, best * min(share, 1.0))
        return Found(counts, again, plans)

    def _table(self) -> StageTable:
        """The table with each unit planned alone; equal ones once."""
        schedule, contents = self.schedule, self.cut.contents
        n = len(contents)
        one = self.planned((1,) * n, (0,) * n)
        first = {content: k for k, content in reversed(list(enumerate(contents)))}
        alone: dict[int, Bound] = {}
        for k in {first[c] for c in contents} | {0, n - 1}:
            loose = one.loose(k)
            free = loose.relaxed.free
            alone[k] = Bound(free.bound, _each_ns(part_ns_of(one.staged, loose)))
        bounds = [alone[k] if k in alone else alone[first[c]] for k, c in enumerate(contents)]
        return StageTable(contents, self._flying(schedule), bounds)

    def _flying(self, schedule: Schedule) -> list[int]:
        """By stage, the microbatches whose residuals it holds at most."""
        held, chunks = in_flight(schedule), schedule.num_stages // schedule.num_groups
        return [-(-held[g].residuals // chunks) for g in schedule.placement]

    def _plan(self, counts: Counts, table: StageTable) -> None:
        """Plans the stages, and enters them."""
        again = self._recomputed(counts)
        plans, keys = self.planned(counts, again), table.keys(counts)
        for s, key in enumerate(keys):
            if key in table.known and table.known[key] is TOO_LARGE:
                return
            try:
                made = plans.add(s)
            except TooLargeError as error:
                self.too_large.append(error)
                table.known[key] = TOO_LARGE
                return
            self.parts[key], self.again[key] = made.part_ns, again[s]
            table.known[key] = Bound(made.plan.bound_ns, _each_ns(made.part_ns))

    def _recomputed(self, counts: Counts) -> Counts:
        """Of each stage, how many units are recomputed: as many as let its fastest specs fit."""
        none, limit = (0,) * len(counts), self.solver.memory_limit
        if self.remat == "all":
            return counts
        if self.remat == "none" or limit is None:
            return none
        kept = self.planned(counts, none)
        peaks = [kept.loose(s).relaxed.peak_bytes for s in range(len(counts))]
        if max(peaks) <= limit:
            return none
        every = self.planned(counts, counts)
        found: list[int] = []
        for s, (count, peak) in enumerate(zip(counts, peaks, strict=True)):
            saved = peak - every.loose(s).relaxed.peak_bytes if peak > limit else 1
            found.append(min(count, ceil(count * max(0, peak - limit) / saved)) if saved > 0 else 0)
        return tuple(found)

    def planned(self, counts: Counts, recomputed: Counts) -> StagePlans:
        """The stages, to be planned."""
        if (counts, recomputed) not in self._plans:
            schedule = self.schedule
            staged = self.cut.into(
                counts, split_backward=schedule.split_backward, recomputed=recomputed
            )
            alone = staged.num_stages != schedule.num_stages
            names = {p.value: path for pieces, path in zip(staged.inputs, self.paths, strict=True)
                     for p in pieces}  # fmt: skip
            lent = frozenset(p.value for i in self.donated for p in staged.inputs[i])
            self._plans[counts, recomputed] = StagePlans(
                staged, range(len(counts)) if alone else schedule.placement,
                [1] * len(counts) if alone else self._flying(schedule),
                self.solver, tied_values(staged, self.ties), names, lent,
            )  # fmt: skip
        return self._plans[counts, recomputed]

    def _step_ns(self, keys: Sequence[Hashable]) -> float:
        """The predicted time of a step; infinite if a stage does not fit."""
        if any(key not in self.parts for key in keys):
            return inf
        return step_ns(self.schedule, [self.parts[key] for key in keys])


def _each_ns(part_ns: Parts) -> int:
    return sum(ns for part, ns in part_ns.items() if part in PER_MICROBATCH)


def tied_values(staged: Staged, ties: Mapping[int, int]) -> dict[int, int]:
    """Result value -> argument value, for results and arguments that are taken apart alike."""
    found: dict[int, int] = {}
    for result, argument in ties.items():
        new, old = staged.results[result], staged.inputs[argument]
        if [(p.start, p.stop) for p in new] == [(p.start, p.stop) for p in old]:
            found.update((a.value, b.value) for a, b in zip(new, old, strict=True))
    return found


def step_ns(schedule: Schedule, stages: Sequence[Parts]) -> int:
    """The predicted time of a step, transfers apart.

    Args:
      stages: times of each stage's parts.
    """
    parts = {(s, p): found.get(p, 0) for s, found in enumerate(stages) for p in schedule.parts}
    once = [0] * schedule.num_groups
    for stage, found in enumerate(stages):
        more = sum(ns for part, ns in found.items() if part not in schedule.parts)
        once[schedule.placement[stage]] += more
    return simulate(schedule, Times(parts)).makespan_ns + max(once)
