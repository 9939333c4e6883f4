"""Repeated layers: ops at the same place of equal stretches of the program share a class.

A model with 48 layers has 48 equal stretches of ops in its forward pass, 48 in its backward pass
and as many in the optimizer's update. `fold` finds such tandem repeats in the sequence of op
signatures (primitive, shapes, parameters), without any name or mark, and puts the k-th ops of all
copies into one class. Members of a class share one strategy, so that a plan is solved for one
layer and holds for all of them.

Any partition into classes of equal signatures is *correct* (it only restricts the plan to equal
choices for equal ops), so nothing here needs to prove that the stretches are really layers.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xshard.ir.graph import Graph, Op

_GRAM = 6
"""Ops that must agree before two places are compared at all."""
_POSITIONS = {"slice": ("start_indices", "limit_indices")}
"""Parameters that say where and not how much: layer 3 of stacked weights is like layer 4."""
_MAX_PERIODS = 64
"""Candidate periods that are tried, the most frequent first."""


@dataclass(frozen=True, slots=True)
class Classes:
    """A partition of a graph's ops and values.

    Attributes:
      op_class: class of each op.
      value_class: class of each value.
      members: op ids of each op class, in program order.
      value_members: value ids of each value class.
    """

    op_class: NDArray[np.int64]
    value_class: NDArray[np.int64]
    members: tuple[tuple[int, ...], ...]
    value_members: tuple[tuple[int, ...], ...]

    def verify(self, graph: Graph) -> Classes:
        """Returns self if members of a class have equal signatures and shapes."""
        for ops in self.members:
            assert len({signature(graph, graph.ops[o]) for o in ops}) == 1, f"ops {ops} differ"
        for values in self.value_members:
            kinds = {(graph.values[v].shape, graph.values[v].dtype) for v in values}
            assert len(kinds) == 1, f"values {values} differ: {kinds}"
        return self


def fold(graph: Graph, keys: Mapping[int, Hashable] | None = None) -> Classes:
    """Partitions ops and values; values with different `keys` (pins) are kept apart."""
    keys = keys or {}
    signatures = interned([
        (signature(graph, op), tuple(keys.get(v) for v in op.outputs)) for op in graph.ops
    ])  # fmt: skip
    op_class = _dense(_label(signatures))
    value_class = _value_classes(graph, op_class, keys)
    return Classes(op_class, value_class, _groups(op_class), _groups(value_class))


def unfolded(graph: Graph) -> Classes:
    """The partition in which every op and value stands alone."""
    ops, values = np.arange(len(graph.ops)), np.arange(len(graph.values))
    return Classes(ops, values, _groups(ops), _groups(values))


def signature(graph: Graph, op: Op) -> Hashable:
    """What two ops must share to be allowed into one class."""

    def aval(v: int | None) -> Hashable:
        return None if v is None else (graph.values[v].shape, graph.values[v].dtype)

    ins, outs = tuple(map(aval, op.inputs)), tuple(map(aval, op.outputs))
    params = {k: v for k, v in op.params.items() if k not in _POSITIONS.get(op.prim, ())}
    return (op.prim, ins, outs, op.phase, op.repeat, len(op.address), _frozen(params))


def _frozen(params: dict[str, Any]) -> Hashable:
    items = tuple(params.items())
    try:
        hash(items)
    except TypeError:
        return repr(items)
    return items


def interned(keys: list[Hashable]) -> NDArray[np.int64]:
    """A number for each key, equal for equal ones."""
    table: dict[Hashable, int] = {}
    return np.array([table.setdefault(key, len(table)) for key in keys], dtype=np.int64)


def _label(s: NDArray[np.int64]) -> NDArray[np.int64]:
    """A label per op: equal for the same place of the copies of one tandem repeat."""
    labels = np.full(len(s), -1, dtype=np.int64)
    next_label = 0
    for a, b, period in tandem_repeats(s):
        labels[a:b] = next_label + np.arange(b - a) % period
        next_label += period
    alone = labels < 0
    labels[alone] = next_label + np.arange(int(alone.sum()))
    return labels


def tandem_repeats(s: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
    """(start, stop, period) of stretches of `s` that repeat and do not overlap, the longest first.

    `s[i] == s[i + period]` holds within a stretch, which has at least two periods.
    """
    taken = np.zeros(len(s), dtype=np.int8)
    for start, stop, period in _repeats(s):
        for a, b in _free_stretches(taken, start, stop, 2 * period):
            taken[a:b] = 1
            yield a, b, period


def _repeats(s: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """(start, stop, period) of the tandem repeats of `s`, the longest first."""
    found: list[tuple[int, int, int]] = []
    for period in _candidate_periods(s):
        equal = s[:-period] == s[period:]
        edges = np.flatnonzero(np.diff(np.concatenate(([0], equal.view(np.int8), [0]))))
        for a, b in edges.reshape(-1, 2).tolist():
            if b - a >= period:
                found.append((a, b + period, period))
    return sorted(found, key=lambda r: (r[0] - r[1], r[2], r[0]))


def _candidate_periods(s: NDArray[np.int64]) -> list[int]:
    """Distances between neighbouring equal stretches of `_GRAM` ops, the most frequent first."""
    if len(s) < 2 * _GRAM:
        return []
    grams = np.lib.stride_tricks.sliding_window_view(s, _GRAM)
    _, gram = np.unique(grams, axis=0, return_inverse=True)
    order = np.argsort(gram.reshape(-1), kind="stable")
    same = np.diff(gram.reshape(-1)[order]) == 0
    distances, counts = np.unique(np.diff(order)[same], return_counts=True)
    ranked = np.lexsort((distances, -counts * distances))
    return distances[ranked][:_MAX_PERIODS].tolist()


def _free_stretches(
    taken: NDArray[np.int8], start: int, stop: int, shortest: int
) -> list[tuple[int, int]]:
    """Maximal stretches of [start, stop) that are not taken and long enough for two copies."""
    free = 1 - taken[start:stop]
    edges = np.flatnonzero(np.diff(np.concatenate(([0], free, [0])))).reshape(-1, 2) + start
    return [(a, b) for a, b in edges.tolist() if b - a >= shortest]


def _value_classes(
    graph: Graph, op_class: NDArray[np.int64], keys: Mapping[int, Hashable]
) -> NDArray[np.int64]:
    """Results by (class of the op, position); inputs by who reads them, and as which operand."""
    uses = graph.consumers()
    results = {v: i for i, v in enumerate(graph.outputs) if v is not None}
    named: list[Hashable] = []
    for value in graph.values:
        if value.producer >= 0:
            position = graph.ops[value.producer].outputs.index(value.id)
            named.append(("op", int(op_class[value.producer]), position))
        else:
            readers = frozenset((int(op_class[op]), k) for op, k in uses[value.id])
            alone = value.id if not readers or value.id in results else -1
            pin = keys.get(value.id)
            named.append(("in", value.shape, value.dtype, readers, pin, alone))
    return _dense(interned(named))


def _dense(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Renumbers labels by first appearance."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse.reshape(-1)]


def _groups(labels: NDArray[np.int64]) -> tuple[tuple[int, ...], ...]:
    groups: list[list[int]] = [[] for _ in range(int(labels.max(initial=-1)) + 1)]
    for i, label in enumerate(labels.tolist()):
        groups[label].append(i)
    return tuple(map(tuple, groups))
