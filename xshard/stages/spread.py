"""What several stages read or add to, made a matter of each of them.

Light nodes get a copy on each stage that reads them. A gradient that is the sum of several stages'
parts (of a tied weight) is summed over the microbatches on each of these stages, and added up once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import jax

from xshard._jax import Literal, opened
from xshard.stages.assign import Stages
from xshard.stages.flat import Flat, Node, struct
from xshard.stages.staged import Total


def spread(flat: Flat, stages: Stages) -> tuple[Flat, Stages]:
    """The step with a copy of each light node for every stage that it runs on."""
    new = replace(flat, avals=list(flat.avals), body=[])
    placed = Stages(stages.count)
    copies: defaultdict[int, dict[int, int]] = defaultdict(dict)

    def put(node: Node, stage: int, outs: Sequence[int] | None) -> Node:
        ins = [a if isinstance(a, Literal) else copies[stage].get(a, a) for a in node.ins]
        new.body.append(new.node(node.eqn, ins, outs))
        placed.put(new.body[-1], stage)
        if node in stages.backward:
            placed.backward.add(new.body[-1])
        return new.body[-1]

    for node in flat.body:
        if node in stages.of:
            put(node, stages.of[node], node.outs)
            continue
        on = stages.light.get(node, ())
        if not on:
            new.body.append(node)
        for k, stage in enumerate(on):
            copy = put(node, stage, None if k else node.outs)
            copies[stage].update(zip(node.outs, copy.outs, strict=True))
    return new, placed


_ADD = ("add", "add_any")


def split_totals(flat: Flat, stages: Stages) -> Flat:
    """The step with a total for each stage's part of a sum."""
    makers = {v: n for n in flat.body for v in n.outs}
    readers = Counter(v for n in flat.body for v in n.reads)
    readers.update(t.share for t in flat.totals)
    readers.update(s.row for s in flat.stacks)
    new = replace(flat, avals=list(flat.avals), totals=[], after=[])

    gone: set[Node] = set()

    def add(total: Total) -> None:
        node = makers[total.share]
        if total.how != "sum" or readers[total.share] > 1 or not _meets(flat, stages, node):
            new.totals.append(total)
            return
        kind = new.avals[total.total]
        parts = [replace(total, share=v, total=new.value(kind)) for v in node.reads]
        [eqn] = opened(jax.make_jaxpr(jax.lax.add)(struct(kind), struct(kind))).eqns
        eqn = eqn.replace(source_info=node.eqn.source_info)
        gone.add(node)
        for part in parts:
            add(part)
        new.after.append(new.node(eqn, [p.total for p in parts], [total.total]))

    for total in flat.totals:
        add(total)
    new.after += flat.after
    new.body = [n for n in flat.body if n not in gone]
    for node in gone:
        del stages.of[node]
    return new


def _meets(flat: Flat, stages: Stages, node: Node) -> bool:
    """Whether a node adds what different stages make."""
    if node.eqn.primitive.name not in _ADD or len(node.reads) != 2:
        return False
    made = [stages.made.get(v) for v in node.reads]
    return None not in made and made[0] != made[1]
