"""The ops of one jaxpr with the status of every value, and what must run to get wanted results.

`Region` holds one jaxpr's equations, calls inlined where they cannot be split as they are. `needs`
goes backwards from wanted results to the steps that make them: an op that depends on the batch runs
on a turn's rows; a constant that has the batch in its shape (a mask of zeros, random bits) is made
for a turn's rows only, as far back as its rows can be told apart, and is else cut from the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from xshard._jax import JaxprEqn, Literal, consts_of, opened
from xshard.microbatch.factor import Use, backward
from xshard.microbatch.positions import made_by_position
from xshard.microbatch.status import FULL, Const, Partial, Rows, Status, version

Atom = int | Literal
"""A value's number, or a literal."""
Version = tuple[int, Status]


@dataclass(frozen=True, slots=True)
class Node:
    """One equation; `bodies` are its split bodies where it has any."""

    eqn: JaxprEqn
    ins: tuple[Atom, ...]
    outs: tuple[int, ...]
    use: Use
    bodies: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One run of a node; without a node: `cut` is taken from the whole value."""

    node: Node | None
    use: Use | None = None
    cut: Version | None = None


@dataclass(slots=True)
class Region:
    """A jaxpr's nodes in program order, over numbered values.

    Attributes:
      avals, status: by number.
      ins: numbers of the inputs.
      outs: of the results.
      consts: captured arrays by number.
      maker: node index by the number of a value that a node makes.
      inside: constants that are made in every turn: a layer's call gives some beside its rows.
    """

    avals: list[Any] = field(default_factory=list)
    status: list[Status] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    ins: tuple[int, ...] = ()
    outs: tuple[Atom, ...] = ()
    consts: dict[int, Any] = field(default_factory=dict)
    maker: dict[int, int] = field(default_factory=dict)
    inside: set[int] = field(default_factory=set)

    def value(self, aval: Any, status: Status) -> int:
        """A new value."""
        self.avals.append(aval)
        self.status.append(status)
        return len(self.avals) - 1

    def status_of(self, atom: Atom) -> Status:
        """The status of a value or literal."""
        return Const(_is_zero(atom.val)) if isinstance(atom, Literal) else self.status[atom]

    def add(self, eqn: JaxprEqn, ins: Sequence[Atom], use: Use, bodies: tuple[Any, ...]) -> Node:
        """Writes down a node; returns it with the numbers of its results."""
        outs = tuple(self.value(v.aval, s) for v, s in zip(eqn.outvars, use.outs, strict=True))
        self.maker.update(dict.fromkeys(outs, len(self.nodes)))
        node = Node(eqn, tuple(ins), outs, Use(use.ins, tuple(map(version, use.outs))), bodies)
        self.nodes.append(node)
        return node

    def enter(self, jaxpr: Any, statuses: Iterable[Status]) -> None:
        """Makes the inputs."""
        inner = opened(jaxpr)
        pairs = zip(inner.invars, statuses, strict=True)
        self.ins = tuple(self.value(v.aval, s) for v, s in pairs)

    def walk(
        self, jaxpr: Any, args: Sequence[Atom], visit: Callable[[JaxprEqn, list[Atom]], list[Atom]]
    ) -> list[Atom]:
        """Visits a jaxpr's equations with the atoms that they read; returns the results' atoms."""
        inner = opened(jaxpr)
        env: dict[Any, Atom] = dict(zip(inner.invars, args, strict=True))
        for var, array in zip(inner.constvars, consts_of(jaxpr), strict=True):
            env[var] = number = self.value(var.aval, Const())
            self.consts[number] = array
        for eqn in inner.eqns:
            ins = [v if isinstance(v, Literal) else env[v] for v in eqn.invars]
            env.update(zip(eqn.outvars, visit(eqn, ins), strict=True))
        return [v if isinstance(v, Literal) else env[v] for v in inner.outvars]


def _is_zero(value: Any) -> bool:
    try:
        return bool(value == 0)
    except TypeError:
        return False


@dataclass(frozen=True, slots=True)
class Needs:
    """What must run for some results.

    Attributes:
      steps: in order.
      given: values that are read and not made: inputs and captured arrays, and for a step's loop
        whatever is complete before it.
    """

    steps: tuple[Step, ...]
    given: tuple[Version, ...]


Remake = Callable[[Node, tuple[Status, ...]], Node | None]
"""The node with a body that gives its results so; None if there is no such body."""


def needs(
    region: Region, wanted: Iterable[Version], batch: int, remake: Remake, *, loop: bool
) -> Needs:
    """The steps that make these versions of values.

    Args:
      loop: constants are not made but given (they are complete before the loop), and so is what
        is cut from them; else both are made here.
    """
    search = _Search(region, batch, remake, loop)
    for number, status in wanted:
        search.want(number, status)
    for i in range(len(region.nodes) - 1, -1, -1):
        search.visit(region.nodes[i])
    return Needs(tuple(reversed(search.steps)), tuple(search.given))


class _Search:
    """Walks the nodes backwards."""

    def __init__(self, region: Region, batch: int, remake: Remake, loop: bool) -> None:
        self.region, self.batch, self.remake, self.loop = region, batch, remake, loop
        self.wanted: dict[int, dict[Status, None]] = {}
        self.given: dict[Version, None] = {}
        self.steps: list[Step] = []

    def want(self, number: int, status: Status) -> None:
        """Notes that a version of a value is read."""
        natural = self.region.status[number]
        if isinstance(status, Partial) and isinstance(natural, Const):
            status = FULL
        given = self.loop and status == FULL and number not in self.region.inside
        if number in self.region.maker and not given:
            self.wanted.setdefault(number, {})[status] = None
        else:
            self.given[number, status] = None

    def visit(self, node: Node) -> None:
        """Adds the steps that make what is wanted of a node's results."""
        versions = [
            (k, status)
            for k, number in enumerate(node.outs)
            for status in self.wanted.pop(number, {})
        ]
        if node.bodies and versions:
            node = self._in_rows(node, versions)
        uses: dict[Use, None] = {}
        for k, status in versions:
            use = self._use(node, k, status)
            if use is None:
                self._cut((node.outs[k], status), uses, node)
            else:
                uses[use] = None
        for use in uses:
            self.steps.append(Step(node, use))
            self.read(node, use)

    def _in_rows(self, node: Node, versions: list[tuple[int, Status]]) -> Node:
        """A body's constants, such as masks that the backward pass reads, in rows if all do."""
        outs = list(node.use.outs)
        for k, status in versions:
            alone = not any(j == k and s == FULL for j, s in versions)
            if outs[k] == FULL and isinstance(status, Rows) and alone:
                outs[k] = status
        return self.remake(node, tuple(outs)) or node if tuple(outs) != node.use.outs else node

    def read(self, node: Node, use: Use) -> None:
        """Wants what a use reads."""
        for atom, status in zip(node.ins, use.ins, strict=True):
            if not isinstance(atom, Literal):
                self.want(atom, status)

    def _cut(self, wanted: Version, uses: dict[Use, None], node: Node) -> None:
        if self.loop and wanted[0] not in self.region.inside:
            self.given[wanted] = None
        else:
            self.steps.append(Step(None, cut=wanted))
            uses[node.use] = None

    def _use(self, node: Node, k: int, status: Status) -> Use | None:
        """How to run a node for a version of its k-th result; None: cut it from the whole."""
        if status == node.use.outs[k]:
            return node.use
        if not isinstance(status, Rows) or node.bodies:
            return None
        if made_by_position(node.eqn, status):
            return Use((FULL,) * len(node.ins), (status,))
        return backward(node.eqn, k, status, self.batch)
