"""When each task of a table runs, if tasks and transfers take so long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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


@dataclass(frozen=True, slots=True)
class Simulation:
    """A table's tasks in an order in which they can run, to be run with several times.

    Attributes:
      kinds: stages and their parts, by number.
      pairs: neighbouring stages on different groups, by number.
      steps: of each task its kind, its group, and of each task that it waits for the place in this
        order and the number of the pair, -1 on one group.
    """

    schedule: Schedule
    tasks: tuple[Task, ...]
    kinds: tuple[tuple[int, str], ...]
    pairs: tuple[tuple[int, int], ...]
    steps: tuple[tuple[int, int, tuple[tuple[int, int], ...]], ...]

    @staticmethod
    def of(schedule: Schedule) -> Simulation:
        """The simulation of a table.

        Raises:
          ScheduleError: groups wait for each other.
        """
        tasks, placement = tuple(order(schedule)), schedule.placement
        place = {task: i for i, task in enumerate(tasks)}
        kinds, pairs = dict[tuple[int, str], int](), dict[tuple[int, int], int]()

        def wait(needed: Task, task: Task) -> tuple[int, int]:
            away = placement[needed.stage] != placement[task.stage]
            pair = needed.stage, task.stage
            return place[needed], pairs.setdefault(pair, len(pairs)) if away else -1

        steps = [
            (kinds.setdefault((task.stage, task.part), len(kinds)), placement[task.stage],
             tuple(wait(needed, task) for needed in schedule.waits_for(task)))
            for task in tasks
        ]  # fmt: skip
        return Simulation(schedule, tasks, tuple(kinds), tuple(pairs), tuple(steps))

    def spans(self, times: Times) -> tuple[list[int], list[int]]:
        """Start and end of each task; each runs as soon as what it reads is there."""
        take = [times.task_ns[kind] for kind in self.kinds]
        between = [*(times.transfer_ns.get(pair, 0) for pair in self.pairs), 0]
        free = [0] * self.schedule.num_groups
        starts, ends = list[int](), list[int]()
        for kind, group, waits in self.steps:
            start = free[group]
            for place, pair in waits:
                ready = ends[place] + between[pair]
                start = ready if ready > start else start
            starts.append(start)
            free[group] = end = start + take[kind]
            ends.append(end)
        return starts, ends

    def makespan_ns(self, times: Times) -> int:
        """When the last task ends."""
        return max(self.spans(times)[1])


def simulate(schedule: Schedule, times: Times) -> Timeline:
    """Runs each group's tasks in their order, each as soon as what it reads is there.

    Raises:
      ScheduleError: groups wait for each other.
    """
    simulation = Simulation.of(schedule)
    spans = zip(*simulation.spans(times), strict=True)
    return Timeline(schedule, dict(zip(simulation.tasks, spans, strict=True)))
