"""`annotate`: re-evaluates a traced program with sharding constraints at the places that are told.

A place is a key `(address, index)`. For an equation, `results[(address, r)]` is its r-th result and
`operands[(address, k)]` its k-th operand. Equations with bodies have ports (xshard/ir/ports.py); a
port's key is `(op.address, 0)` for its result and `(op.address, k)` for its k-th operand. So for
every value of the graph, `(producer.address, r)` is the key under which it is constrained:

  ((*eqn, sub, ~k), 0) in results    the k-th variable of the body; of a carry_in also the initial
                                     value outside and what the body hands to the next step
  ((*eqn, sub, ~k), 0) in operands   the value outside that feeds it (in a cond: inside the branch)
  ((*eqn, sub, ~k), 1) in operands   of a carry_in: what the body hands to the next step
  ((*eqn, ~k), 0) in results         the k-th result of the equation
  ((*eqn, ~k), b) in operands        the body's (in a cond: branch b's) k-th result

The shardings that a nested jit states are "sharding_constraint" ops at such ports of its equation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xshard._jax import (
    JaxprEqn,
    Literal,
    consts_of,
    equation_context,
    free_of_mesh,
    is_array_aval,
    opened,
    retraced,
    unsharded,
)
from xshard.ir.flatten import callee, pins
from xshard.ir.graph import Address
from xshard.ir.trace import Traced
from xshard.run.bodies import BODIES
from xshard.run.rebind import REMAT, onto, rebind

Key = tuple[Address, int]


@dataclass(frozen=True, slots=True)
class Constraints:
    """What to insert, and where.

    Attributes:
      mesh: with Auto axes.
      results: constrain this result as soon as it is made, to these specs in sequence.
      operands: reshard this operand just for this equation, through these specs in sequence.
      shared: operand use -> an earlier use of the same value whose resharded copy it takes, so that
        there is one collective. A use in another body than the first makes its own copy.
      barriers: operand uses whose reshard must not be merged with an earlier one of the same value:
        the value first passes an `optimization_barrier` together with another operand of the
        equation, so a weight that was gathered in the forward is gathered again in the backward.
      outputs: reshard this result of the whole program, through these specs in sequence.
    """

    mesh: Mesh
    results: Mapping[Key, tuple[PartitionSpec, ...]] = field(default_factory=dict)
    operands: Mapping[Key, tuple[PartitionSpec, ...]] = field(default_factory=dict)
    shared: Mapping[Key, Key] = field(default_factory=dict)
    barriers: frozenset[Key] = frozenset()
    outputs: Mapping[int, tuple[PartitionSpec, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers that an evaluation computes with.

    Attributes:
      bind: (equation, operands, mesh) -> its results.
      aval: from the type that a value was traced with to the one that it has here.
      value: from a literal or captured array to what is used for it.
    """

    bind: Callable[[JaxprEqn, Sequence[Any], Mesh], Sequence[Any]] = rebind
    aval: Callable[[Any], Any] = unsharded
    value: Callable[[Any], Any] = lambda x: x


AS_TRACED = Numbers()


def annotate(
    traced: Traced, constraints: Constraints, numbers: Numbers = AS_TRACED
) -> Callable[..., list[Any]]:
    """The traced program as a function of flat arguments that returns flat results.

    The function also takes `consts=`, arrays in place of `traced.consts` in the same order, so that
    large ones can be arguments of a jit and be sharded; those that only a loop's body holds stay.
    """

    def annotated(*args: Any, consts: Sequence[Any] | None = None) -> list[Any]:
        given = traced.consts if consts is None else consts
        told = constraints.outputs
        arrays = {id(old): new for old, new in zip(traced.consts, given, strict=True)}
        frame = Frame.of(constraints, arrays, numbers)
        with free_of_mesh():
            results = frame.evaluate(traced.closed_jaxpr, args, ())
            return [frame.through(x, told.get(i, ())) for i, x in enumerate(results)]

    return annotated


