"""Better choices by elimination: some nodes keep theirs, and the rest is solved exactly.

Bounds of edges and nodes are often tight where the choices that go with them are not: a layout
changes as a whole or not at all, over more nodes than a step of a search turns over. Most of a
graph with a few nodes taken out falls apart under elimination, however, and so all of it changes at
once. Nodes to take out are drawn anew each round.
"""

from __future__ import annotations

import numpy as np

from xshard.solve.check import objective_of
from xshard.solve.drop import Drop
from xshard.solve.problem import Problem
from xshard.solve.reduce import Reduced, reduce

MOST_ROUNDS = 40
PATIENCE = 12
"""Rounds without a better answer, at the end of which there will hardly be one."""
MORE, MOST = 0.1, 0.8
"""Parts of the nodes that are taken out: none at first, more where the rest does not fall apart."""
MOST_ENTRIES = 1 << 18


def improved(problem: Problem, choices: tuple[int, ...], enough: int, seed: int) -> tuple[int, ...]:
    """The best choices found from `choices` on.

    Args:
      problem: without rows.
      enough: an objective at which the search ends.
    """
    random = np.random.default_rng(seed)
    best, share, since = objective_of(problem, choices), 0.0, 0
    for _ in range(MOST_ROUNDS):
        if best <= enough or since >= PATIENCE:
            break
        found = _around(problem, choices, random.random(len(problem.nodes)) < share)
        if found is None:
            share = min(share + MORE, MOST)
            continue
        objective = objective_of(problem, found)
        since = 0 if objective < best else since + 1
        if objective < best:
            best, choices = objective, found
    return choices


def _around(problem: Problem, choices: tuple[int, ...], kept: np.ndarray) -> tuple[int, ...] | None:
    """The best choices with those of `kept` as they are; None where elimination leaves nodes."""
    open_to = tuple(
        np.array([c]) if keeps else np.arange(len(node.costs))
        for node, c, keeps in zip(problem.nodes, choices, kept.tolist(), strict=True)
    )
    part = Reduced(problem, ()).then(Drop(open_to))
    rest = reduce(part.problem, most_entries=MOST_ENTRIES)
    return None if rest.problem.nodes else part.invert(rest.invert(()))
