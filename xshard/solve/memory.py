"""Live memory of a draft: which nodes and resharded copies are live at which moment.

Every op is a moment. `Timeline` keeps intervals, not a table of moments: the peak of a plan is one
cumulative sum over them, and the row of one moment is read off where it is needed. The problem
starts with few rows (the first and the last member of each class of ops); `violated` names more
when an answer needs them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xshard.cost.device import Device
from xshard.cost.fusion import Storage
from xshard.cost.liveness import Liveness
from xshard.solve.draft import Draft
from xshard.solve.problem import Row
from xshard.spec import Spec, num_shards

Ints = NDArray[np.int64]

_WORD_BYTES = 4
"""Threefry makes words of 32 bits, whatever the width that is asked for."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """Intervals `first <= t <= last` in which one member of a node or edge is live.

    Attributes:
      owner: the node (0 <= owner), or the edge (as `~edge`), whose usage it is.
      weight: how often the owner's usage it takes: the item size, in bytes, of a value whose
        node counts elements; 1 elsewhere.
      value: the value that it holds.
      ops: at each moment but the last, the op that runs.
      name: before the names of its rows.
    """

    owner: Ints
    first: Ints
    last: Ints
    weight: Ints
    value: Ints
    ops: Ints
    name: str = ""

    @property
    def num_times(self) -> int:
        """All moments; the last is the end."""
        return len(self.ops) + 1

    def op_at(self, t: int) -> int:
        """The op that runs; at the end, the last one; -1 where there are none."""
        return int(self.ops[min(t, len(self.ops) - 1)]) if len(self.ops) else -1

    def curve(self, d: Draft, choices: tuple[int, ...]) -> Ints:
        """Bytes live at each moment under these choices."""
        sizes = self.sizes(d, choices)
        change = np.zeros(self.num_times + 1, dtype=np.int64)
        np.add.at(change, self.first, sizes)
        np.add.at(change, self.last + 1, -sizes)
        return np.cumsum(change)[:-1]

    def sizes(self, d: Draft, choices: tuple[int, ...]) -> Ints:
        """Bytes of each interval under these choices."""
        nodes = np.array([n.usage[c] for n, c in zip(d.nodes, choices, strict=True)])
        edges = np.zeros(len(d.edges), dtype=np.int64)
        ids: list[int] = np.unique(~self.owner[self.owner < 0]).tolist()
        for e in ids:
            edge = d.edges[e]
            assert edge.usage is not None
            edges[e] = edge.usage[choices[edge.a], choices[edge.b]]
        of_node = self.owner >= 0
        out = np.empty(len(self.owner), dtype=np.int64)
        out[of_node] = nodes[self.owner[of_node]]
        out[~of_node] = edges[~self.owner[~of_node]]
        return out * self.weight

    def rows(self, times: Iterable[int]) -> tuple[Row, ...]:
        """What is live at some moments, in their order."""
        names = list(times)
        at, place = np.unique(np.array(names, dtype=np.int64), return_inverse=True)
        owners, column = np.unique(self.owner, return_inverse=True)
        counts = np.zeros((len(at) + 1, len(owners)), dtype=np.int64)
        np.add.at(counts, (np.searchsorted(at, self.first), column), self.weight)
        np.add.at(counts, (np.searchsorted(at, self.last, side="right"), column), -self.weight)
        live = np.cumsum(counts, axis=0)[place.reshape(-1)]
        return tuple(
            _row(owners, line, f"{self.name}{t}") for t, line in zip(names, live, strict=True)
        )


def _row(owners: Ints, counts: Ints, name: str) -> Row:
    nodes, edges = ((counts > 0) & side for side in (owners >= 0, owners < 0))
    order = np.flatnonzero(edges)[::-1]  # `~edge` rises as the edge falls
    return Row(owners[nodes], counts[nodes], ~owners[order], counts[order], name=name)


def add_memory(
    d: Draft, storage: Storage, live: Liveness, smallest_bytes: int, device: Device
) -> Timeline:
    """Gives edges the usage of the copies that they make, and lists all that lives when.

    Copies of arrays below `smallest_bytes` are left out (they are noise).

    Args:
      device: says whether a reduce-scatter holds one whole operand or, run as an all-reduce and a
        slice, two; and how much of random numbers is kept.
    """
    live = replace(live, first=live.first.copy(), last=live.last.copy())
    nodes = _node_of_value(d, storage, live)
    here = np.flatnonzero((live.first >= 0) & (nodes >= 0))
    kept = [
        (int(nodes[v]), int(live.first[v]), int(live.last[v]), _weight(d, v, device), v)
        for v in here.tolist()
    ]
    kept += _copies(d, live, _add_copy_usage(d, smallest_bytes))
    kept += _unfinished(
        d, live, _add_sum_usage(d, smallest_bytes, 1 if device.fused_reduce_scatter else 2)
    )
    columns = np.array(kept, dtype=np.int64).reshape(-1, 5).T
    return Timeline(*columns, ops=np.array(live.moments.ops, dtype=np.int64))


def _weight(d: Draft, v: int, device: Device) -> int:
    value = d.graph.values[v]
    if value.producer < 0:
        return 1
    op = d.graph.ops[value.producer]
    chained = d.chained[int(d.classes.op_class[op.id])]
    whole = math.ceil(value.itemsize)
    kept = 1
    if op.prim == "random_bits" and d.graph.values[op.inputs[0] or 0].dtype == "key<fry>":
        kept = max(1, _WORD_BYTES * device.random_words // whole)
    return kept * (whole if chained else 1)


def first_rows(d: Draft, timeline: Timeline) -> tuple[Row, ...]:
    """The moments at which the first and the last member of each class of ops make something."""
    grows = np.zeros(timeline.num_times, dtype=bool)
    grows[timeline.first] = True
    ends = {m[i] for m in d.classes.members for i in (0, -1)}
    times = {t for t, o in enumerate(timeline.ops.tolist()) if o in ends and grows[t]}
    return timeline.rows(sorted({0, *times}))


def violated(
    d: Draft, timeline: Timeline, choices: tuple[int, ...], limit: int, most: int = 8
) -> tuple[Row, ...]:
    """Rows of the moments that exceed `limit` most, at most one for each class of ops."""
    curve = timeline.curve(d, choices)
    found: dict[int, int] = {}
    for t in np.argsort(-curve, kind="stable")[: 64 * most].tolist():
        if curve[t] > limit and len(found) < most:
            op = timeline.op_at(t)
            found.setdefault(-1 if op < 0 else int(d.classes.op_class[op]), t)
    return timeline.rows(found.values())


def _node_of_value(d: Draft, storage: Storage, live: Liveness) -> Ints:
    """The node whose usage a value's buffer is; an op with several results is counted once."""
    nodes = np.full(len(d.graph.values), -1, dtype=np.int64)
    for v in d.graph.values:
        if storage.stored[v.id] and storage.buffer[v.id] == v.id:
            nodes[v.id] = d.stored[int(d.classes.value_class[v.id])][0]
    for op in d.graph.ops:
        together = [v for v in op.outputs if nodes[v] >= 0 and live.first[v] >= 0]
        first, *others = together or [-1]
        for v in others:
            if nodes[v] == nodes[first]:
                live.first[first] = min(live.first[first], live.first[v])
                live.last[first] = max(live.last[first], live.last[v])
                nodes[v] = -1
    return nodes


