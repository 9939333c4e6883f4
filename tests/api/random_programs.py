"""Programs by chance, for `test_random_programs.py`: short lists that hypothesis shrinks.

A program is a list of arrays and a list of instructions. An instruction names an operation of
`OPERATIONS` and three small numbers: two choose its operands among the values so far, one its
dimension or its form. Operands that do not fit are made to, so every list is a program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax import lax

SIZES = (0, 1, 2, 3, 4, 5, 6, 8, 12, 16, 67)
"""The last is split over two devices with one element of padding."""
DTYPES = ("float32", "bfloat16", "int32")


@dataclass(frozen=True)
class Instruction:
    """One line of a program."""

    name: str
    a: int
    b: int
    form: int


@dataclass(frozen=True)
class RandomProgram:
    """Shapes and dtypes of the inputs, and what is done to them."""

    inputs: tuple[tuple[tuple[int, ...], str], ...]
    lines: tuple[Instruction, ...]

    def args(self) -> tuple[Any, ...]:
        """Inputs whose numbers depend on nothing but their places."""
        rng = np.random.default_rng(0)
        return tuple(_input(rng, *kind) for kind in self.inputs)

    def values(self, *args: Any) -> list[Any]:
        """All values, inputs first."""
        found = list(args)
        for line in self.lines:
            a, b = found[line.a % len(found)], found[line.b % len(found)]
            found.append(OPERATIONS[line.name](a, b, line.form))
        return found

    def step(self, *args: Any) -> Any:
        """The last values, and the derivatives of a number made of all of them."""
        floats = [i for i, x in enumerate(args) if jnp.issubdtype(x.dtype, jnp.floating)]

        def loss_of(chosen: Sequence[Any]) -> tuple[Any, Any]:
            given = list(args)
            for i, x in zip(floats, chosen, strict=True):
                given[i] = x
            values = self.values(*given)
            return sum((jnp.sin(real(x)).sum() for x in values), jnp.zeros(())), values[-3:]

        (loss, last), grads = jax.value_and_grad(loss_of, has_aux=True)([args[i] for i in floats])
        return loss, last, grads


def programs(most: int = 8) -> st.SearchStrategy[RandomProgram]:
    """Programs of up to `most` instructions."""
    number = st.integers(0, 15)
    shape = st.lists(st.sampled_from(SIZES[1:]), max_size=3) | st.just([0, 4])
    inputs = st.lists(st.tuples(shape.map(tuple), st.sampled_from(DTYPES)), min_size=1, max_size=3)
    line = st.builds(Instruction, st.sampled_from(sorted(OPERATIONS)), number, number, number)
    lines = st.lists(line, min_size=1, max_size=most)
    return st.builds(RandomProgram, inputs.map(tuple), lines.map(tuple))


def _input(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Any:
    if dtype == "int32":
        return jnp.asarray(rng.integers(0, 16, shape), jnp.int32)
    return jnp.asarray(rng.normal(size=shape), dtype)


def real(x: Any) -> Any:
    """In float32, bounded where it was an integer."""
    return jnp.asarray(x, jnp.float32) / (16 if jnp.issubdtype(x.dtype, jnp.integer) else 1)


def whole(x: Any) -> Any:
    """Integers of its shape, which no rounding of floats can change."""
    return (
        x if jnp.issubdtype(x.dtype, jnp.integer) else lax.iota(jnp.int32, x.size).reshape(x.shape)
    )


def fit(x: Any, shape: tuple[int, ...]) -> Any:
    """Its numbers, again and again or the first of them, in another shape."""
    if x.shape == shape:
        return x
    try:
        return jnp.broadcast_to(x, shape)
    except ValueError:
        return jnp.resize(x, shape) if x.size else jnp.zeros(shape, x.dtype)


def _select(a: Any, b: Any, form: int) -> Any:
    return jnp.where(whole(b).sum() % 2 == form % 2, a, fit(b, a.shape).astype(a.dtype))


def dim(x: Any, form: int) -> int:
    return form % x.ndim


def filled(op: Callable[[Any, int], Any]) -> Callable[[Any, Any, int], Any]:
    """An operation along a dimension; arrays without one, or without elements, are left alone."""
    return lambda a, _, form: op(real(a), dim(a, form)) if a.ndim and a.size else a


def matrix(x: Any) -> Any:
    """As a matrix."""
    x = jnp.atleast_2d(real(x))
    return x.reshape(x.size // max(x.shape[-1], 1), x.shape[-1])


def _matmul(a: Any, b: Any, form: int) -> Any:
    a, b = matrix(a), matrix(b)
    b = fit(b, (a.shape[1], b.shape[form % 2]))
    half = jnp.bfloat16 if form % 3 == 0 else jnp.float32
    return jnp.matmul(a.astype(half), b.astype(half), preferred_element_type=jnp.float32) / 4


def _batched(a: Any, b: Any, _: int) -> Any:
    a = fit(real(a), (2, *matrix(a).shape))
    return jnp.einsum("bij,bkj->bik", a, fit(real(b), a.shape)) / 4


def _conv(a: Any, b: Any, form: int) -> Any:
    x = matrix(a)[None]
    groups = x.shape[-1] if form % 2 else 1
    w = fit(real(b), (3, x.shape[-1] // max(groups, 1), x.shape[-1]))
    if not x.size:
        return x
    numbers = ("NHC", "HIO", "NHC")
    return (
        lax.conv_general_dilated(
            x, w, (1,), "SAME", dimension_numbers=numbers, feature_group_count=groups
        )
        / 3
    )


def _gather(a: Any, b: Any, form: int) -> Any:
    a = jnp.atleast_1d(a)
    return (
        jnp.take(a, whole(b), axis=dim(a, form), mode="clip" if form % 2 else "fill")
        if a.size
        else a
    )


def _scatter(a: Any, b: Any, form: int) -> Any:
    a = jnp.atleast_1d(a)
    at = a.at[whole(b).ravel() % max(len(a), 1)]
    rows = fit(a, (b.size, *a.shape[1:]))
    return (at.add, at.max, at.min)[form % 3](rows, mode="drop") if a.size else a


def _segments(a: Any, b: Any, _: int) -> Any:
    a = jnp.atleast_1d(real(a))
    return jax.ops.segment_sum(a, fit(whole(b), (len(a),)) % 5, 5)


def _reshape(a: Any, _: Any, form: int) -> Any:
    n = next((n for n in (form + 2, 4, 3, 2) if a.size % n == 0), 1)
    return a.reshape(n, -1) if a.size else a.ravel()


def _slice(a: Any, b: Any, form: int) -> Any:
    if not a.ndim or not a.size:
        return a
    d, n = dim(a, form), a.shape[dim(a, form)]
    if form % 2:
        return lax.slice_in_dim(a, form % n, n, form % 3 + 1, d)
    return lax.dynamic_slice_in_dim(a, whole(b).sum() % n, max(n // 2, 1), d)


def _update(a: Any, b: Any, form: int) -> Any:
    if not a.ndim or not a.size:
        return a
    d = dim(a, form)
    part = fit(b, (*a.shape[:d], max(a.shape[d] // 2, 1), *a.shape[d + 1 :])).astype(a.dtype)
    return lax.dynamic_update_slice_in_dim(a, part, whole(b).sum(), d)


def _join(a: Any, b: Any, form: int) -> Any:
    a = jnp.atleast_1d(a)
    b = fit(b, a.shape).astype(a.dtype)
    return jnp.concatenate([a, b], dim(a, form)) if form % 2 else jnp.stack([a, b], dim(a, form))


def _scan(a: Any, b: Any, form: int) -> Any:
    a = jnp.atleast_1d(real(a))
    w = fit(real(b), a.shape[1:])

    def body(carry: Any, x: Any) -> Any:
        carry = jnp.tanh(carry * w + x)
        return carry, carry * 2 if form % 3 else None

    body = jax.checkpoint(body) if form % 2 else body
    carry, stacked = lax.scan(body, w, a, reverse=form % 4 > 1)
    return carry if stacked is None else stacked


def _while(a: Any, b: Any, form: int) -> Any:
    a, b = real(a), fit(real(b), a.shape)
    if form % 2:  # of a known length, so it can be differentiated
        return lax.fori_loop(0, 3, lambda i, x: jnp.sin(x + b) * (1 + i), a)
    a, b = lax.stop_gradient((a, b))
    turns = 1 + whole(b).sum() % 3
    return lax.while_loop(lambda c: c[0] < turns, lambda c: (c[0] + 1, jnp.cos(c[1] + b)), (0, a))[
        1
    ]


def _cond(a: Any, b: Any, form: int) -> Any:
    index = whole(b).sum() % 3 if form % 2 else form % 3
    return lax.switch(
        index, [jnp.sin, lambda x: x[::-1] if x.ndim else -x, lambda x: 2 * x], real(a)
    )


def _prefix(a: Any, b: Any, form: int) -> Any:
    if not a.ndim or not a.size:
        return a
    a, b = jnp.tanh(real(a)), jnp.tanh(fit(real(b), a.shape))
    join = lambda x, y: (x[0] * y[0], y[0] * x[1] + y[1])  # noqa: E731
    return lax.associative_scan(join, (a, b), axis=dim(a, form))[1]


@jax.custom_vjp
def _own(x: Any) -> Any:
    return jnp.sin(x)


_own.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x) * 2,))


def _permuted(a: Any, _: Any, form: int) -> Any:
    order = list(range(a.ndim))
    return a.transpose(order[form % max(a.ndim, 1) :] + order[: form % max(a.ndim, 1)])


def _padded(a: Any, _: Any, form: int) -> Any:
    mode = ("constant", "edge", "wrap")[form % 3] if a.size else "constant"
    return a if not a.ndim else jnp.pad(a, [(form % 2, form % 3)] * a.ndim, mode=mode)


OPERATIONS: dict[str, Callable[[Any, Any, int], Any]] = {
    "add": lambda a, b, _: real(a) + fit(real(b), a.shape),
    "mul": lambda a, b, _: real(a) * jnp.tanh(fit(real(b), a.shape)),
    "select": _select,
    "tanh": lambda a, _, f: jnp.tanh(real(a)).astype(("float32", "bfloat16", "float16")[f % 3]),
    "own": lambda a, _b, _f: _own(real(a)),
    "outer": lambda a, b, _: real(a).ravel()[:8, None] * jnp.tanh(real(b)).ravel()[:8],
    "matmul": _matmul,
    "batched": _batched,
    "conv": _conv,
    "mean": filled(lambda x, d: x.mean(d)),
    "max": filled(lambda x, d: x.max(d, keepdims=True)),
    "softmax": filled(jax.nn.softmax),
    "cumsum": filled(lambda x, d: jnp.cumsum(x, d) / 4),
    "sort": filled(lambda x, d: jnp.sort(x, d)),
    "roll": filled(lambda x, d: jnp.roll(x, 1, d)),
    "flip": filled(jnp.flip),
    "diff": filled(lambda x, d: jnp.diff(x, axis=d)),
    "sum": lambda a, _, f: a.sum(tuple(range(f % (a.ndim + 1)))),
    "bits": lambda a, _, f: a + jax.random.bernoulli(jax.random.key(f), 0.5, a.shape),
    "rows": lambda a, _b, _f: jnp.argsort(whole(a), axis=-1) if a.ndim and a.size else whole(a),
    "gather": _gather,
    "scatter": _scatter,
    "segments": _segments,
    "reshape": _reshape,
    "transpose": _permuted,
    "slice": _slice,
    "update": _update,
    "join": _join,
    "pad": _padded,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "prefix": _prefix,
    "vmapped": lambda a, b, _: jax.vmap(lambda x: jnp.tanh(x * b.sum()))(jnp.atleast_1d(real(a))),
    "nothing": lambda a, _b, _f: a,
}  # fmt: skip
