"""What the user states is kept: `in_specs`, `out_specs`, constraints inside of the function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import xshard
from tests.api.oracles import assert_close, assert_same

X = np.arange(64, dtype=np.float32).reshape(8, 8) / 64
FREE = P.UNCONSTRAINED
Meshes = Callable[..., jax.sharding.Mesh]


def train(state: Any, x: Any) -> Any:
    grad = jax.grad(lambda w: ((x @ w) ** 2).mean())(state["w"])
    return {"w": state["w"] - 0.1 * grad, "n": state["n"] + 1}, jnp.abs(grad).max()


ARGS = ({"w": X, "n": 0}, X)
IN_SPECS: list[tuple[Any, dict[str, Any]]] = [
    # in_specs, spec of each pinned argument
    (None, {}),
    ((None, P("x")), {"args[1]": ((0,), ())}),
    ((None, P(("x", "y"))), {"args[1]": ((0, 1), ())}),
    (({"w": P(None, "y"), "n": None}, None), {"args[0]['w']": ((), (1,))}),
    (({"w": None, "n": P()}, P("y")), {"args[0]['n']": (), "args[1]": ((1,), ())}),
    (P(), {"args[0]['n']": (), "args[0]['w']": ((), ()), "args[1]": ((), ())}),
]


@pytest.mark.parametrize(("specs", "pinned"), IN_SPECS)
def test_in_specs(specs: Any, pinned: dict[str, Any], mesh: Meshes) -> None:
    step = assert_same(train, ARGS, mesh(2, 4), in_specs=specs)
    assert {a.path: a.spec for a in step.plan.arguments if a.pinned} == pinned


def test_unconstrained_dimensions_are_free(mesh: Meshes) -> None:
    step = assert_same(train, ARGS, mesh(2, 4), in_specs=(None, P(FREE, "x")))
    assert step.plan.arguments[-1].spec[1] == (0,)


def test_static_arguments_have_no_spec(mesh: Meshes) -> None:
    fun = lambda how, x: x @ x if how else x  # noqa: E731
    step = xshard.auto_shard(fun, mesh(2, 4), static_argnums=0, in_specs=(P("y"),), time_limit=5)
    assert_close(step(True, X), jnp.asarray(X @ X))
    assert step.in_shardings[0].spec == P("y", None)


@pytest.mark.parametrize("k", range(6))
def test_one_result_of_many_alike(k: int, mesh: Meshes) -> None:
    """Layers that are planned as one are told apart by their pins."""

    def layers(x: Any) -> Any:
        found = []
        for _ in range(6):
            x = jnp.tanh(x @ x)
            found.append(x)
        return found

    specs: list[P | None] = [None] * 6
    specs[k] = P("y", "x")
    step = assert_same(layers, (X,), mesh(2, 4), out_specs=specs)
    assert step(X)[k].sharding.spec == P("y", "x")


def test_result_that_is_the_next_argument(mesh: Meshes) -> None:
    """Its pin goes before the argument's spec."""
    specs: Any = {"out_specs": ({"w": P("y", "x"), "n": None}, P())}
    step = assert_same(train, ARGS, mesh(2, 4), in_specs=(P(), P("x")), **specs)
    assert step(*ARGS)[0]["w"].sharding.spec == P("y", "x")


def constrained(mesh: Any, *spec: Any) -> Callable[[Any], Any]:
    return lambda x: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*spec)))


def test_constraints_in_the_function(mesh: Meshes) -> None:
    split = constrained(mesh(2, 4), "y", "x")
    step = assert_same(lambda x: split(x @ x), (X,), mesh(2, 4))
    assert step(X).sharding.spec == P("y", "x")
    partly = constrained(mesh(2, 4), FREE, "y")
    step = assert_same(lambda x: partly(x @ x), (X,), mesh(2, 4))
    assert step.plan.results[0].spec[1] == (1,)


