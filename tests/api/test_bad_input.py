"""Each mistake is one clear error: what, where, why, and the mend."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import xshard
from tests.api.oracles import assert_same

X = np.arange(64, dtype=np.float32).reshape(8, 8) / 64
Meshes = Callable[..., jax.sharding.Mesh]


def fun(w: Any, x: Any) -> Any:
    return ((x @ w) ** 2).mean()


def test_batch_that_does_not_divide_works_unsplit(mesh: Meshes) -> None:
    """Seven rows over eight devices: other dimensions are split, or none."""
    for batch in (7, 1, 3):
        step = assert_same(jax.value_and_grad(fun), (X, X[:batch]), mesh(8))
        assert step.plan.arguments[1].spec[0] == ()


MAKES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: xshard.auto_shard(3), xshard.TraceError, r"needs a function, but got 3 \(int\)"),  # type: ignore[arg-type]
    (
        lambda: xshard.auto_shard(fun, 16),
        xshard.MeshError,
        "a mesh of 16 devices was asked for, but there are 8; ask for fewer",
    ),
    (lambda: xshard.auto_shard(fun, 0), xshard.MeshError, "a mesh of 0 devices"),
    (
        lambda: xshard.auto_shard(fun, (2, 4)),  # type: ignore[arg-type]
        xshard.MeshError,
        r"mesh must be a jax.sharding.Mesh or a number of devices, not \(2, 4\)",
    ),
    (
        lambda: xshard.auto_shard(fun, plan="plan.json"),  # type: ignore[arg-type]
        xshard.PlanError,
        r"plan must be a Plan, such as Plan.load\(path\) gives, not 'plan.json'",
    ),
    (
        lambda: xshard.auto_shard(lambda x, y: x, static_argnames=("y", "z")),
        xshard.TraceError,
        "static_argnames has 'z', but <lambda> has no such parameter: it takes x, y",
    ),
    *[
        (
            lambda limit=limit: xshard.auto_shard(fun, memory_limit=limit),
            xshard.MeshError,
            "is no size; write bytes, or text such as '30GB' or '24GiB'",
        )
        for limit in ("lots", "1.2.3GB", "-5GB", "", 0, -5)
    ],
]


@pytest.mark.parametrize(("make", "error", "message"), MAKES)
def test_refused_at_once(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


CALLS: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], str]] = [
    (fun, (X, "rows"), {}, r"args\[1\] is a str, which is not a JAX array; pass an array, or name"),
    (fun, ({"w": [X, None, object()]}, X), {}, r"args\[0\]\['w'\]\[2\] is a object"),
    (
        fun, (X, [1, 2]), {"static_argnums": 1},
        r"static argument args\[1\] is a list, which is not hashable; pass a hashable value",
    ),
    (
        fun, (X, X), {"static_argnums": 2},
        "static_argnums has 2, but fun takes 2 positional arguments; number them from 0",
    ),
    (fun, (X, X), {"donate_argnums": -3}, "donate_argnums has -3, but fun takes 2 positional"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "args", "options", "message"), CALLS)
def test_refused_at_the_call(
    function: Callable[..., Any], args: tuple[Any, ...], options: Any, message: str, mesh: Meshes
) -> None:
    step = xshard.auto_shard(function, mesh(2, 4), **options)
    with pytest.raises(xshard.TraceError, match=message):
        step(*args)
    with pytest.raises(xshard.PlanError, match="nothing is planned yet: call the step, its lower"):
        _ = step.plan


class Missing(KeyError):
    """An exception of the user's own, which needs two arguments."""

    def __init__(self, layer: str, place: int) -> None:
        super().__init__(f"no layer {layer} at {place}")


def raising(w: Any, x: Any) -> Any:
    raise Missing("norm", 3)


def text_back(w: Any, x: Any) -> Any:
    return {"loss": w.sum(), "name": "text"}


FAILING: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
    (raising, (X, X)),
    (text_back, (X, X)),
    (lambda w, x: np.asarray(w), (X, X)),
    (lambda w, x: w[x.shape[0] :].reshape(3), (X, X)),
    (fun, (X,)),
    (fun, (X, X, X)),
    (lambda w, x: jnp.dot(w, x[:3]), (X, X)),
    (lambda w, x: jax.lax.scan(lambda c, r: (c[:1], r), w, x), (X, X)),
    (lambda w, x: jax.lax.psum(w, "nowhere"), (X, X)),
    (lambda w, x: jax.lax.with_sharding_constraint(w, jax.P("nowhere")), (X, X)),
]


@pytest.mark.parametrize(("function", "args"), FAILING)
def test_a_function_that_fails_raises_what_it_raises_in_jit(
    function: Callable[..., Any], args: tuple[Any, ...], mesh: Meshes
) -> None:
    with pytest.raises(Exception) as expected:  # noqa: PT011
        jax.jit(function)(*args)
    with pytest.raises(type(expected.value)) as caught:
        xshard.auto_shard(function, mesh(2, 4))(*args)
    assert type(caught.value) is type(expected.value)
    ours = str(caught.value).replace("argument args[0].", "argument w.")
    assert ours == str(expected.value)


def test_a_note_names_the_users_line(mesh: Meshes) -> None:
    with pytest.raises(Missing) as caught:
        xshard.auto_shard(raising, mesh(8))(X, X)
    note = r"xshard was tracing raising \(at .*test_bad_input.py:\d+, in raising\)"
    assert any(re.fullmatch(note, n) for n in caught.value.__notes__)