def _add_copy_usage(d: Draft, smallest_bytes: int) -> Iterable[int]:
    """Sets `Edge.usage` where resharding makes a copy worth counting; returns these edges."""
    for e in sorted([*d.use_edges, *d.copy_edges]):
        vc = d.copy_edges[e][0] if e in d.copy_edges else d.use_edges[e].value
        value = d.value(vc)
        if value.nbytes < smallest_bytes:
            continue
        edge = d.edges[e]
        made = np.array([num_shards(s, d.mesh) for s in _target_specs(d, e, vc)])
        usage = np.where(edge.costs > 0, (-(-value.nbytes // made))[None, :], 0)
        d.edges[e] = replace(edge, usage=usage.astype(np.int64))
        yield e


def _add_sum_usage(d: Draft, smallest_bytes: int, scatter_buffers: int) -> Iterable[int]:
    """Sets `Edge.usage` to what an op leaves before its sums are finished and put in place."""
    for e, (c, k) in sorted(d.sum_edges.items()):
        value = d.graph.values[d.op(c).outputs[k]]
        if value.nbytes < smallest_bytes:
            continue
        specs, usage = d.specs(value.shape), np.zeros_like(d.edges[e].costs)
        for i, s in enumerate(d.strategies[c]):
            raw, moved = s.results[k], np.array([spec != s.results[k] for spec in specs])
            whole = -(-value.nbytes // num_shards(raw, d.mesh))
            usage[i] = whole * np.where(moved, scatter_buffers if s.partial else 1, bool(s.partial))
        d.edges[e] = replace(d.edges[e], usage=usage)
        yield e


def _unfinished(
    d: Draft, live: Liveness, edge_ids: Iterable[int]
) -> list[tuple[int, int, int, int, int]]:
    """(~edge, first op, last op, value) of each result before it is finished."""
    found: list[tuple[int, int, int, int, int]] = []
    for e in edge_ids:
        c, k = d.sum_edges[e]
        made = {d.graph.ops[m].outputs[k]: m for m in d.classes.members[c]}
        found += [(~e, live.time(m), live.held_until(v, m), 1, v) for v, m in made.items()]
    return found


def _target_specs(d: Draft, e: int, vc: int) -> list[Spec]:
    if e in d.copy_edges:
        _, index = d.copies[d.copy_edges[e]]
        specs = d.specs(d.value(vc).shape)
        return [specs[i] for i in index.tolist()]
    use = d.use_edges[e]
    return [s.operands[use.k] for s in d.strategies[use.op]]


def _copies(
    d: Draft, live: Liveness, edge_ids: Iterable[int]
) -> list[tuple[int, int, int, int, int]]:
    """(~edge, first op, last op, value) of each copy: as long as its readers need it.

    What reads it may be a view, such as the constraint that asks for it: then its readers, too.
    """
    by_use: dict[tuple[int, int, int], int] = {}
    by_copy: dict[tuple[int, str], int] = {}
    for e in edge_ids:
        if e in d.copy_edges:
            by_copy[d.copy_edges[e]] = e
        else:
            use = d.use_edges[e]
            by_use[use.value, use.op, use.k] = e
    spans: dict[tuple[int, int, int], tuple[int, int]] = {}
    value_class, op_class = d.classes.value_class.tolist(), d.classes.op_class.tolist()
    for op in d.graph.ops:
        for k, v in enumerate(op.inputs):
            if v is None:
                continue
            copy = by_copy.get((value_class[v], op.phase))
            if copy is not None:
                first, last = spans.get((copy, v, -1), (live.num_times, 0))
                began = live.copied(v, op.id)
                spans[copy, v, -1] = min(first, began), max(last, live.time(op.id))
            direct = by_use.get((value_class[v], op_class[op.id], k))
            if direct is not None:
                views = [w for w in op.outputs if live.is_view(w, v)]
                until = max(live.time(op.id), *(live.read_until[w] for w in views), -1)
                spans[direct, v, op.id] = live.copied(v, op.id), until
    return [(~e, first, last, 1, v) for (e, v, _), (first, last) in spans.items()]
