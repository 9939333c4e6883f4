"""The whole step: what runs in the loop over microbatches, what before, what once after it.

A value's *level* is the number of loops that must be over before it is complete. What depends on
the batch through rows only has level 0; a sum over the batch is complete at level 1; if rows meet
such a sum (the sum of the weights by which a loss is divided), they can be made in a second loop.
All sums that no loop waits for are made in the last loop, so that a first one is as short as it
can be. It may not repeat more than a small part of the work: see `xshard.microbatch.check`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from xshard._jax import ClosedJaxpr, JaxprEqn, Literal, opened, source_line
from xshard.microbatch.factor import Use
from xshard.microbatch.linear import worth_passing
from xshard.microbatch.region import Atom, Needs, Node, Region, needs
from xshard.microbatch.status import FULL, Const, CoupledError, Partial, Rows, Status, version
from xshard.microbatch.transfer import BODIES, Analysis, Body, called, may_inline


@dataclass(frozen=True, slots=True)
class Loop:
    """One pass over the microbatches.

    Attributes:
      targets: values that are complete after it: sums, and rows that are put together again.
      needs: its steps, and what it reads.
    """

    targets: tuple[int, ...]
    needs: Needs


@dataclass(frozen=True, slots=True)
class Program:
    """A step divided into loops and what runs once.

    Attributes:
      region: all nodes.
      once: nodes that run once, by the number of loops that are over by then.
      loops: in order.
      reasons: why rows or sums had to be complete, by value: what, and the source line.
    """

    region: Region
    batch: int
    once: tuple[tuple[Node, ...], ...]
    loops: tuple[Loop, ...]
    reasons: dict[int, tuple[str, str]]


def divide(jaxpr: ClosedJaxpr, statuses: Sequence[Status], batch: int) -> Program:
    """Divides a step whose inputs have these statuses (`Rows` or `Const`)."""
    builder = _Builder(Analysis(batch))
    builder.read(jaxpr, statuses)
    return builder.finish()


@dataclass(slots=True)
class _Builder:
    analysis: Analysis
    region: Region = field(default_factory=Region)
    level: dict[int, int] = field(default_factory=dict)
    readers: Counter[int] = field(default_factory=Counter)
    reasons: dict[int, tuple[str, str]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)  # lines of the calls that are being looked into

    def read(self, jaxpr: ClosedJaxpr, statuses: Sequence[Status]) -> None:
        """Visits all equations."""
        self.region.enter(jaxpr, statuses)
        self.region.outs = tuple(self._walk(jaxpr, self.region.ins))

    def _walk(self, jaxpr: object, args: Sequence[Atom]) -> list[Atom]:
        uses = _count(jaxpr)
        for var, atom in zip(opened(jaxpr).invars, args, strict=True):
            if not isinstance(atom, Literal):
                self.readers[atom] += uses[var] - 1

        def visit(eqn: JaxprEqn, atoms: list[Atom]) -> list[Atom]:
            node = self._visit(eqn, atoms)
            outs: list[Atom] = self._inline(eqn, atoms) if node is None else [*node.outs]
            for var, atom in zip(eqn.outvars, outs, strict=True):
                if not isinstance(atom, Literal):
                    self.readers[atom] += uses[var] - (node is None)
            return outs

        return self.region.walk(jaxpr, args, visit)

    def _inline(self, eqn: JaxprEqn, atoms: list[Atom]) -> list[Atom]:
        self.calls.append(self._line(eqn))
        outs = self._walk(called(eqn), atoms)
        self.calls.pop()
        return outs

    def _line(self, eqn: JaxprEqn) -> str:
        """The user's line of an equation, or of the call that it is in."""
        return source_line(eqn.source_info.traceback) or (self.calls[-1] if self.calls else "")

    def _visit(self, eqn: JaxprEqn, atoms: list[Atom]) -> Node | None:
        """The equation as a node; None for a call whose equations must be looked at."""
        region = self.region
        statuses = list(map(region.status_of, atoms))
        const = all(isinstance(s, Const) for s in statuses)
        if const and may_inline(eqn) and not any(map(self._level, atoms)):
            return None
        if not self._passes(eqn, atoms, statuses):
            self._complete(eqn, atoms, statuses, Partial, "needs a sum over the batch")
        try:
            use, bodies = self.analysis.transfer(eqn, statuses)
        except CoupledError as error:
            if may_inline(eqn):
                return None
            why = str(error), error.source or self._line(eqn)
            use, bodies = self._coupled(eqn, atoms, statuses, why)
        return self._add(eqn, atoms, use, bodies)

    def _add(self, eqn: JaxprEqn, atoms: list[Atom], use: Use, bodies: tuple[Body, ...]) -> Node:
        """The node, on its level: that of the loop that it runs in, or of the loops before it."""
        region = self.region
        split = any(s != FULL for s in use.ins) or self._runs_inside(atoms)
        pairs = zip(atoms, use.ins, strict=True)
        level = max((self._read_at(a, s, inside=split) for a, s in pairs), default=0)
        node = region.add(eqn, atoms, use, bodies)
        self.level.update(dict.fromkeys(node.outs, level))
        if split:
            region.inside.update(n for n in node.outs if isinstance(region.status[n], Const))
        return node

    def _runs_inside(self, atoms: list[Atom]) -> bool:
        """Whether an op on constants runs in every turn, since some of them are made there."""
        loops = [self._level(a) for a in _numbers(atoms) if a in self.region.inside]
        return bool(loops) and all(self._done(a, inside=True) <= min(loops) for a in atoms)

    def _level(self, atom: Atom) -> int:
        return 0 if isinstance(atom, Literal) else self.level.get(atom, 0)

    def _read_at(self, atom: Atom, status: Status, *, inside: bool) -> int:
        """How many loops are over when this version of a value can be read."""
        if status != FULL and status == self.region.status_of(atom):
            return self._level(atom)
        return self._done(atom, inside=inside)

    def _done(self, atom: Atom, *, inside: bool) -> int:
        """How many loops are over when the whole value is there (if `inside`: can be made)."""
        if isinstance(atom, Literal) or atom not in self.region.maker:
            return 0
        if isinstance(self.region.status[atom], Const):
            return self.level[atom] + (atom in self.region.inside and not inside)
        return self.level[atom] + 1

    def _passes(self, eqn: JaxprEqn, atoms: list[Atom], statuses: list[Status]) -> bool:
        """Whether shares go into the op, rather than the complete sum."""
        shares = [a for a, s in zip(atoms, statuses, strict=True) if isinstance(s, Partial)]
        if any(isinstance(s, Rows) for s in statuses):
            return True
        if eqn.primitive.name in BODIES or not worth_passing(eqn):
            return False
        return all(not isinstance(a, Literal) and self.readers[a] == 1 for a in shares)

    def _coupled(
        self, eqn: JaxprEqn, atoms: list[Atom], statuses: list[Status], why: tuple[str, str]
    ) -> tuple[Use, tuple[Body, ...]]:
        """Completes sums, then, if that does not help, rows."""
        if any(isinstance(s, Partial) for s in statuses):
            self._complete(eqn, atoms, statuses, Partial, why[0])
            try:
                return self.analysis.transfer(eqn, statuses)
            except CoupledError as error:
                why = str(error), error.source or why[1]
        self._complete(eqn, atoms, statuses, Rows, *why)
        return self.analysis.transfer(eqn, statuses)

    def _complete(
        self, eqn: JaxprEqn, atoms: list[Atom], statuses: list[Status],
        kind: type[Partial] | type[Rows], what: str, source: str = "",
    ) -> None:  # fmt: skip
        """Lets the op read whole values in place of rows or shares."""
        source = source or self._line(eqn)
        for k, (atom, status) in enumerate(zip(atoms, statuses, strict=True)):
            if isinstance(status, kind) and not isinstance(atom, Literal):
                statuses[k] = Const()
                self.reasons.setdefault(atom, (what, source))

    def finish(self) -> Program:
        """Places targets in loops and constants between them."""
        roots = [a for a in self.region.outs if not isinstance(a, Literal)]
        roots += [a for n in self.region.nodes if n.eqn.effects for a in _whole(n)]
        targets = self._behind(roots)
        last = max((self.level.get(t, 0) for t in targets), default=-1)
        planned = {level: set[int]() for level in range(last + 1)}
        if planned:
            planned[last] = set(targets)
        loops: dict[int, Loop] = {}
        for level in range(last, -1, -1):
            loops[level] = self._loop(level, planned)
        used = [loops[level] for level in sorted(loops) if loops[level].targets]
        return self._program(roots, tuple(used))

    def _loop(self, level: int, planned: dict[int, set[int]]) -> Loop:
        """The loop of a level; what it waits for moves to earlier ones."""
        while True:
            targets = tuple(sorted(planned[level]))
            wanted = [(t, version(self.region.status[t])) for t in targets]
            found = needs(self.region, wanted, self.analysis.batch, self.analysis.remake, loop=True)
            before = self._behind([n for n, _ in found.given])
            for t in before:
                planned[self.level.get(t, 0)].add(t)
            if not before & planned[level] or not targets:
                return Loop(targets, found)
            planned[level] -= before
            if any(self.level.get(t, 0) >= level for t in before):
                raise CoupledError("the order of sums over the batch is circular")

    def _behind(self, numbers: Sequence[int]) -> set[int]:
        """The values of loops that whole values are made of, through what runs once."""
        found: set[int] = set()
        seen: set[int] = set()
        todo = list(numbers)
        while todo:
            number = todo.pop()
            if number in seen:
                continue
            seen.add(number)
            if number not in self.region.maker:
                continue
            if not isinstance(self.region.status[number], Const) or number in self.region.inside:
                found.add(number)
                continue
            todo += _whole(self.region.nodes[self.region.maker[number]])
        return found

    def _program(self, roots: Sequence[int], loops: tuple[Loop, ...]) -> Program:
        region = self.region
        over = {t: i + 1 for i, loop in enumerate(loops) for t in loop.targets}
        wanted = {*roots, *(n for loop in loops for n, _ in loop.needs.given)}
        nodes: list[Node] = []
        for node in reversed(region.nodes):
            made = not wanted.isdisjoint(node.outs) and _is_once(region, node)
            if made or (node.eqn.effects and _is_once(region, node)):
                nodes.append(node)
                wanted.update(_whole(node))
        once: list[list[Node]] = [[] for _ in range(len(loops) + 1)]
        for node in reversed(nodes):
            when = max((over.get(n, 0) for n in _whole(node)), default=0)
            over.update(dict.fromkeys(node.outs, when))
            once[when].append(node)
        return Program(region, self.analysis.batch, tuple(map(tuple, once)), loops, self.reasons)


def _count(jaxpr: object) -> Counter[object]:
    """How many equations read each variable; results count too."""
    inner = opened(jaxpr)
    found: Counter[object] = Counter()
    for eqn in inner.eqns:
        found.update({v for v in eqn.invars if not isinstance(v, Literal)})
    found.update(v for v in inner.outvars if not isinstance(v, Literal))
    return found


def _whole(node: Node) -> list[int]:
    return _numbers(node.ins)


def _numbers(atoms: Sequence[Atom]) -> list[int]:
    return [a for a in atoms if not isinstance(a, Literal)]


def _is_once(region: Region, node: Node) -> bool:
    """Whether a node reads and makes whole values only."""
    return region.inside.isdisjoint(node.outs) and all(s == FULL for s in node.use.ins)
