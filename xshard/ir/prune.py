"""From raw ops to a `Graph`: drops what nobody reads, decides phases, numbers what is left."""

from __future__ import annotations

from collections.abc import Iterable

from xshard.ir.flatten import GraphBuilder, RawOp
from xshard.ir.graph import Graph, Op, Value


def finish(b: GraphBuilder, inputs: list[int], outputs: list[int | None]) -> Graph:
    """The graph of the builder's live ops, in their order."""
    effects = (i for i, op in enumerate(b.ops) if op.effectful)
    live = _upstream(b, [*effects, *_makers(b, outputs)])
    kept = [i for i in range(len(b.ops)) if i in live]
    consts = [v for v, _ in b.consts.values()]
    producer = dict.fromkeys([*inputs, *consts], -1)
    for n, i in enumerate(kept):
        producer.update(dict.fromkeys(b.ops[i].outputs, n))
    ids: dict[int | None, int | None] = {v: n for n, v in enumerate(producer)}
    ids[None] = None
    phases = _phases(b, kept)
    return Graph(
        values=tuple(Value(n, *b.values[v][:3], p, b.values[v].name)
                     for n, (v, p) in enumerate(producer.items())),
        ops=tuple(_op(n, b.ops[i], ids, phases[n]) for n, i in enumerate(kept)),
        inputs=tuple(_renumber(inputs, ids)), consts=tuple(_renumber(consts, ids)),
        outputs=tuple(ids[v] for v in outputs),
    )  # fmt: skip


def _op(n: int, raw: RawOp, ids: dict[int | None, int | None], phase: str) -> Op:
    return Op(
        n, raw.prim, tuple([ids[v] for v in raw.inputs]), tuple(_renumber(raw.outputs, ids)),
        raw.params, phase, raw.meta.scope, raw.source, raw.repeat, raw.address,
        raw.meta.recomputed,
    )  # fmt: skip


def _renumber(values: Iterable[int], ids: dict[int | None, int | None]) -> list[int]:
    return [n for v in values if (n := ids[v]) is not None]


def _phases(b: GraphBuilder, kept: list[int]) -> list[str]:
    """By the name stack; what has no mark is "fwd" if the backward reads it, else "update".

    A program without a backward is all forward.
    """
    backward = [i for i in kept if b.ops[i].meta.backward]
    if not backward:
        return ["fwd"] * len(kept)
    read = _upstream(b, backward)
    return [_phase(b.ops[i], i in read) for i in kept]


def _phase(op: RawOp, read_by_backward: bool) -> str:
    if op.meta.backward:
        return "bwd"
    return "fwd" if op.meta.forward or read_by_backward else "update"


def _upstream(b: GraphBuilder, roots: list[int]) -> set[int]:
    """The ops that these ops depend on, and themselves."""
    seen = set(roots)
    todo = list(seen)
    while todo:
        op = b.ops[todo.pop()]
        new = [i for i in (*_makers(b, op.inputs), *op.needs) if i not in seen]
        seen.update(new)
        todo += new
    return seen


def _makers(b: GraphBuilder, values: Iterable[int | None]) -> list[int]:
    return [b.made_by[v] for v in values if v is not None and v in b.made_by]
