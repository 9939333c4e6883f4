"""How long one turn of a loop takes: warm, dispatch left out, median of enough samples.

A program runs its body a given number of turns; a sample is the difference of a long and a short
run over the difference of their turns, which leaves out what a call costs. With a baseline, a
sample is what the program takes more than the baseline, both run one after the other.

Two clocks. The wall clock is what a user waits for. Work on virtual CPU devices is timed by the
processor time of the process, shared out over the cores: that is the same on a quiet machine, and
leaves out what other programs take away. Waiting for each other takes no processor time, so
collectives are timed by the wall everywhere.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Run = Callable[[int], object]
"""Runs so many turns, and returns when they are done."""
Clock = Callable[[], float]

SHORT = 1
MOST_TURNS = 1 << 12
SURE = 0.1
"""The error of a median that is good enough."""
_LEAST_PART = 1 / 64
"""Less than this part of a program cannot be told from noise: it is the least difference."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Median nanoseconds of a turn, half the quartiles' distance as a part of it, samples."""

    median_ns: float
    spread: float
    samples: int

    @property
    def error(self) -> float:
        """About how far off the median is, as a part of it."""
        return self.spread / max(self.samples, 1) ** 0.5


@dataclass(frozen=True, slots=True)
class Patience:
    """When enough samples are taken: `least`, then until `seconds` are spent, or `most`.

    Attributes:
      noisy_s: until so many are spent while the error is above `SURE`.
      run_s: a sample's long run takes at least this, so that clocks resolve it.
    """

    least: int = 5
    most: int = 25
    seconds: float = 0.1
    noisy_s: float = 0.5
    run_s: float = 2e-3

    def wants_more(self, timing: Timing, spent_s: float) -> bool:
        """Whether another sample is to be taken."""
        if timing.samples < self.least:
            return True
        enough_s = self.seconds if timing.error <= SURE else self.noisy_s
        return timing.samples < self.most and spent_s < enough_s


def processor_s() -> float:
    """Processor time of the process, shared out over the cores."""
    return time.process_time() / (os.cpu_count() or 1)


def turn_time(
    run: Run, clock: Clock, patience: Patience, baseline: Run | None = None, growth: int = 2
) -> Timing:
    """Times one turn of `run`, less one of `baseline`.

    Args:
      growth: by what the number of turns grows until a run is long enough; large where each
        number of turns is another program.
    """
    turns = _turns(run, clock, patience.run_s, max(growth, 2))
    if baseline:
        baseline(turns)
    samples: list[tuple[float, float]] = []
    timing, began = Timing(0.0, 0.0, 0), time.perf_counter()
    while patience.wants_more(timing, time.perf_counter() - began):
        samples.append(_sample(run, turns, clock, baseline))
        timing = _timing(np.array(samples))
    return timing


def _sample(run: Run, turns: int, clock: Clock, baseline: Run | None) -> tuple[float, float]:
    """Seconds of a turn, and of what is to be taken off: what a call costs is in both, or none."""
    if baseline:
        return _seconds(run, turns, clock) / turns, _seconds(baseline, turns, clock) / turns
    short, long = _seconds(run, SHORT, clock), _seconds(run, turns, clock)
    return (long - short) / (turns - SHORT), 0.0


def _turns(run: Run, clock: Clock, run_s: float, growth: int) -> int:
    """How many turns take long enough, and several times as long as the call itself."""
    run(SHORT)
    turns, short = SHORT, _least(run, SHORT, clock)
    while turns < MOST_TURNS:
        turns *= growth
        if _least(run, turns, clock) >= max(run_s, 3 * short):
            break
    return turns


def _least(run: Run, turns: int, clock: Clock) -> float:
    """Seconds of a run on which nothing else fell."""
    return min(_seconds(run, turns, clock) for _ in range(2))


def _seconds(run: Run, turns: int, clock: Clock) -> float:
    begin = clock()
    run(turns)
    return clock() - begin


def _timing(samples: np.ndarray) -> Timing:
    """Of seconds of shape (samples, 2): the program, its baseline."""
    low, middle, high = (float(q) for q in np.percentile(samples[:, 0], (25, 50, 75)))
    least = _LEAST_PART * middle
    seconds = max(middle - float(np.median(samples[:, 1])), least, 1e-9)
    return Timing(seconds * 1e9, (high - low) / 2 / seconds, len(samples))
