"""Where arguments and results lie: meshes, axis types, moved arrays, captured arrays, `init`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import xshard
from tests.api.oracles import assert_close, assert_same

X = np.arange(64, dtype=np.float32).reshape(8, 8) / 64
STATE = {"w": X, "n": 0}
Meshes = Callable[..., Mesh]


def train(state: Any, x: Any) -> Any:
    grad = jax.grad(lambda w: ((x @ w) ** 2).mean())(state["w"])
    return {"w": state["w"] - 0.1 * grad, "n": state["n"] + 1}, jnp.abs(grad).max()


def sharded(fun: Callable[..., Any], mesh: Mesh | int | None, **options: Any) -> Any:
    return xshard.auto_shard(fun, mesh, time_limit=5, **options)


MESHES: dict[str, Callable[[], Any]] = {
    "all devices": lambda: None,
    "a number": lambda: 4,
    "one": lambda: 1,
    "one device": lambda: Mesh(jax.devices()[5:6], ("x",)),
    "the last four": lambda: Mesh(np.array(jax.devices()[4:]).reshape(2, 2), ("x", "y")),
    "six": lambda: Mesh(np.array(jax.devices()[:6]).reshape(3, 2), ("x", "y")),
    "an axis of one": lambda: Mesh(np.array(jax.devices()).reshape(8, 1), ("x", "y")),
    "backwards": lambda: Mesh(np.array(jax.devices()[::-1]).reshape(2, 4), ("b", "a")),
    "explicit": lambda: jax.make_mesh((2, 4), ("x", "y")),
    "half explicit": lambda: jax.make_mesh(
        (2, 4), ("x", "y"), (AxisType.Explicit, AxisType.Auto)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MESHES)
def test_any_mesh(name: str) -> None:
    """And the results are arguments of the next step."""
    step = assert_same(train, (STATE, X), MESHES[name]())
    state, _ = step(STATE, X)
    assert_close(step(state, X), jax.jit(train)(jax.jit(train)(STATE, X)[0], X))


def test_explicit_axes_stay_explicit() -> None:
    """Results have types of the user's own mesh, inside `jax.set_mesh` and outside."""
    mesh = jax.make_mesh((2, 4), ("x", "y"))
    x = jax.device_put(X, NamedSharding(mesh, P("x", "y")))
    fun = lambda x: (jnp.tanh(x @ x.T), x)  # noqa: E731
    step = sharded(fun, mesh, in_specs=P("x"), out_specs=(P("y"), None))
    with jax.set_mesh(mesh):
        inside = step(x)
    for results in (inside, step(x), step(X)):
        assert_close(jax.device_get(results), jax.device_get(jax.jit(fun)(X)))
        assert (
            jax.typeof(results[0]).sharding
            == jax.typeof(jax.device_put(X, NamedSharding(mesh, P("y")))).sharding
        )


def test_reshard_of_explicit_axes_is_a_pin() -> None:
    mesh = jax.make_mesh((2, 4), ("x", "y"))
    with jax.set_mesh(mesh):
        step = sharded(lambda x: jax.sharding.reshard(x * 2, P("y", "x")), mesh)
        assert_close(jax.device_get(step(X)), X * 2)
    assert step.plan.results[0].spec == ((1,), (0,))
    assert step.plan.results[0].pinned


def test_explicit_arrays_on_a_mesh_of_auto_axes(mesh: Meshes) -> None:
    explicit = jax.make_mesh((2, 4), ("x", "y"))
    step = sharded(lambda x, y: x @ y, mesh(2, 4))
    one = jax.device_put(X, NamedSharding(explicit, P("x")))
    assert_close(step(one, X), jnp.asarray(X @ X))


