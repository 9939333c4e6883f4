"""The statuses of an op's results, from its operands'; loops, branches and calls too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from xshard._jax import JaxprEqn, Literal, scan_counts
from xshard.ir.flatten import CALLS, pins
from xshard.microbatch.factor import Use, coupled, forward
from xshard.microbatch.linear import identities, linear
from xshard.microbatch.region import Atom, Needs, Node, Region, needs
from xshard.microbatch.status import (
    FULL,
    Const,
    CoupledError,
    Rows,
    Status,
    join,
    may_be,
    version,
)
from xshard.run.rebind import REMAT

_MOST_ROUNDS = 64
"""How often a loop's statuses may change before they are given up; each value changes twice."""


@dataclass(frozen=True, slots=True)
class Body:
    """A jaxpr that is run on a turn's rows.

    Attributes:
      ins: how it takes its inputs.
      outs: what its results are.
      steps: of `region`.
    """

    jaxpr: Any
    region: Region
    ins: tuple[Status, ...]
    outs: tuple[Status, ...]
    needs: Needs


@dataclass(slots=True)
class Analysis:
    """Finds the uses of ops for one batch size; what was found for a jaxpr is kept."""

    batch: int
    _regions: dict[Any, Region | CoupledError] = field(default_factory=dict)
    _bodies: dict[Any, Body] = field(default_factory=dict)
    _alive: list[Any] = field(default_factory=list)

    def transfer(self, eqn: JaxprEqn, ins: Sequence[Status]) -> tuple[Use, tuple[Body, ...]]:
        """How an op is run, and its bodies.

        Raises:
          CoupledError: it cannot be run on a turn's rows.
        """
        prim = eqn.primitive.name
        if all(isinstance(s, Const) for s in ins):
            return Use((FULL,) * len(ins), (_made_const(eqn, ins),) * len(eqn.outvars)), ()
        if eqn.effects:
            raise coupled(eqn, "has an effect, which must happen once")
        if prim == "optimization_barrier":
            return identities(ins), ()
        if prim in BODIES:
            return BODIES[prim](self, eqn, list(ins))
        if any(isinstance(s, Rows) for s in ins):
            return forward(eqn, ins, self.batch), ()
        return linear(eqn, ins), ()

    def body(
        self, jaxpr: Any, ins: Sequence[Status], wanted: Sequence[Status] | None = None
    ) -> Body:
        """A body for inputs of these statuses; a constant that is read in rows becomes Rows.

        Args:
          wanted: what the results must be; by default what they are.
        """
        key = id(jaxpr), tuple(ins), None if wanted is None else tuple(wanted)
        if key not in self._bodies:
            self._alive.append(jaxpr)
            self._bodies[key] = self._body(jaxpr, tuple(ins), wanted)
        return self._bodies[key]

    def remake(self, node: Node, outs: tuple[Status, ...]) -> Node | None:
        """A call's or a scan's node with these results; None where it cannot give them."""
        eqn, prim = node.eqn, node.eqn.primitive.name
        scanned = prim == "scan"
        if not scanned and prim not in CALLS:
            return None
        first, carries = scan_counts(eqn.params) if scanned else (len(node.ins), len(outs))
        last, old = first + carries, node.bodies[0]
        try:
            inner = [*outs[:carries], *(_sliced(eqn, s) for s in outs[carries:])]
            pairs = zip(old.outs, inner, strict=True)
            body = self.body(old.jaxpr, old.ins, [a if version(a) == b else b for a, b in pairs])
        except CoupledError:
            return None
        if scanned and tuple(body.ins[first:last]) != tuple(body.outs[:carries]):
            return None
        read = (*body.ins[:last], *map(_stacked, body.ins[last:])) if scanned else body.ins
        return replace(node, use=Use(tuple(map(version, read)), outs), bodies=(body,))

    def _body(self, jaxpr: Any, ins: tuple[Status, ...], wanted: Sequence[Status] | None) -> Body:
        while True:
            region = self._region(jaxpr, ins)
            natural = tuple(map(region.status_of, region.outs))
            outs = natural if wanted is None else tuple(wanted)
            if not all(map(may_be, natural, outs)):
                raise CoupledError("a loop's body makes other sums than it is given")
            read = [
                (atom, version(status))
                for atom, status in zip(region.outs, outs, strict=True)
                if not isinstance(atom, Literal)
            ]
            found = needs(region, read, self.batch, self.remake, loop=False)
            rows = {n: s for n, s in found.given if isinstance(s, Rows)}
            more = tuple(
                rows.get(n, s) if isinstance(s, Const) else s
                for n, s in zip(region.ins, ins, strict=True)
            )
            if more == ins:
                return Body(jaxpr, region, ins, outs, found)
            ins = more

    def _region(self, jaxpr: Any, ins: tuple[Status, ...]) -> Region:
        key = id(jaxpr), ins
        if key not in self._regions:
            self._alive.append(jaxpr)
            try:
                self._regions[key] = self._walk(jaxpr, ins)
            except CoupledError as error:
                self._regions[key] = error
        found = self._regions[key]
        if isinstance(found, CoupledError):
            raise found
        return found

    def _walk(self, jaxpr: Any, ins: tuple[Status, ...]) -> Region:
        region = Region()
        region.enter(jaxpr, ins)

        def visit(eqn: JaxprEqn, atoms: list[Atom]) -> list[Atom]:
            statuses = list(map(region.status_of, atoms))
            if may_inline(eqn) and all(isinstance(s, Const) for s in statuses):
                return region.walk(called(eqn), atoms, visit)
            try:
                use, bodies = self.transfer(eqn, statuses)
            except CoupledError:
                if not may_inline(eqn):
                    raise
                return region.walk(called(eqn), atoms, visit)
            return list(region.add(eqn, atoms, use, bodies).outs)

        region.outs = tuple(region.walk(jaxpr, region.ins, visit))
        return region


