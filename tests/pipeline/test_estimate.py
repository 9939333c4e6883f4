"""What stages are expected to hold and to take, from their units, beside what they do."""

from __future__ import annotations

import pytest

from tests.pipeline.test_boundaries import search
from xshard.pipeline.bounds import spans


@pytest.mark.parametrize("share", [0, 1])
def test_stages_hold_about_what_their_units_do(share: int) -> None:
    s = search(2, 10**12, "auto")
    s.table  # noqa: B018
    for counts in ((2, 6), (4, 4)):
        plans = s.planned(counts, tuple(share * c for c in counts))
        for k, ends in enumerate(spans(counts)):
            for in_flight in (1, 4):
                peak = s.solver.peak_bytes(plans.loose(k), in_flight)
                about = s.estimates.peaks_bytes(*ends, in_flight)[share * counts[k]]
                assert about == pytest.approx(peak, rel=0.2)


def test_stages_that_recompute_take_longer_than_others() -> None:
    kept, again = (search(2, remat=remat) for remat in ("none", "all"))
    for s in (kept, again):
        assert s.table
    assert kept.promise_ns < again.promise_ns < 1.4 * kept.promise_ns
    assert kept.bound_ns == again.bound_ns <= kept.promise_ns


def test_each_unit_that_is_planned_raises_the_bound() -> None:
    s = search(2)
    bounds = [s.bound_ns]
    while s.is_open:
        s.go_on()
        bounds.append(s.bound_ns)
    assert bounds == sorted(set(bounds))
    assert s.run() is not None
    assert bounds[-1] <= 1.01 * s.best_ns  # what units share counts in each of them
    assert s.bound_ns <= s.best_ns
