"""Each reduction alone: the smaller problem has the same optimum, and its choices come back."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.solve.problems import brute_force, fits, random_problem
from xshard.solve.check import evaluate
from xshard.solve.drop import Drop
from xshard.solve.eliminate import Eliminate
from xshard.solve.merge import Merge
from xshard.solve.problem import FORBIDDEN, Edge, Node, Problem, Row, Solution
from xshard.solve.reduce import Reduced, reduce
from xshard.solve.search import solve
from xshard.solve.trim import Trim

TRIMMED = {"drop": Drop.find, "eliminate": Eliminate.find}


def steps(name, problem):
    """The reduction under test, after what it relies on."""
    start = Reduced(problem, ()).then(Trim())
    if name == "trim":
        return start
    if name == "merge":
        return start.then(Merge())
    if name == "all":
        return reduce(problem)
    return start.then(TRIMMED[name](start.problem))


def cheapest(problem):
    """The first choices with the least objective that fit, or None."""
    every = product(*(range(len(n.costs)) for n in problem.nodes))
    allowed = [c for c in every if fits(problem, c)]
    return min(allowed, key=lambda c: evaluate(problem, c)[0], default=None)


@pytest.mark.parametrize("name", ["trim", "merge", "drop", "eliminate", "all"])
@given(seed=st.integers(0, 10**6), rows=st.booleans(), forbidden=st.sampled_from([0, 0.1, 0.4]))
@settings(max_examples=60)
def test_optimum_survives_and_comes_back(name, seed, rows, forbidden):
    problem = random_problem(seed, rows=rows, forbidden=forbidden, nodes=5)
    best, _ = brute_force(problem)
    reduced = steps(name, problem)
    small = cheapest(reduced.problem) if reduced.problem.constant < FORBIDDEN else None
    assert (small is None) == (best is None)
    if small is not None:
        objective = evaluate(reduced.problem, small)[0]
        choices = reduced.invert(small)
        assert objective == best == evaluate(problem, choices)[0]
        assert fits(problem, choices)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_left_without_memory(seed):
    assert not reduce(random_problem(seed, rows=False, nodes=8)).problem.nodes


@pytest.mark.parametrize("seed", range(20))
def test_reducing_twice_changes_nothing(seed):
    once = reduce(random_problem(seed, nodes=8)).problem
    twice = reduce(once).problem
    assert [len(n.costs) for n in once.nodes] == [len(n.costs) for n in twice.nodes]


def test_a_hub_of_many_neighbours_that_turn_out_not_to_matter() -> None:
    """More than an array has dimensions: each is one class to what is left of the way to it."""
    leaf = Node("leaf", np.array([0, 1]), np.array([5, 1]))
    between, hub = (
        Node("between", np.zeros(3, int), np.zeros(3, int)),
        Node("hub", np.array([1, 1]), np.zeros(2, int)),
    )
    nodes, edges = [hub], list[Edge]()
    for _ in range(70):
        nodes += [leaf, between]
        middle = len(nodes) - 1
        edges.append(Edge(middle - 1, middle, np.array([[0, 0, 1], [0, 0, 2]])))
        edges.append(Edge(middle, 0, np.array([[0, 9], [9, 1], [4, 4]])))
    leaves = np.arange(1, 141, 2)
    one, none = np.ones(70, int), np.zeros(0, int)
    problem = Problem(tuple(nodes), tuple(edges), (Row(leaves, one, none, none),), 300).verify()
    left = Eliminate.find(problem, most_entries=1 << 13).apply(problem)
    assert len(left.nodes) == 70 and not left.edges
    answer = solve(problem, workers=1)
    assert isinstance(answer, Solution) and answer.objective == answer.bound
    assert left.constant == 1
