"""What a table must be before it may run: complete, free of deadlock, and how much it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from xshard.errors import ScheduleError
from xshard.schedules.schedule import BWD, FWD, WEIGHT, Schedule, Task


@dataclass(frozen=True, slots=True)
class InFlight:
    """How many microbatches a group holds something of, at most; one counts for each stage of it.

    Attributes:
      residuals: between their forward pass and the end of their backward pass.
      weight_parts: of those, the most that wait only for the gradients of parameters; they hold
        less, what the weight part reads.
    """

    residuals: int
    weight_parts: int


def check(schedule: Schedule) -> Schedule:
    """The schedule, if each task is in it once, on its group, and it comes to its end.

    Raises:
      ScheduleError: a task is missing, repeated or elsewhere, or groups wait for each other.
    """
    wanted = {
        Task(s, part, m)
        for s in range(schedule.num_stages)
        for part in schedule.parts
        for m in range(schedule.microbatches)
    }
    counts = Counter(task for row in schedule.rows for task in row)
    for task in sorted(wanted | counts.keys()):
        if counts[task] != 1 or task not in wanted:
            raise ScheduleError(
                f"{schedule.name}: {task} is {counts[task]} times in the table, not "
                f"{int(task in wanted)} times"
            )
    for group, row in enumerate(schedule.rows):
        for task in row:
            if schedule.placement[task.stage] != group:
                raise ScheduleError(
                    f"{schedule.name}: {task} stands in the row of group {group}, but the stage is "
                    f"on group {schedule.placement[task.stage]}"
                )
    order(schedule)
    return schedule


def order(schedule: Schedule) -> tuple[Task, ...]:
    """All tasks in one order that keeps each group's own and every dependence.

    Groups take turns, so that the order is near to that in which tasks run side by side.

    Raises:
      ScheduleError: there is none, since groups wait for each other.
    """
    left = [iter(row) for row in schedule.rows]
    head = [next(row, None) for row in left]
    done: list[Task] = []
    finished: set[Task] = set()
    while any(head):
        ready = [
            (g, task)
            for g, task in enumerate(head)
            if task is not None and finished.issuperset(schedule.waits_for(task))
        ]
        if not ready:
            raise ScheduleError(
                f"{schedule.name}: " + "; ".join(_waiting(schedule, head, finished))
            )
        for g, task in ready:
            done.append(task)
            finished.add(task)
            head[g] = next(left[g], None)
    return tuple(done)


def _waiting(schedule: Schedule, head: list[Task | None], finished: set[Task]) -> Iterator[str]:
    for g, task in enumerate(head):
        if task is not None:
            missing = next(t for t in schedule.waits_for(task) if t not in finished)
            yield f"group {g} has {task} next, which waits for {missing}"


def in_flight(schedule: Schedule) -> tuple[InFlight, ...]:
    """By group, what it holds at most."""
    return tuple(_held(row, schedule.split_backward) for row in schedule.rows)


def _held(row: tuple[Task, ...], split: bool) -> InFlight:
    last = WEIGHT if split else BWD
    now = most = waiting = most_waiting = 0
    for task in row:
        now += task.part == FWD
        most = max(most, now)
        waiting += split and task.part == BWD
        most_waiting = max(most_waiting, waiting)
        waiting -= task.part == WEIGHT
        now -= task.part == last
    return InFlight(most, most_waiting)
