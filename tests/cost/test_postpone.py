"""Which weight gradients run late where XLA hides collectives behind computation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from tests.cost.test_fusion import stored
from tests.steps import array, mlp, mlp_params, state, train
from xshard.cost.liveness import liveness
from xshard.cost.postpone import postponed
from xshard.ir.fold import fold
from xshard.ir.trace import trace
from xshard.rules import rule_of

LAYERS = 4


def late(fun: Any, *args: Any) -> tuple[Any, dict[int, int]]:
    graph = trace(fun, args).graph
    classes = fold(graph)
    rules = [rule_of(graph, graph.ops[m[0]]) for m in classes.members]
    return graph, postponed(graph, classes, rules)


def test_a_layers_gradients_run_with_those_of_the_layer_before_it() -> None:
    args = state([mlp_params()] * LAYERS), array(8, 8)
    graph, found = late(train([mlp] * LAYERS), *args)
    assert len(found) == 2 * (LAYERS - 1)  # two weights a layer; the first layer's come last
    for op, later in found.items():
        a, b = graph.ops[op], graph.ops[later]
        assert a.phase == b.phase == "bwd" and a.prim == b.prim == "dot_general" and op < later


def test_a_shared_table_gets_its_gradient_at_the_end() -> None:
    """The head's part waits for the embedding's, and what it is made of with it."""

    def step(table: Any, tokens: Any) -> Any:
        def loss(table: Any) -> Any:
            return jnp.sum(jnp.tanh(table[tokens]) @ table.T) ** 2

        return table - jax.grad(loss)(table)

    args = array(32, 8), array(4, dtype=jnp.int32)
    graph, found = late(step, *args)
    [(head, added)] = [(a, b) for a, b in found.items() if graph.ops[b].prim == "add_any"]
    kept = stored(step, *args)[1]
    cotangent = kept.buffer[graph.ops[head].inputs[0] or 0]
    soon, then = (liveness(graph, kept, {}, x).last[cotangent] for x in ({}, found))
    assert soon < added == then


def test_recomputation_ends_the_wait_of_a_shared_table() -> None:
    """The head's part runs by the end of the next layer's backward pass."""
    layer = jax.checkpoint(lambda w, x: jnp.tanh(jnp.sin(x @ w)))

    def step(params: Any, tokens: Any) -> Any:
        def loss(params: Any) -> Any:
            x = params["table"][tokens]
            for w in params["layers"]:
                x = layer(w, x)
            return jnp.sum(x @ params["table"].T) ** 2

        return jax.tree.map(jnp.subtract, params, jax.grad(loss)(params))

    params = {"table": array(32, 8), "layers": [array(8, 8) for _ in range(LAYERS)]}
    graph, found = late(step, params, array(4, dtype=jnp.int32))
    [(head, later)] = found.items()
    again = [op.id for op in graph.ops if op.recomputed]
    starts = [i for i in again if i - 1 not in again]
    assert len(starts) == LAYERS and head < starts[0] < later == starts[1] - 1
