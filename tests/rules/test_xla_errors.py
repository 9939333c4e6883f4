"""Splits that rules block because XLA computes them wrongly; each fails once XLA is mended."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import xshard
from benchmarks.attractive import attractive_plan
from tests.rules.cases import per_example_gradient
from tests.rules.one_op import Case, find, rule_of_equation
from xshard.spec import MeshShape
from xshard.strategies import strategies_of


def test_groups_of_a_convolution_whose_layout_is_permuted(mesh) -> None:
    layout = ("NHWC", "HWIO", "NHWC")
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(3, 3, 2, 4)), jnp.float32)
    x = jnp.asarray(rng.normal(size=(4, 8, 8, 2)), jnp.float32)

    def gradients(w: jax.Array, x: jax.Array) -> jax.Array:
        return per_example_gradient(w, x, layout)

    expected = gradients(w, x)
    split = NamedSharding(mesh(2), P("x"))
    got = jax.jit(gradients, in_shardings=(None, split), out_shardings=split)(w, x)
    error = float(jnp.abs(got - expected).max() / jnp.abs(expected).max())
    assert error > 0.1, "mended: unblock the groups in xshard/rules/conv.py"


def test_sums_of_a_convolution_in_batch_groups(mesh) -> None:
    """The gradient of a depthwise weight, its batch split over one of two axes, comes out twice."""

    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return (jax.lax.conv_general_dilated(x, w, (1,), "SAME", feature_group_count=4) ** 2).sum()

    x, w = jnp.arange(64.0).reshape(4, 4, 4) / 64, jnp.ones((4, 1, 3))
    whole, rows = (NamedSharding(mesh(2, 2), spec) for spec in (P(), P("x")))
    run = jax.jit(jax.grad(loss), in_shardings=(whole, rows), out_shardings=whole)
    ratio = run(w, x) / jax.grad(loss)(w, x)
    assert jnp.allclose(ratio, 2.0), "mended: `crowded` in xshard/rules/conv.py is not needed"


def test_groups_of_a_convolution_split_with_what_is_in_them(mesh) -> None:
    """Batch groups `(g n)` instead of feature groups: XLA aborts the process at the same split."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 4, 8)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(8, 1, 3)), jnp.float32)

    def conv(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, w, (1,), "SAME", feature_group_count=4)

    def split(*spec: str | tuple[str, ...] | None) -> NamedSharding:
        return NamedSharding(mesh(4, 2), P(*spec))

    both = split(("x", "y"))
    run = jax.jit(
        conv, in_shardings=(split(None, "x"), both), out_shardings=split(None, ("x", "y"))
    )
    expected = conv(x, w)
    error = float(jnp.abs(run(x, w) - expected).max() / jnp.abs(expected).max())
    assert error > 0.1, "mended: unblock the features within groups in xshard/rules/conv.py"


ONE, ROWS = jnp.array([6]), jnp.array([6, 1, 6, 1])
WRITES: dict[str, tuple[Callable[..., jax.Array], jax.Array, P, P]] = {
    "no index": (lambda x, i: x.at[i].set(-1.0), ONE[0], P("x"), P()),
    "one index": (lambda x, i: x.at[i].add(-1.0), ONE, P("x"), P()),
    "one a device": (jax.vmap(lambda r, i: r.at[i].set(-1.0)), ROWS, P("y", "x"), P("y")),
}


@pytest.mark.parametrize("name", WRITES)
def test_rows_of_a_scatter_of_one_update(name: str, mesh) -> None:
    """Wrong in jax 0.10 where the rows are split over some axes, from a copy on each device."""
    write, i, of_x, of_i = WRITES[name]
    x, where = jnp.arange(32.0).reshape(4, 8) if i.size > 1 else jnp.arange(64.0), mesh(2, 4)

    def split(a: jax.Array, spec: P) -> jax.Array:
        return jax.lax.with_sharding_constraint(a, NamedSharding(where, spec))

    def run(x: jax.Array, i: jax.Array) -> jax.Array:
        return split(write(split(split(x, P()), of_x), split(i, of_i)), of_x)

    right = bool((jax.jit(run)(x, i) == write(x, i)).all())
    mended = jax.__version_info__ >= (0, 12)
    assert right == mended, "mended: once no older jax is supported, unblock the rows"


