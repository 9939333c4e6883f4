"""`auto_shard(fun, mesh)` is called as `jax.jit(fun)` is, and gives back the same."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import xshard
from tests.api.oracles import assert_close, assert_same

X = np.arange(64, dtype=np.float32).reshape(8, 8) / 64
Meshes = Callable[..., jax.sharding.Mesh]


def sharded(fun: Callable[..., Any], mesh: Meshes, **options: Any) -> Any:
    return xshard.auto_shard(fun, mesh(2, 4), time_limit=5, **options)


@dataclass
class Counted:
    """A function that counts how often JAX traces it."""

    fun: Callable[..., Any]
    traces: int = 0

    def __call__(self, *args: Any) -> Any:
        self.traces += 1
        return self.fun(*args)


class Pair(NamedTuple):
    left: Any
    right: Any


@jax.tree_util.register_dataclass
@dataclass
class State:
    weights: Any
    step: Any
    tag: str = field(default="a", metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass
class Arrays:
    """A pytree that holds nothing but arrays, as some libraries' states do."""

    scale: Any

    def __post_init__(self) -> None:
        if type(self.scale) is not object:  # what JAX itself may put there
            self.scale = jnp.asarray(self.scale)


class Layer:
    """A callable object with attributes of its own, some with the names of ours."""

    def __init__(self) -> None:
        self.weights, self.plan, self.lower = X, "mine", "low"

    def __call__(self, x: Any) -> Any:
        return x @ self.weights

    def twice(self, x: Any) -> Any:
        return self(self(x))


KEY, RAW_KEY = jax.random.key(0), jax.random.PRNGKey(0)

CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "nested trees": (lambda t: {"p": Pair(t["a"].left @ X, None)}, ({"a": Pair(X, X), "n": None},)),
    "dataclass": (lambda s: State(s.weights * 2, s.step + 1, s.tag), (State(X, 1),)),
    "no arguments": (lambda: (jnp.ones((8, 8)), 3), ()),
    "empty trees": (lambda t, u: ({}, [], u, ()), ({}, [])),
    "returns nothing": (lambda x: None, (X,)),
    "literals": (lambda x: (x + 1, 3, 2.5, True), (X,)),
    "argument back": (lambda x, y: (x, y + 1, x), (X, X)),
    "one result twice": (lambda x: (y := x @ x, y), (X,)),
    "scalars": (lambda x, a, b, c: (x * a, b + 1, c), (X, 2.0, 3, True)),
    "weak results": (lambda a, b: (a * b, a + 1), (2.0, 3)),
    "numpy scalars": (lambda x, a: x * a, (X, np.float32(2))),
    "wide numpy": (lambda x: x.sum(), (X.astype(np.float64),)),
    "odd shapes": (lambda x, y: (x @ y, y.sum(0)), (np.ones((3, 5)), np.ones((5, 7)))),
    "typed key": (lambda x, k: (x + jax.random.normal(k, (8, 8)), jax.random.split(k)), (X, KEY)),
    "raw key": (lambda x, k: (x + jax.random.normal(k, (8, 8)), k), (X, RAW_KEY)),
    "many keys": (
        jax.vmap(lambda k: jax.random.uniform(k, (4,))), (jax.random.split(KEY, 8),)
    ),
    "bfloat16": (lambda x: (x.astype(jnp.bfloat16) * 2.0, x * 1), (X,)),
    "jitted": (jax.jit(lambda x: x @ x), (X,)),
    "partial": (functools.partial(lambda a, b, c: a @ b * c, X, c=3), (X,)),
    "object": (Layer(), (X,)),
    "bound method": (Layer().twice, (X,)),
    "of jax.numpy": (jnp.matmul, (X, X)),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_result_is_that_of_jit(name: str, mesh: Meshes) -> None:
    """Twice, as the first call plans and the second takes the short way."""
    fun, args = CALLS[name]
    step = assert_same(fun, args, mesh(2, 4))
    assert_close(step(*args), jax.jit(fun)(*args))


def test_calls_alike_neither_plan_nor_trace_again(mesh: Meshes) -> None:
    fun = Counted(lambda x: x @ x.T)
    step = sharded(fun, mesh)
    y = step(X)
    for x in (X, y, np.asarray(y), jnp.asarray(X), X.astype(np.float64)):
        step(x)
        plan = step.plan
    assert fun.traces == 1
    assert step.plan is plan