def test_init_without_what_it_needs(mesh: Meshes) -> None:
    step = xshard.auto_shard(fun, mesh(8))
    with pytest.raises(xshard.TraceError, match="init needs the other 1 arguments of fun behind"):
        step.init(lambda: jnp.zeros((8, 8)))


def test_plans_of_others_are_refused(mesh: Meshes) -> None:
    first = xshard.auto_shard(fun, mesh(2, 4), time_limit=5)
    first(X, X)
    other = lambda w, x: fun(w, 2 * x)  # noqa: E731
    cases: list[tuple[Any, Any, tuple[Any, ...], str]] = [
        (other, mesh(2, 4), (X, X), "but the function, its pins or its options are not those"),
        (fun, mesh(4, 2), (X, X), "it is for the mesh x=2×y=4, and the mesh here is x=4×y=2"),
        (fun, 8, (X, X), "it is for the mesh x=2×y=4, and the mesh here is data=8"),
        (fun, mesh(2, 4), (X, X[:4]), r"args\[1\] is float32\[8,8\] in the plan and float32\[4,8"),
    ]
    for function, where, args, message in cases:
        step = xshard.auto_shard(function, where, plan=first.plan)
        with pytest.raises(xshard.PlanError, match=f"does not belong to this call: .*{message}"):
            step(*args)


def test_broken_plan_files(mesh: Meshes, tmp_path: Path) -> None:
    step, path = xshard.auto_shard(fun, mesh(2, 4), time_limit=5), tmp_path / "plan.json"
    step(X, X)
    step.plan.save(path)
    text = path.read_text()
    for content, message in (
        (text[: len(text) // 2], "is truncated: it ends in line"),
        ('{"some": "json"}', "is not a plan of xshard"),
        ("", "plan.json"),
    ):
        path.write_text(content)
        with pytest.raises(xshard.PlanError, match=message):
            xshard.Plan.load(path)
    with pytest.raises(xshard.PlanError, match="No such file or directory"):
        xshard.Plan.load(tmp_path / "none.json")


def ranked(w: Any, x: Any) -> Any:
    return (jnp.sort(x @ w, 0) ** 2).mean()


def pinned_to_another_mesh(w: Any, x: Any) -> Any:
    other = jax.make_mesh((8,), ("rows",), (jax.sharding.AxisType.Auto,))
    return jax.lax.with_sharding_constraint(x @ w, jax.NamedSharding(other, jax.P("rows"))).sum()


UNDOABLE: list[tuple[Callable[..., Any], dict[str, Any], type[Exception], str]] = [
    (ranked, {"microbatches": 2}, xshard.XshardError, "sort works along the batch at LINE"),
    (ranked, {"microbatches": 2, "pipeline": 2}, xshard.XshardError, "along the batch at LINE"),
    (pinned_to_another_mesh, {}, xshard.PinError, "sharding constraint at LINE"),
    (fun, {"memory_limit": 1}, xshard.InfeasibleError, r"1 × dot_general .*\(LINE"),
]


@pytest.mark.parametrize(("function", "options", "error", "message"), UNDOABLE)
def test_what_cannot_be_done_is_at_a_line_of_the_users(
    function: Callable[..., Any], options: Any, error: type[Exception], message: str
) -> None:
    step = xshard.auto_shard(jax.value_and_grad(function), 8, **options)
    with pytest.raises(error) as caught:
        step(X, X)
    line = rf"test_bad_input\.py:\d+ \({function.__name__}\)"
    assert re.search(message.replace("LINE", line), str(caught.value)), str(caught.value)


LAYER = (np.ones((256, 512), np.float32), np.ones((64, 256), np.float32))


@pytest.mark.parametrize("shape", [(8,), (2, 4)])
def test_infeasible_limit_names_the_smallest_that_works(shape: tuple[int, ...]) -> None:
    def plan(limit: int) -> xshard.Plan:
        return xshard.plan(
            jax.value_and_grad(fun), *LAYER, cluster="cpu:8", mesh=shape, memory_limit=limit,
            donate_argnums=(), time_limit=10,
        )  # fmt: skip

    with pytest.raises(xshard.InfeasibleError, match="no plan fits 1 kB per device") as caught:
        plan(1000)
    message, smallest = str(caught.value), caught.value.smallest_limit_bytes
    assert smallest is not None
    assert f"the smallest limit that works is {smallest} bytes" in message
    assert re.search(r"Largest live tensors at its peak, when \w+ runs.*:\n  1 × ", message)
    assert plan(smallest).peak_bytes <= smallest
    with pytest.raises(xshard.InfeasibleError):
        plan(smallest - 1)


@pytest.mark.parametrize("shape", [(8,), (2, 4)])
def test_infeasible_limit_names_one_that_the_compiled_program_keeps(
    shape: tuple[int, ...], mesh: Meshes
) -> None:
    def step(limit: int) -> Any:
        return xshard.auto_shard(
            jax.value_and_grad(fun), mesh(*shape), memory_limit=limit, time_limit=10
        )(*LAYER)

    with pytest.raises(xshard.InfeasibleError, match="no plan fits 1 kB per device") as caught:
        step(1000)
    assert caught.value.smallest_limit_bytes is not None
    step(caught.value.smallest_limit_bytes)
