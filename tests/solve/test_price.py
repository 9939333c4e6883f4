"""Prices: sweeps are exact, marginals are exact, and every bound holds."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.solve.problems import brute_force, random_problem
from xshard.solve.check import objective_of
from xshard.solve.merge import Merge
from xshard.solve.price import Pricing
from xshard.solve.problem import FORBIDDEN
from xshard.solve.sweep import Sweep
from xshard.solve.trim import Trim


def priceable(seed, **kinds):
    return Merge().apply(Trim().apply(random_problem(seed, **kinds)))


@pytest.mark.parametrize("seed", range(60))
def test_marginals_equal_enumeration(seed):
    problem = priceable(seed, nodes=5)
    sweep = Sweep.of(problem)
    assert sweep is not None
    costs = [n.costs for n in problem.nodes]
    tables = sweep.edge_tables([e.costs for e in problem.edges])
    least = sweep.up(costs, tables)
    found = sweep.marginals(costs, tables, least)
    exact = [np.full(len(c), FORBIDDEN) for c in costs]
    for choices in product(*(range(len(c)) for c in costs)):
        value = objective_of(problem, choices) - problem.constant
        for node, choice in enumerate(choices):
            exact[node][choice] = min(exact[node][choice], value)
    assert min(least, FORBIDDEN) == min(int(e.min()) for e in exact)
    if least < FORBIDDEN:
        assert objective_of(problem, sweep.down(costs, tables)) - problem.constant == least
        assert all((f == e).all() for f, e in zip(found, exact, strict=True))


@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.0, 0.1, 1.0, 30.0]))
@settings(max_examples=100)
def test_no_feasible_choices_are_below_a_bound(seed, scale):
    problem = priceable(seed, forbidden=0, nodes=5)
    best, _ = brute_force(problem)
    pricing = Pricing.of(problem)
    assert pricing is not None
    prices = np.random.default_rng(seed).random(len(problem.rows)) * scale
    point = pricing.at(prices)
    assert best is None or point.bound <= best
    if best is not None:
        kept = pricing.within(prices, best).apply(problem)
        assert brute_force(kept)[0] == best