def test_other_shapes_plan_once_each(mesh: Meshes) -> None:
    fun = Counted(lambda x: x @ x.T)
    step, plans = sharded(fun, mesh), set()
    for x in [X, X[:4]] * 3:
        assert_close(step(x), jax.jit(fun.fun)(x))
        plans.add(id(step.plan))
    assert (fun.traces, len(plans)) == (2, 2)


def test_weak_types_trace_again_but_do_not_plan_again(mesh: Meshes) -> None:
    """As with `jax.jit`: a Python scalar does not widen, an array of its dtype does."""
    half = jnp.ones((8, 8), jnp.bfloat16)
    step = sharded(lambda x, s: x * s, mesh)
    for scale, dtype in ((2.0, "bfloat16"), (np.float32(2), "float32"), (3.0, "bfloat16")):
        assert step(half, scale).dtype == dtype
    state = sharded(lambda n, x: (n + 1, x), mesh)
    state(jnp.int32(0), X)
    plan = state.plan
    state(0, X)
    assert state.plan is plan


def test_a_weakly_typed_first_state_has_the_plan_of_the_states_after_it(mesh: Meshes) -> None:
    """A plan is for dtypes: one more is made only where a weak type made a step compute in less."""

    def step(state: dict[str, Any], x: Any) -> dict[str, Any]:
        rate = jnp.minimum(state["rate"] * 0.9, 1 + x.astype(jnp.float32).mean())
        return {"rate": rate, "w": (state["w"] - state["rate"] * x).astype(x.dtype)}

    for dtype, plans in (("float32", 1), ("bfloat16", 2)):
        x = jnp.asarray(X, dtype)
        state = first = {"rate": jnp.asarray(0.1), "w": x}
        free = sharded(step, mesh)
        assert state["rate"].weak_type and not free(state, x)["rate"].weak_type
        given, seen = sharded(step, mesh, plan=free.plan), set()
        for _ in range(3):
            state, seen = given(state, x), seen | {given.plan.fingerprint}
        assert len(seen) == plans
        assert_close(state, functools.reduce(jax.jit(step), [x] * 3, first))


@pytest.mark.parametrize("array", [jnp.asarray, np.asarray])
def test_a_step_is_compiled_once(
    array: Any, mesh: Meshes, caplog: pytest.LogCaptureFixture
) -> None:
    """JAX would compile another program for a state on the mesh, as the first step returns it."""

    def once(state: Any, x: Any) -> Any:
        return {"w": state["w"] - x, "frozen": state["frozen"]}, x.sum()

    step = sharded(once, mesh, donate_argnums=0)
    state = given = {"w": array(X), "frozen": array(X)}
    with jax.log_compiles():
        step.lower(state, X).compile()
        for _ in range(3):
            state, _ = step(state, X)
    assert caplog.text.count("XLA compilation of jit(once)") == 1
    assert_close(state, {"w": jnp.asarray(X * -2), "frozen": jnp.asarray(X)})
    assert array is jnp.asarray or np.array_equal(given["w"], X)


def test_static_arguments(mesh: Meshes) -> None:
    """Each value is a plan of its own; 1 is not True, as with `jax.jit`."""
    fun = Counted(lambda x, scale, how: x * scale if how == "mul" else x + scale)
    step = sharded(fun, mesh, static_argnums=(1, -1))
    for scale, how in ((2, "mul"), (3, "mul"), (2, "add"), (2, "mul"), (1, "mul"), (True, "mul")):
        assert_close(step(X, scale, how), jax.jit(fun.fun, static_argnums=(1, 2))(X, scale, how))
    assert fun.traces == 5


def test_static_arguments_that_look_like_arrays(mesh: Meshes) -> None:
    step = sharded(lambda dtype, x: x.astype(dtype), mesh, static_argnums=0)
    assert step(np.dtype("int32"), X).dtype == "int32"
    assert step.lower(np.dtype("float16"), X).compile()(X).dtype == "float16"


def test_static_argument_left_to_its_default(mesh: Meshes) -> None:
    step = sharded(lambda x, how="mul": x * 2 if how == "mul" else x, mesh, static_argnums=-1)
    assert_close(step(X), jnp.asarray(X * 2))
    assert_close(step(X, how="add"), jnp.asarray(X))