def may_inline(eqn: JaxprEqn) -> bool:
    """Whether an equation is a call that states no shardings."""
    prim = eqn.primitive.name
    return prim in CALLS and prim not in REMAT and not any(pins(eqn))


def called(eqn: JaxprEqn) -> Any:
    """The jaxpr of a call."""
    return eqn.params[CALLS[eqn.primitive.name]]


_KEEPS_ZERO = frozenset(
    "broadcast_in_dim convert_element_type reshape squeeze transpose neg copy copy_p mul add "
    "add_any zeros_like".split()
)


def _made_const(eqn: JaxprEqn, ins: Sequence[Status]) -> Const:
    zero = eqn.primitive.name in _KEEPS_ZERO and all(s == Const(zero=True) for s in ins)
    return Const(zero and bool(ins))


def _call(a: Analysis, eqn: JaxprEqn, ins: list[Status]) -> tuple[Use, tuple[Body, ...]]:
    body = a.body(called(eqn), ins)
    return Use(tuple(map(version, body.ins)), body.outs), (body,)


def _scan(a: Analysis, eqn: JaxprEqn, ins: list[Status]) -> tuple[Use, tuple[Body, ...]]:
    jaxpr = eqn.params["jaxpr"]
    first, carries = scan_counts(eqn.params)
    last = first + carries
    inner = [*ins[:last], *(_sliced(eqn, s) for s in ins[last:])]
    body = _settled(a, jaxpr, inner, range(first, last))
    outs = [*body.outs[:carries], *map(_stacked, body.outs[carries:])]
    read = [*body.ins[:last], *map(_stacked, body.ins[last:])]
    return Use(tuple(map(version, read)), tuple(outs)), (body,)


def _settled(a: Analysis, jaxpr: Any, ins: list[Status], carries: range) -> Body:
    """The body of a loop whose carried values have one status in every turn of it."""
    for _ in range(_MOST_ROUNDS):
        body = a.body(jaxpr, ins)
        met = [join(body.ins[k], body.outs[r]) for r, k in enumerate(carries)]
        after = [*body.ins[: carries.start], *met, *body.ins[carries.stop :]]
        if after == ins:
            return a.body(jaxpr, ins, [*met, *body.outs[len(carries) :]])
        ins = after
    raise CoupledError("a loop hands on values that depend on the batch in ever new ways")


def _sliced(eqn: JaxprEqn, status: Status) -> Status:
    """What a scan's body sees of an operand that it goes over."""
    if not isinstance(status, Rows):
        return status
    if status.dim == 0:
        raise coupled(eqn, "goes over the batch row by row")
    return Rows(status.dim - 1, status.outer, status.inner)


def _stacked(status: Status) -> Status:
    return Rows(status.dim + 1, status.outer, status.inner) if isinstance(status, Rows) else status


def _while(a: Analysis, eqn: JaxprEqn, ins: list[Status]) -> tuple[Use, tuple[Body, ...]]:
    p = eqn.params
    n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
    inner = ins[n_cond:]
    body = _settled(a, p["body_jaxpr"], inner, range(n_body, len(inner)))
    carry = body.ins[n_body:]
    test = a.body(p["cond_jaxpr"], [*ins[:n_cond], *carry])
    if test.outs != (FULL,) and not isinstance(test.outs[0], Const):
        raise coupled(eqn, "runs until something holds for the whole batch")
    if test.ins[n_cond:] != carry:
        raise coupled(eqn, "tests a whole batch")
    read = (*test.ins[:n_cond], *body.ins)
    return Use(tuple(map(version, read)), body.outs), (test, body)


def _cond(a: Analysis, eqn: JaxprEqn, ins: list[Status]) -> tuple[Use, tuple[Body, ...]]:
    if not isinstance(ins[0], Const):
        raise coupled(eqn, "branches on the batch")
    operands, branches = list(ins[1:]), eqn.params["branches"]
    while True:
        bodies = [a.body(branch, operands) for branch in branches]
        met = [_met([b.ins[k] for b in bodies]) for k in range(len(operands))]
        if met == operands:
            break
        operands = met
    outs = [_met([b.outs[r] for b in bodies]) for r in range(len(eqn.outvars))]
    bodies = [a.body(branch, operands, outs) for branch in branches]
    if any(b.ins != tuple(operands) for b in bodies):
        raise coupled(eqn, "has branches that read the batch in different ways")
    return Use((FULL, *map(version, operands)), tuple(outs)), tuple(bodies)


def _met(statuses: list[Status]) -> Status:
    found = statuses[0]
    for status in statuses[1:]:
        found = join(found, status)
    return found


BODIES: dict[str, Callable[[Analysis, JaxprEqn, list[Status]], tuple[Use, tuple[Body, ...]]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    **dict.fromkeys(CALLS, _call),
}
"""How ops with bodies hand on the batch; by primitive."""
