"""What a stage is going to take and to hold, from its units.

Each was modelled as a stage of its own. A stage with f microbatches in flight, which recomputes the
first r of its units, holds about

$$\\sum_i w_i + f \\Big(\\sum_{i<r} x_i + \\sum_{i \\ge r} h_i\\Big) + \\max_i o_i,$$

where unit i holds $w_i$ all the time (weights, moments, sums), $h_i$ for each microbatch in flight
($x_i$ of it what came to the unit, which is all that it holds if it is recomputed), and $o_i$ while
it runs: of a recomputed unit also what it makes again. It recomputes as few units as fit, and makes
again what they would hold.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from xshard.describe import op_times_ns
from xshard.pipeline.bounds import Bound
from xshard.planning import Relaxed
from xshard.schedules import BWD
from xshard.stages.graph import StageGraph


@dataclass(frozen=True, slots=True)
class UnitBytes:
    """What a unit's fastest specs hold on a device.

    Attributes:
      always: all the time.
      held: for each microbatch in flight.
      came: of it, what was made elsewhere.
      running: beside that, while the unit runs.
      again_ns: time in which the unit makes what is held again, once.
    """

    always: int
    held: int
    came: int
    running: int
    again_ns: int


def unit_bytes(relaxed: Relaxed, graph: StageGraph) -> UnitBytes:
    """Of a unit that is a stage of its own, with one microbatch in flight."""
    modelled, choices = relaxed.modelled, relaxed.free.choices
    d, line = modelled.draft, modelled.timeline_of(choices)
    buffer = modelled.prepared.storage.buffer
    held = np.isin(line.value, sorted({buffer[v] for v in graph.held})) & (line.owner >= 0)
    came = held & np.isin(line.value, [v.id for v in d.graph.values if v.producer < 0])
    sizes, curve = line.sizes(d, choices), line.curve(d, choices)
    apart = np.zeros(line.num_times + 1, dtype=np.int64)
    np.add.at(apart, line.first[held], sizes[held])
    np.add.at(apart, line.last[held] + 1, -sizes[held])
    always = int((curve - np.cumsum(apart)[:-1]).min())
    running = max(0, int(curve.max(initial=0)) - always - int(sizes[held].sum()))
    again_ns = _again_ns(relaxed, graph.held)
    return UnitBytes(always, int(sizes[held].sum()), int(sizes[came].sum()), running, again_ns)


def _again_ns(relaxed: Relaxed, held: Iterable[int]) -> int:
    """The time of the ops that make these values: without collectives, most of which come after."""
    modelled = relaxed.modelled
    d, classes = modelled.draft, modelled.draft.classes
    ops_ns = op_times_ns(d, relaxed.free.choices, modelled.prepared.prices)
    values, makers = [*held], set[int]()
    while values:
        op = d.graph.values[values.pop()].producer
        if op >= 0 and op not in makers:
            makers.add(op)
            values += [v for v in d.graph.ops[op].inputs if v is not None]
    each = ((int(classes.op_class[o]), d.graph.ops[o].repeat) for o in makers)
    return sum(ops_ns[c] // (len(classes.members[c]) * often) for c, often in each)


@dataclass(frozen=True, slots=True)
class Expected:
    """What a stage is going to be.

    Attributes:
      bound: its times.
      recomputed: units.
    """

    bound: Bound
    recomputed: int


@dataclass(slots=True)
class Estimates:
    """Of all stages that units can be put together to.

    Attributes:
      parts: of a microbatch, as a `Bound` has them.
      limit: bytes of a device.
      remat: "none", "all" or "auto".
      off: by microbatches in flight, bytes by which the last stage that was modelled held more.
    """

    alone: Sequence[Bound]
    held: Sequence[UnitBytes]
    parts: Sequence[str]
    microbatches: int
    limit: int | None
    remat: str
    off: dict[int, int] = field(default_factory=dict[int, int])
    _known: dict[Hashable, Expected] = field(default_factory=dict[Hashable, Expected])

    def of(self, content: Hashable, start: int, stop: int, in_flight: int) -> Expected:
        """Of the units start:stop; `content`: equal for equal ones."""
        key = content, in_flight
        if key not in self._known:
            self._known[key] = self._made(start, stop, in_flight)
        return self._known[key]

    def peaks_bytes(self, start: int, stop: int, in_flight: int) -> list[int]:
        """By the number of recomputed units, what is going to be held."""
        off = 0
        if self.off:
            off = self.off[min(self.off, key=lambda f: abs(f - in_flight))]
        return [peak + off for peak in self._peaks(start, stop, in_flight)]

    def see(self, start: int, stop: int, in_flight: int, recomputed: int, peak: int) -> None:
        """Enters what is held by a stage that was modelled."""
        self.off[in_flight] = peak - self._peaks(start, stop, in_flight)[recomputed]
        self._known.clear()

    def _made(self, start: int, stop: int, in_flight: int) -> Expected:
        count = stop - start
        if self.limit is None:
            again, too_much = count if self.remat == "all" else 0, 1.0
        else:
            peaks = self.peaks_bytes(start, stop, in_flight)
            fits = (r for r, peak in enumerate(peaks) if peak <= self.limit)
            again = {"none": 0, "all": count}.get(self.remat, next(fits, count))
            too_much = max(1.0, peaks[again] / self.limit)
        times = self.alone[start]
        for unit in self.alone[start + 1 : stop]:
            times += unit
        return Expected(self._with(times, start, again).scaled(too_much), again)

    def _with(self, times: Bound, start: int, again: int) -> Bound:
        """The times of a stage whose first units are run again."""
        more = sum(unit.again_ns for unit in self.held[start : start + again])
        each = list(times.parts_ns)
        each[self.parts.index(BWD)] += more
        return Bound(times.total_ns + self.microbatches * more, tuple(each))

    def _peaks(self, start: int, stop: int, in_flight: int) -> list[int]:
        held = self.held[start:stop]
        runs = max(u.running for u in held)
        kept = sum(u.always + in_flight * u.held for u in held)
        saved = accumulate((in_flight * (u.held - u.came) for u in held), initial=0)
        again = accumulate((u.running + u.held - u.came for u in held), max, initial=0)
        return [kept - s + max(runs, a) for s, a in zip(saved, again, strict=True)]
