"""Look-up of measured costs: exact, between two sizes, else analytic; what is measured as one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.steps import array
from xshard.cost.cluster import Cluster
from xshard.cost.collectives import CollectiveModel
from xshard.cost.fusion import storage
from xshard.cost.measured import Curve, Measured, Price
from xshard.cost.measured_prices import MeasuredPrices, dot_ns, prices_of
from xshard.cost.prices import ClusterPrices
from xshard.cost.reshard import Step
from xshard.cost.signature import Signature, collective, loop, of_op
from xshard.ir.graph import Graph
from xshard.ir.trace import trace
from xshard.rules import rule_of
from xshard.spec import MeshShape
from xshard.strategies import strategies_of

MESH = MeshShape(("x", "y"), (2, 4))
CLUSTER = Cluster.parse("h100-80gb:8")


def dot(*sizes: int, family: str = "f") -> Signature:
    return Signature("dot_general", family, sizes)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((8, 8, 8), Price(100.0, "measured")),
        ((8, 16, 8), Price(200.0, "interpolated")),  # between 8 and 32, log over log
        ((8, 8, 64), None),  # beyond all
        ((16, 16, 8), None),  # two sizes differ
        ((4, 8, 8), None),
    ],
)
def test_one_size_may_lie_between(sizes: tuple[int, ...], expected: Price | None):
    known = Measured({dot(8, 8, 8): 100.0, dot(8, 32, 8): 400.0, dot(8, 8, 32): 150.0})
    found = known.find(dot(*sizes))
    assert found == expected or (
        found and expected and found.source == expected.source
        and found.ns == pytest.approx(expected.ns)
    )  # fmt: skip
    assert known.find(dot(*sizes, family="g")) is None


def test_the_nearest_neighbours_count():
    known = Measured({
        dot(1, 16): 1000.0, dot(64, 16): 2000.0,  # along the first size: far apart
        dot(8, 12): 70.0, dot(8, 20): 90.0,
    })  # fmt: skip
    found = known.find(dot(8, 16))
    assert found and 70 < found.ns < 90


def test_measurements_travel_as_text():
    known = Measured({dot(8, 2): 1.5, loop("reduce", "float32", 64): 2.0}, "abacus", "1.0")
    again = Measured.from_json(known.to_json())
    assert again.to_json() == known.to_json()
    assert again.find(dot(8, 2)) == Price(1.5, "measured")


def test_a_curve_goes_on_as_the_analytic_time_does():
    curve = Curve((10.0, 100.0), (50.0, 230.0), lambda n: 5 + n)  # twice as steep
    at = curve.at(np.array([10.0, 100.0, 200.0, 1.0, 0.0]))
    assert at == pytest.approx([50, 230, 430, 41, 40])
    assert [curve.source(n) for n in (10, 50, 100, 101, 5)] == [
        "measured", "interpolated", "measured", "analytic", "analytic",
    ]  # fmt: skip
    falling = Curve((1e6, 2e6), (5.0, 1.0), lambda n: n)
    assert (falling.at(np.array([0.0, 1.0, 1e7])) >= 0).all()


SHAPES: list[tuple[str, tuple[int, ...], tuple[int, ...], str, tuple[int, ...]]] = [
    ("bsd,df->bsf", (4, 8, 16), (16, 32), "a b, b c -> a c", (32, 16, 32)),
    ("bsd,dhe->bshe", (4, 8, 16), (16, 2, 4), "a b, b c -> a c", (32, 16, 8)),
    ("bsf,df->bsd", (4, 8, 16), (32, 16), "a b, c b -> a c", (32, 16, 32)),
    ("bsd,bsf->df", (4, 8, 16), (4, 8, 32), "a b, a c -> b c", (32, 16, 32)),
    ("bhqd,bhkd->bhqk", (4, 2, 8, 16), (4, 2, 6, 16), "a b c, a d c -> a b d", (8, 8, 16, 6)),
]


def one_op(text: str, left: tuple[int, ...], right: tuple[int, ...]) -> Graph:
    def product(x: Any, y: Any) -> Any:
        return jnp.einsum(text, x, y)

    return trace(product, (array(*left), array(*right))).graph


def signatures(graph: Graph, mesh: MeshShape) -> list[Signature]:
    """Of the graph's matmul under each strategy."""
    op = next(op for op in graph.ops if op.prim == "dot_general")
    ins = [graph.values[v] for v in op.inputs if v is not None]
    outs = [graph.values[v] for v in op.outputs]
    rule = rule_of(graph, op)
    ranks = [tuple(len(v.shape) for v in side) for side in (ins, outs)]
    found = [of_op(op, rule, s, mesh, [*ins], outs) for s in strategies_of(rule, mesh, *ranks)]
    return [s for s in found if s]


