"""Layers found in a step: which ops of the forward and of the backward pass belong to which."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tests.steps import array, mix, mix_params, mlp, mlp_params, state, train
from xshard.ir.fold import signature
from xshard.ir.graph import Graph
from xshard.ir.layers import Chain, Loop, find_layers
from xshard.ir.trace import trace
from xshard.microbatch.split import divided

MLP, MIX = mlp_params(), mix_params()
CASES = {
    # name: blocks, parameters, layers of each chain
    "equal layers": ([mlp] * 5, [MLP] * 5, [5]),
    "encoder and decoder": ([mlp] * 4 + [mix] * 6, [MLP] * 4 + [MIX] * 6, [4, 6]),
    "two kinds in turn": ([mlp, mix] * 4, [MLP, MIX] * 4, [4]),
    "one layer": ([mlp], [MLP], []),
}


def graph_of(blocks: Any, params: Any) -> Graph:
    return trace(train(blocks), (state(params), array(4, 8))).graph


def blocks_of(graph: Graph, ops: tuple[int, ...]) -> set[int]:
    """Which blocks' weights the matmuls of these ops read."""
    read = [v for o in ops if graph.ops[o].prim == "dot_general" for v in graph.ops[o].inputs]
    names = [graph.values[v].name for v in read if v is not None]
    return {int(name.split("[")[3][:-1]) for name in names if name.startswith("args[0]")}


@pytest.mark.parametrize("name", CASES)
def test_unrolled_layers_with_their_backward_parts(name: str) -> None:
    blocks, params, lengths = CASES[name]
    graph = graph_of(blocks, params)
    chains = find_layers(graph)
    assert [c.length for c in chains] == lengths
    number = 0
    width = len(blocks) // max(1, sum(lengths))  # "two kinds in turn": a layer is two blocks
    for chain in chains:
        assert isinstance(chain, Chain)
        for layer in chain.layers:
            mine = set(range(number * width, (number + 1) * width))
            assert blocks_of(graph, layer.forward) == mine
            assert blocks_of(graph, layer.backward) <= mine
            number += 1
        assert len({tuple(kinds(graph, layer.forward)) for layer in chain.layers}) == 1
        inner = chain.layers[1:-1]
        assert len({tuple(kinds(graph, layer.backward)) for layer in inner}) <= 1


def kinds(graph: Graph, ops: tuple[int, ...]) -> list[str]:
    return [str(signature(graph, graph.ops[o])) for o in ops]


def test_every_forward_and_backward_op_is_in_one_part() -> None:
    graph = graph_of([mlp] * 5, [MLP] * 5)
    [chain] = find_layers(graph)
    assert isinstance(chain, Chain)
    parts = [chain.before, *chain.layers, chain.after]
    for phase, told in (
        ("fwd", [o for part in parts for o in part.forward]),
        ("bwd", [o for part in parts for o in part.backward]),
    ):
        assert sorted(told) == [op.id for op in graph.ops if op.phase == phase]


def scanned(layers: Any, x: Any) -> Any:
    return jax.lax.scan(lambda x, p: (mlp(p, x), None), x, layers)[0]


def stacked(n: int) -> Any:
    return jax.tree.map(lambda a: array(n, *a.shape), MLP)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_scanned_layers_in_a_loop_over_microbatches_or_not(microbatches: int) -> None:
    def loss(p: Any, x: Any) -> Any:
        return jnp.mean(scanned(p["decoder"], scanned(p["encoder"], x)) ** 2)

    args = {"encoder": stacked(3), "decoder": stacked(6)}, array(4, 8)
    traced = trace(jax.grad(loss), args)
    traced = divided(traced, [None] * 4 + [0]).into(microbatches)
    first, second = find_layers(traced.graph)
    assert isinstance(first, Loop) and isinstance(second, Loop)
    assert (first.length, second.length) == (3, 6)
    assert first.region == second.region == first.forward[:-1]
    assert (len(first.region) > 0) == (microbatches > 1)
    assert first.forward < second.forward < second.backward < first.backward


def test_unrolled_layers_in_a_loop_over_microbatches_stand_in_its_body() -> None:
    traced = trace(train([mlp] * 5), (state([MLP] * 5), array(4, 8)))
    split = divided(traced, [*[None] * 30, 0]).into(2)
    [chain] = find_layers(split.graph)
    assert isinstance(chain, Chain)
    assert (len(chain.region), chain.length) == (2, 5)


def test_a_loop_that_nothing_goes_back_through_is_no_layer() -> None:
    assert find_layers(trace(scanned, (stacked(3), array(4, 8))).graph) == ()
