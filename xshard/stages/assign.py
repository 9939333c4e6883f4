"""The stage of every node of the loop's body.

A microbatch goes through the stages 0, 1, ... forward and ..., 1, 0 backward; a node's place on
that way may not be before that of what it reads. The forward is cut where the boundaries say. A
node of the backward goes to the last stage not above its operands' that has the forward values (and
the weights) which it reads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from xshard.stages.backward import place_backward
from xshard.stages.flat import Flat, Node
from xshard.stages.kinds import Kinds
from xshard.stages.places import Behind, Stages, reads_of, sources

_SMALL = 4
"""Elements of a key or scalar."""


@dataclass(frozen=True, slots=True)
class Body:
    """The loop's nodes that are no free ones, by what they are.

    Attributes:
      forward: the chain that boundaries cut, in program order.
      light: nodes that read no array but the batch (masks, targets, random bits): each runs on
        every stage that reads it.
      backward: what autodiff made, and what depends on that.
      free: values that are made wherever they are read.
      late: values that the backward pass makes.
    """

    forward: tuple[Node, ...]
    light: tuple[Node, ...]
    backward: tuple[Node, ...]
    free: frozenset[int]
    late: frozenset[int]


def body_of(flat: Flat, kinds: Kinds, free: frozenset[int]) -> Body:
    """Tells the nodes of the body apart; drops those that nothing needs."""
    needed = _needed(flat)
    forward, light, backward = list[Node](), list[Node](), list[Node]()
    late, small = set[int](), set(free)
    small.update(v for v in _outer(flat) if flat.avals[v].size <= _SMALL)
    for node in flat.body:
        if node not in needed or not free.isdisjoint(node.outs):
            continue
        if kinds.is_backward(node) or not late.isdisjoint(node.reads):
            late.update(node.outs)
        if not _is_chained(node, kinds) and small.issuperset(node.reads):
            small.update(node.outs)
            light.append(node)
        elif late.isdisjoint(node.outs):
            forward.append(node)
        else:
            backward.append(node)
    if not forward:
        forward, light = light, []
    return Body(tuple(forward), tuple(light), tuple(backward), free, frozenset(late))


def _is_chained(node: Node, kinds: Kinds) -> bool:
    return kinds.kind(node) in ("heavy", "opaque") or bool(node.eqn.effects)


def _outer(flat: Flat) -> set[int]:
    """What the body reads and does not make."""
    made = {v for n in flat.body for v in n.outs}
    return {v for n in flat.body for v in n.reads if v not in made}


def _needed(flat: Flat) -> set[Node]:
    wanted = {t.share for t in flat.totals} | {s.row for s in flat.stacks}
    found: set[Node] = set()
    for node in reversed(flat.body):
        if node.eqn.effects or not wanted.isdisjoint(node.outs):
            found.add(node)
            wanted.update(node.reads)
    return found


def assign(flat: Flat, body: Body, boundaries: Sequence[int]) -> Stages:
    """Places all nodes of the body; stage s + 1 begins with forward node number boundaries[s]."""
    behind = sources(flat, body.free)
    late = {n for n in (*body.light, *body.backward) if not body.late.isdisjoint(n.outs)}
    stages = Stages(len(boundaries) + 1, backward=late)
    for i, node in enumerate(body.forward):
        stages.put(node, sum(b <= i for b in boundaries))
    read_on = _readers(body.forward, stages, behind)
    for node in reversed(body.light):
        for v in reads_of(node, behind):
            read_on[v] |= {s for out in node.outs for s in read_on[out]}
    place_backward(flat, body.backward, stages, behind, read_on)
    _place_light(body, stages, behind, read_on)
    return stages


def _readers(nodes: Sequence[Node], stages: Stages, behind: Behind) -> defaultdict[int, set[int]]:
    """The stages that read each value."""
    found: defaultdict[int, set[int]] = defaultdict(set)
    for node in nodes:
        for v in reads_of(node, behind):
            found[v].add(stages.of[node])
    return found


def _place_light(
    body: Body, stages: Stages, behind: Behind,
    read_on: defaultdict[int, set[int]],
) -> None:  # fmt: skip
    """On all stages that read what they make, or else on the last."""
    for node in reversed(body.light):
        on = {s for v in node.outs for s in read_on[v]} or {stages.count - 1}
        stages.light[node] = tuple(sorted(on))
        stages.made.update(dict.fromkeys(node.outs, min(on)))
        for v in reads_of(node, behind):
            read_on[v] |= on
