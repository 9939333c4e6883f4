r"""What no boundaries of stages can be better than, from what is known of some stages.

Stage s begins when microbatch 0 has come through those before it, and no step ends before each
stage has run all that it runs. With $c_s$ for a microbatch's time on stage s and $T_s$ for all that
the stage runs in a step,

$$\text{step} \ge \max_s \Big(\sum_{t<s} c_t + T_s\Big) = \max(T_0, c_0 + \max(T_1, c_1 + \dots)),$$

which `StageTable.least` minimises over all boundaries, from the last stage to the first. What was
not planned yet is bounded by its units' sums, each of which was planned alone, without a memory
limit: specs that the units of a stage must agree on, and memory, only add to that. Stages of equal
units have one entry.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from math import inf

Counts = tuple[int, ...]
"""Units on each stage."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Of a stage: at least `total_ns` in a step, of which `each_ns` for each microbatch."""

    total_ns: float
    each_ns: float

    def __add__(self, other: Bound) -> Bound:
        return Bound(self.total_ns + other.total_ns, self.each_ns + other.each_ns)


TOO_LARGE = Bound(inf, inf)


@dataclass(slots=True)
class StageTable:
    """Bounds of stages by what is on them.

    Attributes:
      contents: of each unit, something equal for equal units.
      in_flight: by stage, the microbatches that it holds.
      alone: of each unit as a stage of its own.
      known: by `key`, of stages that were planned.
    """

    contents: Sequence[Hashable]
    in_flight: Sequence[int]
    alone: Sequence[Bound]
    known: dict[Hashable, Bound] = field(default_factory=dict)
    _ids: dict[Hashable, int] = field(default_factory=dict)
    _of: list[list[int]] = field(default_factory=list)
    _sums: list[Bound] = field(default_factory=list)

    def __post_init__(self) -> None:
        n = len(self.contents)
        for i in range(n):
            row = [self._id("first" if i == 0 else "inner")]
            for j in range(i, n):
                row.append(self._id((row[-1], self.contents[j])))
            self._of.append(row)
        self._sums = [Bound(0, 0)]
        for bound in self.alone:
            self._sums.append(self._sums[-1] + bound)

    def _id(self, key: Hashable) -> int:
        return self._ids.setdefault(key, len(self._ids))

    def key(self, stage: int, start: int, stop: int) -> Hashable:
        """Equal for stages that have equal plans."""
        last = stop == len(self.contents)
        return self._of[start][stop - start], last, self.in_flight[stage]

    def bound(self, stage: int, start: int, stop: int) -> Bound:
        """Of units start:stop on a stage."""
        found = self.known.get(self.key(stage, start, stop))
        if found is not None:
            return found
        a, b = self._sums[start], self._sums[stop]
        return Bound(b.total_ns - a.total_ns, b.each_ns - a.each_ns)

    def keys(self, counts: Counts) -> list[Hashable]:
        """Of the stages that these boundaries give."""
        return [self.key(s, sum(counts[:s]), sum(counts[: s + 1])) for s in range(len(counts))]

    def least(self, apart_from: Collection[Counts]) -> tuple[Counts, float]:
        """The boundaries of the least bound, of all but some; () and infinity if there are none."""
        n, stages = len(self.contents), len(self.in_flight)
        rest = self._rest()
        heap: list[tuple[float, Counts, float, float]] = [(rest[0][0], (), 0.0, 0.0)]
        while heap:
            bound, counts, before, most = heapq.heappop(heap)
            if bound == inf:
                break
            s, start = len(counts), sum(counts)
            if s == stages:
                if counts not in apart_from:
                    return counts, bound
                continue
            for stop in range(start + 1, n + 1):
                b = self.bound(s, start, stop)
                longest = max(most, before + b.total_ns)
                after = before + b.each_ns
                least = max(longest, after + rest[s + 1][stop])
                if least < inf:
                    heapq.heappush(heap, (least, (*counts, stop - start), after, longest))
        return (), inf

    def _rest(self) -> list[list[float]]:
        """By stage and its first unit, the least time from its beginning to the end of the step."""
        n, stages = len(self.contents), len(self.in_flight)
        rest = [[inf] * (n + 1) for _ in range(stages + 1)]
        rest[stages][n] = -inf
        for s in reversed(range(stages)):
            for start in range(s, n - (stages - s) + 1):
                for stop in range(start + 1, n - (stages - s - 1) + 1):
                    b = self.bound(s, start, stop)
                    least = max(b.total_ns, b.each_ns + rest[s + 1][stop])
                    rest[s][start] = min(rest[s][start], least)
        return rest
