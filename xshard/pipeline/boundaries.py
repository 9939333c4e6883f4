"""Where the layers are cut into stages, and which of them are recomputed, by a search with a bound.

The boundaries that look best by what is known so far (`xshard.pipeline.bounds`) are planned next,
until none looks better than the best step. What is known of each stage from the start are its
units, planned alone, and what follows from them (`xshard.pipeline.estimate`). Each stage is planned
for its own least time.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf

from xshard.one_model import ENOUGH_GAP
from xshard.pipeline.bounds import Bound, Counts, StageTable, least_ns, spans
from xshard.pipeline.cuts import Cuts
from xshard.pipeline.estimate import Estimates
from xshard.pipeline.recomputed import Recomputed
from xshard.pipeline.solver import Loose, StagePlan, StagePlans, StageSolver, TooLargeError
from xshard.pipeline.units import Parts, Units, bound_of
from xshard.schedules import Schedule, Simulation, Times, in_flight

MOST_PLANNED = 4
"""Boundaries whose stages are planned."""
MOST_PEAKS = 3
"""Numbers of recomputed units whose memory is looked at for a stage."""
MOST_TRIED = 100
"""Boundaries that are looked at, most of whose stages are known from others."""


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


@dataclass
class BoundarySearch:
    """The search for one schedule.

    Attributes:
      remat: "none", "all", or "auto": of each stage as much as the memory limit asks for.
      tried: units on each stage -> predicted time of a step.
      bound_ns: no boundaries give a shorter step.
      looks: how many boundaries had their stages planned.
    """

    cuts: Cuts
    schedule: Schedule
    solver: StageSolver
    remat: str = "none"
    tried: dict[Counts, float] = field(default_factory=dict)
    bound_ns: float = 0
    parts: dict[Hashable, Parts] = field(default_factory=dict)
    again: dict[Hashable, int] = field(default_factory=dict)
    too_large: list[TooLargeError] = field(default_factory=list)
    looks: int = 0
    _units: Units | None = None
    _table: StageTable | None = None
    _plans: dict[tuple[Counts, Counts], StagePlans] = field(default_factory=dict)
    _loose: dict[Hashable, tuple[StagePlans, Loose]] = field(default_factory=dict)

    @property
    def units(self) -> Units:
        """Each unit as a stage of its own.

        Raises:
          PipelineError: there are more stages than units.
        """
        if self._units is None:
            self.cuts.cut.balanced(self.schedule.num_stages)
            n = len(self.cuts.cut.units)
            one = self.planned((1,) * n, (0,) * n)
            self._units = Units.of(self.cuts.cut, one, self.schedule.parts)
        return self._units

    @property
    def is_open(self) -> bool:
        """Whether there are units that were not planned."""
        return self._table is None

    def go_on(self) -> None:
        """Plans a unit more, and without any left makes the table.

        Raises:
          PipelineError: there are more stages than units.
        """
        units, s = self.units, self.schedule
        if units.open:
            units.go_on()
            once = units.known_ns / s.num_groups
            self.bound_ns = max(once, least_ns(units.each_ns, s.microbatches, s.num_stages))
        if not units.open:
            _ = self.table

    @property
    def table(self) -> StageTable:
        """The table with each unit planned alone, and what was planned since.

        Raises:
          PipelineError: there are more stages than units.
        """
        if self._table is None:
            units = self.units
            while units.open:
                units.go_on()
            expect = lambda *stage: self.estimates.of(*stage).bound  # noqa: E731
            self._table = StageTable(units.contents, self.flying, units.bounds, expect)
            self.bound_ns = self._table.least((), self._at_least)[1]
        return self._table

    @cached_property
    def estimates(self) -> Estimates:
        """Of stages that were not planned."""
        s = self.schedule
        limit, held = self.solver.memory_limit, self.units.held
        return Estimates(self.units.bounds, held, s.parts, s.microbatches, limit, self.remat)

    @property
    def promise_ns(self) -> float:
        """What a step is expected to take; of units that are not planned, at least."""
        if self._table is None:
            return self.bound_ns
        return max(self.bound_ns, self._table.least((), self._at_least, expected=True)[1])

    @property
    def best_ns(self) -> float:
        """The predicted time of a step; infinite if nothing was found."""
        return min(self.tried.values(), default=inf)

    def run(self, below: float = inf) -> Found | None:
        """The best boundaries; None if none give a step of less than so many ns.

        Raises:
          PipelineError: there are more stages than units.
          TooLargeError: a stage does not fit the memory limit, wherever it was looked at.
        """
        self.look(below)
        best = self.best_ns
        if best >= below or best == inf:
            if below == inf or (best == inf and self.tried):
                raise self.too_large[0]
            return None
        return self.found()

    def look(self, below: float = inf, enough: int = MOST_PLANNED) -> None:
        """Plans boundaries until none looks better, or something is found after `enough` of them.

        Raises:
          PipelineError: there are more stages than units.
        """
        table = self.table
        while True:
            counts, guess = table.least(self.tried, self._at_least, expected=True)
            if not counts or guess >= min(below, self.best_ns) * (1 - ENOUGH_GAP):
                break
            if any(key not in table.known for key in table.keys(counts)):
                most = MOST_PLANNED if self.best_ns == inf else enough
                if self.looks >= most:
                    break
                self.looks += 1
                self._plan(counts, table)
            self.tried[counts] = self._step_ns(table.keys(counts))
            if len(self.tried) >= MOST_TRIED:
                break
        self.bound_ns = table.least(self.tried, self._at_least)[1]

    def found(self) -> Found:
        """The best boundaries so far, with all their stages planned."""
        counts = min(self.tried, key=lambda c: self.tried[c])
        again = tuple(self.again[key] for key in self.table.keys(counts))
        plans = self.planned(counts, again).make()
        share = min(s.plan.bound_ns / max(s.plan.objective_ns, 1) for s in plans.stages)
        self.bound_ns = min(self.bound_ns, self.best_ns * min(share, 1.0))
        return Found(counts, again, plans)

    @cached_property
    def flying(self) -> tuple[int, ...]:
        """By stage, the microbatches whose residuals it holds at most."""
        schedule = self.schedule
        held, chunks = in_flight(schedule), schedule.num_stages // schedule.num_groups
        return tuple(-(-held[g].residuals // chunks) for g in schedule.placement)

    @cached_property
    def simulation(self) -> Simulation:
        """Of the schedule."""
        return Simulation.of(self.schedule)

    def _plan(self, counts: Counts, table: StageTable) -> None:
        """Plans those stages that are not known, and enters them."""
        again = self._recomputed(counts, table)
        shares = len(set(self.schedule.placement)) < len(counts)
        plans = self.planned(counts, again) if shares else None
        for s, (key, span) in enumerate(zip(table.keys(counts), spans(counts), strict=True)):
            if key in table.known and not shares:
                continue
            try:
                made = plans.add(s) if plans else self._alone(counts, again, s)
            except TooLargeError as error:
                self.too_large.append(error)
                table.known[key] = Bound(inf, (inf,) * len(self.schedule.parts))
                return
            self.parts[key], self.again[key] = made.part_ns, again[s]
            table.learn(s, *span, self._bound_of(made))

    def _alone(self, counts: Counts, again: Counts, stage: int) -> StagePlan:
        """The plan of a stage that shares its devices with no other."""
        plans, loose = self._loosely(counts, again, stage)
        held = self.solver.holding(loose, self.table.in_flight[stage])
        return self.solver.plan(plans.staged, held)

    def _recomputed(self, counts: Counts, table: StageTable) -> Counts:
        """Of each stage, how many units are recomputed: as few as let its fastest specs fit."""
        limit = self.solver.memory_limit
        if self.remat == "all":
            return counts
        if self.remat == "none" or limit is None:
            return (0,) * len(counts)
        found = [self.again.get(key, 0) for key in table.keys(counts)]
        opened: dict[int, Recomputed] = {}
        for s, (key, (start, stop)) in enumerate(
            zip(table.keys(counts), spans(counts), strict=True)
        ):
            if key not in self.again:
                peaks = self.estimates.peaks_bytes(start, stop, table.in_flight[s])
                opened[s] = Recomputed(peaks, limit)
        for _ in range(MOST_PEAKS):
            looked = [s for s, r in opened.items() if not r.done]
            found = [opened[s].guess() if s in opened else k for s, k in enumerate(found)]
            for s in looked:
                opened[s].see(found[s], self._peak_bytes(counts, tuple(found), s))
        return tuple(opened[s].best() if s in opened else k for s, k in enumerate(found))

    def _peak_bytes(self, counts: Counts, again: Counts, stage: int) -> int:
        """Of a stage's fastest specs."""
        flying = self.table.in_flight[stage]
        peak = self.solver.peak_bytes(self._loosely(counts, again, stage)[1], flying)
        self.estimates.see(*spans(counts)[stage], flying, again[stage], peak)
        return peak

    def _loosely(self, counts: Counts, again: Counts, stage: int) -> tuple[StagePlans, Loose]:
        """A stage without a limit; those that differ in microbatches in flight share it."""
        key = self.table.content(*spans(counts)[stage]), again[stage]
        if key not in self._loose:
            plans = self.planned(counts, again)
            self._loose[key] = plans, plans.loose(stage)
        return self._loose[key]

    def planned(self, counts: Counts, recomputed: Counts) -> StagePlans:
        """The stages, to be planned."""
        if (counts, recomputed) not in self._plans:
            s = self.schedule
            cut = self.cuts.into(counts, recomputed, split_backward=s.split_backward)
            alone = len(counts) != s.num_stages
            self._plans[counts, recomputed] = StagePlans(
                cut, range(len(counts)) if alone else s.placement,
                [1] * len(counts) if alone else self.flying, self.solver,
            )  # fmt: skip
        return self._plans[counts, recomputed]

    def _bound_of(self, made: StagePlan) -> Bound:
        plan = made.plan
        return bound_of(made.part_ns, self.schedule.parts, plan.bound_ns, plan.objective_ns)

    def _at_least(self, stages: Sequence[Bound]) -> float:
        """No step of stages that take so long is shorter."""
        s = self.schedule
        if any(b.total_ns == inf for b in stages):
            return inf
        tasks = {(k, part): int(ns) for k, b in enumerate(stages)
                 for part, ns in zip(s.parts, b.parts_ns, strict=True)}  # fmt: skip
        once = [0.0] * s.num_groups
        for k, b in enumerate(stages):
            once[s.placement[k]] += max(0, b.total_ns - s.microbatches * b.each_ns)
        return self.simulation.makespan_ns(Times(tasks)) + max(once)

    def _step_ns(self, keys: Sequence[Hashable]) -> float:
        """The predicted time of a step; infinite if a stage does not fit."""
        if any(key not in self.parts for key in keys):
            return inf
        return step_ns(self.simulation, [self.parts[key] for key in keys])


def step_ns(simulation: Simulation, stages: Sequence[Parts]) -> int:
    """The predicted time of a step, transfers apart.

    Args:
      stages: times of each stage's parts.
    """
    s = simulation.schedule
    tasks = {(k, part): found.get(part, 0) for k, found in enumerate(stages) for part in s.parts}
    once = [0] * s.num_groups
    for k, found in enumerate(stages):
        once[s.placement[k]] += sum(ns for part, ns in found.items() if part not in s.parts)
    return simulation.makespan_ns(Times(tasks)) + max(once)
