"""A step as a loop over microbatches computes what it computes on the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.api.oracles import assert_close
from tests.microbatch import programs
from xshard.errors import MicrobatchError
from xshard.ir.trace import trace
from xshard.microbatch.split import Divided, divided, found_axes, stated_axes
from xshard.run.annotate import Constraints, annotate

FINE = (
    programs.mean, programs.weighted, programs.with_aux, programs.classified, programs.dropped,
    programs.normalised, programs.scanned, programs.tied, programs.joined,
    programs.solved,
)  # fmt: skip


def split(fun: Callable[..., Any], args: tuple[Any, ...], axes: Any = None) -> Divided:
    traced = trace(fun, args)
    state = frozenset(range(traced.in_tree.children()[0].num_leaves))
    return divided(traced, found_axes(traced, state) if axes is None else axes)


def results(divided: Divided, number: int, args: tuple[Any, ...]) -> Any:
    run = annotate(divided.into(number), Constraints(jax.make_mesh((1,), ("x",))))
    return jax.jit(run)(*jax.tree.leaves(args))


def assert_alike(fun: Callable[..., Any], args: tuple[Any, ...], *numbers: int) -> Divided:
    found = split(fun, args)
    whole = results(found, 1, args)
    for number in numbers:
        assert_close(results(found, number, args), whole, factor=4.0)
    return found


@pytest.mark.parametrize("loss", FINE, ids=lambda f: f.__name__)
def test_results_are_those_of_the_whole_batch(loss: programs.Loss) -> None:
    assert_alike(programs.train(loss), programs.args(), 4)


def test_each_divisor_of_the_batch() -> None:
    assert_alike(programs.train(programs.weighted), programs.args(), 2, 8, 16)


def test_calls_and_checkpoints_are_looked_into() -> None:
    def loss(p: Any, b: Any) -> Any:
        inner = jax.jit(jax.checkpoint(programs.errors))
        return jax.jit(lambda e, w: (e * w).sum() / w.sum())(inner(p, b), b["weight"]), None

    assert_alike(jax.jit(programs.train(jax.jit(loss))), programs.args(), 2)


@pytest.mark.parametrize(
    "optimizer",
    [optax.sgd(0.1, momentum=0.9), optax.adafactor(0.1), optax.lion(0.1), optax.adamw(0.1)],
    ids=["sgd", "adafactor", "lion", "adamw"],
)
def test_any_optimizer_runs_once(optimizer: Any) -> None:
    args = programs.args(optimizer)
    found = assert_alike(programs.train(programs.mean, optimizer), args, 4)
    inside = {step.node.eqn.primitive.name for loop in found.program.loops
              for step in loop.needs.steps if step.node is not None}  # fmt: skip
    assert not inside & {"sqrt", "rsqrt", "sign", "pow"}


def test_loss_scaling_skips_the_step_as_a_whole() -> None:
    """One row overflows float16: no microbatch may change anything."""

    def step(state: Any, b: Any) -> Any:
        p, scale = state

        def loss(p: Any) -> Any:
            half = jax.tree.map(lambda w: w.astype(jnp.float16), p)
            return programs.errors(half, b).mean().astype(jnp.float32) * scale

        grads = jax.tree.map(lambda g: g / scale, jax.grad(loss)(p))
        fine = jnp.isfinite(optax.tree.norm(grads))
        new = jax.tree.map(lambda w, g: jnp.where(fine, w - 0.1 * g, w), p, grads)
        return (new, jnp.where(fine, scale, scale / 2)), fine

    half = {k: v.astype(np.float16) if v.dtype == np.float32 else v
            for k, v in programs.batch().items()}  # fmt: skip
    for largest, fine in ((1.0, True), (6e4, False)):
        b = {**half, "x": half["x"].copy()}
        b["x"][5] = largest
        args = ((programs.params(), jnp.float32(8)), b)
        found = split(step, args)
        expected, got = results(found, 1, args), results(found, 4, args)
        assert bool(expected[-1]) == bool(got[-1]) == fine
        assert_close(got, expected, factor=1e4 if fine else 1.0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_sums_are_carried_in_float32(dtype: str) -> None:
    """16 microbatches are as near to the exact sum as the whole batch is, not 16 roundings off."""
    x = jnp.asarray(np.random.default_rng(0).uniform(0.5, 1, (256, 4)), dtype)
    args = (jnp.zeros(()), x)
    found = split(lambda s, x: (s, x.sum(0)), args)
    exact = np.asarray(x, np.float64).sum(0)
    got = np.asarray(results(found, 64, args)[-1], np.float64)
    assert np.all(np.abs(got / exact - 1) <= jnp.finfo(dtype).eps)


def test_first_loop_is_only_what_the_last_one_waits_for() -> None:
    found = split(programs.train(programs.weighted), programs.args())
    first, last = found.program.loops
    assert [s.node.eqn.primitive.name for s in first.needs.steps if s.node] == ["reduce_sum"]
    assert len(last.targets) == 3  # the loss's numerator and two gradients


@pytest.mark.parametrize(
    ("loss", "why"),
    [
        (programs.batch_norm, r"needs a sum over the batch at programs\.py:\d+ \(batch_norm\)"),
        (programs.contrastive, r"dot_general combines .* at programs\.py:\d+ \(contrastive\)"),
        (programs.ranked, r"sort works along the batch at programs\.py:\d+ \(ranked\)"),
        (programs.recurrent, r"scan goes over the batch .* at programs\.py:\d+ \(recurrent\)"),
    ],
    ids=["batch_norm", "contrastive", "ranked", "recurrent"],
)
def test_what_is_no_sum_is_named(loss: programs.Loss, why: str) -> None:
    with pytest.raises(MicrobatchError, match=why):
        split(programs.train(loss), programs.args())


def test_batch_need_not_lead() -> None:
    def step(w: Any, b: Any) -> Any:
        return w - jax.grad(lambda w: ((w @ b["x"]) ** 2).mean())(w), (w @ b["x"]).reshape(-1)

    args = (np.ones((3, 5), np.float32), {"x": np.arange(40, dtype=np.float32).reshape(5, 8)})
    traced = trace(step, args)
    found = divided(traced, stated_axes(traced, (None, 1)))
    assert found.batch == 8
    assert_close(results(found, 4, args), results(found, 1, args), factor=4.0)


def test_frozen_weights_beside_trained_ones_are_no_batch() -> None:
    """Whatever their leading dimension is, and if most arrays have it."""

    def step(state: Any, x: Any) -> Any:
        def loss_of(trained: Any) -> Any:
            return sum(((x @ (w + trained)) ** 2).mean() for w in state["frozen"])

        loss, grad = jax.value_and_grad(loss_of)(state["trained"])
        return {**state, "trained": state["trained"] - grad}, loss

    frozen = [np.full((3, 3), i, np.float32) for i in range(4)]
    args = ({"frozen": frozen, "trained": np.ones((3, 3), np.float32)}, np.ones((8, 3), np.float32))
    traced = trace(step, args)
    assert found_axes(traced, frozenset({4})) == [None] * 5 + [0]


@pytest.mark.parametrize("shape", [(8, 3), (3, 8), (2, 8, 5), (8,)])
@pytest.mark.parametrize("width", [8, 16, 32])
def test_bits_are_those_of_the_whole_batch(shape: tuple[int, ...], width: int) -> None:
    axis = shape.index(8)
    dtype = f"uint{width}"

    def step(seed: Any, x: Any) -> Any:
        bits = jax.random.bits(jax.random.key(seed), shape, dtype)
        full = jnp.expand_dims(x, [i for i in range(len(shape)) if i != axis])
        return seed, bits * full.astype(dtype)

    args = (np.uint32(3), np.ones(8, np.int32))
    traced = trace(step, args)
    found = divided(traced, [None, 0])
    np.testing.assert_array_equal(results(found, 4, args)[-1], step(*args)[1])


def test_numbers_of_elements_above_32_bits() -> None:
    from xshard.microbatch.positions import _add, _times

    rng = np.random.default_rng(0)
    x, factor = rng.integers(0, 2**32, 100, np.uint64), int(rng.integers(2**40, 2**44))
    high, low = _add(_times(jnp.asarray(x, jnp.uint32), factor), _times(jnp.uint32(7), factor))
    got = (np.asarray(high, np.uint64) << np.uint64(32)) | np.asarray(low, np.uint64)
    np.testing.assert_array_equal(got, (x + np.uint64(7)) * np.uint64(factor))
