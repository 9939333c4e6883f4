"""The memory of a solution over the time of a step: what a report draws."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from xshard.plan.records import MemoryCurve, MemoryPart
from xshard.solve.draft import Draft
from xshard.solve.memory import Timeline

Ints = NDArray[np.int64]

MOST_STRETCHES = 160
"""A curve is as wide as a screen shows; a step has thousands of moments."""
SHORTEST_PHASE = 0.02
"""Of a step's time; shorter runs of ops of a phase are not told apart from what follows."""
KINDS = (
    "arguments",
    "results",
    "kept for the backward pass",
    "gradients",
    "temporaries",
    "communication",
)
"""What live memory is for, in the order in which it is drawn."""


def memory_curve(
    d: Draft, timeline: Timeline, choices: tuple[int, ...], class_ns: Sequence[int], step_ns: int
) -> MemoryCurve:
    """What is live when, in at most `MOST_STRETCHES` stretches.

    Args:
      class_ns: the time of each class of ops in one step, with its collectives, of all members.
      step_ns: the time of the step; what `class_ns` leaves of it comes at the end.
    """
    starts = _starts(d, class_ns, timeline)
    end = max(int(starts[-1]), step_ns)
    by_kind = _by_kind(d, timeline, choices)
    firsts, peaks = _stretches(starts, by_kind.sum(axis=0), end)
    parts = (
        MemoryPart(kind, tuple(by_kind[k, peaks].tolist()))
        for k, kind in enumerate(KINDS)
        if by_kind[k].any()
    )
    return MemoryCurve(
        tuple(starts[firsts].tolist()), end, tuple(parts), tuple(_phases(d, starts, firsts, end))
    )


def _starts(d: Draft, class_ns: Sequence[int], timeline: Timeline) -> Ints:
    """When each moment (op) begins; the last moment is after all ops."""
    each = [ns // len(m) for ns, m in zip(class_ns, d.classes.members, strict=True)]
    durations = np.array(each, dtype=np.int64)[d.classes.op_class[timeline.ops]]
    again = np.ones(len(durations), dtype=bool)
    again[np.unique(timeline.ops[::-1], return_index=True)[1]] = False
    durations[again[::-1]] = 0  # a copy for an op is made at a moment of its own
    starts = np.zeros(timeline.num_times, dtype=np.int64)
    starts[1:] = np.cumsum(durations)
    return starts


def _by_kind(d: Draft, timeline: Timeline, choices: tuple[int, ...]) -> Ints:
    """Live bytes, kinds × moments."""
    sizes, kinds = timeline.sizes(d, choices), _kinds(d, timeline)
    change = np.zeros((len(KINDS), timeline.num_times + 1), dtype=np.int64)
    np.add.at(change, (kinds, timeline.first), sizes)
    np.add.at(change, (kinds, timeline.last + 1), -sizes)
    return np.cumsum(change, axis=1)[:, :-1]


def _kinds(d: Draft, timeline: Timeline) -> Ints:
    outputs = {v for v in d.graph.outputs if v is not None}
    rows = zip(timeline.owner.tolist(), timeline.value.tolist(), timeline.last.tolist(),
               strict=True)  # fmt: skip
    kinds = [
        KINDS.index(_kind(d, owner, v, timeline.op_at(last), outputs)) for owner, v, last in rows
    ]
    return np.array(kinds, dtype=np.int64)


def _kind(d: Draft, owner: int, v: int, reader: int, outputs: set[int]) -> str:
    producer = d.graph.values[v].producer
    if owner < 0:
        return "communication"
    if producer < 0:
        return "arguments"
    if v in outputs:
        return "results"
    made, used = d.graph.ops[producer].phase, d.graph.ops[reader].phase
    if (made, used) == ("fwd", "bwd"):
        return "kept for the backward pass"
    return "gradients" if (made, used) == ("bwd", "update") else "temporaries"


def _stretches(starts: Ints, totals: Ints, end: int) -> tuple[Ints, Ints]:
    """The first moment of each stretch of time, and the one at which most is live."""
    places = starts * MOST_STRETCHES // (end + 1)
    _, firsts = np.unique(places, return_index=True)
    stops = np.append(firsts[1:], len(starts))
    peaks = [a + int(np.argmax(totals[a:b])) for a, b in zip(firsts, stops, strict=True)]
    return firsts, np.array(peaks, dtype=np.int64)


def _phases(d: Draft, starts: Ints, firsts: Ints, end: int) -> Iterator[tuple[str, int]]:
    """Where the phase that takes most of a stretch's time changes; a step without ops has none."""
    if not d.graph.ops:
        return
    names = list(dict.fromkeys(op.phase for op in d.graph.ops))
    of_op = np.array([names.index(op.phase) for op in d.graph.ops], dtype=np.int64)
    spent = np.zeros((len(names), len(firsts)), dtype=np.int64)
    ops = np.arange(len(of_op))
    np.add.at(spent, (of_op, np.searchsorted(firsts, ops, "right") - 1), np.diff(starts)[ops])
    runs = [
        (names[phase], int(starts[firsts[next(run)[0]]]))
        for phase, run in groupby(enumerate(spent.argmax(axis=0).tolist()), key=lambda x: x[1])
    ]
    yield from _long_runs(runs, end)


def _long_runs(runs: list[tuple[str, int]], end: int) -> Iterator[tuple[str, int]]:
    """Runs without those too short to see, whose time goes to the next one."""
    last, waiting = "", 0
    for (name, _), stop in zip(runs, [*(start for _, start in runs[1:]), end], strict=True):
        if stop - waiting < end * SHORTEST_PHASE:
            continue
        if name != last:
            last = name
            yield name, waiting
        waiting = stop