KEYWORDS: list[dict[str, Any]] = [{}, {"b": 3}, {"c": 5.0}, {"d": 1.0}, {"b": 1, "d": 2}]


@pytest.mark.parametrize("kwargs", KEYWORDS)
def test_keyword_arguments(kwargs: dict[str, Any], mesh: Meshes) -> None:
    def fun(a: Any, b: Any = 2, c: Any = 3, *, d: Any = 4) -> Any:
        return a * b + c * d

    step = sharded(fun, mesh, in_specs=(None,) * len({"a", *kwargs} - {"c", "d"}))
    expected = jax.jit(fun)(X, **kwargs)
    assert_close(step(X, **kwargs), expected)
    assert_close(step(a=X, **kwargs), expected)
    traced = step.trace(X, **kwargs)
    assert (traced.fun_name, traced.out_info.shape) == ("fun", expected.shape)
    assert_close(traced.lower().compile()(X, **kwargs), expected)


def test_keywords_are_named_in_the_plan(mesh: Meshes) -> None:
    step = sharded(lambda x, **rest: x * rest["rate"], mesh)
    step(X, rate=2.0)
    assert [a.path for a in step.plan.arguments] == ["args[0]", "kwargs['rate']"]


def test_static_keyword_behind_a_default(mesh: Meshes) -> None:
    def fun(x: Any, scale: Any = 2, how: str = "mul") -> Any:
        return x * scale if how == "mul" else x + scale

    step = sharded(fun, mesh, static_argnums=2)
    for how in ("mul", "add"):
        expected = jax.jit(fun, static_argnums=2)(X, how=how)
        assert_close(step(X, how=how), expected)
        assert_close(step.lower(X, how=how).compile()(X), expected)


def test_static_and_donated_arguments_by_name(mesh: Meshes) -> None:
    """However they are passed, and those that have no position too, as with `jax.jit`."""

    def fun(state: Any, x: Any, how: str = "mul", *, scale: Any = 2, **rest: Any) -> Any:
        return (state * x if how == "mul" else state + x) * scale * len(rest["name"])

    names = ("how", "scale", "name")
    step = sharded(fun, mesh, donate_argnames="state", static_argnames=names)
    plain = jax.jit(fun, static_argnames=names)
    for args, named in (
        ((X, "add"), {"scale": 3}),
        ((X,), {"how": "add"}),
        ((), {"x": X}),
    ):
        expected = plain(X, *args, name="ab", **named)
        assert_close(step(X, *args, name="ab", **named), expected)
        lowered = step.lower(X, *args, name="ab", **named)
        assert [x.donated for x in jax.tree.leaves(lowered.args_info)] == [True, False]


def test_donated_arguments_are_gone(mesh: Meshes) -> None:
    def fun(state: Any, x: Any) -> Any:
        return {"w": state["w"] + x.sum(), "u": state["u"] * 1}, x.mean()

    step = sharded(fun, mesh, donate_argnums=0)
    first, _ = step({"w": X, "u": X}, X)
    second, _ = step(first, X)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    assert_close(step(second, X)[0]["u"], jnp.asarray(X))


def test_donated_but_unused(mesh: Meshes) -> None:
    step = sharded(lambda state, x: x + 1, mesh, donate_argnums=0)
    for _ in range(3):
        assert_close(step(jnp.asarray(X), X), jnp.asarray(X + 1))


def test_a_state_whose_class_holds_arrays_only(mesh: Meshes) -> None:
    def step(rate: float, state: Any, x: Any) -> Any:
        return {"a": Arrays(state["a"].scale * rate), "w": state["w"] + x}, x.sum()

    def start() -> Any:
        return {"a": Arrays(X[0]), "w": X}

    run = sharded(step, mesh, static_argnums=0, donate_argnums=1)
    state = expected = start()
    for _ in range(2):
        state, _ = run(0.5, state, X)
        expected, _ = step(0.5, expected, X)
    assert_close(state, expected)
    compiled = run.lower(0.5, start(), X).compile()
    rows = jax.device_put(X, run.in_shardings[1])
    assert_close(compiled(state, rows), step(0.5, expected, X))
    assert jax.tree.leaves(run.in_shardings[0]) == run.in_shardings[0]
    assert run.check(0.5, start(), X)
    with pytest.raises(AttributeError, match="'list' object has no attribute 'scale'"):
        run(0.5, {"a": [X[0]], "w": X}, X)


