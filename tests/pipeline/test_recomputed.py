"""The number of recomputed units fits, is the least where each saves alike, and is found soon."""

from __future__ import annotations

import pytest

from xshard.pipeline.recomputed import Recomputed

ALIKE = [100, 90, 80, 70, 60]


@pytest.mark.parametrize(
    ("expected", "peaks", "limit", "best", "looks"),
    [
        (ALIKE, ALIKE, 100, 0, 1),  # all fit
        (ALIKE, ALIKE, 75, 3, 1),  # expected so
        ([80, 70, 60, 50, 40], ALIKE, 75, 3, 2),  # it holds more than expected
        ([130, 120, 110, 100, 90], ALIKE, 75, 3, 2),  # it holds less than expected
        (ALIKE, [100, 60, 59, 58, 57], 75, 1, 4),  # the first saves most
        (ALIKE, [100, 99, 98, 97, 40], 75, 4, 2),  # the last saves most
        (ALIKE, ALIKE, 10, 4, 1),  # none fits: all come nearest
        (ALIKE, [100, 101, 102, 103, 104], 75, 3, 2),  # it does not help
    ],
)
def test_numbers_that_fit(
    expected: list[int], peaks: list[int], limit: int, best: int, looks: int
) -> None:
    found, seen = Recomputed(expected, limit), 0
    while not found.done:
        number = found.guess()
        found.see(number, peaks[number])
        seen += 1
    assert found.best() == best
    assert seen <= looks
