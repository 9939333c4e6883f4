"""What one expects of a mixture of experts and of a very large table, and nobody says."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import xshard
from tests.api.oracles import assert_same

EXPERTS, ROWS = 8, 32


def array(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def routed(params: Any, x: Any) -> Any:
    """Each token to one expert, as many to each as fit: einsums over one-hot positions."""
    capacity = 2 * x.shape[1] // EXPERTS
    gates = jax.nn.softmax(x @ params["router"])
    expert = jax.nn.one_hot(gates.argmax(-1), EXPERTS)
    place = ((jnp.cumsum(expert, 1) - 1) * expert).sum(-1).astype(jnp.int32)
    sent = expert[..., None] * jax.nn.one_hot(place, capacity)[:, :, None, :]
    tokens = jnp.einsum("bsec,bsd->ebcd", sent, x)
    hidden = jax.nn.gelu(jnp.einsum("ebcd,edf->ebcf", tokens, params["up"]))
    back = jnp.einsum("ebcf,efd->ebcd", hidden, params["down"])
    return x + jnp.einsum("bsec,ebcd->bsd", sent * gates.max(-1)[..., None, None], back)


def moe_step(params: Any, x: Any) -> Any:
    loss, grads = jax.value_and_grad(lambda p: (routed(p, x) ** 2).mean())(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), loss


@pytest.mark.parametrize(
    ("length", "width", "inner", "parallel"), [(128, 1024, 4096, True), (2048, 64, 64, False)]
)
def test_large_experts_are_split_and_tokens_travel(
    length: int, width: int, inner: int, parallel: bool
) -> None:
    params = {
        "router": array(width, EXPERTS),
        "up": array(EXPERTS, width, inner),
        "down": array(EXPERTS, inner, width),
    }
    plan = xshard.plan(
        moe_step, params, array(ROWS, length, width), cluster="h100-80gb:1x8", mesh=(8,)
    )
    specs = {a.path: a.spec for a in plan.arguments}
    split = [specs[f"args[0]['{name}']"] == ((0,), (), ()) for name in ("up", "down")]
    travel = any(c.kind == "all-to-all" for c in plan.collectives)
    assert (split, travel) == ([parallel] * 2, parallel)


def test_experts_on_eight_devices_compute_what_one_does(mesh: Any) -> None:
    """The tokens' all-to-alls are those of the plan, to the byte."""
    width, inner = 128, 1024
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "router": jax.random.normal(keys[0], (width, EXPERTS)),
        "up": jax.random.normal(keys[1], (EXPERTS, width, inner)) * width**-0.5,
        "down": jax.random.normal(keys[2], (EXPERTS, inner, width)) * inner**-0.5,
    }
    step = assert_same(moe_step, (params, jax.random.normal(keys[3], (ROWS, 16, width))), mesh(8))
    assert step.in_shardings[0]["up"].spec == step.in_shardings[0]["down"].spec
    assert step.in_shardings[0]["up"].spec[0] == "x"
    audit = step.audit()
    assert any(row.kind == "all-to-all" and row.compiled_bytes for row in audit.rows)
    assert audit.ok(), str(audit)


def look_up_step(table: Any, ids: Any) -> Any:
    loss, grad = jax.value_and_grad(lambda t: (t[ids].sum(1) ** 2).mean())(table)
    return table - 0.1 * grad, loss


def test_rows_of_a_table_on_eight_devices_compute_what_one_does(mesh: Any) -> None:
    table = jax.random.normal(jax.random.key(0), (40_000, 3))
    ids = jax.random.randint(jax.random.key(1), (64, 4), 0, 40_000)
    step = assert_same(look_up_step, (table, ids), mesh(8), memory_limit="300kB")
    assert step.plan.arguments[0].spec == ((0,), ())
    audit = step.audit()
    assert audit.ok(), str(audit)


def test_a_table_that_does_not_fit_is_split_by_rows_where_columns_do_not_divide() -> None:
    args = array(80_000_000, 12), array(4096, 32, dtype=jnp.int32)
    plan = xshard.plan(look_up_step, *args, cluster="h100-80gb:1x8", mesh=(8,), memory_limit="2GB")
    assert plan.arguments[0].spec == ((0,), ())
    assert plan.peak_bytes < 2e9
