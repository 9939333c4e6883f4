"""A traced step as nodes over numbered values: calls inlined, loops with a backward inside opened.

Numbers rather than variables, so that a node inside of a call can be told to read something else.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from xshard._jax import JaxprEqn, Literal, consts_of, inlined, opened
from xshard.ir.flatten import callee, pins
from xshard.ir.graph import Address, Graph
from xshard.run.rebind import REMAT

Atom = int | Literal
"""A value's number, or a literal."""


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One equation.

    Attributes:
      phase: of its ops in the graph; "" if it has none.
      body: of a loop that holds a forward and a backward pass.
    """

    eqn: JaxprEqn
    address: Address
    ins: tuple[Atom, ...]
    outs: tuple[int, ...]
    phase: str
    body: Program | None = None

    @property
    def reads(self) -> list[int]:
        """Numbers of the values that it reads."""
        return [a for a in self.ins if not isinstance(a, Literal)]

    @property
    def is_checkpoint(self) -> bool:
        """Whether it is the user's own recomputation."""
        return self.eqn.primitive.name in REMAT


@dataclass(slots=True)
class Program:
    """The nodes of one region (see `xshard.ir.layers`), in program order.

    Attributes:
      avals: by number.
      consts: captured arrays by number.
    """

    region: Address
    avals: list[Any] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    ins: tuple[int, ...] = ()
    outs: tuple[Atom, ...] = ()
    consts: dict[int, Any] = field(default_factory=dict)

    def value(self, aval: Any) -> int:
        """A new value."""
        self.avals.append(aval)
        return len(self.avals) - 1

    def readers(self) -> list[list[int]]:
        """For each value, the indices of the nodes that read it; len(nodes): it is a result."""
        found: list[list[int]] = [[] for _ in self.avals]
        for i, node in enumerate(self.nodes):
            for a in node.reads:
                found[a].append(i)
        for a in self.outs:
            if not isinstance(a, Literal):
                found[a].append(len(self.nodes))
        return found

    def inner(self) -> list[Program]:
        """This program and those of its loops."""
        bodies = [node.body for node in self.nodes if node.body is not None]
        return [self, *(p for body in bodies for p in body.inner())]


def program_of(jaxpr: Any, graph: Graph, regions: Collection[Address]) -> Program:
    """The program of a jaxpr; scans around one of these regions are opened."""
    phases = {op.address: op.phase for op in reversed(graph.ops)}
    for op in reversed(graph.ops):
        for n in range(1, len(op.address), 2):
            phases[op.address[:n]] = op.phase
    around = {region[:n] for region in regions for n in range(0, len(region) + 1, 2)}
    return _Reader(phases, around).read(jaxpr, ())


@dataclass(slots=True)
class _Reader:
    phases: dict[Address, str]
    around: set[Address]

    def read(self, jaxpr: Any, at: Address) -> Program:
        program, inner = Program(at), opened(jaxpr)
        program.ins = tuple(program.value(v.aval) for v in inner.invars)
        program.outs = tuple(self._walk(program, jaxpr, program.ins, at, lambda eqn: eqn))
        return program

    def _walk(
        self, program: Program, jaxpr: Any, args: Sequence[Atom], at: Address,
        placed: Callable[[JaxprEqn], JaxprEqn],
    ) -> list[Atom]:  # fmt: skip
        inner = opened(jaxpr)
        env: dict[Any, Atom] = dict(zip(inner.invars, args, strict=True))
        for var, array in zip(inner.constvars, consts_of(jaxpr), strict=True):
            env[var] = number = program.value(var.aval)
            program.consts[number] = array
        for i, eqn in enumerate(inner.eqns):
            ins = [v if isinstance(v, Literal) else env[v] for v in eqn.invars]
            outs = self._equation(program, placed(eqn), ins, (*at, i))
            env.update(zip(eqn.outvars, outs, strict=True))
        return [v if isinstance(v, Literal) else env[v] for v in inner.outvars]

    def _equation(
        self, program: Program, eqn: JaxprEqn, ins: list[Atom], at: Address
    ) -> Sequence[Atom]:
        name = eqn.primitive.name
        called = None if name in REMAT or any(pins(eqn)) else callee(eqn)
        if called is not None:
            jaxpr, operands = called
            given = [ins[k] for k in operands]
            return self._walk(program, jaxpr, given, (*at, 0), lambda e: inlined(e, eqn))
        opens = name == "scan" and (*at, 0) in self.around
        body = self.read(eqn.params["jaxpr"], (*at, 0)) if opens else None
        outs = tuple(program.value(v.aval) for v in eqn.outvars)
        node = Node(eqn, at, tuple(ins), outs, self.phases.get(at, ""), body)
        program.nodes.append(node)
        return outs
