"""Parts of a program that say themselves how they are split: their mesh axes are kept."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import PartitionSpec as P

from tests.rules.one_op import avals, rule_of_equation
from xshard.spec import MeshShape
from xshard.strategies import strategies_of


def only_rule(fun: Any, args: str) -> Any:
    """Of a function with one equation."""
    (eqn,) = jax.make_jaxpr(fun)(*avals(args)).jaxpr.eqns
    return rule_of_equation(eqn)


def island(mesh: Any, in_spec: P, out_spec: P, fun: Any) -> Any:
    wrapped = jax.shard_map(fun, mesh=mesh, in_specs=in_spec, out_specs=out_spec, check_vma=False)
    return only_rule(wrapped, "f32[8,6]")


def test_a_shard_map_keeps_its_specs(mesh: Any) -> None:
    rule = island(mesh(2, 2), P(("x", "y")), P("y"), lambda a: lax.all_gather(a, "x", tiled=True))
    assert rule.text() == "(axis x axis y a!) b! -> (axis y c!) d!"
    (only,) = strategies_of(rule, MeshShape(("x", "y"), (2, 2)), (2,), (2,))
    assert (only.operands, only.results) == ((((0, 1), ()),), (((1,), ()),))


def test_what_a_shard_map_sums_is_whole_outside(mesh: Any) -> None:
    rule = island(mesh(2), P("x"), P(), lambda a: lax.psum(a, "x"))
    (only,) = strategies_of(rule, MeshShape(("x",), (2,)), (2,), (2,))
    assert (only.operands, only.results, only.partial) == ((((0,), ()),), (((), ()),), ())


def test_a_shard_map_over_other_axes_is_whole_outside(mesh: Any) -> None:
    rule = island(mesh(2), P("x"), P("x"), jnp.sin)
    for other in (MeshShape(("data",), (2,)), MeshShape(("x",), (4,))):
        (only,) = strategies_of(rule, other, (2,), (2,))
        assert only.operands == (((), ()),)


def partitioned(sharding_rule: str) -> Any:
    @custom_partitioning
    def fun(a: Any, b: Any) -> Any:
        return a @ b

    fun.def_partition(
        infer_sharding_from_operands=lambda *_: None,
        partition=lambda *_: None,
        sharding_rule=sharding_rule,
    )
    return only_rule(fun, "f32[8,6] f32[6,4]")


def test_custom_partitioning_says_its_rule() -> None:
    rule = partitioned("i k, k j -> i j")
    assert rule.text() == "i k, k j -> i j"
    assert not rule.reduced


def test_custom_partitioning_with_open_dimensions_is_whole() -> None:
    assert not partitioned("... k, k j -> ... j").known
