"""In which order XLA:GPU runs kernels, and what that means for memory."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tests.cost.test_fusion import stored
from tests.steps import array, mlp, mlp_params, state, train
from xshard.cost.computations import computations
from xshard.cost.joined import add_sums
from xshard.cost.kernels import Computation, Copy, Kernel, Program, Sizes, Unfinished
from xshard.cost.moments import Moments, moments
from xshard.cost.schedule import Order, ordered
from xshard.ir.fold import fold
from xshard.ir.graph import Graph
from xshard.ir.trace import trace
from xshard.rules import rule_of

LAYERS = 3


def program(fun: Any, *args: Any) -> Program:
    graph = trace(fun, args).graph
    classes = fold(graph)
    kinds = [rule_of(graph, graph.ops[classes.members[c][0]]).kind for c in classes.op_class]
    return Program.of(graph, stored(fun, *args)[1], kinds)


def even(graph: Graph, **more: Any) -> Sizes:
    return Sizes([v.nbytes for v in graph.values], **more)


def in_order(found: Program, sizes: Sizes | None = None) -> Moments:
    return moments(found, sizes or even(found.graph))


def greedy(kernels: list[Kernel], nbytes: list[int]) -> Order:
    return ordered(Computation(kernels, {}, frozenset()), Sizes(nbytes), ["list"])


def test_each_op_runs_once_after_what_it_reads() -> None:
    args = state([mlp_params()] * LAYERS), array(8, 8)
    found = program(train([jax.checkpoint(mlp)] * LAYERS), *args)
    times = in_order(found)
    assert sorted(times.ops) == [op.id for op in found.graph.ops]
    for op in found.graph.ops:
        made = [found.graph.values[v].producer for v in op.inputs if v is not None]
        assert all(times.of_op[p] <= times.of_op[op.id] for p in made if p >= 0)


def test_a_checkpoint_waits_for_its_cotangent() -> None:
    args = state([mlp_params()] * LAYERS), array(8, 8)
    found = program(train([jax.checkpoint(mlp)] * LAYERS), *args)
    times, ops = in_order(found), found.graph.ops
    again = [times.of_op[op.id] for op in ops if op.recomputed and op.prim == "dot_general"]
    assert again and min(again) > max(times.of_op[op.id] for op in ops if op.phase == "fwd")


def test_loops_stay_together() -> None:
    def step(w: Any, x: Any) -> Any:
        carried, ys = jax.lax.scan(lambda c, _: (jnp.tanh(c @ w), c), x, length=3)
        return carried @ w, ys

    found = program(step, array(8, 8), array(8, 8))
    inside = [t for t, o in enumerate(in_order(found).ops) if found.paths[o]]
    assert inside == [*range(min(inside), max(inside) + 1)]


def test_what_frees_most_runs_first() -> None:
    """Buffer 0 makes 1 (small) and 2 (large); 3 shrinks the large one, 4 ends."""
    kernels = [
        Kernel("op", makes={0}),
        Kernel("op", reads={0}, makes={1}, views={(0, None)}),
        Kernel("op", reads={0}, makes={2}, views={(0, None)}),
        Kernel("op", reads={2}, makes={3}, views={(2, None)}),
        Kernel("op", reads={1, 3}, makes={4}, views={(1, None), (3, None)}),
    ]
    found = greedy(kernels, [100, 50, 5000, 10, 10])
    assert [min(k.makes) for k in found.kernels] == [0, 1, 2, 3, 4]
    assert found.peak_bytes == 100 + 50 + 5000


@pytest.mark.parametrize(("view", "last"), [(None, 4), ("transposed", 3)])
def test_another_view_hides_that_nothing_else_reads_an_array(view: str | None, last: int) -> None:
    """When 2 has run, 4 would free 0; it is not asked again if it reads another view."""
    kernels = [
        Kernel("op", makes={0}),
        Kernel("op", makes={1}),
        Kernel("op", reads={0}, makes={2}, views={(0, None)}),
        Kernel("op", reads={1, 2}, makes={3}, views={(1, None), (2, None)}),
        Kernel("op", reads={0}, makes={4}, views={(0, view)}),
    ]
    found = greedy(kernels, [10_000, 2000, 2000, 9000, 9500])
    places = [min(k.makes) for k in found.kernels]
    assert places.index(4) < places.index(3) if last == 4 else places.index(3) < places.index(4)


def test_collectives_start_early_and_end_late() -> None:
    """What a matmul leaves is held until the sum is read."""
    kernels = [
        Kernel("op", makes={0}),
        Kernel("op", makes={1}),
        Kernel("sum", reads={1}, makes={2}, views={(1, None)}),
        Kernel("op", reads={0}, makes={3}, views={(0, None)}),
        Kernel("op", reads={2, 3}, makes={4}, views={(2, None), (3, None)}),
    ]
    found = greedy(kernels, [4000, 3000, 3000, 2000, 100])
    at = {min(k.makes): i for i, k in enumerate(found.kernels)}
    assert at[2] == at[1] + 1 and found.ends[at[2]] == at[4]
    assert found.peak_bytes >= 3000 + 3000 + 2000


def test_gradients_of_a_layer_are_summed_together() -> None:
    args = state([mlp_params()] * LAYERS), array(8, 8)
    found = program(train([mlp] * LAYERS), *args)
    graph = found.graph
    weights = [
        op.outputs[0] for op in graph.ops
        if op.prim == "dot_general" and op.phase == "bwd"
        and op.params["dimension_numbers"][0][0] == (0,)
    ]  # fmt: skip
    assert len(weights) == 2 * LAYERS
    n, size = len(graph.values), graph.values[weights[0]].nbytes
    unfinished = {v: Unfinished(n + i, size, "sum") for i, v in enumerate(weights)}
    for most, together in ((10 * LAYERS * size, 2 * LAYERS), (2 * size, 2)):
        nbytes = [v.nbytes for v in graph.values] + [size] * len(weights)
        [computation] = computations(found, Sizes(nbytes, unfinished, combined_bytes=most))
        sums = [k for k in computation.kernels if k.kind == "sum"]
        assert {len(k.makes) for k in sums} == {together}


def test_a_sum_that_waits_for_another_is_not_finished_with_it() -> None:
    """Its op waits at a barrier for the other's result; a third one's op does not."""
    kernels = [
        Kernel("op", makes={0}),
        Kernel("barrier", reads={0}),
        Kernel("op", makes={1}, after={1}),
        Kernel("op", makes={2}),
    ]
    unfinished = {v: Unfinished(3 + v, 100, "sum") for v in range(3)}
    add_sums(kernels, Sizes([100] * 6, unfinished))
    assert sorted(sorted(k.makes) for k in kernels if k.kind == "sum") == [[0], [1, 2]]


def test_a_copy_is_made_for_all_its_readers() -> None:
    found = program(lambda w, x: (jnp.tanh(x @ w) @ w).sum(), array(8, 8), array(8, 8))
    graph = found.graph
    [w, _], n = graph.inputs, len(graph.values)
    readers = [op.id for op in graph.ops if w in op.inputs]
    copies = {(w, o): Copy(n, 256) for o in readers}
    times = in_order(found, Sizes([v.nbytes for v in graph.values] + [256], copies=copies))
    assert len(readers) == 2 and len(set(times.of_copy.values())) == 1
    assert times.of_copy[w, readers[0]] < times.of_op[readers[0]] < times.of_op[readers[1]]
