"""Each unit of a step as a stage of its own, one planned after the other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from xshard.pipeline.bounds import Bound
from xshard.pipeline.estimate import UnitBytes, unit_bytes
from xshard.pipeline.solver import Loose, StagePlans, part_ns_of
from xshard.stages.cut import Cuttable

Parts = Mapping[str, int]
"""The time of each part of a stage, for one microbatch or for the step."""


@dataclass(slots=True)
class Units:
    """The units; equal ones are planned once, those with most work first.

    Attributes:
      plans: of stages of one unit each.
      parts: that a stage runs for each microbatch.
      contents: of each unit, something equal for equal units.
      like: of each unit, the one that is planned in its place.
      open: what is not planned yet, the next one last.
    """

    plans: StagePlans
    parts: Sequence[str]
    contents: Sequence[Hashable]
    like: Sequence[int]
    open: list[int]
    _loose: dict[int, Loose] = field(default_factory=dict)
    _bounds: dict[int, Bound] = field(default_factory=dict)

    @staticmethod
    def of(cut: Cuttable, plans: StagePlans, parts: Sequence[str]) -> Units:
        """The units of a step; `plans`: of stages of one each."""
        contents = plans.solver.pinned.told_apart(cut.contents, plans.staged)
        first = {content: k for k, content in reversed(list(enumerate(contents)))}
        last = len(contents) - 1
        like = [k if k in (0, last) else first[c] for k, c in enumerate(contents)]
        work = defaultdict[int, float](float)
        for unit, k in zip(cut.units, like, strict=True):
            work[k] += unit.work
        return Units(plans, parts, contents, like, sorted(work, key=lambda k: (work[k], -k)))

    def go_on(self) -> None:
        """Plans the next unit, without a memory limit."""
        k = self.open.pop()
        loose = self._loose[k] = self.plans.loose(k)
        free = loose.relaxed.free
        parts = part_ns_of(self.plans.staged, loose)
        self._bounds[k] = bound_of(parts, self.parts, free.bound, free.objective)

    @property
    def known_ns(self) -> float:
        """In a step, of all that are planned."""
        return sum(self._bounds[k].total_ns for k in self.like if k in self._bounds)

    @property
    def each_ns(self) -> float:
        """For a microbatch, of all that are planned."""
        return sum(self._bounds[k].each_ns for k in self.like if k in self._bounds)

    @property
    def bounds(self) -> list[Bound]:
        """Of each unit, where none is open."""
        return [self._bounds[k] for k in self.like]

    @property
    def held(self) -> list[UnitBytes]:
        """What each unit holds, where none is open."""
        found = {k: unit_bytes(loose.relaxed, loose.graph) for k, loose in self._loose.items()}
        return [found[k] for k in self.like]


def bound_of(found: Parts, parts: Sequence[str], bound: float, objective: float) -> Bound:
    """What a stage takes at least whose plan takes `objective` ns in these parts."""
    share = min(1.0, bound / max(objective, 1))
    return Bound(bound, tuple(found.get(part, 0) * share for part in parts))
