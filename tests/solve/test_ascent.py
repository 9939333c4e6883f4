"""Bounds by messages and prices: never above the best, and never lower after a sweep."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from tests.solve.problems import brute_force, random_problem
from xshard.solve.ascent import Ascent
from xshard.solve.check import evaluate
from xshard.solve.flat import Flat
from xshard.solve.messages import decode, marginals, message_starts, sweep
from xshard.solve.net import Net, over, total_cost
from xshard.solve.problem import Problem


def without_parallels(seed: int) -> Problem:
    """A random problem with spans; of edges between two nodes the first alone."""
    made = random_problem(seed, rows=False, forbidden=0.0)
    first = {frozenset((e.a, e.b)): e for e in reversed(made.edges)}
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(0, 6, (len(made.nodes), 2)), axis=1) + np.array([0, 1])
    spans = np.concatenate([np.arange(len(made.nodes))[:, None], times], axis=1)
    limit = int(rng.integers(5, 40))
    return replace(made, edges=tuple(first.values()), spans=spans, limit=limit).verify()


def least_with(problem: Problem) -> list[np.ndarray]:
    """For each choice of each node the least objective with it, the limit left aside."""
    found = [np.full(len(n.costs), np.inf) for n in problem.nodes]
    for choices in product(*(range(len(n.costs)) for n in problem.nodes)):
        objective = evaluate(problem, choices)[0]
        for least, c in zip(found, choices, strict=True):
            least[c] = min(least[c], objective)
    return found


@pytest.mark.parametrize("seed", range(30))
def test_sweeps_raise_a_bound_of_all_choices(seed: int) -> None:
    problem = without_parallels(seed)
    net, nodes = Net.of(Flat.of(problem)), len(problem.nodes)
    order, starts = np.arange(nodes), message_starts(net)
    messages, extra = np.zeros(int(starts[-1])), np.zeros(len(net.costs))
    bound = marginals(net, net.costs, starts, messages, extra)
    for _ in range(6):
        sweep(net, net.costs, order, starts, messages, order, 1)
        last, bound = bound, marginals(net, net.costs, starts, messages, extra)
        assert bound >= last - 1e-9
    least = np.concatenate(least_with(problem)) - problem.constant
    assert (bound + extra <= least + 1e-6).all()


@pytest.mark.parametrize("seed", range(30))
def test_on_trees_the_bound_is_the_best_and_the_choices_reach_it(seed: int) -> None:
    problem = without_parallels(seed)
    tree = tuple(e for e in problem.edges if abs(e.a - e.b) == 1)
    problem = replace(problem, edges=tree, limit=None)
    net, order = Net.of(Flat.of(problem)), np.arange(len(problem.nodes))
    starts, choices = message_starts(net), np.zeros(len(problem.nodes), np.int64)
    messages = np.zeros(int(starts[-1]))
    sweep(net, net.costs, order, starts, messages, order, 2)
    bound = marginals(net, net.costs, starts, messages, np.zeros(len(net.costs)))
    decode(net, net.costs, starts, messages, order, order, choices)
    best, _ = brute_force(problem)
    assert best is not None
    assert bound == pytest.approx(best - problem.constant)
    assert total_cost(net, choices) == pytest.approx(best - problem.constant)


@pytest.mark.parametrize("seed", range(30))
def test_priced_memory_bounds_what_fits(seed: int) -> None:
    problem = without_parallels(seed)
    net = Net.of(Flat.of(problem))
    ascent = Ascent.of(net, np.arange(len(problem.nodes)))
    rounds = iter(range(60))
    ascent.climb(lambda _: 1.0 if next(rounds, None) is None else 0.0)
    best, _ = brute_force(problem)
    if best is not None:
        assert ascent.bound + problem.constant <= best
    if np.isfinite(ascent.cost):
        assert over(net, ascent.choices).max(initial=0) <= 0
        assert ascent.cost == total_cost(net, ascent.choices)
