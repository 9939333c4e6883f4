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
from xshard.stages.staged import Stack, Total

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
      before, body, after: nodes in program order.
    """

    jaxpr: ClosedJaxpr
    microbatches: int
    avals: list[Any] = field(default_factory=list)
    inputs: tuple[int, ...] = ()
    results: tuple[Atom, ...] = ()
    consts: dict[int, Any] = field(default_factory=dict)
    number: int = -1
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
        self._consts(flat.jaxpr, env)
        self._walk(inner.eqns[:loop], env, flat.before)
        self._loop(inner.eqns[loop], env)
        self._walk(inner.eqns[loop + 1 :], env, flat.after)
        flat.results = tuple(_of(env, v) for v in inner.outvars)
        return flat

    def _consts(self, jaxpr: Any, env: dict[Any, Atom]) -> None:
        for var, array in zip(opened(jaxpr).constvars, consts_of(jaxpr), strict=True):
            env[var] = number = self.flat.value(var.aval)
            self.flat.consts[number] = array

    def _walk(
        self, eqns: Sequence[JaxprEqn], env: dict[Any, Atom], nodes: list[Node],
        placed: Callable[[JaxprEqn], JaxprEqn] = lambda eqn: eqn,
    ) -> None:  # fmt: skip
        for eqn in eqns:
            ins = [_of(env, v) for v in eqn.invars]
            if may_inline(eqn):
                outs = self._inline(placed(eqn), ins, nodes)
            else:
                nodes.append(self.flat.node(placed(eqn), ins))
                outs = nodes[-1].outs
            env.update(zip(eqn.outvars, outs, strict=True))

    def _inline(self, call: JaxprEqn, ins: list[Atom], nodes: list[Node]) -> list[Atom]:
        body = call.params[CALLS[call.primitive.name]]
        env: dict[Any, Atom] = dict(zip(opened(body).invars, ins, strict=True))
        self._consts(body, env)
        self._walk(opened(body).eqns, env, nodes, lambda eqn: inlined(eqn, call))
        return [_of(env, v) for v in opened(body).outvars]

    def _loop(self, eqn: JaxprEqn, env: dict[Any, Atom]) -> None:
        """The loop's body, with its carries as totals and what it stacks as stacks."""
        flat, inner = self.flat, opened(eqn.params["jaxpr"])
        consts, carries = scan_counts(eqn.params)
        outer = [_of(env, v) for v in eqn.invars]
        inside: dict[Any, Atom] = dict(zip(inner.invars, outer[:consts], strict=False))
        self._consts(eqn.params["jaxpr"], inside)
        held = [flat.value(v.aval) for v in inner.invars[consts : consts + carries]]
        inside |= dict(zip(inner.invars[consts:], held, strict=False))
        for var, stack in zip(
            inner.invars[consts + carries :], outer[consts + carries :], strict=True
        ):
            [inside[var]] = self._traced(_row, stack, flat.number)
        self._walk(inner.eqns, inside, flat.body, lambda e: inlined(e, eqn))
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
        [copy] = self._traced(jnp.copy, atom)
        assert isinstance(copy, int)
        return copy

    def _traced(self, fun: Callable[..., Any], *atoms: Atom) -> list[Atom]:
        """What a function makes of values, in the body."""
        jaxpr = jax.make_jaxpr(fun)(*[struct(self.flat.aval(a)) for a in atoms])
        env: dict[Any, Atom] = dict(zip(opened(jaxpr).invars, atoms, strict=True))
        self._walk(opened(jaxpr).eqns, env, self.flat.body)
        return [_of(env, v) for v in opened(jaxpr).outvars]


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
