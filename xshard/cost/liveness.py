"""What is in memory when: live intervals of stored values over the program's order.

Time is the op index. A stored value lives from its producer to its last reader; a loop's operands
live until the loop ends and its stacked results from where it begins. Arguments and results live
for the whole step: XLA lets nothing else use their memory, but for a result in the place of a
donated argument.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xshard.cost.fusion import Storage
from xshard.cost.moments import Moments
from xshard.ir.graph import Graph, Op

IN_PLACE = frozenset("dynamic_update_slice scatter scatter-add scatter_add scatter_mul".split())
"""Primitives that write into their first operand, if nothing reads it afterwards."""
_LOOP_OPERANDS = frozenset({"scan_const", "scan_x", "carry_in"})


@dataclass(frozen=True, slots=True)
class Liveness:
    """Intervals of buffers: `first[v] <= t <= last[v]`; -1, -2 for a value without a buffer.

    Attributes:
      moments: in which order ops run.
      read_until: for each value, the last moment at which it or a view of it is read.
      buffer: for each value, the value whose buffer it is.
    """

    first: NDArray[np.int64]
    last: NDArray[np.int64]
    num_times: int
    moments: Moments
    read_until: tuple[int, ...]
    buffer: tuple[int, ...]

    def time(self, op: int) -> int:
        """When an op runs."""
        return self.moments.of_op[op]

    def copied(self, value: int, op: int) -> int:
        """When the copy of a value begins to be made that an op reads."""
        return self.moments.of_copy.get((value, op), self.time(op))

    def held_until(self, value: int, op: int) -> int:
        """Until when is held what an op leaves of a value before sums are finished."""
        return max(self.time(op), self.moments.end_of_sum.get(value, 0) - 1)

    def is_view(self, value: int, other: int) -> bool:
        """Whether both are one buffer."""
        return self.buffer[value] == self.buffer[other]


def liveness(
    graph: Graph,
    storage: Storage,
    aliased: dict[int, int],
    moments: Moments | None = None,
    in_place: Collection[int] = (),
    carried: Collection[int] | None = None,
) -> Liveness:
    """Live intervals of all values.

    Args:
      aliased: result value -> donated input value whose buffer it takes over.
      moments: in which order ops run; None for the program's.
      in_place: ops that can write their result over an operand that they read last.
      carried: carry_in ops whose loop makes the next value split like the last one; None: all.
    """
    moments = moments or Moments.in_order(len(graph.ops))
    at, end = moments.of_op, len(moments.ops)
    first = np.full(len(graph.values), -1, dtype=np.int64)
    last = np.full(len(graph.values), -2, dtype=np.int64)
    loop_end = _loop_ends(graph, at)
    for v in (*graph.inputs, *graph.consts):
        first[v], last[v] = 0, end
    for v in graph.outputs:
        if v is not None:
            first[storage.buffer[v]], last[storage.buffer[v]] = 0, end
    for op in graph.ops:
        _write(op, storage, first, last, loop_end, at[op.id], moments.of_sum)
    for op in reversed(graph.ops):
        _read(op, storage, last, loop_end, at[op.id])
    _carry_on(graph, storage, first, last, at, in_place, carried)
    _alias(storage, aliased, first, last)
    gone = ~np.array(storage.stored, dtype=bool)
    first[gone], last[gone] = -1, -2
    return Liveness(first, last, end + 1, moments, _last_reads(graph, storage, at), storage.buffer)


def _last_reads(graph: Graph, storage: Storage, at: Sequence[int]) -> tuple[int, ...]:
    found = [-1] * len(graph.values)
    for op in reversed(graph.ops):
        views = {storage.buffer[v]: found[v] for v in op.outputs}
        for v in op.inputs:
            if v is not None:
                through = views.get(storage.buffer[v], -1)
                found[v] = max(found[v], through, at[op.id])
    return tuple(found)


def _write(
    op: Op,
    storage: Storage,
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    loop_end: dict[tuple[int, ...], tuple[int, int]],
    start: int,
    finished: Mapping[int, int],
) -> None:
    if op.prim == "scan_y":
        start = loop_end[op.address[:-1]][0]
    for v in op.outputs:
        b = storage.buffer[v]
        at = finished.get(b, start)
        first[b] = at if first[b] < 0 else min(first[b], at)
        last[b] = max(last[b], at)


def _read(
    op: Op,
    storage: Storage,
    last: NDArray[np.int64],
    loop_end: dict[tuple[int, ...], tuple[int, int]],
    stop: int,
) -> None:
    """Extends what an op reads; from behind, so that the readers of its results are known.

    Where a result has no buffer, its readers compute it again: the operands wait for them.
    """
    if op.prim in _LOOP_OPERANDS:
        stop = loop_end[op.address[:-2]][1]
    fused = [int(last[storage.buffer[v]]) for v in op.outputs if not storage.is_stored(v)]
    stop = max([stop, *fused])
    for v in op.inputs:
        if v is not None:
            b = storage.buffer[v]
            last[b] = max(last[b], stop)


def _loop_ends(graph: Graph, at: Sequence[int]) -> dict[tuple[int, ...], tuple[int, int]]:
    """For the address of each control-flow equation, the first and last op of it and its bodies."""
    spans: dict[tuple[int, ...], tuple[int, int]] = {}
    for op in graph.ops:
        for depth in range(1, len(op.address) + 1, 2):
            prefix = op.address[:depth]
            low, high = spans.get(prefix, (at[op.id], at[op.id]))
            spans[prefix] = (min(low, at[op.id]), max(high, at[op.id]))
    return spans


def _carry_on(
    graph: Graph,
    storage: Storage,
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    at: Sequence[int],
    in_place: Collection[int],
    carried: Collection[int] | None,
) -> None:
    """What a loop carries is made where it was before, if nothing reads that afterwards.

    Not where the loop begins with an argument of the step, or with what is read elsewhere, too:
    XLA copies that.
    """
    taken = {storage.buffer[v] for v in (*graph.inputs, *graph.consts)}
    until, readers = _last_use(graph, storage, at), _readers(graph, storage)
    for op in graph.ops:
        if op.prim != "carry_in" or len(op.inputs) < 2 or op.inputs[1] is None:
            continue
        old, new = (storage.buffer[v] for v in (op.outputs[0], op.inputs[1]))
        if old in taken or old == new or first[new] < 0 or not storage.stored[old]:
            continue
        if carried is not None and op.id not in carried:
            continue
        body, maker = op.address[:-1], graph.values[new].producer
        if maker < 0 or graph.ops[maker].address[: len(body)] != body:
            continue
        others = (o for o in readers[old] if graph.ops[o].address[: len(body)] != body)
        read = until[op.outputs[0]]
        ends = read < first[new] or (read == first[new] and maker in in_place)
        if ends and all(at[o] < at[op.id] for o in others):
            taken |= {old, new}
            start = at[op.id]
            first[new], last[new] = min(first[new], start), max(last[new], last[old])
            last[old] = max(first[old], start - 1)


def _readers(graph: Graph, storage: Storage) -> list[list[int]]:
    """Of each buffer, the ops that read it."""
    found: list[list[int]] = [[] for _ in graph.values]
    for op in graph.ops:
        for v in op.inputs[:1] if op.prim == "carry_in" else op.inputs:
            if v is not None:
                found[storage.buffer[v]].append(op.id)
    return found


def _last_use(graph: Graph, storage: Storage, at: Sequence[int]) -> list[int]:
    """When each value, a view of it, or what is computed from it in passing is read last."""
    found = [-1] * len(graph.values)
    for op in reversed(graph.ops):
        passed = [
            found[v]
            for v in op.outputs
            if not storage.is_stored(v)
            or any(w is not None and storage.buffer[w] == storage.buffer[v] for w in op.inputs)
        ]
        stop = max([at[op.id], *passed])
        for v in op.inputs[:1] if op.prim == "carry_in" else op.inputs:
            if v is not None:
                found[v] = max(found[v], stop)
    return found


def _alias(
    storage: Storage,
    aliased: dict[int, int],
    first: NDArray[np.int64],
    last: NDArray[np.int64],
) -> None:
    """A result written into a donated argument takes no memory of its own."""
    for result, argument in aliased.items():
        b = storage.buffer[result]
        if b != argument and first[b] >= 0 and b not in aliased.values():
            first[b], last[b] = -1, -2
