"""Measures targets into a cost database, within a budget of seconds; goes on where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

import numpy as np
from jax.sharding import AxisType, Mesh

from xshard.cost.collectives import KINDS
from xshard.cost.database import CostDatabase, Row
from xshard.cost.store import device_key
from xshard.cost.versions import jax_version
from xshard.profile.collectives import Collectives, fitting_work
from xshard.profile.programs import program_of, turns_are_data
from xshard.profile.targets import Target
from xshard.profile.timing import Clock, Patience, Timing, processor_s, turn_time
from xshard.spec import MeshShape

_TURNS = 20
"""About how often a target runs until it is timed, at least."""
_MOST_ERROR = 0.5
TOO_NOISY = "other work on the machine leaves nothing to go by"
_GROWTH = 8
"""Of the number of turns, where each is a program of its own."""


@dataclass(slots=True)
class Progress:
    """How far a profile is.

    Attributes:
      total: targets.
      known: of these, those that were in the database before.
      measured: those that are new.
      failed: what the devices did not run, or only in noise, with the reason.
      seconds: spent.
      now: what is being measured.
    """

    total: int
    known: int = 0
    measured: int = 0
    failed: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0
    now: str = ""

    @property
    def left(self) -> int:
        """Targets that the budget did not reach."""
        return self.total - self.known - self.measured - len(self.failed)


class Bench:
    """The devices that are measured, as one host's mesh."""

    def __init__(self, devices: Sequence[object]) -> None:
        self.devices = np.array(devices)
        self.flat = self.mesh(MeshShape(("d",), (len(devices),)))
        first = self.devices.flat[0]
        self.device = device_key(first.device_kind, len(devices))
        self._data = turns_are_data(self.flat)
        self._clock: Clock = processor_s if self._data else time.perf_counter

    def mesh(self, shape: MeshShape) -> Mesh:
        """The devices in that shape."""
        return Mesh(
            self.devices.reshape(shape.sizes), shape.names, (AxisType.Auto,) * len(shape.names)
        )

    def measure(self, target: Target) -> Timing:
        """The time of one run of a target."""
        if target.signature.kind in KINDS:
            return self._collective(target)
        run, count = program_of(target.signature, self.flat)
        timing = turn_time(run, self._clock, Patience(), growth=self._growth)
        return Timing(timing.median_ns / count, timing.spread, timing.samples)

    def _collective(self, target: Target) -> Timing:
        assert target.mesh is not None
        s, mesh = target.signature, self.mesh(target.mesh)
        both, alone = self._collectives.programs(s.kind, s.sizes[0], mesh, target.axes)
        patience = Patience(seconds=0.2, noisy_s=1.5, run_s=2e-2)
        return turn_time(both, time.perf_counter, patience, alone, growth=self._growth)

    @property
    def _growth(self) -> int:
        return 2 if self._data else _GROWTH

    @cached_property
    def _collectives(self) -> Collectives:
        def seconds_of(run: Callable[[int], object]) -> float:
            timing = turn_time(run, self._clock, Patience(least=3, most=3), growth=self._growth)
            return timing.median_ns * 1e-9

        return Collectives(self.flat, fitting_work(seconds_of, self.flat))


def profile(
    targets: Sequence[Target], bench: Bench, db: CostDatabase, *, budget_s: float,
    on_progress: Callable[[Progress], None] = lambda _: None, again: bool = False,
) -> Progress:  # fmt: skip
    """Measures what the database does not hold yet, and writes each at once.

    Args:
      budget_s: no target is begun after so many seconds, or if it would take longer.
      again: also what it holds.
    """
    progress, began = Progress(len(targets)), time.perf_counter()
    for target in _unknown(targets, bench.device, db, progress, again):
        progress.seconds = time.perf_counter() - began
        progress.now = str(target.signature)
        on_progress(progress)
        if progress.seconds + _TURNS * target.expected_ns * 1e-9 > budget_s:
            continue
        try:
            timing = bench.measure(target)
        except Exception as error:  # out of memory, or not supported there: the others go on
            reason = str(error).strip().splitlines() or [""]
            failure = str(target.signature), f"{type(error).__name__}: {reason[0]}"
            progress.failed = (*progress.failed, failure)
            continue
        if timing.error > _MOST_ERROR:
            noise = f"{TOO_NOISY} (±{timing.error:.0%}): measure again when the machine is quiet"
            progress.failed = (*progress.failed, (str(target.signature), noise))
            continue
        db.add([_row(target, timing, bench.device)])
        progress.measured += 1
    progress.seconds, progress.now = time.perf_counter() - began, ""
    on_progress(progress)
    return progress


def _unknown(
    targets: Sequence[Target], device: str, db: CostDatabase, progress: Progress, again: bool
) -> Iterator[Target]:
    """Those without a row, asked for one at a time: another process may be measuring them too."""
    for target in targets:
        if not again and db.has(device, jax_version(), target.signature):
            progress.known += 1
        else:
            yield target


def _row(target: Target, timing: Timing, device: str) -> Row:
    now = datetime.now(UTC).isoformat(timespec="seconds").removesuffix("+00:00")
    return Row(
        device, jax_version(), target.signature, timing.median_ns, timing.spread, timing.samples,
        now,
    )  # fmt: skip