def test_it_may_be_transformed(mesh: Meshes) -> None:
    """Called for the first time below `jit`, `grad`, `vmap` or `eval_shape`."""
    big = np.ones((8, 4096), np.float32)
    fun = lambda x: (x @ (x @ big)).sum()  # noqa: E731
    fresh = lambda: sharded(fun, mesh)  # noqa: E731
    x = jnp.asarray(X)
    assert jax.eval_shape(fresh(), x) == jax.eval_shape(fun, x)
    assert_close(jax.jit(fresh())(x), jax.jit(fun)(x))
    assert_close(jax.grad(fresh())(x), jax.grad(fun)(x))
    assert_close(jax.vmap(sharded(lambda row: row * 2, mesh))(x), x * 2)


def test_transformed_where_its_arguments_lie_elsewhere(mesh: Meshes) -> None:
    """Tracers of arrays that are sharded otherwise than planned, some of them for another mesh."""
    fun = lambda w, x: jnp.tanh(x @ w).sum()  # noqa: E731
    w, x = (jax.device_put(X, NamedSharding(mesh(*s), P("x"))) for s in ((8,), (2, 4)))
    expected = jax.grad(fun)(jnp.asarray(X), jnp.asarray(X))
    assert_close(jax.grad(sharded(fun, mesh))(w, x), expected)
    rows = jax.vmap(jax.grad(fun), (0, None))(jnp.stack([X] * 3), jnp.asarray(X))
    each = jax.vmap(jax.grad(sharded(fun, mesh)), (0, None))(jnp.stack([X] * 3), x)
    assert_close(each, rows)


def test_methods_may_be_decorated(mesh: Meshes) -> None:
    class Model:
        @functools.partial(xshard.auto_shard, mesh=mesh(8), static_argnums=0)
        def forward(self, x: Any) -> Any:
            return x * 2

    assert_close(Model().forward(X), jnp.asarray(X * 2))


def test_wrapped_function_keeps_its_name_but_not_its_attributes(mesh: Meshes) -> None:
    def train_step(x: Any) -> Any:
        """Trains."""
        return x @ x

    step = sharded(jax.jit(train_step), mesh)
    assert (step.__name__, step.__doc__) == ("train_step", "Trains.")
    assert "jit_train_step" in step.lower(X).as_text()
    layer = sharded(Layer(), mesh)
    assert_close(layer.lower(X).compile()(X), jnp.asarray(X @ X))
    assert layer.plan.arguments


@jax.custom_vjp
def straight_through(x: Any) -> Any:
    return jnp.round(x * 4) / 4


straight_through.defvjp(lambda x: (straight_through(x), None), lambda _, g: (7 * g,))


def test_derivatives_are_those_that_the_function_states(mesh: Meshes) -> None:
    def fun(x: Any, n: Any, key: Any) -> Any:
        noise = jax.random.normal(key, x.shape)
        return (straight_through(x @ X) * jnp.log(n + 1.0) + noise * jax.nn.relu(x)).sum()

    args, step = (jnp.asarray(X), jnp.int32(3), KEY), sharded(fun, mesh)
    expected = jax.grad(fun)(*args)
    assert_close(jax.grad(step)(*args), expected)
    assert_close(jax.grad(jax.jit(step))(*args), expected)


def test_eval_shape_plans_nothing_and_clear_cache_forgets(mesh: Meshes) -> None:
    def fun(x: Any, how: str, *, scale: float) -> Any:
        return {"y": (x @ x) * scale if how == "up" else x}

    step = sharded(fun, mesh, static_argnames="how")
    shape = jax.eval_shape(functools.partial(fun, how="up"), X, scale=2.0)
    assert step.eval_shape(X, "up", scale=2.0) == shape
    with pytest.raises(xshard.PlanError, match="nothing is planned yet"):
        _ = step.plan
    expected = step(X, "up", scale=2.0)
    step.clear_cache()
    with pytest.raises(xshard.PlanError, match="nothing is planned yet"):
        _ = step.plan
    assert_close(step(X, "up", scale=2.0), expected)
