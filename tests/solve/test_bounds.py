"""Bounds by messages against brute force, and choices that are what they are said to cost."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tests.solve.problems import brute_force, random_problem
from xshard.solve.bounds import MARGIN, Messages
from xshard.solve.check import objective_of
from xshard.solve.price import engine_of
from xshard.solve.problem import FORBIDDEN, Edge, Infeasible, Node, Problem
from xshard.solve.search import solve

SEEDS = range(60)


def unlimited(seed, forbidden=0.1):
    return random_problem(seed, rows=False, forbidden=forbidden)


def parts(problem):
    return [n.costs for n in problem.nodes], [e.costs for e in problem.edges]


def min_marginals(problem):
    """For every node and choice, the least objective that contains it, by brute force."""
    least = [np.full(len(n.costs), 2**62) for n in problem.nodes]
    for choices in product(*(range(len(n.costs)) for n in problem.nodes)):
        objective = objective_of(problem, choices)
        for i, choice in enumerate(choices):
            least[i][choice] = min(least[i][choice], objective)
    return least


@pytest.mark.parametrize("forbidden", [0.0, 0.1, 0.4])
def test_bound_and_choices_enclose_the_optimum(forbidden):
    met = 0
    for seed in SEEDS:
        problem = unlimited(seed, forbidden)
        best, _ = brute_force(problem)
        if best is None:
            continue
        bound, choices = Messages.of(problem).minimise(*parts(problem))
        assert bound <= best <= objective_of(problem, choices), seed
        met += best - bound <= 1 + MARGIN * best
    assert met > 0.7 * len(SEEDS) * (1 - forbidden)  # most of these problems have no gap


@pytest.mark.parametrize("forbidden", [0.0, 0.1, 0.4])
def test_bounds_are_below_the_min_marginals(forbidden):
    for seed in SEEDS:
        problem = unlimited(seed, forbidden)
        found = Messages.of(problem).bounds(*parts(problem))
        for low, true in zip(found, min_marginals(problem), strict=True):
            allowed = true < FORBIDDEN
            assert (low[allowed] <= true[allowed]).all(), seed


def chain(*matrices, costs=None):
    """Nodes in a row, one edge between neighbours."""
    sizes = [len(matrices[0]), *(np.shape(m)[1] for m in matrices)]
    costs = costs or [[0] * n for n in sizes]
    nodes = [Node(f"n{i}", np.array(c), np.zeros_like(c)) for i, c in enumerate(costs)]
    edges = [Edge(i, i + 1, np.array(m)) for i, m in enumerate(matrices)]
    return Problem(tuple(nodes), tuple(edges)).verify()


SMALL = {
    # name: problem, optimum, its choices
    "one edge": (chain([[5, 3], [9, 8]]), 3, (0, 1)),
    "an edge both ways": (chain([[0, 10], [10, 0]], costs=[[4, 0], [0, 7]]), 4, (0, 0)),
    "a forbidden pair": (chain([[FORBIDDEN, 6], [8, FORBIDDEN]]), 6, (0, 1)),
    "a forbidden choice": (chain([[0, 9]], costs=[[1], [FORBIDDEN, 2]]), 12, (0, 1)),
    "nothing to choose": (chain([[7]]), 7, (0, 0)),
}


@pytest.mark.parametrize("name", SMALL)
def test_trees_are_solved(name):
    problem, best, choices = SMALL[name]
    bound, found = Messages.of(problem).minimise(*parts(problem))
    assert found == choices and objective_of(problem, found) == best
    assert best - 1 <= bound <= best


def test_nodes_without_edges_take_their_least():
    nodes = tuple(
        Node(f"n{i}", np.array(c), np.zeros(3, int)) for i, c in enumerate([[3, 1, 2]] * 3)
    )
    problem = Problem(nodes, (Edge(0, 2, np.full((3, 3), 4)),))
    engine = Messages.of(problem)
    bound, choices = engine.minimise(*parts(problem))
    assert choices == (1, 1, 1) and 6 <= bound <= 7
    assert [b.argmin() for b in engine.bounds(*parts(problem))] == [1, 1, 1]


def test_no_edges_at_all():
    problem = Problem((Node("n", np.array([9, 4]), np.zeros(2, int)),), ())
    bound, choices = Messages.of(problem).minimise(*parts(problem))
    assert choices == (1,) and 3 <= bound <= 4


def test_where_nothing_is_allowed_the_bound_says_so():
    """No choices below the largest total that allowed costs make."""
    problem = chain([[FORBIDDEN, FORBIDDEN]], costs=[[1], [3, 2]])
    bound, choices = Messages.of(problem).minimise(*parts(problem))
    assert objective_of(problem, choices) >= FORBIDDEN
    assert bound >= 6


def frustrated(nodes=12, choices=5):
    """Random costs between all pairs: a gap that no messages close."""
    rng = np.random.default_rng(0)
    made = [
        Node(f"n{i}", rng.integers(0, 99, choices), np.zeros(choices, int)) for i in range(nodes)
    ]
    pairs = [(a, b) for a in range(nodes) for b in range(a)]
    edges = [Edge(a, b, rng.integers(0, 99, (choices, choices))) for a, b in pairs]
    return Problem(tuple(made), tuple(edges)).verify()


def test_bounds_hold_and_are_no_weaker_from_a_warm_start():
    problem = frustrated()
    costs, tables = parts(problem)
    warm = Messages.of(problem)
    first, choices = warm.minimise(costs, tables)
    again, _ = warm.minimise(costs, tables)
    assert 0 < first <= again <= objective_of(problem, choices)


def test_messages_of_other_costs_give_a_bound_all_the_same():
    for seed in SEEDS:
        problem = unlimited(seed)
        costs, tables = parts(problem)
        warm = Messages.of(problem)
        warm.minimise([c[::-1] for c in costs], [t[::-1] * 3 for t in tables])
        bound, choices = warm.minimise(costs, tables)
        best, _ = brute_force(problem)
        if best is not None:
            assert bound <= best <= objective_of(problem, choices), seed


def test_same_answer_every_time():
    problem = frustrated()
    answers = [Messages.of(problem).minimise(*parts(problem)) for _ in range(2)]
    bounds = [Messages.of(problem).bounds(*parts(problem)) for _ in range(2)]
    assert answers[0] == answers[1]
    assert all((a == b).all() for a, b in zip(*bounds, strict=True))


def test_what_any_prices_make_too_wide_gets_messages(monkeypatch):
    monkeypatch.setattr("xshard.solve.sweep.MOST_ENTRIES", 3)
    engines = []
    for seed in range(20):
        problem = random_problem(seed, forbidden=0)
        engines.append(type(engine_of(problem)))
        best, peak = brute_force(problem)
        answer = solve(problem)
        if isinstance(answer, Infeasible):
            assert best is None and answer.smallest_limit == peak, seed
        else:
            assert answer.objective == best, seed
    assert Messages in engines


def test_without_rows_too_a_bound_ends_the_search(monkeypatch):
    """As soon as it shows that nothing is below what is wanted, and no sooner."""
    monkeypatch.setattr("xshard.solve.exact.FEW_ENTRIES", 0)
    ended = 0
    for seed in SEEDS:
        problem = unlimited(seed)
        best, _ = brute_force(problem)
        if best is None:
            continue
        wanted = solve(problem, below=best + 1)
        assert wanted.choices is not None and objective_of(problem, wanted.choices) == best, seed
        answer = solve(problem, below=best)
        assert answer.bound is not None and answer.bound <= best, seed
        ended += isinstance(answer, Infeasible)
    assert ended > 0.7 * len(SEEDS)
