"""Walks a jaxpr and writes every equation down as a raw op: calls inlined, bodies in place.

`GraphBuilder` holds what has been written; `xshard.ir.ports` adds scan, while and cond to it, and
`xshard.ir.prune` turns it into a `Graph`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding

from xshard._jax import (
    ClosedJaxpr,
    Jaxpr,
    JaxprEqn,
    Literal,
    consts_of,
    opened,
    scopes_and_transforms,
    solve_reads,
    source_line,
)
from xshard.ir.graph import Address

CALLS = {
    "jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr",
    "call": "call_jaxpr", "eval_jaxpr": "call_jaxpr", "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr", "custom_vjp_call_jaxpr": "fun_jaxpr",
    "remat2": "jaxpr", "remat": "jaxpr", "checkpoint": "jaxpr",
}  # fmt: skip
"""Primitives that are inlined, and the parameter that holds what they call."""


def callee(eqn: JaxprEqn) -> tuple[Any, Sequence[int]] | None:
    """(what an inlined equation calls, which of its operands are the arguments); or None."""
    if (param := CALLS.get(eqn.primitive.name)) is not None:
        return eqn.params[param], range(len(eqn.invars))
    if eqn.primitive.name == "custom_linear_solve":  # its other functions are for derivatives
        return eqn.params["jaxprs"].solve, solve_reads(eqn)
    return None


_RECOMPUTED = "rematted_computation"
_NOT_SCOPES = frozenset({_RECOMPUTED, "checkpoint"})


class Meta(NamedTuple):
    """What equations of one name stack have in common."""

    scope: str
    backward: bool
    forward: bool
    recomputed: bool


_NO_META = Meta("", backward=False, forward=False, recomputed=False)


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a jaxpr is being inlined.

    Attributes:
      address: of the jaxpr; its equations append their index.
      meta: of the equation that holds it.
      source: of the equation that holds it, for equations without a line of their own.
      repeat: how often it runs in one step.
      needs: indices of the predicate ops that decide whether it runs.
    """

    address: Address = ()
    meta: Meta = _NO_META
    source: str = ""
    repeat: int = 1
    needs: tuple[int, ...] = ()
    memo: dict[int, Meta] = field(default_factory=dict)

    def meta_of(self, name_stack: Any) -> Meta:
        """Scope and phase of an equation; one computation for each name stack object."""
        meta = self.memo.get(id(name_stack))
        if meta is None:
            meta = self.memo[id(name_stack)] = _extend(self.meta, name_stack)
        return meta


class RawOp(NamedTuple):
    """An `Op` before unused ones are dropped; ids are the builder's."""

    prim: str
    inputs: tuple[int | None, ...]
    outputs: tuple[int, ...]
    params: dict[str, Any]
    meta: Meta
    source: str
    repeat: int
    address: Address
    effectful: bool
    needs: tuple[int, ...]


class RawValue(NamedTuple):
    """A `Value` before renumbering."""

    shape: tuple[int, ...]
    dtype: str
    itemsize: float
    name: str


