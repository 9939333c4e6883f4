"""How many units of a stage have to be recomputed: as few as its memory allows, by secants."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil


@dataclass(slots=True)
class Recomputed:
    """A search over the number of recomputed units, with which a stage's memory falls.

    It ends where the secant from none says so: at the least where all save alike.

    Attributes:
      count: of all units.
      peak: bytes with none, more than the limit.
      saved: bytes that each unit saves, about; None: not known yet.
      exceeds: so many are too few.
      fits: so many are enough; None: not seen yet.
    """

    count: int
    limit: int
    peak: float
    saved: float | None = None
    exceeds: int = 0
    fits: int | None = None

    @property
    def done(self) -> bool:
        """Whether there is nothing to be learned: the best number is known, or none helps."""
        if self.exceeds == self.count or (self.saved is not None and self.saved <= 0):
            return True
        return self.fits is not None and self.guess() >= self.fits

    def guess(self) -> int:
        """The number to look at next; all, as long as it is not known what one saves."""
        most = self.count if self.fits is None else self.fits
        if self.saved is None or self.saved <= 0:
            return most
        return min(max(self.exceeds + 1, ceil((self.peak - self.limit) / self.saved)), most)

    def see(self, number: int, peak: float) -> None:
        """Enters the peak with so many of them."""
        self.saved = (self.peak - peak) / number
        if peak <= self.limit:
            self.fits = number
        else:
            self.exceeds = number

    def best(self) -> int:
        """The fewest that are known to fit; where none do, what comes nearest."""
        if self.saved is not None and self.saved <= 0:
            return 0
        return self.guess() if self.fits is None else self.fits
