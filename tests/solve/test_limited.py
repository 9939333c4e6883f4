"""Wide problems under a limit, on small ones: what messages, prices and neighbourhoods promise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.solve.problems import brute_force, fits, random_problem, training_step
from xshard.solve import search
from xshard.solve.check import Ledger, evaluate, objective_of
from xshard.solve.dual import climb
from xshard.solve.fix import Fix
from xshard.solve.limited import Limited
from xshard.solve.master import master
from xshard.solve.net import total_cost
from xshard.solve.problem import FORBIDDEN, Infeasible
from xshard.solve.store import Rows

solve: Any = search.solve


def choices_of(problem: Any, rng: np.random.Generator) -> np.ndarray:
    return np.array([rng.integers(len(n.costs)) for n in problem.nodes])


@pytest.mark.parametrize("seed", range(20))
def test_rows_cost_and_hold_what_the_problem_says(seed: int) -> None:
    """At any prices: priced cost less what the room pays back is cost plus priced excess."""
    problem, rng = random_problem(seed, forbidden=0.0), np.random.default_rng(seed)
    assert problem.limit is not None
    rows, ledger = Rows.of(problem), Ledger.of(problem)
    prices = rng.random(len(problem.rows))
    theta, net = rows.priced(prices)
    for _ in range(5):
        choices = choices_of(problem, rng)
        excess = ledger.live_bytes(problem, choices.tolist()) - problem.limit
        cost = objective_of(problem, choices.tolist()) - problem.constant
        assert (rows.over(choices) == excess).all()
        assert total_cost(rows.net, choices) == cost
        paid = total_cost(net._replace(costs=theta), choices) - prices @ rows.room
        assert paid == pytest.approx(cost + prices @ excess)


@pytest.mark.parametrize("seed", range(40))
def test_bounds_hold_for_what_fits_and_for_every_choice(seed: int) -> None:
    problem = random_problem(seed)
    assert problem.limit is not None
    best, peak = brute_force(problem)
    limited = Limited.of(problem)
    dual = climb(limited, master, [])
    if best is not None:
        assert dual.best.bound <= limited.bound <= best
        kept = limited.within(dual.best.prices, best).kept
        assert best == brute_force(replace(problem, nodes=tuple(
            replace(n, costs=np.where(np.isin(np.arange(len(n.costs)), k), n.costs, FORBIDDEN))
            for n, k in zip(problem.nodes, kept, strict=True)
        )))[0]  # fmt: skip
    if limited.peak(lambda: True):
        assert peak is None or peak > problem.limit
    for point, (cost, over) in limited.points.items():
        objective, most, _ = evaluate(problem, point)
        assert objective == cost if objective < FORBIDDEN else cost > (best or 0)
        assert over == most - problem.limit


@pytest.mark.parametrize("seed", range(30))
def test_a_neighbourhood_is_the_problem_with_the_rest_fixed(seed: int) -> None:
    problem, rng = random_problem(seed, forbidden=0.1), np.random.default_rng(seed)
    own = choices_of(problem, rng)
    allowed = tuple(
        np.arange(len(n.costs)) if rng.random() < 0.5 else own[i : i + 1]
        for i, n in enumerate(problem.nodes)
    )
    fix = Fix.find(problem, allowed)
    part = fix.apply(problem).verify()
    for _ in range(5):
        inner = choices_of(part, rng) if part.nodes else np.zeros(0, np.int64)
        whole = fix.invert(tuple(inner.tolist()))
        assert all(c in kept for c, kept in zip(whole, allowed, strict=True))
        objective, peak, _ = evaluate(problem, whole)
        assert min(objective, FORBIDDEN) == min(objective_of(part, inner.tolist()), FORBIDDEN)
        assert peak == evaluate(part, inner.tolist())[1]


@pytest.fixture
def all_are_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MANY_CHOICES", 0)


@pytest.mark.usefixtures("all_are_wide")
@pytest.mark.parametrize("block", range(5))
def test_small_problems_are_solved_by_the_search_for_wide_ones(block: int) -> None:
    for seed in range(30 * block, 30 * block + 30):
        problem = random_problem(seed, forbidden=(0.0, 0.1, 0.3)[seed % 3])
        best, peak = brute_force(problem)
        answer = solve(problem)
        if isinstance(answer, Infeasible):
            assert best is None and answer.smallest_limit == peak, seed
        else:
            assert answer.objective == answer.bound == best, seed


@pytest.mark.usefixtures("all_are_wide")
def test_wide_answers_are_close_and_the_same_every_time() -> None:
    problem = training_step(2)
    free = solve(replace(problem, limit=None))
    limit = int(evaluate(problem, free.choices)[1] * 0.7)
    limited = replace(problem, limit=limit)
    first, second = (solve(limited, enough_gap=0.02) for _ in range(2))
    assert fits(limited, first.choices) and first.gap < 0.02
    assert (first.choices, first.bound) == (second.choices, second.bound)


@pytest.mark.usefixtures("all_are_wide")
def test_the_search_ends_where_its_bound_is_no_better_than_what_is_wanted() -> None:
    problem = training_step(2)
    free = solve(problem)
    limited = replace(problem, limit=evaluate(problem, free.choices)[1] // 2)
    stages: list[str] = []
    answer = solve(limited, below=free.objective, on_progress=lambda p: stages.append(p.stage))
    assert answer.bound >= free.objective and stages == ["memory priced"]


@pytest.mark.usefixtures("all_are_wide")
def test_nothing_fits_is_said_without_a_diagnosis_too() -> None:
    problem = training_step(2)
    least = solve(replace(problem, limit=0)).smallest_limit
    answer = solve(replace(problem, limit=least // 2), diagnose=False)
    assert isinstance(answer, Infeasible) and answer.smallest_limit >= least