class GraphBuilder:
    """Raw ops and values in program order."""

    def __init__(self, control_flow: dict[str, Callable[..., list[int | None]]]) -> None:
        self.values: list[RawValue] = []
        self.ops: list[RawOp] = []
        self.made_by: dict[int, int] = {}  # value id -> op index
        self.consts: dict[int, tuple[int, Any]] = {}  # id(array) -> (value id, array)
        self._control_flow = control_flow

    def value(self, aval: Any, name: str = "") -> int:
        """A new value of this type."""
        dtype, itemsize = _dtype(aval.dtype) if hasattr(aval, "dtype") else ("token", 0.0)
        self.values.append(RawValue(tuple(getattr(aval, "shape", ())), dtype, itemsize, name))
        return len(self.values) - 1

    def const(self, array: Any) -> int:
        """The value of a captured array; the same array has one value."""
        if id(array) not in self.consts:
            self.consts[id(array)] = (self.value(jax.typeof(array)), array)
        return self.consts[id(array)][0]

    def inline(self, jaxpr: Any, args: list[int | None], frame: Frame) -> list[int | None]:
        """Writes down a jaxpr's equations and returns the ids of its results."""
        inner = opened(jaxpr)
        env: dict[Any, int | None] = dict(zip(inner.invars, args, strict=True))
        for var, array in zip(inner.constvars, consts_of(jaxpr), strict=True):
            env[var] = self.const(array)
        for i, eqn in enumerate(inner.eqns):
            ins = [None if isinstance(v, Literal) else env[v] for v in eqn.invars]
            env.update(zip(eqn.outvars, self._equation(eqn, ins, frame, i), strict=True))
        return [None if isinstance(v, Literal) else env[v] for v in inner.outvars]

    def _equation(
        self, eqn: JaxprEqn, ins: list[int | None], frame: Frame, i: int
    ) -> list[int | None]:
        name = eqn.primitive.name
        address = (*frame.address, i)
        if (called := callee(eqn)) is not None:
            body, operands = called
            return self._call(eqn, body, [ins[k] for k in operands], frame, address)
        if (handler := self._control_flow.get(name)) is not None:
            return handler(self, eqn, ins, frame, address)
        if name == "convert_element_type" and ins[0] is not None and _to_itself(eqn):
            return [ins[0]]  # the step of a weakly typed state is that of the state it returns
        return list(self.emit(name, eqn, ins, eqn.outvars, frame, address, plain_params(eqn)))

    def _call(
        self, eqn: JaxprEqn, body: Any, ins: list[int | None], frame: Frame, at: Address
    ) -> list[int | None]:
        """The results of a call; the shardings that a nested jit states become constraints."""
        inner = self.below(eqn, frame, at, 0)
        pinned_in, pinned_out = pins(eqn)
        args = list(ins)
        for k, sharding in pinned_in.items():
            args[k] = self._pin(eqn, ins[k], opened(body).invars[k], inner, (*at, 0, ~k), sharding)
        outs = self.inline(body, args, inner)
        for k, sharding in pinned_out.items():
            outs[k] = self._pin(eqn, outs[k], eqn.outvars[k], inner, (*at, ~k), sharding)
        return outs

    def _pin(
        self, eqn: JaxprEqn, v: int | None, var: Any, frame: Frame, at: Address, sharding: Any
    ) -> int:
        params = {"sharding": sharding}
        return self.emit("sharding_constraint", eqn, [v], [var], frame, at, params)[0]

    def emit(
        self, prim: str, eqn: JaxprEqn, ins: list[int | None], out_vars: list[Any], frame: Frame,
        address: Address, params: dict[str, Any], needs: tuple[int, ...] = (),
    ) -> tuple[int, ...]:  # fmt: skip
        """Writes down one op of an equation and returns the ids of its results."""
        outputs = tuple([self.value(v.aval) for v in out_vars])
        self.made_by.update(dict.fromkeys(outputs, len(self.ops)))
        info = eqn.source_info
        effectful = prim == eqn.primitive.name and bool(eqn.effects)
        raw = RawOp(
            prim, tuple(ins), outputs, params, frame.meta_of(info.name_stack),
            source_line(info.traceback) or frame.source, frame.repeat, address, effectful,
            frame.needs + needs if effectful else needs,
        )  # fmt: skip
        self.ops.append(raw)
        return outputs

    def below(
        self, eqn: JaxprEqn, frame: Frame, address: Address, sub: int,
        repeat: int = 1, needs: tuple[int, ...] = (),
    ) -> Frame:  # fmt: skip
        """The frame of an equation's `sub`-th jaxpr."""
        return Frame(
            (*address, sub), frame.meta_of(eqn.source_info.name_stack),
            source_line(eqn.source_info.traceback) or frame.source,
            frame.repeat * repeat, frame.needs + needs,
        )  # fmt: skip


def _to_itself(eqn: JaxprEqn) -> bool:
    """Whether a conversion is to the dtype that there is: it changes no more than weak types."""
    aval: Any = eqn.invars[0].aval
    return aval.dtype == eqn.params["new_dtype"]


def pins(eqn: JaxprEqn) -> tuple[dict[int, NamedSharding], dict[int, NamedSharding]]:
    """The shardings that a nested jit states, by operand and by result."""
    ins, outs = eqn.params.get("in_shardings", ()), eqn.params.get("out_shardings", ())
    return (
        {k: s for k, s in enumerate(ins) if isinstance(s, NamedSharding)},
        {k: s for k, s in enumerate(outs) if isinstance(s, NamedSharding)},
    )


def plain_params(eqn: JaxprEqn) -> dict[str, Any]:
    """The parameters that rules may read: no jaxprs, no functions."""
    params = eqn.params
    if all(map(_is_plain, params.values())):
        return params
    return {key: value for key, value in params.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return not (isinstance(value, Jaxpr | ClosedJaxpr) or _is_function(type(value)))


@functools.cache
def _is_function(kind: type) -> bool:
    called = any("__call__" in base.__dict__ for base in kind.__mro__)
    return called and not issubclass(kind, type | Mesh | AbstractMesh)


def _extend(outer: Meta, name_stack: Any) -> Meta:
    scopes, transforms = scopes_and_transforms(name_stack)
    names = [s for s in scopes if s not in _NOT_SCOPES]
    return Meta(
        scope="/".join([outer.scope, *names] if outer.scope else names),
        backward=outer.backward or "transpose" in transforms,
        forward=outer.forward or "jvp" in transforms,
        recomputed=outer.recomputed or _RECOMPUTED in scopes,
    )


@functools.cache
def _dtype(dtype: Any) -> tuple[str, float]:
    """(name, bytes of one element)."""
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        key = jax.ShapeDtypeStruct((), dtype)
        data = jax.eval_shape(jax.random.key_data, key)
        return dtype.name, float(data.size * data.dtype.itemsize)
    name = np.dtype(dtype).name
    for narrow in ("int", "uint", "float"):
        bits = name.removeprefix(narrow).partition("_")[0]
        if name.startswith(narrow) and bits in ("1", "2", "4"):
            return name, int(bits) / 8
    return name, float(np.dtype(dtype).itemsize)
