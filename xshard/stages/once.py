"""The stage and wave of what runs once: before the first microbatch and after the last.

What the loop reads is made before it, on the first stage that reads it. Everything else runs after:
a node goes to where the largest array lives that it reads, so a parameter's update runs where its
gradient is summed, and its optimizer state lives there. What is made of scalars of several stages
(the global norm of the gradients) is made on one stage, and sent to all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from xshard.stages.assign import Stages, sources
from xshard.stages.flat import Flat, Node
from xshard.stages.kinds import nbytes

COLLECTOR = 0
"""The stage where scalars of several stages meet: the one whose last backward pass ends last."""

_SCALAR_BYTES = 8

Behind = Mapping[int, tuple[int, ...]]


@dataclass(slots=True)
class Once:
    """Nodes that run once.

    Attributes:
      before, after: in program order.
      of: the stage of each.
      wave: of each.
      homes: the stage of inputs and captured arrays.
    """

    before: list[Node]
    after: list[Node]
    of: dict[Node, int] = field(default_factory=dict)
    wave: dict[Node, int] = field(default_factory=dict)
    homes: dict[int, int] = field(default_factory=dict)


def place_once(flat: Flat, stages: Stages, free: frozenset[int]) -> Once:
    """Places all nodes outside of the loop that something needs."""
    behind = sources(flat, free)
    read_on: defaultdict[int, set[int]] = defaultdict(set)
    for node, stage in stages.of.items():
        for v in _reads(node, behind):
            read_on[v].add(stage)
    once = _split(flat, read_on, behind, free)
    for node in reversed(once.before):
        once.of[node] = min({s for v in node.outs for s in read_on[v]}, default=COLLECTOR)
        for v in _reads(node, behind):
            read_on[v].add(once.of[node])
    once.homes = {v: min(read_on[v]) for v in (*flat.arguments, *flat.consts) if read_on[v]}
    _place_after(flat, once, stages, behind)
    for nodes in (once.before, once.after):
        _number_waves(nodes, once, behind)
    _delay(flat, once, behind)
    return once


def _reads(node: Node, behind: Behind) -> list[int]:
    return [v for r in node.reads for v in behind.get(r, (r,))]


def _split(
    flat: Flat, read_on: Mapping[int, set[int]], behind: Behind, free: frozenset[int]
) -> Once:
    """What the loop needs, and the rest that results need."""
    wanted = {v for v, on in read_on.items() if on}
    results = {v for r in flat.wanted for v in behind.get(r, (r,))}
    before = _needed(flat.before, wanted, behind, free)
    kept = set(before)
    rest = [n for n in (*flat.before, *flat.after) if n not in kept]
    return Once(before, _needed(rest, results, behind, free))


def _needed(
    nodes: Sequence[Node], wanted: set[int], behind: Behind, free: frozenset[int]
) -> list[Node]:
    wanted, found = set(wanted), list[Node]()
    for node in reversed(nodes):
        made = free.isdisjoint(node.outs) and not wanted.isdisjoint(node.outs)
        if node.eqn.effects or made:
            found.append(node)
            wanted.update(_reads(node, behind))
    return found[::-1]


def _place_after(flat: Flat, once: Once, stages: Stages, behind: Behind) -> None:
    where = dict(once.homes)
    where |= {v: once.of[n] for n in once.before for v in n.outs}
    where |= {t.total: stages.made[t.share] for t in flat.totals}
    where |= {s.stacked: stages.made[s.row] for s in flat.stacks}
    for node in once.after:
        stage = _largest(flat, _reads(node, behind), where)
        if stage is not None:
            once.of[node] = stage
            where.update(dict.fromkeys(node.outs, stage))
    read_on: defaultdict[int, set[int]] = defaultdict(set)
    for node in reversed(once.after):
        on = {s for v in node.outs for s in read_on[v]}
        stage = once.of.setdefault(node, on.pop() if len(on) == 1 else COLLECTOR)
        for v in _reads(node, behind):
            read_on[v].add(stage)
    for v in (*flat.arguments, *flat.consts):
        once.homes.setdefault(v, min(read_on[v], default=COLLECTOR))


def _largest(flat: Flat, reads: Sequence[int], where: Mapping[int, int]) -> int | None:
    """The stage of the largest value; None if no value has one yet."""
    known = [(nbytes(flat.avals[v]), where[v]) for v in reads if v in where]
    most = max(known, default=(0, 0))[0]
    on = {stage for size, stage in known if size == most}
    if len(on) > 1 and most <= _SCALAR_BYTES:
        return COLLECTOR
    return min(on, default=None)


def _number_waves(nodes: Sequence[Node], once: Once, behind: Behind) -> None:
    """A wave later than what another stage makes, and not before what the own stage makes."""
    made: dict[int, tuple[int, int]] = {}
    for node in nodes:
        stage = once.of[node]
        needs = [made[v] for v in _reads(node, behind) if v in made]
        once.wave[node] = max((w + (s != stage) for s, w in needs), default=0)
        made.update(dict.fromkeys(node.outs, (stage, once.wave[node])))


def _delay(flat: Flat, once: Once, behind: Behind) -> None:
    """Nodes that make no less than they read run in the wave that reads them, if it is one only.

    Else what the update begins with (moments times their decay, say) would be made before the norm
    of the gradients is known, and be kept until then.
    """
    readers: defaultdict[int, list[Node]] = defaultdict(list)
    for node in reversed(once.after):
        stage, on = once.of[node], [r for v in node.outs for r in readers[v]]
        if on and all(once.of[r] == stage for r in on) and _grows(flat, node):
            once.wave[node] = min(once.wave[r] for r in on)
        for v in _reads(node, behind):
            readers[v].append(node)


def _grows(flat: Flat, node: Node) -> bool:
    made, read = (sum(nbytes(flat.avals[v]) for v in vs) for vs in (node.outs, node.reads))
    return 2 * made > read
