"""Where the layers are cut into stages: the boundaries that make a schedule shortest.

The first boundaries give each stage equal work. The stages are planned, and what their plans take
per unit of work moves the boundaries, until they stay; the best that was planned is kept. Others
are not proven to be worse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from xshard.pipeline.solver import StagePlans, StageSolver
from xshard.schedules import Schedule, Times, in_flight, simulate
from xshard.stages.cut import Cuttable
from xshard.stages.staged import Staged
from xshard.stages.units import balanced

MOST_ROUNDS = 3
"""How often boundaries are moved."""


@dataclass(slots=True)
class BoundarySearch:
    """The search for one schedule.

    Attributes:
      ties: result -> the argument whose next value it is, by position.
      donated: positions of arguments whose memory may be reused.
      paths: of the arguments.
      tried: units on each stage -> predicted time.
    """

    cut: Cuttable
    schedule: Schedule
    solver: StageSolver
    ties: Mapping[int, int]
    donated: frozenset[int]
    paths: Sequence[str]
    tried: dict[tuple[int, ...], int] = field(default_factory=dict)

    def run(self) -> tuple[tuple[int, ...], StagePlans]:
        """The best boundaries that were looked at, as units on each stage, and their plans.

        Raises:
          InfeasibleError: a stage of the first ones does not fit the memory limit.
        """
        counts = self.cut.balanced(self.schedule.num_stages)
        plans: dict[tuple[int, ...], StagePlans] = {}
        while counts not in plans and len(plans) < MOST_ROUNDS:
            plans[counts] = self._planned(counts)
            self.tried[counts] = step_ns(self.schedule, plans[counts])
            counts = self._moved(counts, plans[counts])
        best = min(self.tried, key=lambda c: self.tried[c])
        return best, plans[best]

    def _planned(self, counts: tuple[int, ...]) -> StagePlans:
        s = self.schedule
        staged = self.cut.into(counts, split_backward=s.split_backward)
        held, chunks = in_flight(s), s.num_stages // s.num_groups
        flying = [-(-held[g].residuals // chunks) for g in s.placement]
        names = {p.value: path for pieces, path in zip(staged.inputs, self.paths, strict=True)
                 for p in pieces}  # fmt: skip
        lent = frozenset(p.value for i in self.donated for p in staged.inputs[i])
        return StagePlans(
            staged, s.placement, flying, self.solver, tied_values(staged, self.ties), names, lent
        ).make()

    def _moved(self, counts: tuple[int, ...], plans: StagePlans) -> tuple[int, ...]:
        """Boundaries that balance the stages by the time that their plans take."""
        units, tasks = list(self.cut.units), plans.task_ns()
        first = 0
        for stage, count in enumerate(counts):
            taken = sum(tasks.get((stage, part), 0) for part in self.schedule.parts)
            work = sum(u.work for u in units[first : first + count])
            for i in range(first, first + count):
                units[i] = replace(units[i], work=units[i].work * taken / work)
            first += count
        return balanced([u.work for u in units], len(counts))


def tied_values(staged: Staged, ties: Mapping[int, int]) -> dict[int, int]:
    """Result value -> argument value, for results and arguments that are taken apart alike."""
    found: dict[int, int] = {}
    for result, argument in ties.items():
        new, old = staged.results[result], staged.inputs[argument]
        if [(p.start, p.stop) for p in new] == [(p.start, p.stop) for p in old]:
            found.update((a.value, b.value) for a, b in zip(new, old, strict=True))
    return found


def step_ns(schedule: Schedule, plans: StagePlans) -> int:
    """The predicted time of a step, transfers apart."""
    tasks = plans.task_ns()
    parts = {
        (s, p): tasks.get((s, p), 0) for s in range(schedule.num_stages) for p in schedule.parts
    }
    once = [0] * schedule.num_groups
    for (stage, part), ns in tasks.items():
        once[schedule.placement[stage]] += ns * (part not in schedule.parts)
    return simulate(schedule, Times(parts)).makespan_ns + max(once)
