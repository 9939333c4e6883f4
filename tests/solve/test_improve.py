"""Choices made better by elimination around nodes that keep theirs."""

from __future__ import annotations

import numpy as np
import pytest

from xshard.solve.check import objective_of
from xshard.solve.improve import improved
from xshard.solve.problem import Edge, Node, Problem


def grid(side: int, seed: int = 0, noise: int = 0) -> Problem:
    """Neighbours that differ cost 10; everything at choice 1 is the best by one a node."""
    random = np.random.default_rng(seed)

    def spread(size: int) -> np.ndarray:
        return random.integers(0, noise + 1, size)

    nodes = tuple(Node(f"n{i}", np.array([1, 0]) + spread(2), np.zeros(2, np.int64))
                  for i in range(side * side))  # fmt: skip
    pairs = [(i, i + 1) for i in range(side * side) if (i + 1) % side]
    pairs += [(i, i + side) for i in range(side * (side - 1))]
    unlike = 10 * (1 - np.eye(2, dtype=np.int64))
    return Problem(nodes, tuple(Edge(a, b, unlike) for a, b in pairs))


def test_a_layout_changes_as_a_whole() -> None:
    """No single node may turn over alone: it has two to four neighbours of the other choice."""
    problem = grid(8)
    found = improved(problem, (0,) * 64, enough=0, seed=0)
    assert found == (1,) * 64


@pytest.mark.parametrize("seed", range(4))
def test_never_worse_and_always_the_same(seed: int) -> None:
    problem = grid(6, seed, noise=30)
    start = tuple(np.random.default_rng(seed).integers(0, 2, 36).tolist())
    found = improved(problem, start, enough=0, seed=seed)
    assert objective_of(problem, found) <= objective_of(problem, start)
    assert improved(problem, start, enough=0, seed=seed) == found


def test_it_ends_where_that_is_enough() -> None:
    problem, start = grid(4), (0,) * 16
    assert improved(problem, start, enough=objective_of(problem, start), seed=0) == start
