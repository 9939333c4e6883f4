"""Boundaries of stages: the table's bound is exact, and the search finds what brute force finds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import combinations, pairwise
from math import inf

import pytest

from tests.stages import models
from tests.stages.steps import cuttable_step
from xshard.cost.cluster import Cluster
from xshard.pipeline.boundaries import BoundarySearch, step_ns
from xshard.pipeline.bounds import Bound, Counts, StageTable
from xshard.pipeline.cuts import Cuts
from xshard.pipeline.solver import StageSolver, TooLargeError
from xshard.schedules import build
from xshard.spec import MeshShape

MESH, CLUSTER = MeshShape(("x",), (2,)), Cluster.parse("v100-sxm2-32gb:2")


def all_counts(units: int, stages: int) -> Iterator[Counts]:
    """Every way to cut so many units."""
    for cuts in combinations(range(1, units), stages - 1):
        yield tuple(b - a for a, b in pairwise((0, *cuts, units)))


def by_hand(table: StageTable, counts: Counts) -> float:
    """The bound of these boundaries, as the docstring of `bounds` states it."""
    before, least = 0.0, 0.0
    for s, stop in enumerate(sum(counts[: k + 1]) for k in range(len(counts))):
        bound = table.bound(s, stop - counts[s], stop)
        least, before = max(least, before + bound.total_ns), before + bound.each_ns
    return least


@pytest.mark.parametrize("seed", range(5))
def test_the_least_bound_is_that_of_all_boundaries(seed: int) -> None:
    rng = random.Random(seed)
    stages = rng.randint(1, 4)
    unit = {c: Bound(t, (t / 16, t / 16)) for c in "ab" for t in (rng.randint(8, 80),)}
    contents = [rng.choice("ab") for _ in range(8)]
    table = StageTable(contents, range(stages, 0, -1), [unit[c] for c in contents])
    for _ in range(10):
        start = rng.randrange(8)
        key = table.key(rng.randrange(stages), start, rng.randint(start + 1, 8))
        table.known[key] = Bound(rng.randint(50, 300), (1, rng.randint(5, 30)))
    bounds = {counts: by_hand(table, counts) for counts in all_counts(8, stages)}
    seen: dict[Counts, float] = {}
    for expected in sorted(bounds.values())[:20]:
        counts, bound = table.least(seen, lambda _: 0)
        assert bound == pytest.approx(expected) == bounds[counts]
        seen[counts] = bound
    assert table.least(bounds, lambda _: 0) == ((), inf)


def search(stages: int, limit: int | None = None, remat: str = "none") -> BoundarySearch:
    step, args = models.skips()
    cut = cuttable_step(step, args, 4)
    solver = StageSolver(MESH, CLUSTER, limit)
    return BoundarySearch(Cuts(cut), build("1f1b", stages, 4), solver, remat)


def test_the_search_equals_brute_force() -> None:
    s = search(2)
    found = s.run()
    assert found is not None
    taken = {}
    for counts in all_counts(len(s.cuts.cut.units), 2):
        plans = s.planned(counts, (0, 0)).make()
        taken[counts] = step_ns(s.simulation, [p.part_ns for p in plans.stages])
    best = min(taken.values())
    assert taken[found.counts] <= best / (1 - 0.005)
    assert 0 < s.bound_ns <= best


def test_stages_recompute_as_many_units_as_the_limit_asks_for() -> None:
    """The first stage, which holds more microbatches, recomputes more than the last."""
    free = search(2, 10**12).run()
    assert free is not None
    peaks = [s.plan.peak_bytes for s in free.plans.stages]
    limit = int(0.93 * max(peaks))
    with pytest.raises(TooLargeError):
        search(2, limit // 8).run()
    found = search(2, limit, "auto").run()
    assert found is not None
    assert max(found.recomputed) > 0
    assert all(s.plan.peak_bytes <= limit for s in found.plans.stages)


def test_answers_hold_what_all_microbatches_in_flight_hold() -> None:
    """What is known of a stage with one microbatch in flight has another peak with more."""
    s = search(2)
    cut = s.planned(s.cuts.cut.balanced(2), (0, 0)).cut
    peaks = []
    for in_flight in (1, 3):
        modelled = s.solver.loose(cut, 0, in_flight, {}).relaxed.modelled
        (answer,) = modelled.answers
        assert answer.choices is not None
        peaks.append(modelled.peak_bytes(answer.choices))
    assert peaks[0] < peaks[1]
