"""The problem of tiny programs: costs added up by hand, optimum by other means, pins, copies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from tests.solve.oracles import added_up, drafted, eliminated, problem_of
from tests.solve.problems import brute_force, random_problem
from tests.steps import array, mlp, mlp_params, state, train
from xshard.cost.prices import ClusterPrices
from xshard.errors import PinError
from xshard.solve.check import objective_of
from xshard.solve.draft import Draft, Pin, Use, copies_of, decode
from xshard.solve.problem import FORBIDDEN, Solution
from xshard.solve.search import solve
from xshard.spec import MeshShape

LINE, SQUARE = MeshShape(("x",), (2,)), MeshShape(("x", "y"), (2, 2))
MESHES = pytest.mark.parametrize("mesh", [LINE, SQUARE], ids=["2", "2x2"])


def matmuls(x: Any, w: Any, v: Any) -> Any:
    return x @ w @ v


def residual(x: Any, w: Any) -> Any:
    return x + jnp.tanh(x @ w)


def summed(x: Any, w: Any) -> Any:
    return jnp.sum(jnp.exp(x) @ w, axis=0) * 2


PROGRAMS = {
    "matmuls": (matmuls, (array(512, 256), array(256, 1024), array(1024, 128))),
    "residual": (residual, (array(2048, 512), array(512, 512))),
    "summed": (summed, (array(4096, 64), array(64, 128))),
    "odd sizes": (residual, (array(2046, 510), array(510, 510))),
    "a train step": (train([mlp]), (state([mlp_params(256, 512)]), array(4096, 256))),
}


@pytest.fixture
def no_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every op decides for itself."""
    monkeypatch.setattr(
        "xshard.solve.build.followers", lambda _, classes, __: list(range(len(classes.members)))
    )


def solved(d: Draft) -> Solution:
    answer = solve(problem_of(d))
    assert isinstance(answer, Solution) and answer.gap == 0
    return answer


def test_elimination_is_brute_force() -> None:
    for seed in range(60):
        problem = random_problem(seed, rows=False)
        best, _ = brute_force(problem)
        assert best == eliminated(problem) if best is not None else eliminated(problem) >= FORBIDDEN


@MESHES
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.usefixtures("no_chains")
def test_the_best_of_all_strategies(name: str, mesh: MeshShape) -> None:
    fun, args = PROGRAMS[name]
    d = drafted(fun, args, mesh, tied=True)
    answer = solved(d)
    assert answer.objective == eliminated(problem_of(d))
    assert answer.objective == added_up(d, decode(d, answer.choices))


@MESHES
@pytest.mark.parametrize("name", PROGRAMS)
def test_chains_cost_nothing(name: str, mesh: MeshShape, request: pytest.FixtureRequest) -> None:
    fun, args = PROGRAMS[name]
    d = drafted(fun, args, mesh, tied=True)
    answer = solved(d)
    assert answer.objective == added_up(d, decode(d, answer.choices))
    request.getfixturevalue("no_chains")
    assert answer.objective == solved(drafted(fun, args, mesh, tied=True)).objective


@MESHES
@pytest.mark.parametrize("name", PROGRAMS)
def test_any_choices_cost_what_they_mean(name: str, mesh: MeshShape) -> None:
    fun, args = PROGRAMS[name]
    d = drafted(fun, args, mesh, tied=True)
    rng = np.random.default_rng(0)
    for _ in range(20):
        choices = tuple(int(rng.integers(len(n.costs))) for n in d.nodes)
        assert objective_of(problem_of(d), choices) == added_up(d, decode(d, choices))


@MESHES
def test_one_choice_for_all_members_of_a_class_costs_no_less(mesh: MeshShape) -> None:
    args = train([mlp] * 4), (state([mlp_params(256, 512)] * 4), array(512, 256)), mesh
    folded = drafted(*args, folded=True, tied=True)
    alone = drafted(*args, tied=True)
    assert len(folded.nodes) < 0.5 * len(alone.nodes)
    assert solved(alone).objective <= solved(folded).objective


def result(d: Draft, prim: str) -> int:
    """The result of the first op of that kind."""
    return next(op.outputs[0] for op in d.graph.ops if op.prim == prim)


PINNED: dict[str, tuple[Any, Any, Any, list[Pin]]] = {
    # name: function, arguments, what is pinned (an argument's index, or an op), pins to try
    "an argument": (matmuls, PROGRAMS["matmuls"][1], 1, [((), ()), ((0,), (1,)), (None, (1,))]),
    "a sum": (matmuls, PROGRAMS["matmuls"][1], "dot_general", [((0,), (1,)), ((1,), None)]),
    "a chain": (residual, PROGRAMS["residual"][1], "tanh", [((), (0,)), ((0, 1), ()), (None, ())]),
    "an op alone": (jnp.sort, (array(64, 64),), "sort", [((1,), ()), ((0, 1), None)]),
}


