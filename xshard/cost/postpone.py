"""Weight gradients that run later than where the program has them.

XLA's latency-hiding scheduler (xla/service/latency_hiding_scheduler.h), which orders programs with
collectives for GPUs, fills a schedule from its end: what nothing waits for comes as late as it can.
In compiled programs (GPT-3 on H100s, `python -m benchmarks.accuracy_memory`),

- a layer's weight gradients run beside those of the layer whose backward pass comes next;
- one that is added to another gradient of the same weights runs where they are added: that of a
  head whose table is shared with the embedding at the end of the backward pass.

Where layers are computed again, the barriers before that hold back what comes after: a layer's
weight gradients run at the end of its own backward pass at the latest, and that of the shared table
by the end of the next layer's (in compiled programs between its recomputation and the end of all).

Their operands live until then. Loops, and what a `jax.checkpoint` holds, are left as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from xshard.cost.fusion import ALIASES
from xshard.ir.fold import Classes
from xshard.ir.graph import Graph, Op
from xshard.rules.rule import Rule

_VIEWS = ALIASES | {"convert_element_type"}


def postponed(graph: Graph, classes: Classes, rules: Sequence[Rule]) -> dict[int, int]:
    """Op -> the later op with which it runs.

    Args:
      rules: one for each op class.
    """
    needed, ends = _needed(graph), _ends_of_layers(graph)

    def reader(values: Sequence[int]) -> Op | None:
        """The first op of the backward pass that reads them."""
        at = min((needed[v] for v in values), default=len(graph.ops))
        op = graph.ops[at] if at < len(graph.ops) else None
        return op if op is not None and op.phase == "bwd" else None

    found: dict[int, int] = {}
    for op in graph.ops:
        heavy = rules[int(classes.op_class[op.id])].kind == "heavy"
        if op.phase != "bwd" or not heavy or len(op.address) > 1:
            continue
        adds = reader(op.outputs)
        if adds is None:
            later = _first_after(op.id, ends) if ends else _next_member(op, classes)
        elif adds.prim == "add_any" and reader(adds.outputs) is None:
            later = _first_after(_first_after(op.id, ends), ends) if ends else adds.id
        else:
            continue
        if later is not None:
            found[op.id] = later
    return found


def _ends_of_layers(graph: Graph) -> list[int]:
    """The last ops before each run of recomputed ones, and of the backward pass."""
    again = [op.id for op in graph.ops if op.recomputed]
    if not again:
        return []
    last = max(op.id for op in graph.ops if op.phase == "bwd")
    return [i - 1 for i in again if not graph.ops[i - 1].recomputed] + [last]


def _first_after(op: int | None, ends: Sequence[int]) -> int | None:
    return next((end for end in ends if op is not None and end > op), None)


def _next_member(op: Op, classes: Classes) -> int | None:
    """The same op of the next layer in the program's order."""
    return min(
        (m for m in classes.members[int(classes.op_class[op.id])] if m > op.id), default=None
    )


def _needed(graph: Graph) -> list[int]:
    """For each value the first op that reads it, through views of it."""
    end = len(graph.ops)
    needed = [end] * len(graph.values)
    for op in reversed(graph.ops):
        at = min(needed[v] for v in op.outputs) if op.prim in _VIEWS and op.outputs else op.id
        for v in op.inputs:
            if v is not None:
                needed[v] = min(needed[v], at)
    return needed