@pytest.mark.parametrize(("batch", "together"), [(2, True), (4, False)])
def test_rows_are_whole_where_a_device_has_one_update(batch: int, together: bool) -> None:
    """Four updates over two devices are two on each, over four they are one."""
    write, args = jax.vmap(lambda r, i: r.at[i].set(-1.0)), "f32[4,8] i32[4]"
    rule = rule_of_equation(find(Case("scatter", write, args, "a b, a 1, a -> a b")))
    mesh = MeshShape(("x", "y"), (batch, 2))
    found = {s.results[0] for s in strategies_of(rule, mesh, (2, 2, 1), (2,))}
    assert {((0,), ()), ((), (0,)), ((), (0, 1))} <= found
    assert (((0,), (1,)) in found) == together


def test_updates_that_are_padded(mesh) -> None:
    """Thirteen ones over two devices, with copies on others: XLA adds the fourteenth, too."""
    one = NamedSharding(mesh(2, 2), P("x"))

    def count(i: jax.Array) -> jax.Array:
        ones = jax.lax.with_sharding_constraint(i * 0 + 1, one)
        return jnp.zeros(4, int).at[jax.lax.with_sharding_constraint(i * 1, one)].add(ones)

    i = jnp.arange(13) % 4
    assert int(jax.jit(count)(i).sum()) > 13, "mended: `unpadded` in xshard/rules/scatter.py"


def test_updates_are_split_where_they_divide(mesh) -> None:
    write, over = (lambda x, i, u: x.at[i].add(u)), MeshShape(("x",), (2,))
    for n, split in ((200, True), (201, False)):
        case = Case("scatter-add", write, f"f32[4] i32[{n}] f32[{n}]", "a, b 1, b -> a")
        found = {
            s.operands[2]
            for s in strategies_of(rule_of_equation(find(case)), over, (1, 2, 1), (1,))
        }
        assert (((0,),) in found) == split


def from_three(x: jax.Array) -> jax.Array:
    return jax.lax.reduce(x, np.int32(3), lambda a, b: a + b, (0,))


def test_a_reduction_of_a_concatenation() -> None:
    """XLA begins anew with the initial value for each part, on one device, too."""
    halves = jax.jit(lambda x: from_three(jnp.concatenate([x, x])))
    assert int(halves(jnp.ones((2, 1), int))[0]) == 10, "mended: no barrier in run/rebind.py (7)"


def test_a_reduction_behind_an_all_to_all(mesh) -> None:
    """Its parts are concatenated; its initial value counts once."""
    x = jnp.ones((16, 24), int)
    plan = attractive_plan(from_three, (x,), mesh(2, 4), tight=True)
    assert plan.arguments[0].spec[0]
    assert (xshard.auto_shard(from_three, mesh(2, 4), plan=plan)(x) == 19).all()


def test_arrays_without_elements_are_whole(mesh) -> None:
    """JAX 0.10 returns shards of another shape than their sharding's."""

    def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return x[:, 4:], x * 2.0

    x = jnp.ones((8, 4))
    plan = attractive_plan(both, (x,), mesh(2, 4), tight=True)
    empty, twice = xshard.auto_shard(both, mesh(2, 4), plan=plan)(x)
    assert np.asarray(empty).shape == (8, 0) and (twice == 2.0).all()
    assert plan.results[0].spec == ((), ()) and any(plan.results[1].spec)


GATHER = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
mesh = jax.make_mesh((8,), ("x",), (AxisType.Auto,))
split, whole = NamedSharding(mesh, P("x")), NamedSharding(mesh, P())
x = jax.device_put(jnp.ones((8, 8), jnp.int2), split)
y = jax.jit(lambda x: x + 0, out_shardings=whole)(x)
print("right" if bool((y.astype(jnp.int32) == 1).all()) else "wrong")
"""


def test_gathers_of_two_bit_integers() -> None:
    """In a process of its own, whose memory it overwrites."""
    ran = subprocess.run([sys.executable, "-c", GATHER], capture_output=True, text=True)
    mended = ran.returncode == 0 and ran.stdout.strip() == "right"
    assert not mended, "mended: two-bit integers may be split (xshard/rules/registry.py)"


def test_two_bit_integers_are_whole_on_every_device(mesh) -> None:
    """What is computed from them may be split."""

    def scaled(x: jax.Array, w: jax.Array) -> jax.Array:
        return x[::-1].astype(jnp.float32) @ w

    x, w = jnp.ones((8, 8), jnp.int2), jnp.arange(64.0).reshape(8, 8)
    plan = attractive_plan(scaled, (x, w), mesh(2, 4))
    step = xshard.auto_shard(scaled, mesh(2, 4), plan=plan)
    assert jnp.allclose(step(x, w), scaled(x, w))
    split = [any(map(any, (*op.operands, *op.results))) for op in plan.ops]
    assert plan.arguments[0].spec == ((), ()) and any(split)
