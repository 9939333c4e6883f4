"""Which values have a buffer: a row a program, with the ops whose results are stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tests.steps import array
from xshard.cost.cluster import Cluster
from xshard.cost.fusion import Storage, storage
from xshard.ir.graph import Graph
from xshard.ir.trace import trace
from xshard.rules import rule_of


def stored(fun: Callable[..., Any], *args: Any) -> tuple[Graph, Storage]:
    graph = trace(fun, tuple(args)).graph
    return graph, storage(graph, [rule_of(graph, op) for op in graph.ops])


def made(graph: Graph, kept: Storage) -> list[str]:
    """The ops of results that have a buffer of their own, in program order."""
    return [
        op.prim for op in graph.ops for v in op.outputs
        if kept.stored[v] and kept.buffer[v] == v
    ]  # fmt: skip


def loss(w: Any, x: Any) -> Any:
    return jnp.sum(jnp.exp(x @ w) * 2)


def scanned(ws: Any, x: Any) -> Any:
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w) + 1, h * 2), x, ws)


X, W = array(64, 32), array(32, 32)
TABLE = {
    # name: function, arguments, the ops whose results are stored
    "a chain is one loop": (lambda x: jnp.exp(x) * 2 + 1, [X], ["add"]),
    "a matmul reads and writes buffers": (
        lambda x, w: jnp.exp(x) @ w + 1, [X, W], ["exp", "dot_general", "add"],
    ),
    "a view is its operand": (
        lambda x, w: (x @ w).reshape(-1).reshape(32, 64).T @ w, [X, W],
        ["dot_general", "dot_general"],
    ),
    "a view between matmuls": (
        lambda x, w: jnp.tanh((x @ w).T) @ x, [X, W], ["dot_general", "tanh", "dot_general"],
    ),
    "a sum is stored, what it sums is not": (
        lambda x: jnp.sum(jnp.exp(x), 0) * 2, [X], ["reduce_sum", "mul"],
    ),
    "an argument that is returned reshaped is copied": (lambda x: x.reshape(-1), [X], ["reshape"]),
    "a result and a view of it are two": (
        lambda x, w: (lambda y: (y, y.T))(x @ w), [X, W], ["dot_general", "transpose"],
    ),
    "what the backward needs and is costly is kept": (
        jax.grad(loss), [W, X], ["dot_general", "exp", "mul", "dot_general"],
    ),
    "a loop stores slices that a matmul reads, its carry and what it stacks": (
        scanned, [array(5, 32, 32), X], ["scan_x", "dot_general", "add", "scan_y"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_stored_results(name: str) -> None:
    fun, args, expected = TABLE[name]
    graph, kept = stored(fun, *args)
    assert made(graph, kept) == expected


def attention(w: Any, x: Any, v: Any) -> Any:
    scores = (x @ w).astype(jnp.float32)
    probs = jax.nn.softmax(scores).astype(jnp.float16)
    return jnp.sum((probs @ v).astype(jnp.float32))


def residual(w: Any, x: Any) -> Any:
    x = x + x @ w
    x = x + jnp.sin(x) @ w
    return jnp.sum(x * x)


def gelu(w: Any, x: Any) -> Any:
    return jnp.sum(jnp.tanh(x @ w) ** 2)


def dropout(w: Any, x: Any, key: Any) -> Any:
    keep = jax.random.bits(jax.random.wrap_key_data(key), x.shape) > 2**30
    return jnp.sum(jnp.where(keep, x @ w, 0) ** 2)


HALF = array(32, 32, dtype=jnp.float16)
GPU_TABLE = {
    # name: function, arguments, what the forward pass stores
    "a softmax of narrower scores is computed again": (
        jax.grad(attention), [HALF, HALF, HALF], ["dot_general"],
    ),
    "a residual stream is kept": (
        jax.grad(residual), [W, X], ["dot_general", "add", "sin", "dot_general", "add"],
    ),
    "what takes many instructions is kept": (jax.grad(gelu), [W, X], ["dot_general", "tanh"]),
    "of a dropout its mask": (
        jax.grad(dropout), [W, X, array(2, dtype=jnp.uint32)], ["gt", "dot_general"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GPU_TABLE)
def test_kept_where_cheap_values_are_computed_again(name: str) -> None:
    fun, args, expected = GPU_TABLE[name]
    graph = trace(fun, tuple(args)).graph
    rules = [rule_of(graph, op) for op in graph.ops]
    kept = storage(graph, rules, Cluster.parse("h100:1").device.keeps)
    found = [
        op.prim for op in graph.ops for v in op.outputs
        if op.phase == "fwd" and kept.stored[v] and kept.buffer[v] == v
        and rules[op.id].kind in ("elementwise", "heavy")
    ]  # fmt: skip
    assert found == expected


@pytest.mark.parametrize("name", TABLE)
def test_arguments_and_results_have_buffers(name: str) -> None:
    fun, args, _ = TABLE[name]
    graph, kept = stored(fun, *args)
    results = [v for v in graph.outputs if v is not None]
    assert all(kept.stored[v] and kept.buffer[v] == v for v in graph.inputs)
    assert all(kept.is_stored(v) for v in results)
    buffers = [kept.buffer[v] for v in results]
    assert len({*buffers, *graph.inputs}) == len(results) + len(graph.inputs)
    assert all(kept.buffer[b] == b for b in kept.buffer)


def test_each_result_of_fused_ops_has_a_loop_of_its_own():
    """The clipped gradient has no buffer: both moments compute it, and both read the gradient."""

    def moments(m: Any, v: Any, g: Any) -> Any:
        clipped = g * 0.5
        return 0.9 * m + clipped, 0.95 * v + clipped * clipped

    graph, kept = stored(moments, X, X, X)
    m, v, g = (kept.readers[i] for i in graph.inputs)
    assert (m, v, g) == (1, 1, 2)
    loops = [kept.loops(op, rule_of(graph, op)) for op in graph.ops]
    clip = next(op.id for op in graph.ops if graph.inputs[2] in op.inputs)
    assert loops[clip] == 2
    assert all(n == 1 for i, n in enumerate(loops) if i != clip)


def test_what_is_costly_is_computed_once():
    graph, kept = stored(lambda x: (lambda y: (y + 1, y * 2))(jnp.exp(x)), X)
    assert kept.readers[graph.inputs[0]] == 1
