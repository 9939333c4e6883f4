"""The annotated program equals the original: exactly without constraints, closely with any."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xshard._jax import auto_mesh
from xshard.errors import PinError
from xshard.ir.trace import Traced, trace
from xshard.run.annotate import Constraints, Key, annotate
from xshard.verify.hlo import collectives_in

P = PartitionSpec
W = jnp.linspace(-1.0, 1.0, 64).reshape(8, 8)
X = jnp.linspace(0.0, 2.0, 128).reshape(16, 8)


@jax.custom_jvp
def doubled(x: Any) -> Any:
    return x * 2


doubled.defjvp(lambda p, t: (doubled(p[0]), t[0] * 2))


@jax.custom_vjp
def tripled(x: Any) -> Any:
    return x * 3


tripled.defvjp(lambda x: (tripled(x), None), lambda _, g: (g * 3,))


@jax.jit
def wave(x: Any) -> Any:
    return jnp.sin(x) * 2


def nested_jit(w: Any, x: Any) -> Any:
    return jax.jit(lambda w, x: wave(wave(x @ w)))(w, x), wave(w)


def scanned(w: Any, x: Any) -> Any:
    def body(carry: Any, row: Any) -> Any:
        carry = jnp.tanh(carry @ w + row)
        return carry, (carry.sum(-1), row * 2)

    return jax.lax.scan(body, x, jnp.stack([w[0], w[1], w[2]]), reverse=True)


def nested_scan(w: Any, x: Any) -> Any:
    def outer(carry: Any, _: Any) -> Any:
        return jax.lax.scan(lambda c, row: (jnp.tanh(c @ w) + row, c), carry, w)

    return jax.lax.scan(outer, x, None, length=2)


def while_loop(w: Any, x: Any) -> Any:
    state = (jnp.int32(0), x)
    return jax.lax.while_loop(
        lambda s: (s[0] < 3) & (s[1].sum() + w.sum() < 1e9), lambda s: (s[0] + 1, s[1] @ w), state
    )


def cond(w: Any, x: Any) -> Any:
    pick = jax.lax.cond(x.sum() > 0, lambda x: (x @ w, x), lambda x: (x, x * 2), x)
    return pick, jax.lax.switch(2, [jnp.sin, jnp.cos, lambda v: v], x)


def checkpointed(w: Any, x: Any) -> Any:
    policy = jax.checkpoint_policies.dots_saveable
    layer = jax.checkpoint(lambda x, w: jnp.tanh(x @ w), prevent_cse=True)
    other = jax.checkpoint(lambda x, w: jnp.sin(x @ w), policy=policy)
    return jax.grad(lambda w: layer(other(x, w), w).sum())(w)


def scanned_layers(w: Any, x: Any) -> Any:
    """Gradient through a scan of checkpointed layers over stacked weights."""
    layer = jax.checkpoint(lambda h, w: (jnp.tanh(h @ w), None))
    weights = jnp.stack([w, w * 2, w + 1])
    return jax.value_and_grad(lambda ws: jax.lax.scan(layer, x, ws)[0].sum())(weights)


def custom_derivatives(w: Any, x: Any) -> Any:
    return jax.grad(lambda w: (doubled(x @ w) * tripled(x @ w)).sum())(w), doubled(x)


def closure(w: Any, x: Any) -> Any:
    table = np.arange(64, dtype=np.float32).reshape(8, 8)
    return x @ jnp.asarray(table) + wave(X @ W), w @ W


def ends(w: Any, x: Any) -> Any:
    """An input passed through, one twice, a literal, an input not used."""
    return x, x, 3.0, {"zero": jnp.zeros((8, 4))}


def dropout(w: Any, x: Any) -> Any:
    key = jax.random.key(7)
    keys = jax.random.split(key, 3)
    mask = jax.random.bernoulli(keys[0], 0.5, x.shape)
    return jnp.where(mask, x, 0) @ w, jax.random.bits(keys[1], (8, 8)), keys


PROGRAMS = [
    nested_jit, scanned, nested_scan, while_loop, cond, checkpointed, scanned_layers,
    custom_derivatives, closure, ends, dropout,
]  # fmt: skip
each_program = pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)


def plain(leaf: Any) -> np.ndarray:
    is_key = jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


@functools.cache
def expected(program: Callable[..., Any]) -> list[np.ndarray]:
    return [plain(x) for x in jax.tree.leaves(jax.jit(program)(W, X))]


def results(traced: Traced, constraints: Constraints, *args: Any) -> list[np.ndarray]:
    return [plain(x) for x in jax.jit(annotate(traced, constraints))(*jax.tree.leaves(args))]


def assert_equal(got: list[Any], want: list[Any], rtol: float) -> None:
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        largest = max(1.0, float(np.abs(b).max(initial=0)))  # terms of that size cancel in others
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * largest)


def random_spec(rng: random.Random, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    axes = list(mesh.axis_names)
    rng.shuffle(axes)
    spec: list[Any] = []
    for size in shape:
        fits = [a for a in axes if size % mesh.shape[a] == 0 and rng.random() < 0.6]
        spec.append(fits[0] if fits else None)
        axes = [a for a in axes if a not in fits[:1]]
    return P(*spec)


def random_constraints(traced: Traced, mesh: Mesh, seed: int, share: float = 0.6) -> Constraints:
    """Constrains a part of all results and operands, with barriers and shared copies."""
    rng = random.Random(seed)
    g = traced.graph
    by_result: dict[Key, tuple[PartitionSpec, ...]] = {}
    by_operand: dict[Key, tuple[PartitionSpec, ...]] = {}
    shared: dict[Key, Key] = {}
    first: dict[int, Any] = {}
    barriers = set()
    for op in g.ops:
        for r, v in enumerate(op.outputs):
            if rng.random() < share:
                by_result[op.address, r] = (random_spec(rng, g.values[v].shape, mesh),)
        for k, v in enumerate(op.inputs):
            if v is None or rng.random() > share / 2:
                continue
            by_operand[op.address, k] = tuple(
                random_spec(rng, g.values[v].shape, mesh) for _ in range(rng.choice((1, 1, 2)))
            )
            if v in first and rng.random() < 0.5:
                shared[op.address, k] = first[v]
                by_operand[op.address, k] = by_operand[first[v]]
            elif rng.random() < 0.3:
                barriers.add((op.address, k))
            first.setdefault(v, (op.address, k))
    return Constraints(mesh, by_result, by_operand, shared, frozenset(barriers))


@each_program
def test_no_constraints_is_the_same_program(program: Callable[..., Any], mesh: Any) -> None:
    traced = trace(program, (W, X))
    assert_equal(results(traced, Constraints(mesh(2, 4)), W, X), expected(program), rtol=0)


@each_program
@pytest.mark.parametrize("seed", range(2))
def test_any_constraints_give_the_same_numbers(
    program: Callable[..., Any], seed: int, mesh: Any
) -> None:
    traced = trace(program, (W, X))
    told = random_constraints(traced, mesh(2, 4), seed)
    assert_equal(results(traced, told, W, X), expected(program), rtol=2e-5)


def jaxpr_text(f: Callable[..., Any], told: Callable[[Traced], Constraints], *args: Any) -> str:
    traced = trace(f, args)
    return str(jax.make_jaxpr(annotate(traced, told(traced)))(*jax.tree.leaves(args)))


def key_of(traced: Traced, prim: str, nth: int = 0) -> tuple[tuple[int, ...], int]:
    """The key of the first result of the n-th op of a kind."""
    return [op.address for op in traced.graph.ops if op.prim == prim][nth], 0


@pytest.mark.parametrize(
    ("program", "prim"),
    [
        (nested_jit, "sin"), (scanned, "scan_x"), (scanned, "carry_in"), (scanned, "scan_const"),
        (scanned, "scan_y"), (nested_scan, "tanh"), (while_loop, "carry_in"),
        (while_loop, "dot_general"), (cond, "branch_in"), (cond, "branch_out"),
        (checkpointed, "tanh"), (custom_derivatives, "dot_general"),
    ],
)  # fmt: skip
def test_the_key_of_any_value_constrains_it(
    program: Callable[..., Any], prim: str, mesh: Any
) -> None:
    traced = trace(program, (W, X))
    key = key_of(traced, prim)
    op = next(op for op in traced.graph.ops if op.address == key[0])
    shape = traced.graph.values[op.outputs[0]].shape
    dim = next((d for d, size in enumerate(shape) if size % 8 == 0), None)
    if dim is None:  # the first carry of the while is its counter
        key = key_of(traced, prim, 1)
        dim = 0
    spec = P(*[None] * dim, ("x", "y"))
    text = jaxpr_text(program, lambda _: Constraints(mesh(2, 4), {key: (spec,)}), W, X)
    assert f"spec={spec}" in text.replace("PartitionSpec", "P")


def test_shared_operands_are_resharded_once(mesh: Any) -> None:
    def f(w: Any, x: Any) -> Any:
        return x @ w, x @ (w + 1)

    uses = [((0,), 0), ((2,), 0)]

    def told(shared: dict[Any, Any]) -> Constraints:
        return Constraints(mesh(2, 4), operands={u: (P("x"),) for u in uses}, shared=shared)

    once = jaxpr_text(f, lambda _: told({uses[1]: uses[0]}), W, X)
    twice = jaxpr_text(f, lambda _: told({}), W, X)
    assert once.count("sharding_constraint[") == 1
    assert twice.count("sharding_constraint[") == 2


def test_a_barrier_holds_the_reshard_back(mesh: Any) -> None:
    told = Constraints(mesh(2, 4), operands={((0,), 1): (P("x"),)}, barriers=frozenset({((0,), 1)}))
    text = jaxpr_text(lambda w, x: x @ w, lambda _: told, W, X)
    assert text.count("optimization_barrier") == 1


def test_what_a_loop_carries_is_moved_behind_it_once(mesh: Any) -> None:
    """Not to and fro in each turn."""

    def sums(w: Any, x: Any) -> Any:
        total = jnp.zeros((8, 16))
        return jax.lax.scan(lambda t, v: (t + jnp.sin(v) * w[0, 0], None), total, x)[0]

    traced = trace(sums, (W, jnp.ones((5, 8, 16))))
    ops = {op.prim: op.address for op in traced.graph.ops if op.outputs}
    carried, wanted = (P("x"),), (P(None, "x"),)
    total = next(op for op in traced.graph.ops if op.prim == "carry_in").inputs[1]
    maker = traced.graph.ops[traced.graph.values[total or 0].producer].address
    told = Constraints(
        mesh(2, 4),
        {(ops["carry_in"], 0): carried, (maker, 0): carried, (ops["carry_out"], 0): wanted},
        {(ops["carry_out"], 0): wanted},
    )
    args = W, jnp.ones((5, 8, 16))
    text = jax.jit(annotate(traced, told)).lower(*args).compile().as_text()
    moves = collectives_in(text or "", (2, 4), ("x", "y"))
    assert [(c.kind, c.count) for c in moves if c.bytes > 64] == [("all-to-all", 1)]


def test_constraints_reach_xla(mesh: Any) -> None:
    """What is told inside a scan is a sharding in the compiled body."""
    traced = trace(scanned, (W, X))
    told = Constraints(mesh(2, 4), {key_of(traced, "tanh"): (P("x", "y"),)})
    text = jax.jit(annotate(traced, told)).lower(W, X).compile().as_text()
    assert text is not None
    assert "f32[8,2]" in text


def test_hlo_names_the_users_line_and_scopes(mesh: Any) -> None:
    def f(x: Any) -> Any:
        with jax.named_scope("block"):
            return wave(x)

    traced = trace(f, (X,))
    lowered = jax.jit(annotate(traced, Constraints(mesh(8)))).lower(X)
    text = lowered.as_text(debug_info=True)
    assert "block/jit(wave)/sin" in text
    assert "test_annotate.py" in text


def test_the_users_constraints_move_to_our_mesh(mesh: Any) -> None:
    theirs = mesh(2, 4)

    def f(w: Any, x: Any) -> Any:
        def body(h: Any, _: Any) -> Any:
            return jax.lax.with_sharding_constraint(h @ w, NamedSharding(theirs, P("y"))), None

        nested = jax.jit(jnp.sin, out_shardings=NamedSharding(theirs, P("x", "y")))
        return nested(jax.lax.scan(body, x, None, length=2)[0])

    ours = jax.make_mesh((4, 2), ("y", "x"), (AxisType.Auto,) * 2)
    text = jaxpr_text(f, lambda _: Constraints(ours), W, X)
    assert text.count("'y': 4, 'x': 2") == 2
    assert "'x': 2, 'y': 4" not in text


def test_a_constraint_on_an_unknown_axis_says_where(mesh: Any) -> None:
    theirs = mesh(2, 4)
    other = jax.make_mesh((8,), ("data",), (AxisType.Auto,))

    def f(x: Any) -> Any:
        return jax.lax.with_sharding_constraint(x, NamedSharding(theirs, P("y")))

    with pytest.raises(PinError, match=r"test_annotate.py:\d+ .*names mesh axis 'y'.*'data'"):
        annotate(trace(f, (X,)), Constraints(other))(X)


def test_explicit_axes_become_auto(mesh: Any) -> None:
    explicit = mesh(2, 4, axis_type=AxisType.Explicit)

    def f(w: Any, x: Any) -> Any:
        y = jnp.dot(x, w, out_sharding=P("x", "y"))
        rows, _ = jax.lax.scan(lambda c, r: (jnp.tanh(c + r), c.sum()), y, jnp.ones((3, 8)))
        return jax.sharding.reshard(rows, P()), jnp.zeros((4, 4), out_sharding=P("x"))

    with jax.set_mesh(explicit):
        w = jax.device_put(W, NamedSharding(explicit, P()))
        x = jax.device_put(X, NamedSharding(explicit, P("x")))
        want = [plain(y) for y in jax.tree.leaves(f(w, x))]
        traced = trace(f, (w, x))
    told = random_constraints(traced, auto_mesh(explicit), 0)
    assert_equal(results(traced, told, W, X), want, rtol=1e-5)
    assert str(jax.tree.leaves(traced.in_avals)[0]) == "float32[8,8]"


def test_shard_map_islands_run_on_our_mesh(mesh: Any) -> None:
    auto = mesh(2, 4)
    island = functools.partial(
        jax.shard_map, mesh=auto, in_specs=(P("x", "y"), P("y", None)), out_specs=P("x", None)
    )

    def f(w: Any, x: Any) -> Any:
        return jnp.sin(island(lambda a, b: jax.lax.psum(a @ b, "y"))(x, w))

    traced = trace(f, (W, X))
    assert [op.prim for op in traced.graph.ops] == ["shard_map", "sin"]
    told = random_constraints(traced, auto, 1)
    assert_equal(results(traced, told, W, X), [plain(jnp.sin(X @ W))], rtol=1e-5)


def test_ordered_effects_keep_their_order_and_run_once(mesh: Any) -> None:
    seen: list[int] = []

    def f(x: Any) -> Any:
        def body(i: Any, h: Any) -> Any:
            jax.debug.callback(lambda i: seen.append(int(i)), i, ordered=True)
            return jnp.tanh(h)

        x = jax.lax.fori_loop(0, 3, body, x)
        jax.debug.callback(lambda _: seen.append(9), x.sum(), ordered=True)
        return x * 2

    traced = trace(f, (X,))
    told = Constraints(mesh(1), {key_of(traced, "tanh"): (P("x"),)})
    jax.block_until_ready(jax.jit(annotate(traced, told))(X))
    jax.effects_barrier()
    assert seen == [0, 1, 2, 9]


def test_captured_arrays_can_be_arguments(mesh: Any) -> None:
    traced = trace(closure, (W, X))
    run = annotate(traced, Constraints(mesh(2, 4)))
    doubled_consts = [c * 2 for c in traced.consts]
    got = jax.jit(lambda consts, *args: run(*args, consts=consts))(doubled_consts, W, X)
    np.testing.assert_allclose(got[1], W @ (W * 2), rtol=1e-6)


def test_mutable_references_pass_through_loops(mesh: Any) -> None:
    def f(x: Any) -> Any:
        ref = jax.new_ref(x)

        def body(c: Any, row: Any) -> Any:
            ref[...] += row
            return c + 1, jnp.sin(row)

        return jax.lax.scan(body, 0, x[:3]), ref[...]

    traced = trace(f, (X,))
    told = Constraints(mesh(2, 4), {key_of(traced, "sin"): (P("x"),)})
    want = [plain(x) for x in jax.tree.leaves(jax.jit(f)(X))]
    assert_equal(results(traced, told, X), want, rtol=1e-6)
