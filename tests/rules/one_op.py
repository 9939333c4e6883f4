"""One equation of a traced function: as an `Op` with its rule, and as a function to run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xshard.ir.graph import Graph, Op, Value
from xshard.rules import Rule, rule_of


@dataclass(frozen=True)
class Case:
    """A row of the specification: `fn(*args)` holds one `prim`, whose rule reads `text`."""

    prim: str
    fn: Callable[..., Any]
    args: str
    text: str
    reduce: str = "sum"

    def __str__(self) -> str:
        return f"{self.prim}[{self.args}]"


def avals(text: str) -> list[jax.ShapeDtypeStruct]:
    """`"f32[2,3] key[]"` -> avals."""
    return [_aval(word) for word in text.split()]


_DTYPES = {
    "f32": jnp.float32, "bf16": jnp.bfloat16, "f16": jnp.float16, "c64": jnp.complex64,
    "i32": jnp.int32, "i8": jnp.int8, "u8": jnp.uint8, "u32": jnp.uint32, "bool": jnp.bool_,
}  # fmt: skip


def _aval(word: str) -> jax.ShapeDtypeStruct:
    name, _, dims = word.removesuffix("]").partition("[")
    shape = tuple(int(d) for d in dims.split(",") if d)
    if name in ("key", "rbg"):
        keys = jax.random.key(0, impl="threefry2x32" if name == "key" else "rbg")
        return jax.ShapeDtypeStruct(shape, keys.dtype)
    return jax.ShapeDtypeStruct(shape, _DTYPES[name])


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations, those of sub-jaxprs instead of the equation that holds them."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        inner = [j for p in eqn.params.values() for j in (p if isinstance(p, tuple) else (p,))]
        inner = [j for j in inner if hasattr(j, "eqns") or hasattr(j, "jaxpr")]
        if not inner or eqn.primitive.name.startswith(("scatter", "reduce", "select_and")):
            yield eqn
        for j in inner:
            yield from equations(j)


def find(case: Case) -> Any:
    """The last equation of the case's primitive."""
    found = list(equations(jax.make_jaxpr(case.fn)(*avals(case.args))))
    names = [e.primitive.name for e in found]
    assert case.prim in names, f"{case} has only {names}"
    return next(e for e in reversed(found) if e.primitive.name == case.prim)


def rule_of_equation(eqn: Any) -> Rule:
    """The rule of a graph of this one equation."""
    values: list[Value] = []

    def value(var: Any, producer: int) -> int | None:
        if hasattr(var, "val"):
            return None
        aval = var.aval
        size = getattr(aval.dtype, "itemsize", 8)
        values.append(Value(len(values), tuple(aval.shape), str(aval.dtype), size, producer))
        return len(values) - 1

    ins = tuple(value(v, -1) for v in eqn.invars)
    outs = tuple(v for v in (value(v, 0) for v in eqn.outvars) if v is not None)
    op = Op(0, eqn.primitive.name, ins, outs, dict(eqn.params))
    graph = Graph(tuple(values), (op,), tuple(v for v in ins if v is not None), (), outs)
    return rule_of(graph.verify(), op)


def random_args(eqn: Any) -> list[jax.Array]:
    """An array for each operand that is no literal: small numbers, also fit as indices."""
    rng = np.random.default_rng(0)
    return [_random(v.aval, rng) for v in eqn.invars if not hasattr(v, "val")]


def _random(aval: Any, rng: np.random.Generator) -> jax.Array:
    if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
        impl = "rbg" if "rbg" in str(aval.dtype) else "threefry2x32"
        return jax.random.split(jax.random.key(7, impl=impl), aval.shape)
    if jnp.issubdtype(aval.dtype, jnp.floating) or jnp.issubdtype(aval.dtype, jnp.complexfloating):
        shape = aval.shape
        square = len(shape) > 1 and shape[-1] == shape[-2]
        noise = rng.uniform(0.1, 0.9, shape) + (np.eye(shape[-1]) * 4 if square else 0)
        return jnp.asarray(noise, aval.dtype)
    return jnp.asarray(rng.integers(0, 2, aval.shape), aval.dtype)


def as_function(eqn: Any) -> Callable[..., list[jax.Array]]:
    """The equation as a function of its operands that are no literals."""

    def run(*args: jax.Array) -> list[jax.Array]:
        rest = iter(args)
        operands = [v.val if hasattr(v, "val") else next(rest) for v in eqn.invars]
        out = eqn.primitive.bind(*operands, **eqn.params)
        return list(out) if eqn.primitive.multiple_results else [out]

    return run
