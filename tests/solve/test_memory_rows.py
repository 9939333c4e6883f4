"""Rows of live memory read off a timeline, and where a peak comes from."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from xshard.hopeless import Hopeless
from xshard.solve.memory import Timeline


def timeline(seed: int) -> Timeline:
    """Intervals of a few nodes and edges (as `~edge`), some of the same owner."""
    rng = np.random.default_rng(seed)
    owner, weight = rng.integers(-4, 5, 30), rng.integers(1, 4, 30)
    first, last = np.sort(rng.integers(0, 12, (2, 30)), axis=0)
    return Timeline(owner, first, last, weight, np.arange(30), np.arange(11))


@pytest.mark.parametrize("seed", range(10))
def test_rows_hold_what_is_live_then(seed: int) -> None:
    line, times = timeline(seed), [7, 0, 3, 11, 3]
    for t, row in zip(times, line.rows(times), strict=True):
        live: dict[int, int] = {}
        here = (line.first <= t) & (t <= line.last)
        for owner, weight in zip(
            line.owner[here].tolist(), line.weight[here].tolist(), strict=True
        ):
            live[owner] = live.get(owner, 0) + weight
        nodes = zip(row.nodes.tolist(), row.node_counts.tolist(), strict=True)
        edges = zip((~row.edges).tolist(), row.edge_counts.tolist(), strict=True)
        assert dict([*nodes, *edges]) == live and row.name == str(t)
        for ids in cast("list[Any]", [row.nodes, row.edges]):
            assert (np.diff(ids) > 0).all()


def test_more_microbatches_hold_less_of_what_rows_make() -> None:
    peak = Hopeless(fixed_bytes=10, rows_bytes=80)
    assert [peak.at(n, of=2) for n in (2, 4, 16)] == [90, 50, 20]
