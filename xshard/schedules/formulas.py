"""What is known in closed form of schedules whose stages take equally long and send for nothing.

p: groups of devices; m: microbatches; v: stages on each group; f, b, w: nanoseconds of a stage's
forward pass, backward pass and weight part for one microbatch. Without the split, w is within b.
Each is held against the simulator by the tests.
"""

from __future__ import annotations

from collections.abc import Callable

from xshard.errors import ScheduleError


def idle_ns(name: str, p: int, m: int, v: int = 1, *, f: int, b: int, w: int = 0) -> int:
    """How long each group waits in a step: its makespan less its own tasks, v m (f + b + w).

    gpipe, 1f1b: (p−1)(f+b), as the first microbatch passes through p−1 other groups on its way to
      the last one and the last microbatch on its way back. Narayanan et al. 2021,
      https://arxiv.org/abs/2104.04473, section 2.2.1.
    interleaved: the same for stages that are v times shorter. There, section 2.2.2.
    zero_bubble: (p−1)(f+b−w), as weight parts fill the way back. Qi et al. 2024,
      https://arxiv.org/abs/2401.10241, table 2. For f = b = w and m ≥ p.

    Raises:
      ScheduleError: none is known for these numbers.
    """
    if name in ("gpipe", "1f1b") and v == 1:
        return (p - 1) * (f + b)
    if name == "interleaved" and (m % p == 0 or v == 1):
        return (p - 1) * (f + b)
    if name == "zero_bubble" and m >= p and f == b == w:
        return (p - 1) * (f + b - w)
    raise ScheduleError(f"no formula is known for {name} with p={p}, m={m}, v={v}; simulate it")


def makespan_ns(name: str, p: int, m: int, v: int = 1, *, f: int, b: int, w: int = 0) -> int:
    """The time of a step: a group's own tasks and what it waits."""
    return v * m * (f + b + w) + idle_ns(name, p, m, v, f=f, b=b, w=w)


def bubble(name: str, p: int, m: int, v: int = 1, *, f: int, b: int, w: int = 0) -> float:
    """The share of the step in which a group waits; (p−1)/(m+p−1) for gpipe and 1f1b.

    Huang et al. 2019, https://arxiv.org/abs/1811.06965, section 2.2.
    """
    idle = idle_ns(name, p, m, v, f=f, b=b, w=w)
    return idle / makespan_ns(name, p, m, v, f=f, b=b, w=w)


def most_in_flight(name: str, g: int, p: int, m: int, v: int = 1) -> int:
    """How many microbatches group g holds residuals of, at most, each stage counting for one.

    gpipe: all. 1f1b: min(p−g, m). interleaved: one more than its warm-up of
    2(p−g−1) + (v−1)p, where p divides m, else all. zero_bubble: min(p, m), as group g is g behind
    with weight parts.
    """
    return _MOST[name](g, p, m, v)


def _interleaved(g: int, p: int, m: int, v: int) -> int:
    warm_up = 2 * (p - g - 1) + (v - 1) * p
    return v * m if v > 1 and m % p else min(warm_up + 1, v * m)


_MOST: dict[str, Callable[[int, int, int, int], int]] = {
    "gpipe": lambda g, p, m, v: m,
    "1f1b": lambda g, p, m, v: min(p - g, m),
    "interleaved": _interleaved,
    "zero_bubble": lambda g, p, m, v: min(p, m),
}