@dataclass(frozen=True, slots=True)
class Frame:
    """One evaluation: a jaxpr and what it calls, in one trace.

    Attributes:
      told: the constraints.
      touched: addresses of the jaxprs with a constraint in them.
      consts: by the id of the traced array, the array to use.
      copies: resharded operands by the key of their first use.
      numbers: what it computes with.
      watch: is told each equation of this trace: its address, what it reads and what it makes.
    """

    told: Constraints
    touched: frozenset[Address]
    consts: Mapping[int, Any]
    copies: dict[Key, Any] = field(default_factory=dict)
    numbers: Numbers = AS_TRACED
    watch: Callable[[Address, JaxprEqn, list[Any], Sequence[Any]], None] | None = None

    @classmethod
    def of(
        cls, told: Constraints, consts: Mapping[int, Any], numbers: Numbers = AS_TRACED
    ) -> Frame:
        """The frame of a whole program."""
        return cls(told, _addresses_above(told), consts, numbers=numbers)

    def body(self) -> Frame:
        """A frame for a body, which is a trace of its own: nothing traced outside may be used."""
        return Frame(self.told, self.touched, {}, numbers=self.numbers)

    def retraced(self, run: Callable[..., Sequence[Any]], body: Any) -> Any:
        """`run` as a closed jaxpr over a body's inputs."""
        return retraced(run, body, self.numbers.aval)

    def evaluate(self, jaxpr: Any, args: Sequence[Any], at: Address) -> list[Any]:
        """The results of a jaxpr whose address is `at`."""
        inner = opened(jaxpr)
        consts = [self.numbers.value(self.consts.get(id(c), c)) for c in consts_of(jaxpr)]
        env = dict(zip(inner.constvars, consts, strict=True))
        env.update(zip(inner.invars, args, strict=True))
        for i, eqn in enumerate(inner.eqns):
            ins = self._read(eqn.invars, env)
            outs = self._equation(eqn, ins, (*at, i))
            env.update(zip(eqn.outvars, outs, strict=True))
            if self.watch is not None:
                self.watch((*at, i), eqn, ins, outs)
        return self._read(inner.outvars, env)

    def _read(self, variables: Sequence[Any], env: Mapping[Any, Any]) -> list[Any]:
        value = self.numbers.value
        return [value(v.val) if isinstance(v, Literal) else env[v] for v in variables]

    def _equation(self, eqn: JaxprEqn, ins: list[Any], at: Address) -> Sequence[Any]:
        prim = eqn.primitive.name
        called = None if prim in REMAT else callee(eqn)
        name = f"jit({eqn.params['name']})" if called is not None and "name" in eqn.params else ""
        where, settings = equation_context(eqn, name)
        with where, settings:
            if called is not None:
                body, operands = called
                return self._call(eqn, body, [ins[k] for k in operands], at)
            if prim in BODIES:
                return BODIES[prim](self, eqn, ins, at)
            ins = [self.operand((at, k), x, ins) for k, x in enumerate(ins)]
            outs = self.numbers.bind(eqn, ins, self.told.mesh)
            return [self.result((at, r), x) for r, x in enumerate(outs)]

    def _call(self, eqn: JaxprEqn, body: Any, ins: list[Any], at: Address) -> list[Any]:
        """An inlined call, with the shardings that a nested jit states."""
        pinned_in, pinned_out = pins(eqn)
        args = list(ins)
        for k, sharding in pinned_in.items():
            args[k] = self._pin(eqn, args[k], (*at, 0, ~k), sharding)
        outs = self.evaluate(body, args, (*at, 0))
        for k, sharding in pinned_out.items():
            outs[k] = self._pin(eqn, outs[k], (*at, ~k), sharding)
        return outs

    def _pin(self, eqn: JaxprEqn, x: Any, port: Address, sharding: NamedSharding) -> Any:
        x = onto(self.told.mesh, eqn, self.operand((port, 0), x), sharding)
        return self.result((port, 0), x)

    def result(self, key: Key, x: Any) -> Any:
        """The value, constrained if it is told so."""
        return self.through(x, self.told.results.get(key, ()))

    def operand(self, key: Key, x: Any, ins: Sequence[Any] = ()) -> Any:
        """The value as this use wants it; `ins` are all operands of the equation."""
        specs = self.told.operands.get(key)
        if specs is None:
            return x
        first = self.told.shared.get(key, key)
        if first not in self.copies:
            if key in self.told.barriers or first in self.told.barriers:
                x = _after(x, ins)
            self.copies[first] = self.through(x, specs)
        return self.copies[first]

    def through(self, x: Any, specs: Sequence[PartitionSpec]) -> Any:
        """The value, constrained to these specs in sequence."""
        if _may_be_constrained(x):
            for spec in specs:
                x = jax.lax.with_sharding_constraint(x, NamedSharding(self.told.mesh, spec))
        return x


def _addresses_above(told: Constraints) -> frozenset[Address]:
    """Addresses of all jaxprs that enclose a told place; ports count as their equation's."""
    keys = [*told.results, *told.operands, *told.barriers]
    return frozenset(address[:n] for address, _ in keys for n in range(len(address)))


def _after(x: Any, ins: Sequence[Any]) -> Any:
    """`x`, not before the largest other operand is there."""
    others = [y for y in ins if y is not x and _may_be_constrained(y)]
    if not others:
        return jax.lax.optimization_barrier(x)
    return jax.lax.optimization_barrier((x, max(others, key=lambda y: y.size)))[0]


def _may_be_constrained(x: Any) -> bool:
    aval = jax.typeof(x)
    if not is_array_aval(aval) or aval.ndim == 0 or aval.dtype == jax.dtypes.float0:
        return False
    return not jnp.issubdtype(aval.dtype, jax.dtypes.extended)
