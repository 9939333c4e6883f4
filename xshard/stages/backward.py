"""The stage of each node of the backward pass.

A node goes to the last stage, not above those that make its operands, which has the forward values
and weights that it reads. One that reads none (a bias's gradient is a sum of what came from above)
goes to the lowest stage that has its operands anyway: what was sent down belongs to what is below.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from xshard.stages.flat import Flat, Node
from xshard.stages.kinds import nbytes
from xshard.stages.places import Behind, Stages, reads_of

ReadOn = defaultdict[int, set[int]]
"""The stages that read a value."""


def place_backward(
    flat: Flat, nodes: Sequence[Node], stages: Stages, behind: Behind, read_on: ReadOn
) -> None:
    """Places the nodes, given in program order; adds their reads to `read_on`."""
    placer = _Placer(flat, stages, read_on, defaultdict(set))
    reads = {n: reads_of(n, behind) for n in nodes}
    late = {v for n in nodes for v in n.outs}
    above = {n: [v for v in reads[n] if v in late] for n in nodes}
    there = stages.made.keys() | read_on.keys()
    known = {n: [v for v in reads[n] if v not in late and v in there] for n in nodes}
    for node in nodes:
        stages.put(node, placer.nearest(above[node], known[node]))
        for v in above[node] if known[node] else ():
            placer.fixed[v].add(stages.of[node])
    for node in nodes:
        stage = placer.nearest(above[node], known[node])
        if above[node] and not known[node]:
            stage = placer.lowest(node, above[node], stage)
        stages.put(node, stage)
    for node in nodes:
        for v in reads[node]:
            read_on[v].add(stages.of[node])


@dataclass(slots=True)
class _Placer:
    """`fixed`: the stages that surely read a value that the backward pass makes."""

    flat: Flat
    stages: Stages
    read_on: ReadOn
    fixed: ReadOn

    def nearest(self, above: Sequence[int], known: Sequence[int]) -> int:
        """The stage that lacks the least of the known values; of equal ones the last."""
        made = self.stages.made
        last = min((made[v] for v in above), default=self.stages.count - 1)

        def lacks(stage: int) -> tuple[int, int]:
            """(bytes of forward values, of weights) that are not there."""
            missing = [0, 0]
            for v in known:
                if stage not in self.read_on[v] and made.get(v) != stage:
                    missing[v not in made] += nbytes(self.flat.avals[v])
            return missing[0], missing[1]

        return min(range(last, -1, -1), key=lacks) if known else last

    def lowest(self, node: Node, above: Sequence[int], highest: int) -> int:
        """The lowest stage that has all of the operands, not below one that reads the results."""
        least = max((s for v in node.outs for s in self.fixed[v]), default=0)
        for stage in range(least, highest):
            if all(stage in self.fixed[v] or self.stages.made[v] == stage for v in above):
                return stage
        return highest


def weight_nodes(flat: Flat, stages: Stages) -> set[Node]:
    """The backward nodes whose results go to totals of their stage only: gradients of weights."""
    found: set[Node] = set()
    waited: set[int] = {s.row for s in flat.stacks}
    for node in reversed(flat.body):
        stage = stages.of.get(node)
        if node in stages.backward and waited.isdisjoint(node.outs) and not node.eqn.effects:
            found.add(node)
            waited.update(v for v in node.reads if stages.made.get(v) != stage)
        else:
            waited.update(node.reads)
    return found
