"""The schedules that are known, by name.

`formulas.py` has what is known of each in closed form; p is the number of groups of devices, m that
of microbatches, v that of stages on each group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from xshard.errors import ScheduleError
from xshard.schedules.schedule import BWD, FWD, WEIGHT, Schedule, Task


def build(name: str, groups: int, microbatches: int, chunks: int = 1) -> Schedule:
    """The schedule of this name.

    Args:
      groups: of devices, each with `chunks` stages: stage s is on group s % groups.
      chunks: more than one for "interleaved" only.

    Raises:
      ScheduleError: there is no such schedule, or not with these numbers.
    """
    if name not in SCHEDULES:
        raise ScheduleError(f"schedule {name!r} is unknown; use one of {', '.join(SCHEDULES)}")
    for what, number in (("groups", groups), ("microbatches", microbatches), ("chunks", chunks)):
        if number < 1:
            raise ScheduleError(f"a schedule needs at least one of {what}, not {number}")
    if chunks > 1 and name != "interleaved":
        raise ScheduleError(
            f"schedule {name!r} has one stage on each group of devices, not {chunks}; "
            "use 'interleaved'"
        )
    return SCHEDULES[name](groups, microbatches, chunks)


def gpipe(groups: int, microbatches: int, _chunks: int = 1) -> Schedule:
    """All forward passes, then all backward passes.

    Huang et al., GPipe, 2019, https://arxiv.org/abs/1811.06965.
    """
    rows = [[*_all(g, FWD, microbatches), *_all(g, BWD, microbatches)] for g in range(groups)]
    return _schedule("gpipe", rows, microbatches)


def one_f_one_b(groups: int, microbatches: int, _chunks: int = 1) -> Schedule:
    """A backward pass as soon as there is one, so that few microbatches are in flight.

    Narayanan et al., PipeDream-2BW ("PipeDream-Flush"), 2021, https://arxiv.org/abs/2006.09503.
    """
    rows = [
        list(_alternating(_all(g, FWD, microbatches), _all(g, BWD, microbatches), groups - 1 - g))
        for g in range(groups)
    ]
    return _schedule("1f1b", rows, microbatches)


def interleaved(groups: int, microbatches: int, chunks: int = 2) -> Schedule:
    """1F1B over several stages on each group, whose warm-up is shorter as stages are.

    Microbatches go p at a time through all stages of a group. Where p does not divide m, the last
    round is shorter; as 1F1B would wait for itself there, all forward passes come first.
    Narayanan et al., Megatron-LM, 2021, https://arxiv.org/abs/2104.04473, section 2.2.
    """
    rows: list[list[Task]] = []
    for g in range(groups):
        stages = range(g, groups * chunks, groups)
        ahead = 2 * (groups - 1 - g) + (chunks - 1) * groups
        if microbatches % groups and chunks > 1:
            ahead = microbatches * chunks
        forward = _in_rounds(stages, FWD, microbatches, groups)
        backward = _in_rounds(stages[::-1], BWD, microbatches, groups)
        rows.append(list(_alternating(forward, backward, ahead)))
    return _schedule("interleaved", rows, microbatches, chunks)


def zero_bubble(groups: int, microbatches: int, _chunks: int = 1) -> Schedule:
    """1F1B whose gradients of parameters are made later, where the group would wait: ZB-H1.

    Group g is g microbatches behind with them, so that each holds as many as 1F1B's first group.
    Qi et al., Zero Bubble Pipeline Parallelism, 2024, https://arxiv.org/abs/2401.10241.
    """
    rows: list[list[Task]] = []
    for g in range(groups):
        forward, backward = _all(g, FWD, microbatches), _all(g, BWD, microbatches)
        rows.append([])
        for task in _alternating(forward, backward, groups - 1 - g):
            rows[-1].append(task)
            if task.part == BWD and task.microbatch >= g:
                rows[-1].append(Task(g, WEIGHT, task.microbatch - g))
        rows[-1] += _all(g, WEIGHT, microbatches)[max(microbatches - g, 0) :]
    return _schedule("zero_bubble", rows, microbatches, split_backward=True)


SCHEDULES: dict[str, Callable[[int, int, int], Schedule]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": interleaved,
    "zero_bubble": zero_bubble,
}


def _schedule(
    name: str, rows: Sequence[Sequence[Task]], microbatches: int, chunks: int = 1,
    *, split_backward: bool = False,
) -> Schedule:  # fmt: skip
    placement = tuple(range(len(rows))) * chunks
    return Schedule(name, tuple(map(tuple, rows)), placement, microbatches, split_backward)


def _all(stage: int, part: str, microbatches: int) -> list[Task]:
    return [Task(stage, part, m) for m in range(microbatches)]


def _in_rounds(stages: Sequence[int], part: str, microbatches: int, size: int) -> list[Task]:
    """So many microbatches at a time through all the stages of a group."""
    starts = range(0, microbatches, size)
    rounds = [range(a, min(a + size, microbatches)) for a in starts]
    return [Task(s, part, m) for some in rounds for s in stages for m in some]


def _alternating(forward: Sequence[Task], backward: Sequence[Task], ahead: int) -> Iterator[Task]:
    """So many forward tasks, then one of each in turn."""
    yield from forward[:ahead]
    rest = forward[ahead:]
    for i, task in enumerate(backward):
        yield from rest[i : i + 1]
        yield task
