"""A step in microbatches as three flat lists of nodes: before, in and after its loop.

Calls are inlined, so that their equations can go to different stages (a checkpointed one too: its
recomputation is in the backward programs, where nothing else computes the same). The loop's
carries become totals, what it stacks becomes stacks, and its rows are cut by its own nodes from
what the loop goes over.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from xshard._jax import (
    ClosedJaxpr,
    JaxprEqn,
    Literal,
    consts_of,
    inlined,
    opened,
    scan_counts,
)
from xshard.errors import PipelineError
from xshard.ir.flatten import CALLS, pins
from xshard.microbatch.accumulate import neutral
from xshard.stages.staged import Piece, Stack, Total

Atom = int | Literal


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One equation over numbered values."""

    eqn: JaxprEqn
    ins: tuple[Atom, ...]
    outs: tuple[int, ...]

    @property
    def reads(self) -> tuple[int, ...]:
        """The values that it reads."""
        return tuple(a for a in self.ins if not isinstance(a, Literal))


@dataclass(slots=True)
class Flat:
    """The step.

    Attributes:
      avals: types by value id.
      inputs: ids of the flattened arguments.
      results: of the flattened results.
      consts: captured arrays by id.
      number: the id of the microbatch's number.
      pieces: what an argument or result is taken apart into, where it is.
      before, body, after: nodes in program order.
    """

    jaxpr: ClosedJaxpr
    microbatches: int
    avals: list[Any] = field(default_factory=list)
    inputs: tuple[int, ...] = ()
    results: tuple[Atom, ...] = ()
    consts: dict[int, Any] = field(default_factory=dict)
    number: int = -1
    pieces: dict[int, tuple[Piece, ...]] = field(default_factory=dict)
    before: list[Node] = field(default_factory=list)
    body: list[Node] = field(default_factory=list)
    after: list[Node] = field(default_factory=list)
    totals: list[Total] = field(default_factory=list)
    stacks: list[Stack] = field(default_factory=list)

    def value(self, aval: Any) -> int:
        """A new value."""
        self.avals.append(aval)
        return len(self.avals) - 1

    def aval(self, atom: Atom) -> Any:
        """The type of a value or literal."""
        return atom.aval if isinstance(atom, Literal) else self.avals[atom]

    def node(self, eqn: JaxprEqn, ins: Iterable[Atom], outs: Iterable[int] | None = None) -> Node:
        """A node, with new values as its results if none are given."""
        made = [self.value(v.aval) for v in eqn.outvars] if outs is None else outs
        return Node(eqn, tuple(ins), tuple(made))

    @property
    def arguments(self) -> tuple[int, ...]:
        """The inputs, or what they are taken apart into."""
        return tuple(p.value for v in self.inputs for p in self.pieces_of(v))

    @property
    def wanted(self) -> tuple[int, ...]:
        """The results, or what they are put together from, without literals."""
        values = [a for a in self.results if not isinstance(a, Literal)]
        return tuple(p.value for v in values for p in self.pieces_of(v))

    def pieces_of(self, v: int) -> tuple[Piece, ...]:
        """The pieces of an argument or result."""
        return self.pieces.get(v, (Piece(v),))

    def traced(self, fun: Callable[..., Any], atoms: Sequence[Atom], into: list[Node]) -> list[int]:
        """What a function makes of values, by nodes that are added."""
        jaxpr = opened(jax.make_jaxpr(fun)(*[struct(self.aval(a)) for a in atoms]))
        env: dict[Any, Atom] = dict(zip(jaxpr.invars, atoms, strict=True))
        self.walk(jaxpr.eqns, env, into)
        return [env[v] for v in jaxpr.outvars]  # type: ignore[misc]

    def walk(
        self, eqns: Sequence[JaxprEqn], env: dict[Any, Atom], into: list[Node],
        placed: Callable[[JaxprEqn], JaxprEqn] = lambda eqn: eqn,
    ) -> None:  # fmt: skip
        """Adds equations as nodes, calls inlined; `env` has the atoms of variables."""
        for eqn in eqns:
            ins = [_of(env, v) for v in eqn.invars]
            if may_inline(eqn):
                outs = self._inline(placed(eqn), ins, into)
            else:
                into.append(self.node(placed(eqn), ins))
                outs = into[-1].outs
            env.update(zip(eqn.outvars, outs, strict=True))

    def _inline(self, call: JaxprEqn, ins: list[Atom], into: list[Node]) -> list[Atom]:
        body = call.params[CALLS[call.primitive.name]]
        env: dict[Any, Atom] = dict(zip(opened(body).invars, ins, strict=True))
        self.take_consts(body, env)
        self.walk(opened(body).eqns, env, into, lambda eqn: inlined(eqn, call))
        return [_of(env, v) for v in opened(body).outvars]

    def take_consts(self, jaxpr: Any, env: dict[Any, Atom]) -> None:
        """Makes values of a jaxpr's captured arrays."""
        for var, array in zip(opened(jaxpr).constvars, consts_of(jaxpr), strict=True):
            env[var] = number = self.value(var.aval)
            self.consts[number] = array


def flatten(jaxpr: ClosedJaxpr, microbatches: int) -> Flat:
    """Reads a step whose loop over microbatches is its last scan of that kind.

    Raises:
      PipelineError: there is no such loop, or what it carries is no accumulation.
    """
    return _Reader(Flat(jaxpr, microbatches)).read()


