"""`step.check`: rounding is no difference; a wrong program is one, and its equation is named."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import xshard
from tests.rules.cases import per_example_gradient
from xshard.compare.difference import difference, perturbed
from xshard.compare.rounding import rounding_otherwise
from xshard.ir.trace import trace
from xshard.rules import conv
from xshard.run.annotate import AS_TRACED, Constraints, annotate

ADAM = optax.adam(1e-2)


def args_of_step() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(16, 8)), jnp.float32), "b": jnp.zeros(8)}
    return (params, ADAM.init(params)), jnp.asarray(rng.normal(size=(8, 16)), jnp.float32)


def step_of_zero_gradients(state: Any, x: Any) -> Any:
    """The bias moves no softmax of differences: its gradient is rounding, which Adam blows up."""

    def loss_of(params: Any) -> Any:
        y = x @ params["w"] + params["b"].sum()
        return -jax.nn.log_softmax(y)[:, 0].mean()

    params, adam = state
    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, adam = ADAM.update(grads, adam)
    return (optax.apply_updates(params, updates), adam), loss


def test_rounding_is_no_difference_and_nothing_is_donated(mesh: Any) -> None:
    args = args_of_step()
    step = xshard.auto_shard(step_of_zero_gradients, mesh(2, 4), donate_argnums=0)
    found = step.check(*args)
    assert found.ok
    assert found.parting is None
    assert "equal to the step on one device" in str(found)
    assert len(found.results) == len(jax.tree.leaves(jax.eval_shape(step_of_zero_gradients, *args)))
    assert not args[0][0]["w"].is_deleted()


def test_sums_that_round_alike_on_one_device(mesh: Any) -> None:
    """A gradient that is zero for all inputs: other inputs do not show what its rounding may be."""

    def centred(x: Any) -> Any:
        return (x - x.mean(0)).sum(0) ** 2

    rows = jnp.asarray(np.random.default_rng(0).normal(size=(64, 4)), jnp.float32)
    off = [
        float(annotate(trace(centred, (rows,)), Constraints(mesh(1)), numbers)(rows)[0].max())
        for numbers in (AS_TRACED, rounding_otherwise(AS_TRACED))
    ]
    assert off[1] > 10 * off[0]
    step = xshard.auto_shard(centred, mesh(8), in_specs=P("x"))
    assert step.check(rows).ok


def test_a_step_in_microbatches_is_held_against_the_whole_batch(mesh: Any) -> None:
    step = xshard.auto_shard(step_of_zero_gradients, mesh(2), donate_argnums=0, microbatches=2)
    assert step.check(*args_of_step()).ok


def half_step(w: Any, x: Any) -> Any:
    """Mixed precision: a scan of layers, a branch, a scatter and drawn numbers in bfloat16."""

    def loss_of(w: Any) -> Any:
        half = w.astype(jnp.bfloat16)
        noise = jax.random.normal(jax.random.key(0), x.shape, jnp.bfloat16)

        @jax.checkpoint
        def layer(h: Any, _: Any) -> Any:
            return jax.lax.cond(h.sum() > 0, jnp.tanh, jnp.sin, h @ half @ half.T), None

        h, _ = jax.lax.scan(layer, x.astype(jnp.bfloat16) + 0.1 * noise, None, length=3)
        rows = jnp.zeros((4, 16), jnp.bfloat16).at[jnp.arange(8) % 4].add(h)
        return (rows.astype(jnp.float32) ** 2).mean()

    loss, grad = jax.value_and_grad(loss_of)(w)
    return w - 0.1 * grad, loss


def test_floats_of_16_bits_are_compared_in_float32(mesh: Any) -> None:
    rng = np.random.default_rng(0)
    w, x = (jnp.asarray(rng.normal(size=s) / 4, jnp.float32) for s in ((16, 8), (8, 16)))
    step = xshard.auto_shard(half_step, mesh(2, 4), in_specs=(P("x"), P("y")))
    found = step.check(w, x)
    assert found.ok, found
    wide, narrow = found.results[1], found.results[3]
    assert (wide.name, narrow.name) == ("[1]", "[1], as it is")
    assert 100 * wide.noise < narrow.noise


@pytest.fixture
def wrong_groups(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lifts the block on a split that XLA computes wrongly (docs/xla_errors.md), as a function."""
    monkeypatch.setattr(conv, "_groups_line_up", lambda _: True)

    def gradients(w: Any, x: Any) -> Any:
        return per_example_gradient(w, x, ("NHWC", "HWIO", "NHWC"))

    return gradients


def weight_and_images() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(3, 3, 2, 4)), jnp.float32)
    return w, jnp.asarray(rng.normal(size=(4, 8, 8, 2)), jnp.float32)


def test_a_miscompiled_convolution_is_named(mesh: Any, wrong_groups: Any) -> None:
    pins: Any = {"in_specs": (None, P("x")), "out_specs": P("x")}
    found = xshard.auto_shard(wrong_groups, mesh(2), **pins).check(*weight_and_images())
    assert not found.ok
    assert found.parting is not None
    assert found.parting.primitive == "conv_general_dilated"
    assert found.parting.source.startswith("cases.py:")
    assert found.parting.source in str(found)


def test_it_is_found_behind_the_rounding_of_bfloat16(mesh: Any, wrong_groups: Any) -> None:
    """Wrong numbers beside larger ones: bfloat16 keeps the larger ones alone, float32 all."""

    def step(w: Any, images: Any) -> Any:
        return 1024 + 1e-3 * wrong_groups(w, images).astype(jnp.bfloat16)

    pins: Any = {"in_specs": (None, P("x")), "out_specs": P("x")}
    args = [a.astype(jnp.bfloat16) for a in weight_and_images()]
    found = xshard.auto_shard(step, mesh(2), **pins).check(*args)
    assert [r.ok for r in found.results] == [False, True]
    assert found.parting is not None
    assert found.parting.primitive == "conv_general_dilated"


def test_it_is_found_inside_a_loop(mesh: Any, wrong_groups: Any) -> None:
    def step(w: Any, images: Any) -> Any:
        return jax.lax.scan(lambda w, x: (w * 0.5, wrong_groups(w, x)), w, images)

    w, x = weight_and_images()
    pins: Any = {"in_specs": (None, P(None, "x")), "out_specs": (None, P(None, "x"))}
    found = xshard.auto_shard(step, mesh(2), **pins).check(w, jnp.stack([x * 0, x, x]))
    assert found.parting is not None
    assert found.parting.primitive == "conv_general_dilated"
    assert [w.split(" at ")[0] for w in found.parting.within] == ["turn 1 of the scan"]


def test_it_needs_arrays(mesh: Any) -> None:
    shapes = jax.eval_shape(args_of_step)
    step = xshard.auto_shard(step_of_zero_gradients, mesh(2))
    with pytest.raises(xshard.XshardError, match="needs arrays, not shapes"):
        step.check(*shapes)


@pytest.mark.parametrize(
    ("actual", "ok"),
    [([1.0, 2.0], True), ([1.0, 2.0 + 1e-6], True), ([1.0, 2.1], False), ([1.0, np.nan], False)],
)
def test_what_counts_as_a_difference(actual: list[float], ok: bool) -> None:
    x = jnp.asarray([1.0, 2.0])
    assert difference("x", jnp.asarray(actual), x, [perturbed(x, 0)]).ok == ok


def test_integers_and_keys_are_exact() -> None:
    x, key = jnp.arange(3), jax.random.key(0)
    assert not difference("x", x + 1, x, [x]).ok
    assert not difference("key", jax.random.key(1), key, [perturbed(key, 0)]).ok
