"""`Schedule`: for each group of devices, the tasks that it runs one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

FWD = "fwd"
BWD = "bwd"
"""The backward pass; where `WEIGHT` is apart from it, the part that makes gradients of inputs."""
WEIGHT = "bwd_weight"
"""The part of the backward pass that makes gradients of parameters, for which no stage waits."""


@dataclass(frozen=True, slots=True, order=True)
class Task:
    """A part of a stage's program for one microbatch; both count from 0."""

    stage: int
    part: str
    microbatch: int

    def __str__(self) -> str:
        return f"{self.part} of microbatch {self.microbatch} on stage {self.stage}"


@dataclass(frozen=True)
class Schedule:
    """A table of tasks.

    Attributes:
      name: how it is called in `SCHEDULES`.
      rows: by group of devices, its tasks in order.
      placement: by stage, the group that it is on. Where a group has several stages (interleaved
        schedules call them chunks), each has a program of its own.
      microbatches: how many there are.
      split_backward: whether gradients of inputs and of parameters are tasks of their own.
    """

    name: str
    rows: tuple[tuple[Task, ...], ...]
    placement: tuple[int, ...]
    microbatches: int
    split_backward: bool = False

    @property
    def num_stages(self) -> int:
        """Stages over all groups."""
        return len(self.placement)

    @property
    def num_groups(self) -> int:
        """Groups of devices."""
        return len(self.rows)

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts that each stage runs for each microbatch, in the order of their dependence."""
        return (FWD, BWD, WEIGHT) if self.split_backward else (FWD, BWD)

    @cached_property
    def chunk(self) -> tuple[int, ...]:
        """By stage, its number among the stages of its group."""
        return tuple(self.placement[:s].count(g) for s, g in enumerate(self.placement))

    def waits_for(self, task: Task) -> tuple[Task, ...]:
        """The tasks whose results a task reads.

        That stages read from their neighbours is enough: a skip connection or an encoder's output
        comes from a stage that is before the neighbour, and so does its gradient on the way back.
        """
        s, part, m = task.stage, task.part, task.microbatch
        if part == FWD:
            return (Task(s - 1, FWD, m),) if s else ()
        if part == WEIGHT:
            return (Task(s, BWD, m),)
        after = (Task(s + 1, BWD, m),) if s + 1 < self.num_stages else ()
        return (Task(s, FWD, m), *after)

    def __str__(self) -> str:
        """A row a group, for instance "F0 F1 B0 B1"; stages of a later chunk carry its number."""
        return "\n".join(
            f"group {g}: " + " ".join(map(self._short, row)) for g, row in enumerate(self.rows)
        )

    def _short(self, task: Task) -> str:
        letter = {FWD: "F", BWD: "B", WEIGHT: "W"}[task.part]
        chunk = self.chunk[task.stage]
        return f"{letter}{task.microbatch}" + (f"'{chunk}" if chunk else "")
