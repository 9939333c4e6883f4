"""The stage of every node of the loop's body.

A microbatch goes through the stages 0, 1, ... forward and ..., 1, 0 backward; a node's place on
that way may not be before that of what it reads. The forward is cut where the boundaries say. A
node of the backward goes to the last stage not above its operands' that has the forward values (and
the weights) which it reads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from xshard.stages.flat import Flat, Node
from xshard.stages.kinds import Kinds, nbytes


@dataclass(frozen=True, slots=True)
class Body:
    """The loop's nodes that are no free ones, by what they are.

    Attributes:
      forward: the chain that boundaries cut, in program order.
      light: forward nodes in front of it that depend on no matmul (masks, targets, random bits):
        each is made on the first stage that reads it.
      backward: what autodiff made, and what depends on that.
      free: values that are made wherever they are read.
    """

    forward: tuple[Node, ...]
    light: tuple[Node, ...]
    backward: tuple[Node, ...]
    free: frozenset[int]


@dataclass(slots=True)
class Stages:
    """Attributes:
    of: the stage of a node.
    made: of a body's value.
    backward: nodes that run in the backward pass.
    """

    count: int
    of: dict[Node, int] = field(default_factory=dict)
    made: dict[int, int] = field(default_factory=dict)
    backward: set[Node] = field(default_factory=set)

    def put(self, node: Node, stage: int) -> None:
        """Places a node."""
        self.of[node] = stage
        self.made.update(dict.fromkeys(node.outs, stage))


def body_of(flat: Flat, kinds: Kinds, free: frozenset[int]) -> Body:
    """Tells the nodes of the body apart; drops those that nothing needs."""
    needed = _needed(flat)
    backward: list[Node] = []
    forward: list[Node] = []
    light: list[Node] = []
    late, heavy = set[int](), set[int]()
    for node in flat.body:
        if node not in needed or not free.isdisjoint(node.outs):
            continue
        if kinds.is_backward(node) or not late.isdisjoint(node.reads):
            late.update(node.outs)
            backward.append(node)
        elif kinds.kind(node) in ("heavy", "opaque") or not heavy.isdisjoint(node.reads):
            heavy.update(node.outs)
            forward.append(node)
        else:
            light.append(node)
    if not forward:
        forward, light = light, []
    return Body(tuple(forward), tuple(light), tuple(backward), free)


def _needed(flat: Flat) -> set[Node]:
    wanted = {t.share for t in flat.totals} | {s.row for s in flat.stacks}
    found: set[Node] = set()
    for node in reversed(flat.body):
        if node.eqn.effects or not wanted.isdisjoint(node.outs):
            found.add(node)
            wanted.update(node.reads)
    return found


def sources(flat: Flat, free: frozenset[int]) -> Mapping[int, tuple[int, ...]]:
    """For each free value, the other values that it is made of."""
    found: dict[int, tuple[int, ...]] = {}
    for node in (*flat.before, *flat.body, *flat.after):
        if not free.isdisjoint(node.outs):
            behind = dict.fromkeys(v for r in node.reads for v in found.get(r, (r,)))
            found.update(dict.fromkeys(node.outs, tuple(behind)))
    return found


def assign(flat: Flat, body: Body, boundaries: Sequence[int]) -> Stages:
    """Places all nodes of the body; stage s + 1 begins with forward node number boundaries[s]."""
    behind = sources(flat, body.free)
    stages = Stages(len(boundaries) + 1, backward=set(body.backward))
    for i, node in enumerate(body.forward):
        stages.put(node, sum(b <= i for b in boundaries))
    read_on = _readers(body.forward, stages, behind)
    _place_light(body, stages, behind, read_on)
    _place_backward(flat, body, stages, behind, read_on)
    for node in reversed(body.light):
        if node not in stages.of:
            on = {s for v in node.outs for s in read_on[v]}
            stages.put(node, max(on, default=stages.count - 1))
            for v in _reads(node, behind):
                read_on[v].add(stages.of[node])
    return stages


def _reads(node: Node, behind: Mapping[int, tuple[int, ...]]) -> list[int]:
    return [v for r in node.reads for v in behind.get(r, (r,))]


def _readers(
    nodes: Sequence[Node], stages: Stages, behind: Mapping[int, tuple[int, ...]]
) -> defaultdict[int, set[int]]:
    """The stages that read each value."""
    found: defaultdict[int, set[int]] = defaultdict(set)
    for node in nodes:
        for v in _reads(node, behind):
            found[v].add(stages.of[node])
    return found


def _place_light(
    body: Body, stages: Stages, behind: Mapping[int, tuple[int, ...]],
    read_on: defaultdict[int, set[int]],
) -> None:  # fmt: skip
    for node in reversed(body.light):
        on = {s for v in node.outs for s in read_on[v]}
        if on:
            stages.put(node, min(on))
            for v in _reads(node, behind):
                read_on[v].add(min(on))


def _place_backward(
    flat: Flat, body: Body, stages: Stages, behind: Mapping[int, tuple[int, ...]],
    read_on: defaultdict[int, set[int]],
) -> None:  # fmt: skip
    late: set[int] = set()
    forward = set(stages.made)
    new: defaultdict[int, set[int]] = defaultdict(set)
    for node in body.backward:
        reads = _reads(node, behind)
        last = min((stages.made[v] for v in reads if v in late), default=stages.count - 1)
        stage = _best(flat, stages, read_on, forward, [v for v in reads if v not in late], last)
        stages.put(node, stage)
        late.update(node.outs)
        for v in reads:
            new[v].add(stage)
    for v, on in new.items():
        read_on[v] |= on


def _best(
    flat: Flat, stages: Stages, read_on: Mapping[int, set[int]], forward: set[int],
    reads: Sequence[int], last: int,
) -> int:  # fmt: skip
    """The stage that lacks the least of what is read; of equal ones the last."""

    def lacks(stage: int) -> tuple[int, int]:
        """(bytes of forward values, of weights) that are not there."""
        missing = [0, 0]
        for v in reads:
            if stage not in read_on.get(v, ()) and stages.made.get(v) != stage:
                missing[v not in forward] += nbytes(flat.avals[v])
        return missing[0], missing[1]

    return min(range(last, -1, -1), key=lacks)
