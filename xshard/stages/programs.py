"""Placed nodes -> one closed jaxpr for each stage, part and wave."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xshard._jax import JaxprEqn, Literal, Var, made_of
from xshard.stages.flat import Flat, Node
from xshard.stages.staged import PARTS, Part, StageProgram

Slot = tuple[int, Part, int]
"""Stage, part, wave."""


def programs_of(
    flat: Flat, slots: Mapping[Node, Slot], free: frozenset[int], kept: Iterable[int]
) -> tuple[StageProgram, ...]:
    """The programs, in an order in which they can run.

    Args:
      slots: where each node runs, in program order.
      free: values that are made wherever they are read.
      kept: values that are wanted of programs though no program reads them.
    """
    makers = {v: n for n in (*flat.before, *flat.body, *flat.after) for v in n.outs}
    nodes: defaultdict[Slot, list[Node]] = defaultdict(list)
    for node, slot in slots.items():
        nodes[slot].append(node)
    inside = {slot: _with_free(ns, free, makers) for slot, ns in nodes.items()}
    reads = {slot: _reads(ns) for slot, ns in inside.items()}
    wanted = {v for vs in reads.values() for v in vs} | set(kept)
    found: list[StageProgram] = []
    for slot in sorted(nodes, key=_order):
        made = [v for n in nodes[slot] for v in n.outs if v in wanted]
        jaxpr = _jaxpr(flat, inside[slot], reads[slot], made)
        found.append(StageProgram(*slot, jaxpr, tuple(reads[slot]), tuple(made)))
    return tuple(found)


def _order(slot: Slot) -> tuple[int, int, int]:
    stage, part, wave = slot
    return PARTS.index(part), wave, -stage if part.startswith("bwd") else stage


def _with_free(
    nodes: Sequence[Node], free: frozenset[int], makers: Mapping[int, Node]
) -> list[Node]:
    """The nodes, with the makers of the free values that they read in front of them."""
    found: dict[Node, None] = {}

    def add(node: Node) -> None:
        if node in found:
            return
        for v in node.reads:
            if v in free:
                add(makers[v])
        found[node] = None

    for node in nodes:
        add(node)
    return list(found)


def _reads(nodes: Sequence[Node]) -> list[int]:
    """What is read and not made, in order."""
    made: set[int] = set()
    found: dict[int, None] = {}
    for node in nodes:
        found.update((v, None) for v in node.reads if v not in made)
        made.update(node.outs)
    return list(found)


def _jaxpr(flat: Flat, nodes: Sequence[Node], reads: Sequence[int], makes: Sequence[int]) -> Any:
    variables: dict[int, Var] = {v: Var(flat.avals[v]) for v in reads}
    eqns: list[JaxprEqn] = []
    for node in nodes:
        ins = [a if isinstance(a, Literal) else variables[a] for a in node.ins]
        variables.update({v: Var(flat.avals[v]) for v in node.outs})
        eqns.append(node.eqn.replace(invars=ins, outvars=[variables[v] for v in node.outs]))
    return made_of(eqns, [variables[v] for v in reads], [variables[v] for v in makes], flat.jaxpr)
