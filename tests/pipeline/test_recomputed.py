"""The number of recomputed units fits, is the least where each saves alike, and is found soon."""

from __future__ import annotations

import pytest

from xshard.pipeline.recomputed import Recomputed


@pytest.mark.parametrize(
    ("peaks", "limit", "expected", "looks"),
    [
        ([100, 90, 80, 70, 60], 100, 1, 2),
        ([100, 90, 80, 70, 60], 75, 3, 2),
        ([100, 60, 59, 58, 57], 75, 2, 3),  # the first saves most: one would do
        ([100, 99, 98, 97, 40], 75, 4, 3),  # the last saves most
        ([100, 90, 80, 70, 60], 10, 4, 1),  # none fits: all come nearest
        ([100, 101, 102, 103, 104], 75, 0, 1),  # it does not help
    ],
)
def test_numbers_that_fit(peaks: list[int], limit: int, expected: int, looks: int) -> None:
    found, seen = Recomputed(4, limit, peaks[0]), 0
    while not found.done:
        number = found.guess()
        found.see(number, peaks[number])
        seen += 1
    assert found.best() == expected
    assert seen <= looks
