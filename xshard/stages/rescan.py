"""Scans over layers whose residuals are made again in the backward scan of their stage.

`xshard.remat.loop` runs such a pair of scans; here its two halves become nodes of the staged step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from xshard._jax import equation_context
from xshard.remat import program as remat
from xshard.remat.loop import Split, pair_of
from xshard.stages.flat import Atom, Flat, Node
from xshard.stages.places import Stages


def rescan(flat: Flat, stages: Stages, counts: Mapping[int, int]) -> tuple[Flat, Stages]:
    """The step in which layers of scans are recomputed.

    Args:
      counts: by the first value that a scan makes, how many of its first layers are.
    """
    halves = _halves(flat, stages, counts) if counts else {}
    return _rewritten(flat, stages, halves) if halves else (flat, stages)


@dataclass(slots=True)
class _Loop:
    """A pair of scans on the way from its forward to its backward half.

    Attributes:
      ins: what the forward scan reads.
      kept: what the forward half makes for the backward half only.
      stacks, starts: of each part of the layers, whether there is a value (see `Split`).
    """

    split: Split
    ins: Sequence[Atom] = ()
    kept: Sequence[int] = ()
    stacks: list[list[bool]] = field(default_factory=list)
    starts: list[list[bool]] = field(default_factory=list)

    def forward(self, new: Flat, node: Node, ins: Sequence[Atom]) -> list[int | None]:
        """Adds the forward half; what it makes of the node's results, None where nothing."""
        self.ins, there = ins, list[bool]()

        def run(*values: Any) -> list[Any]:
            where, settings = equation_context(node.eqn)
            with where, settings:
                outs = self.split.forward(values)
            there[:] = [x is not None for x in outs]
            stacks, starts = self.split.stacks or [], self.split.starts or []
            self.stacks = [[x is not None for x in part] for part in stacks]
            self.starts = [[x is not None for x in part] for part in starts]
            kept = [x for part in (*stacks, *starts) for x in part]
            return [x for x in (*outs, *kept) if x is not None]

        made = new.traced(run, ins, new.body)
        self.kept = made[sum(there) :]
        results = iter(made)
        return [next(results) if flag else None for flag in there]

    def backward(self, new: Flat, node: Node, ins: Sequence[Atom | None]) -> list[int | None]:
        """Adds the backward half; `ins`: None for what the forward half does not stack."""
        given = [a for a in ins if a is not None]

        def run(*values: Any) -> list[Any]:
            rest = iter(values)
            mine = [None if a is None else next(rest) for a in ins]
            self.split.ins = [next(rest) for _ in self.ins]
            self.split.stacks, self.split.starts = (
                [[next(rest) if flag else None for flag in part] for part in parts]
                for parts in (self.stacks, self.starts)
            )
            where, settings = equation_context(node.eqn)
            with where, settings:
                return self.split.backward(mine)

        return list(new.traced(run, [*given, *self.ins, *self.kept], new.body))


def _halves(
    flat: Flat, stages: Stages, counts: Mapping[int, int]
) -> dict[Node, tuple[_Loop, bool]]:
    """The scans with the one scan of their stage that reads what they stack; whether forward."""
    wanted = (*(t.share for t in flat.totals), *(s.row for s in flat.stacks))
    nodes = [remat.Node(n.eqn, (), n.ins, n.outs, "") for n in flat.body]
    program = remat.Program((), flat.avals, nodes, outs=wanted)
    readers, found = program.readers(), dict[Node, tuple[_Loop, bool]]()
    for i, node in enumerate(flat.body):
        if not node.outs or not counts.get(node.outs[0]):
            continue
        late = {j for v in node.outs for j in readers[v] if j < len(nodes)}
        scans = [j for j in sorted(late) if _is_its_backward(flat.body[j], node, stages)]
        pair = pair_of(program, nodes[i], nodes[scans[0]]) if len(scans) == 1 else None
        if pair is not None and pair.nbytes() > 0:
            loop = _Loop(Split(pair, min(counts[node.outs[0]], pair.length)))
            found |= {node: (loop, True), flat.body[scans[0]]: (loop, False)}
    return found


def _is_its_backward(late: Node, node: Node, stages: Stages) -> bool:
    same = stages.of.get(late) == stages.of.get(node)
    return late.eqn.primitive.name == "scan" and late in stages.backward and same


def _rewritten(
    flat: Flat, stages: Stages, halves: Mapping[Node, tuple[_Loop, bool]]
) -> tuple[Flat, Stages]:
    new, placed = replace(flat, avals=list(flat.avals), body=[]), Stages(stages.count)
    told: dict[int, int | None] = {}
    for node in flat.body:
        ins = [told.get(a, a) if isinstance(a, int) else a for a in node.ins]
        first = len(new.body)
        if node in halves:
            loop, is_forward = halves[node]
            add = loop.forward if is_forward else loop.backward
            told.update(zip(node.outs, add(new, node, ins), strict=True))  # type: ignore[arg-type]
        else:
            new.body.append(Node(node.eqn, tuple(ins), node.outs))  # type: ignore[arg-type]
        for added in new.body[first:] if node in stages.of else ():
            placed.put(added, stages.of[node])
            if node in stages.backward:
                placed.backward.add(added)
    new.totals = [replace(t, share=told.get(t.share, t.share)) for t in flat.totals]
    new.stacks = [replace(s, row=told.get(s.row, s.row)) for s in flat.stacks]
    return new, placed
