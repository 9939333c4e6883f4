"""`solve` against brute force: same objective, same smallest limit, same bytes."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.solve.problems import brute_force, dense_problem, fits, random_problem, training_step
from xshard.solve import model, search
from xshard.solve.check import Violation, check, evaluate
from xshard.solve.problem import FORBIDDEN, Infeasible, Solution, Start

solve: Any = search.solve
KINDS = [{"rows": False}, {}, {"forbidden": 0}, {"forbidden": 0.4}]


def agrees(problem, answer):
    best, peak = brute_force(problem)
    if isinstance(answer, Infeasible):
        return best is None and answer.smallest_limit == peak and answer.proven
    return best == answer.objective == answer.bound and fits(problem, answer.choices)


@pytest.mark.parametrize("block", range(10))
def test_equals_brute_force(block):
    for seed in range(40 * block, 40 * block + 40):
        problem = random_problem(seed, **KINDS[seed % 4])
        assert agrees(problem, solve(problem)), seed


@pytest.fixture(scope="module")
def step():
    """A small training step with a limit half-way between its free peak and nothing."""
    problem = training_step(3)
    free = solve(problem)
    _, peak, _ = evaluate(problem, free.choices)
    return replace(problem, limit=peak // 2), free


@pytest.mark.parametrize("time_limit_s", [0.01, 1.0])
def test_same_bytes_even_when_time_runs_out(step, time_limit_s):
    problem, _ = step
    first, second = (solve(problem, time_limit_s=time_limit_s) for _ in range(2))
    assert (first.choices, first.bound) == (second.choices, second.bound)


def test_more_time_never_hurts_and_bounds_hold(step):
    problem, free = step
    short, long = (solve(problem, time_limit_s=s) for s in (0.01, 4.0))
    assert check(problem, long.choices) == long.objective <= short.objective
    assert free.objective <= short.bound <= long.objective
    assert free.objective <= long.bound <= short.objective
    assert long.gap < 0.01


def test_ample_memory_costs_nothing(step):
    problem, free = step
    _, peak, _ = evaluate(problem, free.choices)
    assert solve(replace(problem, limit=peak)).objective == free.objective == free.bound


def test_a_hint_that_fits_is_never_lost(step):
    problem, _ = step
    hint = solve(problem, time_limit_s=1.0).choices
    again = solve(problem, time_limit_s=0.01, start=Start(hint))
    assert again.objective <= evaluate(problem, hint)[0]


@pytest.mark.parametrize("block", range(4))
def test_from_the_last_answer_the_optimum_is_the_same(block):
    """After the limit has changed, and after a choice is forced."""
    for seed in range(40 * block, 40 * (block + 1)):
        problem = random_problem(seed)
        before = solve(problem)
        if isinstance(before, Infeasible):
            continue
        rng = np.random.default_rng(seed)
        i = int(rng.integers(len(problem.nodes)))
        node = problem.nodes[i]
        forced = np.where(np.arange(len(node.costs)) == rng.integers(len(node.costs)), 0, FORBIDDEN)
        pinned = replace(node, costs=np.minimum(node.costs + forced, FORBIDDEN))
        limit = problem.limit and problem.limit - int(rng.integers(4))
        nodes = (*problem.nodes[:i], pinned, *problem.nodes[i + 1 :])
        for new in (replace(problem, limit=limit), replace(problem, nodes=nodes)):
            start = Start(before.choices, before.bound, before.prices)
            warm, best = solve(new, start=start), brute_force(new)[0]
            found = None if isinstance(warm, Infeasible) else warm.objective
            assert found == best, seed


@pytest.mark.parametrize("memory", [False, True])
def test_too_wide_to_eliminate(memory):
    problem = dense_problem(30, 8, memory)
    first, second = (solve(problem, time_limit_s=1.0) for _ in range(2))
    assert first.choices == second.choices
    assert check(problem, first.choices) == first.objective >= first.bound > 0


def test_progress_is_monotone(step):
    problem, _ = step
    seen = []
    solve(problem, time_limit_s=1.0, on_progress=seen.append)
    assert [p.bound for p in seen] == sorted(p.bound for p in seen)
    found = [p.objective for p in seen if p.objective is not None]
    assert found == sorted(found, reverse=True)


def test_forbidden_everywhere_says_that_no_limit_helps():
    problem = random_problem(1, rows=False)
    nodes = tuple(replace(n, costs=n.costs * 0 + FORBIDDEN) for n in problem.nodes)
    assert solve(replace(problem, nodes=nodes)) == Infeasible(None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"limit": 0, "constant": 0}, "bytes live, the limit is 0"),
        ({"limit": None}, None),
    ],
)
def test_check_says_what_is_wrong(step, change, message):
    problem, free = step
    if message is None:
        assert check(replace(problem, **change), free.choices) == free.objective
    else:
        with pytest.raises(Violation, match=message):
            check(replace(problem, **change), free.choices)


@pytest.mark.parametrize("seed", range(5))
def test_just_above_the_smallest_limit_fits(seed):
    problem = training_step(2, seed=seed)
    least = solve(replace(problem, limit=0), time_limit_s=2.0)
    tight = solve(replace(problem, limit=least.smallest_limit), time_limit_s=2.0)
    assert tight.bound <= check(replace(problem, limit=least.smallest_limit), tight.choices)


def test_solutions_are_solutions(step):
    assert isinstance(step[1], Solution)
    assert step[1].gap == 0.0


def interrupt_at_an_answer(progress):
    if progress.objective is not None:
        raise KeyboardInterrupt


def test_an_interrupt_returns_the_best_so_far_where_that_is_wanted(step):
    problem, free = step
    answer = solve(problem, on_progress=interrupt_at_an_answer, catch_interrupt=True)
    assert check(problem, answer.choices) == answer.objective
    assert free.objective <= answer.bound <= answer.objective
    with pytest.raises(KeyboardInterrupt):
        solve(problem, on_progress=interrupt_at_an_answer)


def test_an_interrupt_reaches_cp_sat(step, monkeypatch):
    """Ctrl-C while CP-SAT is at work: the search ends then, and not when CP-SAT would have."""
    problem, _ = step
    solver_type = model.cp_model.CpSolver
    original = solver_type.solve

    def solve_interrupted(solver, built):
        os.kill(os.getpid(), signal.SIGINT)  # the main thread sees it while it waits
        return original(solver, built)

    monkeypatch.setattr(solver_type, "solve", solve_interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has none
    try:
        with pytest.raises(KeyboardInterrupt):
            solve(problem)
    finally:
        signal.signal(signal.SIGINT, before)
