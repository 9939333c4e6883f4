"""What lives when, against the memory that XLA gives the same programs on one CPU device."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cost.test_fusion import stored
from tests.steps import array, mlp, mlp_params, state, train
from xshard.cost.liveness import Liveness, liveness
from xshard.ir.graph import Graph
from xshard.ir.trace import trace
from xshard.rules import rule_of
from xshard.ties import ties_of

SMALL = 512
"""Bytes: XLA's tables of pointers, counters of loops, and so on."""


class Live(NamedTuple):
    """A function's graph, and the intervals of its values."""

    graph: Graph
    times: Liveness

    @property
    def peak(self) -> int:
        """The most bytes that live at one moment."""
        return max(self.at(t) for t in range(self.times.num_times))

    def at(self, t: int) -> int:
        sizes = np.array([v.nbytes for v in self.graph.values])
        return int(sizes[(self.times.first <= t) & (t <= self.times.last)].sum())

    def of(self, prim: str) -> tuple[int, int]:
        """First and last moment of the first result of that kind, as ops counted from 0."""
        [v, *_] = [op.outputs[0] for op in self.graph.ops if op.prim == prim]
        return int(self.times.first[v]), int(self.times.last[v])


def live(fun: Any, args: tuple[Any, ...], *, donated: bool = False) -> Live:
    """Of a function that may reuse its first argument."""
    graph, kept = stored(fun, *args)
    first = set(graph.inputs[: len(jax.tree.leaves(args[0]))]) if donated else set[int]()
    aliased = {v: arg for v, arg in ties_of(trace(fun, args)).items() if arg in first}
    in_place = [op.id for op in graph.ops if rule_of(graph, op).kind in ("elementwise", "view")]
    return Live(graph, liveness(graph, kept, aliased, in_place=in_place))


def compiled(fun: Any, args: tuple[Any, ...], *, donated: bool = False) -> tuple[int, int]:
    """(arguments and results, temporaries) in bytes, by XLA."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")
        lowered = jax.jit(fun, donate_argnums=(0,) if donated else ()).lower(*args)
        m = lowered.compile().memory_analysis()
    assert m is not None
    kept = m.argument_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes
    return kept, m.temp_size_in_bytes


def matmuls(x: Any, w: Any, v: Any) -> Any:
    return x @ w @ v


def scan_stacked(w: Any, x: Any) -> Any:
    def body(h: Any, _: Any) -> Any:
        h = jnp.tanh(h @ w)
        return h, h

    return jax.lax.scan(body, x, None, length=6)


def scan_layers(ws: Any, x: Any) -> Any:
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, ws)[0]


def scan_sums(xs: Any) -> Any:
    def body(total: Any, x: Any) -> Any:
        return total + x.T @ x, None

    return jax.lax.scan(body, jnp.zeros((512, 512)), xs)[0].sum(0)


def scan_steps(x: Any, w: Any) -> Any:
    return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), jnp.sin(x), None, length=6)[0].sum(0)


def scan_gradient(ws: Any, x: Any) -> Any:
    return jax.grad(lambda ws: scan_layers(ws, x).sum())(ws)


def counted(tree: list[Any]) -> list[Any]:
    return [jnp.exp(tree[0]) * 2 + tree[0]]


def spent(x: Any, w: Any) -> Any:
    """Its first argument is soon done with, and nothing fits its place."""
    return jnp.tanh(x.sum(0)[None] @ w) @ w.T @ w


STEP = train([mlp] * 3), (state([mlp_params(128, 512)] * 3), array(256, 128))
SQUARE = array(128, 128)
CASES = {
    # name: function, arguments, donated, least and most of predicted over actual temporaries
    "matmuls": (matmuls, (array(256, 128), array(128, 512), array(512, 64)), False, 1.0, 1.0),
    "a chain": (lambda x: jnp.exp(x) * 2 + x, (SQUARE,), False, 1.0, 1.0),
    "in the place of an argument": (counted, ([SQUARE],), True, 1.0, 1.0),
    "donated in vain": (spent, (array(4096, 64), array(64, 1024)), True, 1.0, 2.0),
    "a reshaped argument": (lambda x: x.reshape(-1), (SQUARE,), False, 1.0, 1.0),
    "a result twice, once turned": (
        lambda x, w: (lambda y: (y, y.T))(x @ w), (SQUARE, SQUARE), False, 0.0, 1.0,
    ),
    "a constant": (lambda x: x @ jnp.zeros((128, 128)), (SQUARE,), False, 0.0, 1.0),
    "a loop that stacks": (scan_stacked, (SQUARE, SQUARE), False, 0.99, 1.01),
    "a loop over layers": (scan_layers, (array(6, 128, 128), SQUARE), False, 0.99, 1.01),
    "sums in a loop": (scan_sums, (array(6, 128, 512),), False, 0.99, 1.01),
    "a loop that replaces what it reads": (scan_steps, (SQUARE, SQUARE), False, 0.99, 1.01),
    "its gradient": (scan_gradient, (array(6, 128, 128), array(512, 128)), False, 0.96, 1.03),
    "a train step": (*STEP, False, 1.0, 1.6),
    "a train step in place": (*STEP, True, 0.95, 1.1),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_against_xla(name: str) -> None:
    fun, args, donated, least, most = CASES[name]
    kept, temporary = compiled(fun, args, donated=donated)
    found = live(fun, args, donated=donated)
    end = found.at(found.times.num_times - 1)
    assert kept - SMALL <= end <= kept + SMALL
    assert least * temporary - SMALL <= found.peak - end <= most * temporary + SMALL


def test_intervals_of_a_loop() -> None:
    """Operands of a loop live until it ends; what it stacks, from its beginning."""
    found = live(lambda ws, x: scan_stacked(x @ x, x)[1] @ ws, (SQUARE, SQUARE))
    ops = [op.prim for op in found.graph.ops]
    inside = [op.id for op in found.graph.ops if len(op.address) > 1]
    weight, stacked = found.of("dot_general"), found.of("scan_y")
    assert weight[0] == ops.index("dot_general") and weight[1] >= max(inside)
    assert stacked[0] <= min(inside) and stacked[1] >= ops.index("scan_y")


def test_operands_wait_for_what_is_computed_again() -> None:
    """`y` has no buffer: its reader at the end reads the matmul that it is made of."""

    def late(x: Any, w: Any) -> Any:
        y = (x @ w) * 2
        return (x @ w.T @ w) + y

    found = live(late, (SQUARE, SQUARE))
    [last] = [op.id for op in found.graph.ops if op.prim == "add"]
    assert found.of("dot_general") == (0, last)
    assert found.of("mul") == (-1, -2)


def test_a_view_is_read_as_long_as_what_reads_it() -> None:
    """So a copy that was made for a constraint lives until the last of its readers."""

    def fun(x: Any, y: Any) -> Any:
        seen = x.T
        z = jnp.tanh(y @ y)
        return seen @ z

    graph, times = live(fun, (array(4, 4), array(4, 4)))
    ops = {op.prim: op for op in graph.ops}
    view = ops["transpose"].outputs[0]
    last = max(op.id for op in graph.ops if view in op.inputs)
    assert times.read_until[graph.inputs[0]] == times.read_until[view] == last