def test_arrays_that_lie_elsewhere_are_moved(mesh: Meshes) -> None:
    step = sharded(lambda x, y: x @ y, mesh(2, 4), in_specs=(P("x"), P(None, "y")))
    elsewhere = [
        jax.device_put(X, jax.devices()[3]),
        jax.device_put(X, NamedSharding(mesh(2, 4), P("y", "x"))),
        jax.device_put(X, NamedSharding(mesh(8), P("x"))),
        jnp.asarray(X),
        X,
    ]
    for array in elsewhere * 2:
        assert_close(step(array, array), jnp.asarray(X @ X))


def test_results_lie_as_planned(mesh: Meshes) -> None:
    step = sharded(train, mesh(2, 4), out_specs=({"w": P("y", "x"), "n": None}, None))
    state, _ = step(STATE, X)
    assert state["w"].sharding.spec == P("y", "x")
    wanted = step.out_shardings[0]
    assert jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, wanted) == {
        "w": True, "n": True
    }  # fmt: skip


def test_large_captured_arrays_are_sharded_and_small_ones_embedded(mesh: Meshes) -> None:
    big, small = np.random.default_rng(0).random((256, 512), np.float32), jnp.arange(8.0)

    def fun(x: Any) -> Any:
        y, _ = jax.lax.scan(lambda c, _: (jnp.tanh(c @ big @ big.T), None), x, length=2)
        return y @ big + small.sum()

    x = np.ones((8, 256), np.float32) / 256
    step = assert_same(fun, (x,), mesh(2, 4), memory_limit=400_000)
    text = step.lower(x).as_text()
    assert "256x512xf32" in text
    assert len(text) < 30_000  # the array would be 1 MB of text
    assert_close(step.lower(x).compile()(x), jax.jit(fun)(x))


def test_captured_keys_and_arrays_of_other_devices(mesh: Meshes) -> None:
    far = jax.device_put(np.ones((256, 256), np.float32), jax.devices()[3])
    key = jax.random.key(3)
    fun = lambda x: x @ far + jax.random.normal(key, (8, 256))  # noqa: E731
    step = sharded(fun, mesh(2, 4))
    x = np.ones((8, 256), np.float32)
    assert_close(jax.device_get(step(x)), jax.device_get(jax.jit(fun)(x)))


def make(key: Any) -> Any:
    return {"w": jax.random.normal(key, (8, 8)), "n": 0}


INITS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "key, then the batch": (make, (jax.random.key(0), X)),
    "key, then its shape": (make, (jax.random.key(0), jax.ShapeDtypeStruct((8, 8), np.float32))),
    "both are taken": (lambda key, x: make(key), (jax.random.key(0), X)),
    "a default": (lambda key, scale=1: make(key), (jax.random.key(0), X)),
    "nothing is taken": (lambda: make(jax.random.key(0)), (X,)),
    "jitted": (jax.jit(make), (jax.random.key(0), X)),
    "any number": (lambda *args: make(args[0]), (jax.random.key(0), X)),
}


@pytest.mark.parametrize("name", INITS)
def test_init_makes_the_state_where_it_is_planned(name: str, mesh: Meshes) -> None:
    fun, args = INITS[name]
    step = sharded(train, mesh(2, 4), in_specs=({"w": P("x", "y"), "n": None}, None))
    state = step.init(fun, *args)
    plan = step.plan
    assert state["w"].sharding.spec == P("x", "y")
    assert_close(state, jax.jit(make)(jax.random.key(0)))
    step(state, X)
    assert step.plan is plan
    assert_close(step.init(make, jax.random.key(0)), state)


def test_plan_is_used_again(mesh: Meshes, tmp_path: Path) -> None:
    first = sharded(train, mesh(2, 4), in_specs=(None, P("x")))
    expected = first(STATE, X)
    first.plan.save(tmp_path / "plan.json")
    plan = xshard.Plan.load(tmp_path / "plan.json")
    again = sharded(train, mesh(2, 4), in_specs=(None, P("x")), plan=plan)
    assert_close(again(STATE, X), expected)
    assert again.plan == first.plan
    by_number = sharded(train, 8)
    by_number(STATE, X)
    assert_close(sharded(train, 8, plan=by_number.plan)(STATE, X), expected)