def test_constraints_in_bodies_and_by_context(mesh: Meshes) -> None:
    """Of a scan, by a bare PartitionSpec: the axes are those of `jax.set_mesh`."""

    def fun(x: Any) -> Any:
        def body(c: Any, _: Any) -> Any:
            c = jax.lax.with_sharding_constraint(jnp.tanh(c @ x), P("y", "x"))
            return c, c.sum()

        return jax.lax.scan(body, x, length=3)

    with jax.set_mesh(mesh(2, 4)):
        step = xshard.auto_shard(fun, mesh(2, 4), time_limit=5)
        assert_close(step(X), jax.jit(fun)(X))
        text = step.lower(X).as_text()
    assert '[{"y"}, {"x"}]' in text.replace("?", "")


BAD_SPECS: list[tuple[dict[str, Any], str]] = [
    (
        {"in_specs": P("z")},
        r"args\[0\]: P\('z',\) names the axis 'z', but the mesh has x=2×y=4; use one of its axes",
    ),
    ({"in_specs": P("x", "y", "x")}, r"has 3 dimensions, the array has shape \(8, 6\)"),
    ({"in_specs": P("x", "x")}, r"args\[0\]: P\('x', 'x'\) names an axis twice"),
    (
        {"in_specs": (P(None, "y"),)},
        r"splits dimension 1 of 6 elements over 4 shards, which does not divide; pin another",
    ),
    ({"in_specs": P(("y", "x"))}, "in another order than the mesh"),
    ({"in_specs": ("x",)}, r"args\[0\]: expected a PartitionSpec or None, got 'x'"),
    ({"in_specs": (None, None)}, r"no prefix of args\[0\]"),
    ({"in_specs": ({"w": P()},)}, r"no prefix of args\[0\]"),
    ({"out_specs": (P(), P(), P())}, r"no prefix of result\[0\]"),
]


@pytest.mark.parametrize(("options", "message"), BAD_SPECS)
def test_bad_specs(options: dict[str, Any], message: str, mesh: Meshes) -> None:
    step = xshard.auto_shard(lambda x: (x * 2, x), mesh(2, 4), **options)
    with pytest.raises(xshard.PinError, match=message):
        step(X[:, :6])


RETURNED: list[tuple[Callable[..., Any], Any, Any]] = [
    # function of the mesh, in_specs, out_specs
    (lambda _: lambda x: (x * 2, x), P("x"), (None, P("y"))),
    (lambda _: lambda x: (x * 2, x * 2 + 1), P("x"), (P("y"), P(None, "x"))),
    (lambda _: lambda x: (y := jnp.tanh(x), y), None, (P("x"), P("y"))),
    (lambda _: lambda x: (jnp.sort(x), x), None, (P(None, "x"), P())),
    (lambda mesh: lambda x: (constrained(mesh, "x")(x * 2), x), None, (P("y"), None)),
]


@pytest.mark.parametrize("case", range(len(RETURNED)))
def test_results_are_resharded_at_the_end(case: int, mesh: Meshes) -> None:
    """A result is returned as the user wants it, whatever else holds for the same value."""
    make, in_specs, out_specs = RETURNED[case]
    step = assert_same(make(mesh(2, 4)), (X,), mesh(2, 4), in_specs=in_specs, out_specs=out_specs)
    for result, planned, spec in zip(step(X), step.plan.results, out_specs, strict=True):
        assert spec is None or planned.pinned
        assert spec is None or tuple(result.sharding.spec)[: len(spec)] == tuple(spec)


def test_moments_in_shards_of_whole_parameters(mesh: Meshes) -> None:
    """ZeRO-1 by hand: one elementwise update makes results of two shardings."""

    def update(state: Any, grad: Any) -> Any:
        w, moment = state
        moment = 0.9 * moment + grad
        return w - 0.1 * moment, moment

    specs = (P(), P("x"))
    step = assert_same(update, ((X, X + 1), X), mesh(8), in_specs=(specs, P()), out_specs=specs)
    assert [r.spec for r in step.plan.results] == [((), ()), ((0,), ())]


def test_bad_constraints(mesh: Meshes) -> None:
    """They are told with the user's line."""
    rows = constrained(mesh(2, 4), "x")
    other_axes = xshard.auto_shard(lambda x: rows(x * 2), mesh(2, 2, 2), in_specs=P("z"))
    with pytest.raises(xshard.PinError, match=r"constraint at test_pins.py:\d+ \(<lambda>\)"):
        xshard.auto_shard(lambda x: rows(x * 2), 8)(X)
    assert_close(other_axes(X), jnp.asarray(X * 2))
