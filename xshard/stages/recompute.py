"""Units of the forward pass that are run again in the backward pass, so that less is kept.

What backward nodes read of such a unit is made again on its stage, just before the first of them,
from what comes to the unit. The forward and the backward pass are programs of their own, so nothing
merges the two runs; a barrier that waits for the latest cotangent keeps the units apart, which
would else all be run again at once. As in `xshard.remat`, what a `jax.checkpoint` of the user keeps
is kept, and what has an effect is not run twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xshard._jax import Literal, equation_context, is_rematted, run_again
from xshard.remat.bind import after
from xshard.stages.flat import Flat, Node
from xshard.stages.places import Stages

_NEAR = 16
"""Backward nodes among whose operands the latest cotangent is looked for."""


@dataclass(frozen=True, slots=True)
class Again:
    """A part of one unit that is run again.

    Attributes:
      at: number of the node before which it runs.
      nodes: what is run, in order.
      inputs: values behind the barrier.
      made: values that the stage's backward nodes read as made again.
      cotangent: what it waits for; None if there is nothing.
    """

    at: int
    stage: int
    nodes: tuple[Node, ...]
    inputs: tuple[int, ...]
    made: tuple[int, ...]
    cotangent: int | None


def recompute(
    flat: Flat, stages: Stages, units: Sequence[frozenset[int]], free: frozenset[int]
) -> tuple[Flat, Stages]:
    """The step in which these units are run again in the backward pass.

    Args:
      stages: of all nodes; each light node is on one.
      units: the values that the forward nodes of a unit make.
      free: values that are made wherever they are read.
    """
    found = _Finder(flat, stages, free).find(units) if units else []
    return _rewritten(flat, stages, found) if found else (flat, stages)


class _Finder:
    def __init__(self, flat: Flat, stages: Stages, free: frozenset[int]) -> None:
        self.flat, self.stages, self.free = flat, stages, free
        self.place = {n: i for i, n in enumerate(flat.body)}
        self.readers: defaultdict[int, list[Node]] = defaultdict(list)
        for node in flat.body:
            for v in node.reads:
                self.readers[v].append(node)
        self.wanted = {t.share for t in flat.totals} | {s.row for s in flat.stacks}
        self.depth = self._depths()
        self.late: defaultdict[int, list[Node]] = defaultdict(list)
        for node in flat.body:
            if node in stages.backward:
                self.late[stages.of[node]].append(node)

    def find(self, units: Sequence[frozenset[int]]) -> list[Again]:
        """What of each unit is run again, if anything is."""
        members = self._members(units)
        return [a for nodes in members if nodes and (a := self._again(nodes)) is not None]

    def _members(self, units: Sequence[frozenset[int]]) -> list[list[Node]]:
        """The nodes of each unit, with those that serve only it: masks and random bits."""
        home: dict[Node, int] = {}
        unit_of = {v: k for k, made in enumerate(units) for v in made}
        found: list[list[Node]] = [[] for _ in units]
        for node in reversed(self.flat.body):
            if node not in self.stages.of or node in self.stages.backward:
                continue
            k = next((unit_of[v] for v in node.outs if v in unit_of), None)
            k = self._served(node, home) if k is None else k
            if k is not None:
                home[node] = k
                found[k].append(node)
        return [nodes[::-1] for nodes in found]

    def _served(self, node: Node, home: dict[Node, int]) -> int | None:
        """The one unit whose forward nodes read what a node of its stage makes."""
        readers = [r for v in node.outs for r in self.readers[v] if r not in self.stages.backward]
        on = {home.get(r) for r in readers}
        same = all(self.stages.of.get(r) == self.stages.of[node] for r in readers)
        return on.pop() if same and len(on) == 1 else None

    def _again(self, unit: list[Node]) -> Again | None:
        inside, stage = set(unit), self.stages.of[unit[-1]]
        made = {v for n in unit for v in n.outs}
        kept = {v for v in made if self._is_kept(v, inside, stage)}
        kept |= {v for n in unit if n.eqn.effects for v in n.outs}
        again = {v for v in made - kept if any(r not in inside for r in self.readers[v])}
        if not again:
            return None
        needed, nodes, inputs = set(again), list[Node](), dict[int, None]()
        for node in reversed(unit):
            if needed.isdisjoint(node.outs):
                continue
            nodes.append(node)
            needed.update(v for v in node.reads if v in made - kept)
            inputs.update((v, None) for v in node.reads if v not in made - kept)
        at = min(self.place[r] for v in again for r in self.readers[v] if r not in inside)
        shut = tuple(v for v in inputs if v not in self.free)
        cotangent = self._cotangent(at, stage)
        return Again(at, stage, tuple(nodes[::-1]), shut, tuple(sorted(again)), cotangent)

    def _is_kept(self, v: int, inside: set[Node], stage: int) -> bool:
        """Whether something else than the stage's own backward pass reads it as it was made."""
        if v in self.wanted:
            return True
        return any(
            r not in self.stages.backward or self.stages.of[r] != stage or is_rematted(r.eqn)
            for r in self.readers[v]
            if r not in inside
        )

    def _depths(self) -> dict[int, int]:
        """For what backward nodes make, how many of them run for it one after the other."""
        found: dict[int, int] = {}
        for node in self.flat.body:
            if node in self.stages.backward:
                depth = 1 + max((found.get(v, 0) for v in node.reads), default=0)
                found.update(dict.fromkeys(node.outs, depth))
        return found

    def _cotangent(self, at: int, stage: int) -> int | None:
        """What was made last for the stage's backward pass when it comes to node `at`."""
        near = [n for n in self.late[stage] if self.place[n] >= at][:_NEAR]
        made = {v for n in near for v in n.outs}
        found = [v for n in near for v in n.reads if v in self.depth and v not in made]
        arrays = [v for v in found if getattr(self.flat.avals[v], "ndim", 0)]
        return max(arrays, key=lambda v: self.depth[v], default=None)


