"""`Measured`: the measurements of one kind of device, looked up exactly or between two of them.

A signature is looked up as it is; else between two rows that differ from it in one size only, one
smaller and one larger, along a line of log time over log size (time grows with a power of the size
between neighbours). `Curve` is the same for all sizes at once.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp, log
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from xshard.cost.signature import Signature

Source = Literal["measured", "interpolated", "analytic"]
Floats = NDArray[np.float64]
_MOST_CORRECTION = 4.0
"""Two noisy measurements do not make more of the analytic growth than this, or less."""


@dataclass(frozen=True, slots=True)
class Price:
    """A time, and where it is from."""

    ns: float
    source: Source


@dataclass(frozen=True, slots=True)
class Curve:
    """Times of one family over its only size, both growing.

    Beyond the largest size the time grows with the analytic one, as much as it did between the last
    two sizes; below the smallest it falls as that does, by difference or in proportion, whichever
    is less.
    """

    sizes: tuple[float, ...]
    times_ns: tuple[float, ...]
    analytic: Callable[[Floats], Floats]

    def at(self, sizes: Floats) -> Floats:
        """Nanoseconds for an array of sizes."""
        inside = np.clip(sizes, self.sizes[0], self.sizes[-1])
        times = np.exp(np.interp(np.log(inside), np.log(self.sizes), np.log(self.times_ns)))
        far, near = self.analytic(np.asarray(sizes, np.float64)), self.analytic(inside)
        above = times + self._growth() * (far - near)
        below = np.maximum(times + far - near, times * far / near)
        return np.where(sizes > inside, above, np.where(sizes < inside, below, times))

    def _growth(self) -> float:
        """How fast measured time grows over analytic time, between the last two sizes."""
        if len(self.sizes) < 2:
            return 1.0
        last: Floats = self.analytic(np.array(self.sizes[-2:]))
        ratio = (self.times_ns[-1] - self.times_ns[-2]) / max(float(last[1] - last[0]), 1e-9)
        return min(max(ratio, 1 / _MOST_CORRECTION), _MOST_CORRECTION)

    def source(self, size: float) -> Source:
        """Where the time for `size` is from."""
        if not self.sizes[0] <= size <= self.sizes[-1]:
            return "analytic"
        return "measured" if size in self.sizes else "interpolated"


class Measured:
    """Median times by signature.

    Attributes:
      device: whose they are.
      jax: the version of JAX that they were taken with.
      families: (kind, family) of all that was measured.
    """

    def __init__(
        self, times_ns: Mapping[Signature, float], device: str = "", jax: str = ""
    ) -> None:
        self.device = device
        self.jax = jax
        self._times = {s: t for s, t in times_ns.items() if t > 0}
        self._lines: dict[tuple[str, str, int, tuple[int, ...]], list[tuple[int, float]]] = {}
        self.families = frozenset((s.kind, s.family) for s in self._times)
        for s, t in sorted(self._times.items()):
            for place in range(len(s.sizes)):
                self._lines.setdefault(_line(s, place), []).append((s.sizes[place], t))

    def __len__(self) -> int:
        return len(self._times)

    def find(self, signature: Signature) -> Price | None:
        """The measured time, or one between two that differ in one size; None without either."""
        exact = self._times.get(signature)
        if exact is not None:
            return Price(exact, "measured")
        places = range(len(signature.sizes))
        pairs = [pair for i in places if (pair := self._neighbours(signature, i))]
        if not pairs:
            return None
        size, (low, below), (high, above) = min(pairs, key=lambda p: p[2][0] / p[1][0])
        share = (log(size) - log(low)) / (log(high) - log(low))
        return Price(exp(log(below) + share * (log(above) - log(below))), "interpolated")

    def curve(self, kind: str, family: str, analytic: Callable[[Floats], Floats]) -> Curve | None:
        """Of a family with one size; None if it was never measured."""
        points = [(s, t) for s, t in self._lines.get((kind, family, 0, ()), []) if s > 0]
        if not points:
            return None
        sizes, times = zip(*points, strict=True)
        rising = np.maximum.accumulate(times).tolist()  # more never takes less: what falls is noise
        return Curve(tuple(map(float, sizes)), tuple(rising), analytic)

    def of_family(self, kind: str, family: str) -> dict[Signature, float]:
        """The rows of one family."""
        return {s: t for s, t in self._times.items() if (s.kind, s.family) == (kind, family)}

    def to_json(self) -> str:
        """As text: the same measurements give the same bytes."""
        rows = [[s.kind, s.family, s.sizes, t] for s, t in sorted(self._times.items())]
        return json.dumps([self.device, self.jax, rows])

    @classmethod
    def from_json(cls, text: str) -> Measured:
        """Reads what `to_json` wrote."""
        device, jax, rows = json.loads(text)
        return cls({Signature(k, f, tuple(z)): t for k, f, z, t in rows}, device, jax)

    def _neighbours(
        self, s: Signature, place: int
    ) -> tuple[int, tuple[int, float], tuple[int, float]] | None:
        """(the size, the nearest smaller row, the nearest larger one) along one of the sizes."""
        line, size = self._lines.get(_line(s, place), []), s.sizes[place]
        i = bisect_left(line, (size,))
        if not 0 < i < len(line) or line[i - 1][0] < 1:
            return None
        return size, line[i - 1], line[i]


def _line(s: Signature, place: int) -> tuple[str, str, int, tuple[int, ...]]:
    """What the signatures share that differ in one size only."""
    return s.kind, s.family, place, (*s.sizes[:place], *s.sizes[place + 1 :])