@pytest.mark.parametrize("name", PINNED)
def test_pins_hold(name: str) -> None:
    fun, args, where, pins = PINNED[name]
    free = drafted(fun, args, SQUARE)
    v = free.graph.inputs[where] if isinstance(where, int) else result(free, where)
    for pin in pins:
        d = drafted(fun, args, SQUARE, pins={v: pin})
        answer = solved(d)
        spec = decode(d, answer.choices).specs[v]
        assert all(p in (None, s) for p, s in zip(pin, spec, strict=True))
        assert answer.objective >= solved(free).objective


def test_a_pin_that_no_strategy_gives_is_refused() -> None:
    d = drafted(jnp.sort, (array(64, 64),), SQUARE)
    with pytest.raises(PinError, match="sort cannot make an array of shape"):
        drafted(jnp.sort, (array(64, 64),), SQUARE, pins={result(d, "sort"): ((), (0,))})


def test_the_next_state_costs_its_way_back() -> None:
    """The result is made in the batch's spec, and the argument whose place it takes is pinned."""

    def step(w: Any, x: Any) -> Any:
        return w + x

    args = (array(512, 512), array(512, 512))
    pins = {0: ((), (0,)), 1: ((0,), ()), 2: ((0,), ())}
    d, free = (drafted(step, args, LINE, pins=pins, tied=tied) for tied in (True, False))
    assert (d.ties, free.ties) == ({(2, 0): 1}, {})
    back = d.prices.reshard_ns((512, 512), 4.0)
    there = d.spec_index((512, 512), ((0,), ())), d.spec_index((512, 512), ((), (0,)))
    assert solved(d).objective - solved(free).objective == back[there] > 0


def test_readers_share_one_copy() -> None:
    """q, k and v are columns; x comes in rows of the same axis and is gathered once."""

    def qkv(x: Any, q: Any, k: Any, v: Any) -> Any:
        return x @ q, x @ k, x @ v

    args = (array(4096, 256), *[array(256, 4096)] * 3)
    columns, kept = ((), (0,)), ((), (0,))
    outs = dict.fromkeys((4, 5, 6), columns)
    d = drafted(qkv, args, LINE, pins={0: kept, 1: columns, 2: columns, 3: columns, **outs})
    a = decode(d, solved(d).choices)
    assert a.copies == {(0, "fwd"): ((), ())}
    once = d.prices.reshard_ns((4096, 256), 4.0)
    gather = int(once[d.spec_index((4096, 256), kept), 0])
    ops = sum(
        d.prices.op_ns(d.graph, op, d.rules[op.id], s)
        for op, s in zip(d.graph.ops, a.strategies, strict=True)
    )
    assert solved(d).objective == ops + gather


READERS = [
    # value -> times that each of two ops reads it, copies in a step
    ({7: 4}, {7: 4}, 4),
    ({7: 4}, {8: 4}, 8),  # two values of one class, such as queries and keys
    ({7: 1, 8: 1}, {7: 4}, 5),
]


@pytest.mark.parametrize(("one", "other", "copies"), READERS)
def test_a_copy_is_of_one_value(one: Any, other: Any, copies: int) -> None:
    assert copies_of([Use(0, 1, 0, one), Use(0, 2, 1, other)]) == copies


def test_a_chain_is_one_node() -> None:
    def chain(x: Any, b: Any, w: Any) -> Any:
        y = jnp.exp(x + b) * 2
        return (y - jnp.sin(y)) @ w, jnp.cos(b)

    d = drafted(chain, (array(64, 32), array(32), array(32, 8)), LINE)
    nodes: dict[int, set[str]] = {}
    for op, node in zip(d.graph.ops, d.op_node, strict=True):
        nodes.setdefault(node, set()).add(op.prim)
    assert {"add", "exp", "mul", "sin", "sub"} in nodes.values()
    assert {"cos"} in nodes.values() and {"dot_general"} in nodes.values()


def test_what_the_backward_pass_hides_is_left_out() -> None:
    """Of a gradient's sum that only the update waits for; other collectives take what they take."""
    d = drafted(train([mlp]), (state([mlp_params(64, 128)]), array(32, 64)), LINE)
    assert isinstance(d.prices, ClusterPrices)
    cluster = d.prices.cluster
    hiding = replace(cluster, device=replace(cluster.device, gradient_overlap=0.75))
    hidden = ClusterPrices(d.graph, d.prices.storage, hiding, LINE)
    table = ((64, 128), 4, ((), ()), (0,))
    for combined, part in ((False, 1.0), (True, 0.25)):
        whole, left = (p.reduce_ns(*table, combined)[0] for p in (d.prices, hidden))
        assert left == pytest.approx(part * whole, rel=1e-3)


def test_only_gradients_for_the_update_are_combined() -> None:
    d = drafted(train([mlp]), (state([mlp_params(64, 128)]), array(32, 64)), LINE)
    ops = [op for op in d.graph.ops if op.prim == "dot_general"]
    found = [(op.phase, d.is_gradient[op.outputs[0]]) for op in ops]
    forward, weights, hidden = ("fwd", False), ("bwd", True), ("bwd", False)
    assert sorted(found) == sorted([forward, forward, weights, weights, hidden])
