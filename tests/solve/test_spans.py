"""Problems with spans: against brute force, and every step of the large search on its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.solve.problems import brute_force, fits, random_problem
from xshard.solve.contract import contract, contracted, relevant
from xshard.solve.dominate import undominated
from xshard.solve.flat import Flat
from xshard.solve.large import solve_spans
from xshard.solve.problem import FORBIDDEN, Edge, Infeasible, Node, Problem, Solution, Start
from xshard.solve.search import solve
from xshard.solve.spans import as_rows, peak_of_spans


def spanned(seed, **options):
    """A random problem whose memory is spans; some edges make followers."""
    rng = np.random.default_rng(seed)
    made = random_problem(seed, rows=False, **options)
    n = len(made.nodes)
    first = rng.integers(0, 8, 2 * n)
    spans = np.stack([rng.integers(0, n, 2 * n), first, first + rng.integers(0, 5, 2 * n)], axis=1)
    edges = tuple(_following(rng, e) if rng.random() < 0.3 else e for e in made.edges)
    return replace(made, edges=edges, spans=spans, limit=int(rng.integers(5, 60))).verify()


def _following(rng, edge):
    leads = rng.integers(0, edge.costs.shape[1], edge.costs.shape[0])
    only = np.full(edge.costs.shape, FORBIDDEN)
    only[np.arange(len(leads)), leads] = 0
    return Edge(edge.a, edge.b, np.maximum(edge.costs, only))


@pytest.mark.parametrize("seed", range(60))
def test_the_answer_is_that_of_brute_force(seed: int):
    problem = spanned(seed)
    best, peak = brute_force(problem)
    answer = solve(problem)
    if best is None:
        assert isinstance(answer, Infeasible) and answer.smallest_limit == peak
    else:
        assert isinstance(answer, Solution) and answer.objective == best == answer.bound
        assert fits(problem, answer.choices)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch):
    """The large search ends by its effort and not by the clock."""
    monkeypatch.setattr("xshard.solve.large.SUMS_PER_S", 2e4)


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.usefixtures("quick")
def test_the_large_search_finds_the_best_of_small_problems(seed: int):
    problem = spanned(seed)
    best, peak = brute_force(problem)
    answer = solve_spans(problem, time_limit_s=20, workers=1, seed=0, report=lambda *_: None)
    if isinstance(answer, Solution):
        assert answer.bound <= answer.objective == best
        assert fits(problem, answer.choices)
    else:
        assert best is None
        assert peak is None or (answer.smallest_limit or 0) >= peak


@pytest.mark.parametrize("seed", range(80))
def test_contraction_keeps_the_optimum(seed: int):
    problem = spanned(seed)
    best, _ = brute_force(problem)
    found = contracted(Flat.of(problem))
    if found is None:
        assert best is None
        return
    flat, steps = relevant(found[0]), list(found[1])
    while (step := undominated(flat)) is not None:
        flat = contract(flat, step)
        steps.append(step)
    smaller = problem_of(flat)
    least = cheapest(smaller, flat)
    assert (None if least is None else least[0]) == best
    if least is not None:
        choices = np.array(least[1])
        for step in reversed(steps):
            choices = step.invert(choices)
        assert fits(problem, choices.tolist())


def problem_of(flat: Flat) -> Problem:
    """The nodes and edges of a flat problem."""
    cut = [slice(*flat.offsets[i : i + 2]) for i in range(len(flat.sizes))]
    nodes = tuple(Node("", flat.costs[c], np.zeros_like(flat.costs[c])) for c in cut)
    edges = []
    for k, (a, b) in enumerate(flat.ends):
        table = flat.tables[flat.starts[k] : flat.starts[k + 1]]
        edges.append(Edge(int(a), int(b), table.reshape(flat.sizes[a], flat.sizes[b])))
    return Problem(nodes, tuple(edges), constant=flat.constant)


def cheapest(problem: Problem, flat: Flat):
    """(objective, choices) of the best choices that fit the room; None if there are none."""
    best = None
    for choices in np.ndindex(*flat.sizes):
        live = np.zeros(len(flat.room), np.int64)
        for s, node in enumerate(flat.span_nodes):
            live[flat.span_from[s] : flat.span_to[s]] += flat.usage[
                flat.span_starts[s] + choices[node]
            ]
        nodes = sum(int(n.costs[c]) for n, c in zip(problem.nodes, choices, strict=True))
        total = problem.constant + nodes
        total += sum(int(e.costs[choices[e.a], choices[e.b]]) for e in problem.edges)
        if total < FORBIDDEN and (live <= flat.room).all() and (best is None or total < best[0]):
            best = total, choices
    return best


@pytest.mark.parametrize("seed", range(20))
def test_spans_as_rows_have_the_same_peak(seed: int):
    problem = spanned(seed)
    rows = as_rows(problem)
    for choices in np.ndindex(*(len(n.costs) for n in problem.nodes)):
        live = [r.base + sum(int(problem.nodes[i].usage[choices[i]]) * int(k)
                             for i, k in zip(r.nodes, r.node_counts, strict=True))
                for r in rows.rows]  # fmt: skip
        assert max(live, default=0) == peak_of_spans(problem, choices)[0]


def ring(nodes=60, choices=5):
    """Nodes in a ring with chords, all alive for a while: too many choices for brute force."""
    rng = np.random.default_rng(1)
    made = tuple(
        Node(f"n{i}", rng.integers(0, 99, choices), rng.integers(1, 50, choices))
        for i in range(nodes)
    )
    pairs = [(i, (i + d) % nodes) for i in range(nodes) for d in (1, 7)]
    edges = tuple(Edge(a, b, rng.integers(0, 99, (choices, choices))) for a, b in pairs)
    first = np.arange(nodes)
    spans = np.stack([first, first, first + 10], axis=1)
    return Problem(made, edges, (), 200, 0, spans).verify()


@pytest.mark.usefixtures("quick")
def test_the_large_search_repeats_itself():
    once, again = (
        solve_spans(ring(), time_limit_s=600, workers=2, seed=3, report=lambda *_: None)
        for _ in range(2)
    )
    assert isinstance(once, Solution) and isinstance(again, Solution)
    assert (once.choices, once.objective, once.bound) == (
        again.choices,
        again.objective,
        again.bound,
    )
    assert once.bound <= once.objective and fits(ring(), once.choices)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("limit", [160, 185, 260])
def test_the_large_search_from_an_answer_under_another_limit(limit: int):
    first = search(ring())
    assert isinstance(first, Solution)
    problem = replace(ring(), limit=limit)
    near = search(problem, start=Start(first.choices), time_limit_s=120)
    assert isinstance(near, Solution) and fits(problem, near.choices)
    assert near.bound <= near.objective
    assert limit < 200 or near.objective <= first.objective


def search(problem: Problem, *, time_limit_s: float = 600, start: Start | None = None):
    return solve_spans(
        problem, time_limit_s=time_limit_s, workers=2, seed=3, report=lambda *_: None, start=start
    )


def test_an_interrupt_returns_the_best_so_far():
    def interrupt(seconds: float, stage: str, objective: int | None, bound: int):
        if stage == "cooling" and objective is not None:
            raise KeyboardInterrupt

    answer = solve_spans(ring(), time_limit_s=60, workers=2, seed=0, report=interrupt)
    assert isinstance(answer, Solution) and answer.wall_s < 30
    assert fits(ring(), answer.choices)