@pytest.mark.parametrize(("text", "left", "right", "form", "sizes"), SHAPES)
def test_matmuls_of_one_form_are_one_measurement(
    text: str, left: tuple[int, ...], right: tuple[int, ...], form: str, sizes: tuple[int, ...]
):
    whole, *split = signatures(one_op(text, left, right), MESH)
    assert whole.family == f"{form} float32 float32 float32"
    assert whole.sizes == sizes
    work = [np.prod(s.sizes) * n for s in split for n in (1, 2, 4, 8)]
    assert split and all(np.prod(s.sizes) * 8 >= np.prod(sizes) for s in split)
    assert {s.family for s in split} == {whole.family} and np.prod(sizes) in work


def test_precision_is_part_of_it():
    def exact(x: Any, y: Any) -> Any:
        return jnp.dot(x, y, precision=jax.lax.Precision.HIGHEST)

    graph = trace(exact, (array(4, 4), array(4, 4))).graph
    assert signatures(graph, MESH)[0].family == "a b, b c -> a c float32 float32 float32 HIGHEST"


def step() -> Any:
    def loss(w: Any, x: Any) -> Any:
        return jnp.sum(jnp.tanh(x @ w))

    return trace(jax.grad(loss), (array(512, 512), array(1024, 512)))


def prices(measured: Measured | None) -> ClusterPrices:
    graph = step().graph
    rules = [rule_of(graph, op) for op in graph.ops]
    return prices_of(graph, storage(graph, rules), CLUSTER, MESH, measured)


def op_prices(p: ClusterPrices, prim: str) -> list[Price]:
    """Of the first such op under each strategy."""
    op = next(op for op in p.graph.ops if op.prim == prim)
    rule = rule_of(p.graph, op)
    ranks = [
        tuple(0 if v is None else len(p.graph.values[v].shape) for v in side)
        for side in (op.inputs, op.outputs)
    ]
    return [p.op_price(p.graph, op, rule, s) for s in strategies_of(rule, MESH, *ranks)]


def test_without_measurements_all_is_analytic():
    assert type(prices(None)) is type(prices(Measured({}))) is ClusterPrices
    assert {p.source for p in op_prices(prices(None), "dot_general")} == {"analytic"}


def test_unmeasured_matmuls_are_as_far_from_the_model_as_measured_ones():
    base = op_prices(prices(None), "dot_general")
    some = signatures(step().graph, MESH)[:2]
    known = Measured({s: 3 * dot_ns(CLUSTER.device, s) for s in some})
    found = op_prices(prices(known), "dot_general")
    assert {p.source for p in found} == {"measured", "interpolated", "analytic"}
    ratios = [p.ns / b.ns for p, b in zip(found, base, strict=True)]
    assert ratios == pytest.approx([3.0] * len(ratios), rel=0.06)


def test_loops_and_collectives_follow_their_curves():
    p = prices(None)
    group = CollectiveModel(CLUSTER, MESH).group((1,))
    known = Measured({
        loop("transcendental", "float32", 1 << 10): 7e4,
        loop("transcendental", "float32", 1 << 24): 7e6,
        collective("all-reduce", group, 1 << 12): 1e6,
        collective("all-reduce", group, 1 << 22): 4e6,
    })  # fmt: skip
    m = prices(known)
    assert isinstance(m, MeasuredPrices)
    assert {x.source for x in op_prices(m, "tanh")} == {"interpolated"}
    assert min(x.ns for x in op_prices(m, "tanh")) > max(x.ns for x in op_prices(p, "tanh"))
    steps = [Step("all-reduce", axes, n, 0) for axes in ((1,), (0,)) for n in (1 << 12, 1 << 20)]
    assert [m.step_source(s) for s in steps] == [
        "measured", "interpolated", "analytic", "analytic",
    ]  # fmt: skip
    assert m.step_ns(steps[0]) == 1_000_000 and 1e6 < m.step_ns(steps[1]) < 4e6
    assert [m.step_ns(s) for s in steps[2:]] == [p.step_ns(s) for s in steps[2:]]
    assert Step("all-gather", (1,), 1 << 12, 0) and m.step_source(
        Step("all-gather", (1,), 1 << 12, 0)
    ) == "analytic"  # fmt: skip
