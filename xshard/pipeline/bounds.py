r"""What no boundaries of stages can be better than, from what is known of some stages.

Stage s begins when microbatch 0 has come through those before it, and no step ends before each
stage has run all that it runs. With $c_s$ for a microbatch's time on stage s and $T_s$ for all that
the stage runs in a step,

$$\text{step} \ge \max_s \Big(\sum_{t<s} c_t + T_s\Big) = \max(T_0, c_0 + \max(T_1, c_1 + \dots)),$$

which a DP from the last stage to the first minimises over all boundaries. `StageTable.least` takes
boundaries in the order of this bound, and those that come first by their simulated step, which no
step with longer tasks ends before. Stages of equal units have one entry. One that was not planned
is bounded by its units' sums, each of which was planned alone, without a memory limit: specs that
the units of a stage must agree on, and memory, only add to that. What units share (masks) they have
one by one in this sum, so it is scaled by the least ratio to it of what was planned. What to plan
next goes by what stages are expected to take instead (`xshard.pipeline.estimate`), scaled by the
mean ratio to that.

Before all units are planned, those that are give a bound without boundaries. With $C$ for the sum
of their $c$, $m$ microbatches and $p$ stages, $T_s \ge m c_s$, so that the least
$\max_s(\sum_{t<s} c_t + m c_s)$, where all of these are equal, is $C / (1 - (1 - 1/m)^p)$.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf

Counts = tuple[int, ...]
"""Units on each stage."""
Expect = Callable[[Hashable, int, int, int], "Bound"]
"""What a stage is going to take: of its content, first unit, the one behind its last, and the
microbatches in flight."""
MOST_REFINED = 50
"""Boundaries whose step is simulated to find the next."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What a stage takes at least.

    Attributes:
      total_ns: in a step.
      parts_ns: of each part, for a microbatch.
    """

    total_ns: float
    parts_ns: tuple[float, ...]

    @property
    def each_ns(self) -> float:
        """For each microbatch."""
        return sum(self.parts_ns)

    def __add__(self, other: Bound) -> Bound:
        parts = zip(self.parts_ns, other.parts_ns, strict=True)
        return Bound(self.total_ns + other.total_ns, tuple(a + b for a, b in parts))

    def scaled(self, by: float) -> Bound:
        """The same, so many times as long."""
        return Bound(self.total_ns * by, tuple(ns * by for ns in self.parts_ns))


@dataclass(slots=True)
class StageTable:
    """Bounds of stages by what is on them.

    Attributes:
      contents: of each unit, something equal for equal units.
      in_flight: by stage, the microbatches that it holds.
      alone: of each unit as a stage of its own.
      expect: what units start:stop are going to take with so many microbatches in flight; None: as
        much as their sum.
      known: by `key`, of stages that were planned.
      ratios: of these to their units' sums.
      errors: of these to what they were expected to take, by microbatches in flight.
    """

    contents: Sequence[Hashable]
    in_flight: Sequence[int]
    alone: Sequence[Bound]
    expect: Expect | None = None
    known: dict[Hashable, Bound] = field(default_factory=dict)
    ratios: list[float] = field(default_factory=list)
    errors: dict[int, list[float]] = field(default_factory=dict)
    _ids: dict[Hashable, int] = field(default_factory=dict)
    _of: list[list[int]] = field(default_factory=list)
    _sums: dict[tuple[int, int], Bound] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for i in range(len(self.contents)):
            row = [self._id("first" if i == 0 else "inner")]
            for j in range(i, len(self.contents)):
                row.append(self._id((row[-1], self.contents[j])))
                before = self._sums.get((i, j))
                self._sums[i, j + 1] = self.alone[j] if before is None else before + self.alone[j]
            self._of.append(row)

    def _id(self, key: Hashable) -> int:
        return self._ids.setdefault(key, len(self._ids))

    def key(self, stage: int, start: int, stop: int) -> Hashable:
        """Equal for stages that have equal plans."""
        return self.content(start, stop), self.in_flight[stage]

    def content(self, start: int, stop: int) -> Hashable:
        """Equal for stages of equal units."""
        return self._of[start][stop - start], stop == len(self.contents)

    def learn(self, stage: int, start: int, stop: int, bound: Bound) -> None:
        """Enters a stage that was planned."""
        self.known[self.key(stage, start, stop)] = bound
        self.ratios.append(bound.total_ns / max(self._sums[start, stop].total_ns, 1))
        error = bound.total_ns / max(self._expected(stage, start, stop).total_ns, 1)
        self.errors.setdefault(self.in_flight[stage], []).append(error)

    def bound(self, stage: int, start: int, stop: int, *, expected: bool = False) -> Bound:
        """Of units start:stop on a stage; `expected`: rather what it is going to take."""
        found = self.known.get(self.key(stage, start, stop))
        if found is not None:
            return found
        if not expected:
            return self._sums[start, stop].scaled(min((1.0, *self.ratios)))
        errors = [e for some in self.errors.values() for e in some] or [1.0]
        alike = self.errors.get(self.in_flight[stage], errors)
        return self._expected(stage, start, stop).scaled(sum(alike) / len(alike))

    def _expected(self, stage: int, start: int, stop: int) -> Bound:
        if self.expect is None:
            return self._sums[start, stop]
        return self.expect(self.content(start, stop), start, stop, self.in_flight[stage])

    def bounds(self, counts: Counts, *, expected: bool = False) -> list[Bound]:
        """Of the stages that these boundaries give."""
        return [self.bound(s, *ends, expected=expected) for s, ends in enumerate(spans(counts))]

    def keys(self, counts: Counts) -> list[Hashable]:
        """Of the stages that these boundaries give."""
        return [self.key(s, *ends) for s, ends in enumerate(spans(counts))]

    def least(
        self, apart_from: Collection[Counts], step_ns: Callable[[Sequence[Bound]], float],
        *, expected: bool = False,
    ) -> tuple[Counts, float]:  # fmt: skip
        """The boundaries of the least bound, of all but some; () and infinity if there are none.

        Args:
          step_ns: the simulated time of a step with stages that take so long.
          expected: by what stages are going to take, rather than by what they take at least.
        """
        seen: list[tuple[float, Counts]] = []
        for bound, counts in _in_order(self, expected):
            if seen and (seen[0][0] <= bound or len(seen) == MOST_REFINED):
                return seen[0][1], min(seen[0][0], bound)
            if counts not in apart_from:
                refined = max(bound, step_ns(self.bounds(counts, expected=expected)))
                heapq.heappush(seen, (refined, counts))
        return (seen[0][1], seen[0][0]) if seen else ((), inf)


def least_ns(each_ns: float, microbatches: int, stages: int) -> float:
    """A step in so many stages takes at least that, if all run so long for a microbatch."""
    return each_ns / (1 - (1 - 1 / microbatches) ** stages)


def spans(counts: Counts) -> list[tuple[int, int]]:
    """The first unit of each stage, and that behind its last."""
    ends = [sum(counts[: s + 1]) for s in range(len(counts))]
    return [(end - count, end) for end, count in zip(ends, counts, strict=True)]


def _in_order(table: StageTable, expected: bool) -> Iterator[tuple[float, Counts]]:
    """All boundaries, those of the least bound first: A*, whose estimate of the rest is exact."""
    n, stages = len(table.contents), len(table.in_flight)
    stage = _totals(table, expected)
    rest = _rest(stage, n, stages)
    heap: list[tuple[float, int, Counts, float, float]] = [(rest[0][0], 0, (), 0.0, 0.0)]
    while heap and heap[0][0] < inf:
        bound, _, counts, before, most = heapq.heappop(heap)
        s, start = len(counts), sum(counts)
        if s == stages:
            yield bound, counts
            continue
        for stop in range(start + 1, n + 1):
            total, each = stage(s, start, stop)
            longest, after = max(most, before + total), before + each
            least = max(longest, after + rest[s + 1][stop])
            if least < inf:
                entry = least, -s - 1, (*counts, stop - start), after, longest
                heapq.heappush(heap, entry)  # of equal ones, those with more stages first


def _totals(table: StageTable, expected: bool) -> Callable[[int, int, int], tuple[float, float]]:
    found: dict[Hashable, tuple[float, float]] = {}

    def of(stage: int, start: int, stop: int) -> tuple[float, float]:
        key = table.key(stage, start, stop)
        if key not in found:
            bound = table.bound(stage, start, stop, expected=expected)
            found[key] = bound.total_ns, bound.each_ns
        return found[key]

    return of


def _rest(
    stage: Callable[[int, int, int], tuple[float, float]], n: int, stages: int
) -> list[list[float]]:
    """By stage and its first unit, the least time from its beginning to the end of the step."""
    rest = [[inf] * (n + 1) for _ in range(stages + 1)]
    rest[stages][n] = -inf
    for s in reversed(range(stages)):
        for start in range(s, n - (stages - s) + 1):
            for stop in range(start + 1, n - (stages - s - 1) + 1):
                total, each = stage(s, start, stop)
                least = max(total, each + rest[s + 1][stop])
                rest[s][start] = min(rest[s][start], least)
    return rest
