"""What a program does besides computing: in order, once, whatever the plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback
from jax.sharding import AxisType

import xshard
from tests.api.oracles import assert_close

X = jnp.arange(64.0).reshape(8, 8) / 64
Said = list[tuple[str, float]]


def ask(said: Said, name: str, x: Any, *, ordered: bool = True) -> Any:
    """Notes the sum of `x` and gives twice of it back."""

    def told(value: Any) -> Any:
        said.append((name, float(np.round(value, 3))))
        return np.float32(2 * value)

    return io_callback(told, jax.ShapeDtypeStruct((), jnp.float32), x.sum(), ordered=ordered)


def in_order(said: Said, x: Any) -> Any:
    first = ask(said, "first", x @ x)
    return x * first + ask(said, "second", x), ask(said, "third", x)


def in_a_scan(said: Said, x: Any) -> Any:
    return lax.scan(lambda c, row: (c + ask(said, "row", row), row @ x), 0.0, x)


def in_a_while(said: Said, x: Any) -> Any:
    return lax.fori_loop(0, 3, lambda i, y: y @ x + ask(said, "turn", y * i), x)


def in_a_branch(said: Said, x: Any) -> Any:
    return lax.cond(x.sum() > 0, lambda y: ask(said, "yes", y), lambda y: ask(said, "no", y), x)


def unordered(said: Said, x: Any) -> Any:
    return x + ask(said, "once", x @ x, ordered=False)


def of_no_use(said: Said, x: Any) -> Any:
    jax.debug.callback(lambda y: said.append(("debug", float(np.round(y, 3)))), (x @ x).sum())
    return x


def debugging_in_order(said: Said, x: Any) -> Any:
    def note(name: str, value: Any) -> None:
        jax.debug.callback(lambda y: said.append((name, float(y))), value, ordered=True)

    def body(i: Any, y: Any) -> Any:
        note("turn", i)
        return y @ x

    note("before", 1)
    y = lax.fori_loop(0, 2, body, x)
    note("behind", 2)
    return y


def pure(_said: Said, x: Any) -> Any:
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x @ x) @ x


PROGRAMS = [
    in_order, in_a_scan, in_a_while, in_a_branch, unordered, of_no_use, debugging_in_order, pure,
]  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_effects_are_those_of_jit(program: Callable[..., Any], mesh: Callable[..., Any]) -> None:
    def said_by(transform: Callable[..., Any]) -> tuple[Said, Any]:
        said: Said = []
        result = jax.block_until_ready(transform(lambda x: program(said, x))(X))
        jax.effects_barrier()
        return said, result

    expected, plain = said_by(jax.jit)
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        where = mesh(2, 4, axis_type=axis_type)
        said, result = said_by(lambda fun, where=where: xshard.auto_shard(fun, where))
        assert said == expected
        assert_close(jax.tree.map(np.asarray, result), jax.tree.map(np.asarray, plain), 10)
