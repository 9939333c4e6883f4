"""`Tape`: everything that a step does, in one order that all processes share.

The order keeps each group's row of the schedule and every dependence, so a process that does only
its own part of it never waits for something that another process does after waiting for it. A value
is sent as soon as it is made, so that the transfer runs beside the next tasks, and dropped by the
action that is the last to read it, so that what lives is what the schedule says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from xshard.schedules import Schedule, Task, order
from xshard.stages.staged import PER_MICROBATCH, Staged, StageProgram

ONCE = -1
"""The microbatch of what is made once a step."""


class Held(NamedTuple):
    """A value on a group of devices."""

    value: int
    microbatch: int
    group: int


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a program.

    Attributes:
      program: its place among the staged programs.
      task: of the schedule; None for what runs once.
      reads, makes: in the order of the program, without the microbatch's number.
      carries: totals and stacks that it adds to.
      drops: what nothing reads after it.
    """

    program: int
    group: int
    task: Task | None
    reads: tuple[Held, ...]
    makes: tuple[Held, ...]
    carries: tuple[Held, ...] = ()
    drops: tuple[Held, ...] = ()

    @property
    def microbatch(self) -> int:
        """Its number, or `ONCE`."""
        return self.task.microbatch if self.task else ONCE


@dataclass(frozen=True, slots=True)
class Send:
    """Values that go from one group to another together."""

    values: tuple[int, ...]
    microbatch: int
    source: int
    target: int
    drops: tuple[Held, ...] = ()
    carries = ()

    @property
    def reads(self) -> tuple[Held, ...]:
        """What is sent."""
        return tuple(Held(v, self.microbatch, self.source) for v in self.values)

    @property
    def makes(self) -> tuple[Held, ...]:
        """What arrives."""
        return tuple(Held(v, self.microbatch, self.target) for v in self.values)


Action = Run | Send


@dataclass(frozen=True, slots=True)
class Tape:
    """The actions of a step.

    Attributes:
      first: what is there before any of them: arguments and captured arrays at home.
      kept: what is there after all of them: the results.
    """

    actions: tuple[Action, ...]
    first: frozenset[Held]
    kept: frozenset[Held]


def tape_of(staged: Staged, schedule: Schedule, results: Mapping[int, Iterable[int]]) -> Tape:
    """The tape of a staged step under a schedule.

    Args:
      results: by value, the groups on which it is wanted in the end.
    """
    return _Writer(staged, schedule).write(results)


@dataclass(slots=True)
class _Writer:
    staged: Staged
    schedule: Schedule
    actions: list[Action] = field(default_factory=list)
    there: set[Held] = field(default_factory=set)

    def write(self, results: Mapping[int, Iterable[int]]) -> Tape:
        home = {v: self.group(stage) for v, stage in self.staged.homes.items()}
        first = frozenset(Held(v, ONCE, g) for v, g in home.items())
        self.there |= first
        readers = self._readers(results)
        self._send(sorted(home), ONCE, home, readers)
        self._once("before", readers)
        self._microbatches(readers)
        self._ends(readers)
        self._once("after", readers)
        kept = frozenset(Held(v, ONCE, g) for v, on in results.items() for g in on)
        return Tape(_dropping(self.actions, kept), first, kept)

    def group(self, stage: int) -> int:
        return self.schedule.placement[stage]

    def _readers(self, results: Mapping[int, Iterable[int]]) -> dict[int, set[int]]:
        """The groups on which each value is read."""
        found: defaultdict[int, set[int]] = defaultdict(set)
        for program in self.staged.programs:
            for v in program.reads:
                found[v].add(self.group(program.stage))
        for v, on in results.items():
            found[v].update(on)
        return found

    def _microbatches(self, readers: Mapping[int, set[int]]) -> None:
        programs: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
        for i, program in enumerate(self.staged.programs):
            if program.part in PER_MICROBATCH:
                programs[program.stage, self._task_part(program)].append(i)
        for task in order(self.schedule):
            for i in programs[task.stage, task.part]:
                self._run(i, task, task.microbatch, readers)

    def _task_part(self, program: StageProgram) -> str:
        """The weight part runs with the rest of the backward if the schedule has no such task."""
        return program.part if program.part in self.schedule.parts else "bwd"

    def _once(self, part: str, readers: Mapping[int, set[int]]) -> None:
        for i, program in enumerate(self.staged.programs):
            if program.part == part:
                self._run(i, None, ONCE, readers)

    def _run(
        self, i: int, task: Task | None, microbatch: int, readers: Mapping[int, set[int]]
    ) -> None:
        program = self.staged.programs[i]
        group = self.group(program.stage)
        reads = [self._found(v, microbatch, group) for v in program.reads]
        makes = [Held(v, microbatch, group) for v in program.makes]
        self.there.update(makes)
        carries = tuple(Held(v, ONCE, group) for v in self.staged.carried(program))
        self.actions.append(Run(i, group, task, tuple(filter(None, reads)), tuple(makes), carries))
        self._send(program.makes, microbatch, dict.fromkeys(program.makes, group), readers)

    def _found(self, value: int, microbatch: int, group: int) -> Held | None:
        """Where a program finds a value: of its microbatch, or of the step; None for the number."""
        if value == self.staged.number:
            return None
        for m in (microbatch, ONCE):
            if Held(value, m, group) in self.there:
                return Held(value, m, group)
        raise AssertionError(f"value {value} is read on group {group} before it is there")

    def _ends(self, readers: Mapping[int, set[int]]) -> None:
        """Totals and stacks are complete."""
        made = self.staged.stage_of
        ends = [t.total for t in self.staged.totals] + [s.stacked for s in self.staged.stacks]
        where = {v: self.group(made[v]) for v in ends}
        self.there.update(Held(v, ONCE, g) for v, g in where.items())
        self._send(ends, ONCE, where, readers)

    def _send(
        self, values: Sequence[int], microbatch: int, where: Mapping[int, int],
        readers: Mapping[int, set[int]],
    ) -> None:  # fmt: skip
        """Values to all other groups that read them, those of one way together."""
        ways: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for v in values:
            for g in sorted(readers.get(v, ())):
                if g != where[v]:
                    ways[where[v], g].append(v)
        for (source, target), some in ways.items():
            send = Send(tuple(some), microbatch, source, target)
            self.there.update(send.makes)
            self.actions.append(send)


def _dropping(actions: Sequence[Action], kept: frozenset[Held]) -> tuple[Action, ...]:
    """The actions, each with what it is the last to touch."""
    seen = set(kept)
    found: list[Action] = []
    for action in reversed(actions):
        touched = (*action.reads, *action.carries, *action.makes)
        last = dict.fromkeys(h for h in touched if h not in seen)
        seen.update(last)
        found.append(replace(action, drops=tuple(last)))
    return tuple(reversed(found))