class _Reader:
    def __init__(self, flat: Flat) -> None:
        self.flat = flat

    def read(self) -> Flat:
        flat, inner = self.flat, opened(self.flat.jaxpr)
        loop = find_loop(inner.eqns, flat.microbatches)
        flat.number = flat.value(jax.typeof(jnp.int32(0)))
        env: dict[Any, Atom] = {v: flat.value(v.aval) for v in inner.invars}
        flat.inputs = tuple(env[v] for v in inner.invars)  # type: ignore[misc]
        flat.take_consts(flat.jaxpr, env)
        flat.walk(inner.eqns[:loop], env, flat.before)
        self._loop(inner.eqns[loop], env)
        flat.walk(inner.eqns[loop + 1 :], env, flat.after)
        flat.results = tuple(_of(env, v) for v in inner.outvars)
        return flat

    def _loop(self, eqn: JaxprEqn, env: dict[Any, Atom]) -> None:
        """The loop's body, with its carries as totals and what it stacks as stacks."""
        flat, inner = self.flat, opened(eqn.params["jaxpr"])
        consts, carries = scan_counts(eqn.params)
        outer = [_of(env, v) for v in eqn.invars]
        inside: dict[Any, Atom] = dict(zip(inner.invars, outer[:consts], strict=False))
        flat.take_consts(eqn.params["jaxpr"], inside)
        held = [flat.value(v.aval) for v in inner.invars[consts : consts + carries]]
        inside |= dict(zip(inner.invars[consts:], held, strict=False))
        for var, stack in zip(
            inner.invars[consts + carries :], outer[consts + carries :], strict=True
        ):
            [inside[var]] = flat.traced(_row, (stack, flat.number), flat.body)
        flat.walk(inner.eqns, inside, flat.body, lambda e: inlined(e, eqn))
        ends = [_of(inside, v) for v in inner.outvars]
        totals = accumulations(flat, held, ends[:carries])
        made = {v for n in flat.body for v in n.outs}
        for (how, share), var in zip(totals, eqn.outvars, strict=False):
            env[var] = number = flat.value(var.aval)
            initial = neutral(how, var.aval.dtype)  # type: ignore[attr-defined]
            flat.totals.append(Total(self._made(share, made), number, how, initial))
        for row, var in zip(ends[carries:], eqn.outvars[carries:], strict=True):
            env[var] = number = flat.value(var.aval)
            flat.stacks.append(Stack(self._made(row, made), number))

    def _made(self, atom: Atom, made: set[int]) -> int:
        """The value, or a copy if no node of the body makes it."""
        if not isinstance(atom, Literal) and atom in made:
            return atom
        return self.flat.traced(jnp.copy, (atom,), self.flat.body)[0]


def may_inline(eqn: JaxprEqn) -> bool:
    """Whether it is a call whose equations can stand for it."""
    return eqn.primitive.name in CALLS and not any(pins(eqn))


def find_loop(eqns: Sequence[JaxprEqn], microbatches: int) -> int:
    """The position of the loop over microbatches.

    It goes over the numbers of each microbatch's rows, and nothing else; if there are several, all
    but the last only make what the last waits for.
    """
    for i in range(len(eqns) - 1, -1, -1):
        eqn = eqns[i]
        if eqn.primitive.name == "scan" and eqn.params["length"] == microbatches:
            rows = eqn.invars[sum(scan_counts(eqn.params)) :]
            kinds = [(v.aval.dtype, v.aval.ndim) for v in rows]  # type: ignore[attr-defined]
            if kinds == [(np.dtype(np.int32), 2)]:
                return i
    raise PipelineError(
        "nothing in the step depends on the batch, so there are no microbatches to send through "
        "the stages of a pipeline; name the batch with batch_axes, or leave pipeline out"
    )


def accumulations(flat: Flat, held: Sequence[int], ends: Sequence[Atom]) -> list[tuple[str, Atom]]:
    """(how, share) of each carry; the nodes that combine them leave the body.

    Raises:
      PipelineError: a carry is read by anything but the op that adds to it.
    """
    makers = {v: n for n in flat.body for v in n.outs}
    readers = Counter(v for n in flat.body for v in n.reads)
    found: list[tuple[str, Atom]] = []
    gone: set[Node] = set()
    for carry, end in zip(held, ends, strict=True):
        maker = None if isinstance(end, Literal) else makers.get(end)
        how, share = "last", end
        if readers[carry]:
            prim = maker.eqn.primitive.name if maker else ""
            if maker is None or prim not in _HOW or maker.ins[0] != carry or readers[carry] > 1:
                raise PipelineError("the loop over microbatches carries more than sums")
            gone.add(maker)
            how, share = _HOW[prim], maker.ins[1]
        cast = None if isinstance(share, Literal) else makers.get(share)
        if (
            cast
            and cast.eqn.primitive.name == "convert_element_type"
            and readers[cast.outs[0]] == 1
        ):
            gone.add(cast)
            share = cast.ins[0]
        found.append((how, share))
    flat.body = [n for n in flat.body if n not in gone]
    return found


_HOW = {
    "add": "sum", "max": "max", "min": "min", "mul": "prod", "and": "and", "or": "or", "xor": "xor",
}  # fmt: skip
"""How an accumulation combines, by its primitive."""


def _of(env: dict[Any, Atom], var: Any) -> Atom:
    return var if isinstance(var, Literal) else env[var]


def _row(stack: Any, number: Any) -> Any:
    return jax.lax.dynamic_index_in_dim(stack, number, keepdims=False)


def struct(aval: Any) -> jax.ShapeDtypeStruct:
    """What a function is traced with for a value of this type."""
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)