def _rewritten(flat: Flat, stages: Stages, units: Iterable[Again]) -> tuple[Flat, Stages]:
    new, placed = replace(flat, avals=list(flat.avals), body=[]), Stages(stages.count)
    before: defaultdict[int, list[Again]] = defaultdict(list)
    for unit in units:
        before[unit.at].append(unit)
    again: list[dict[int, int]] = [{} for _ in range(stages.count)]
    for i, node in enumerate(flat.body):
        for unit in before[i]:
            first = len(new.body)
            _rerun(new, unit, again[unit.stage])
            for added in new.body[first:]:
                placed.put(added, unit.stage)
                placed.backward.add(added)
        if node not in stages.of:
            new.body.append(node)
            continue
        stage, late = stages.of[node], node in stages.backward
        told = again[stage] if late else {}
        if not told.keys().isdisjoint(node.reads):
            node = Node(node.eqn, tuple(_renamed(node, told)), node.outs)
        new.body.append(node)
        placed.put(node, stage)
        if late:
            placed.backward.add(node)
    return new, placed


def _renamed(node: Node, told: dict[int, int]) -> list[int | Literal]:
    return [a if isinstance(a, Literal) else told.get(a, a) for a in node.ins]


def _rerun(new: Flat, unit: Again, again: dict[int, int]) -> None:
    """Adds a unit's nodes, behind their barrier; tells what they make."""
    cotangent = () if unit.cotangent is None else (unit.cotangent,)
    where, settings = equation_context(unit.nodes[0].eqn, again=True)

    def barrier(*values: Any) -> list[Any]:
        with where, settings:
            held, behind = after(values[: len(unit.inputs)], *values[len(unit.inputs) :] or (None,))
        return [*held, *([behind] if cotangent else [])]

    waited = [*unit.inputs, *(again.get(v, v) for v in cotangent)]
    local = dict(
        zip((*unit.inputs, *cotangent), new.traced(barrier, waited, new.body), strict=True)
    )
    again.update(local)
    for node in unit.nodes:
        copy = new.node(run_again(node.eqn), _renamed(node, local))
        new.body.append(copy)
        local.update(zip(node.outs, copy.outs, strict=True))
    again.update({v: local[v] for v in unit.made})
