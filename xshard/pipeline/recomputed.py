"""How many units of a stage have to be recomputed: as few as its memory allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Recomputed:
    """A search over the number of recomputed units, with which a stage's memory falls.

    It ends where one less is not expected to fit.

    Attributes:
      expected: by the number of recomputed units, what is going to be held; all numbers are
        expected to be wrong by as much as the last that was looked at.
      seen: number -> bytes.
    """

    expected: Sequence[int]
    limit: int
    seen: dict[int, int] = field(default_factory=dict[int, int])

    @property
    def done(self) -> bool:
        """Whether there is nothing to be learned: the best number is known, or none fits."""
        return self.guess() in self.seen

    def see(self, number: int, peak: int) -> None:
        """Enters the peak with so many of them."""
        self.seen.pop(number, None)
        self.seen[number] = peak

    def best(self) -> int:
        """The fewest that are known to fit; where none do, what comes nearest, or could fit."""
        fits = [n for n, peak in self.seen.items() if peak <= self.limit]
        if fits:
            return min(fits)
        return self.guess() if not self.done else min(self.seen, key=lambda n: self.seen[n])

    def guess(self) -> int:
        """The number to look at next: the fewest that are expected to fit, and could."""
        all_ = len(self.expected) - 1
        least = max((n + 1 for n, peak in self.seen.items() if peak > self.limit), default=0)
        most = min((n for n, peak in self.seen.items() if peak <= self.limit), default=all_)
        number, peak = [*self.seen.items()][-1] if self.seen else (0, self.expected[0])
        off = peak - self.expected[number]
        numbers = range(least, most)
        return next((n for n in numbers if self.expected[n] + off <= self.limit), most)
