"""When each task of a table runs, if tasks and transfers take so long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from xshard.schedules.check import order
from xshard.schedules.schedule import Schedule, Task


@dataclass(frozen=True, slots=True)
class Times:
    """What tasks and transfers take, in nanoseconds.

    Attributes:
      task_ns: (stage, part) -> time of the part for one microbatch.
      transfer_ns: (stage, stage) -> time from the end of a task on the first to when a task of the
        second, on another group, may start. Transfers run beside the groups' tasks. 0 if left out.
    """

    task_ns: Mapping[tuple[int, str], int]
    transfer_ns: Mapping[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])

    @staticmethod
    def even(schedule: Schedule, transfer_ns: int = 0, **part_ns: int) -> Times:
        """The same times on all stages: `Times.even(schedule, fwd=10, bwd=20)`."""
        stages = range(schedule.num_stages)
        pairs = [(s, t) for s in stages for t in (s - 1, s + 1) if t in stages]
        return Times(
            {(s, part): part_ns[part] for s in stages for part in schedule.parts},
            dict.fromkeys(pairs, transfer_ns),
        )


@dataclass(frozen=True, slots=True)
class Timeline:
    """Start and end of each task, in nanoseconds from the start of the step."""

    schedule: Schedule
    span_ns: Mapping[Task, tuple[int, int]]

    @property
    def makespan_ns(self) -> int:
        """When the last task ends."""
        return max(end for _, end in self.span_ns.values())

    @property
    def busy_ns(self) -> tuple[int, ...]:
        """By group, how long it runs tasks."""
        spans = self.span_ns
        return tuple(sum(spans[t][1] - spans[t][0] for t in row) for row in self.schedule.rows)

    @property
    def bubble(self) -> float:
        """The share of all groups' time in which they run nothing."""
        total = self.makespan_ns * len(self.schedule.rows)
        return 1 - sum(self.busy_ns) / total if total else 0.0


_order = lru_cache(maxsize=8)(order)
"""Schedules are simulated many times, with other times."""


def simulate(schedule: Schedule, times: Times) -> Timeline:
    """Runs each group's tasks in their order, each as soon as what it reads is there.

    Raises:
      ScheduleError: groups wait for each other.
    """
    free = [0] * schedule.num_groups
    span: dict[Task, tuple[int, int]] = {}
    for task in _order(schedule):
        group = schedule.placement[task.stage]
        start = free[group]
        for needed in schedule.waits_for(task):
            away = schedule.placement[needed.stage] != group
            extra = times.transfer_ns.get((needed.stage, task.stage), 0) if away else 0
            start = max(start, span[needed][1] + extra)
        free[group] = start + times.task_ns[task.stage, task.part]
        span[task] = start, free[group]
    return Timeline(schedule, span)
