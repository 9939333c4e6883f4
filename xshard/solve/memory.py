"""Rows of live memory for a draft: which nodes and resharded copies are live at which moment.

Every op is a moment. Moments at which nothing new is made are not peaks, and a moment whose counts
are all at most those of another is implied by it, so few rows remain: about one for each op of a
layer, however many layers there are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xshard.cost.fusion import Storage
from xshard.cost.liveness import Liveness, live_counts
from xshard.solve.build import Draft, Use
from xshard.solve.problem import Row
from xshard.spec import num_shards

Counts = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Timeline:
    """How many members of each node and edge are live at each time.

    Attributes:
      nodes: shape (nodes of the problem, times).
      edges: shape (edges with usage, times).
      edge_ids: the edges that the rows of `edges` stand for.
    """

    nodes: Counts
    edges: Counts
    edge_ids: tuple[int, ...]


def add_memory(d: Draft, storage: Storage, live: Liveness, smallest_bytes: int) -> Timeline:
    """Gives edges the usage of the copies that they make, and counts everything that is live.

    Copies of arrays below `smallest_bytes` are left out of the edges (they are noise).
    """
    nodes = _node_of_value(d, storage, live)
    edge_ids = _add_copy_usage(d, smallest_bytes)
    edges = np.zeros((len(edge_ids), live.num_times + 1), dtype=np.int32)
    spans = _copy_spans(d, edge_ids)
    for row, spans_of_edge in enumerate(spans):
        for first, last in spans_of_edge:
            edges[row, first] += 1
            edges[row, last + 1] -= 1
    counts = live_counts(live, nodes, len(d.nodes))
    return Timeline(counts, np.cumsum(edges, axis=1, dtype=np.int32)[:, :-1], edge_ids)


def rows_of(d: Draft, timeline: Timeline) -> tuple[Row, ...]:
    """The moments that are not implied by others."""
    both = np.concatenate([timeline.nodes, timeline.edges])
    grew = (np.diff(both, axis=1, prepend=0) > 0).any(axis=0)
    times = np.flatnonzero(grew)
    op_class = np.append(d.classes.op_class, -1)
    kept: list[int] = []
    for c in np.unique(op_class[times]).tolist():
        here = times[op_class[times] == c]
        kept += here[_undominated(both[:, here])].tolist()
    kept_times = np.array(sorted(kept), dtype=np.int64)
    kept_times = kept_times[_undominated(both[:, kept_times])]
    return tuple(_row(d, timeline, int(t)) for t in np.sort(kept_times))


def _undominated(columns: Counts) -> NDArray[np.int64]:
    """Indices of columns that are not below another column in every entry."""
    used = columns[(columns != 0).any(axis=1)]
    order = np.argsort(-used.sum(axis=0), kind="stable")
    kept: list[int] = []
    front = np.zeros((len(used), 0), dtype=columns.dtype)
    for i in order.tolist():
        column = used[:, i : i + 1]
        if not (column <= front).all(axis=0).any():
            kept.append(i)
            front = np.concatenate([front, column], axis=1)
    return np.array(sorted(kept), dtype=np.int64)


def _row(d: Draft, timeline: Timeline, t: int) -> Row:
    nodes = np.flatnonzero(timeline.nodes[:, t])
    edges = np.flatnonzero(timeline.edges[:, t])
    op = d.graph.ops[t] if t < len(d.graph.ops) else None
    return Row(
        nodes.astype(np.int64),
        timeline.nodes[nodes, t].astype(np.int64),
        np.array([timeline.edge_ids[e] for e in edges], dtype=np.int64),
        timeline.edges[edges, t].astype(np.int64),
        name=f"{t} {op.prim} {op.scope}" if op else "end",
    )


def _node_of_value(d: Draft, storage: Storage, live: Liveness) -> NDArray[np.int64]:
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


def _add_copy_usage(d: Draft, smallest_bytes: int) -> tuple[int, ...]:
    """Sets `Edge.usage` where resharding makes a copy worth counting."""
    ids: list[int] = []
    for e in sorted([*d.use_edges, *d.copy_edges]):
        edge = d.edges[e]
        vc = d.copy_edges[e][0] if e in d.copy_edges else d.use_edges[e].value
        value = d.value(vc)
        if value.nbytes < smallest_bytes:
            continue
        made = np.array([num_shards(s, d.mesh) for s in _target_specs(d, e, vc)])
        bytes_made = -(-value.nbytes // made)
        usage = np.where(edge.costs > 0, bytes_made[None, :], 0).astype(np.int64)
        d.edges[e] = replace(edge, usage=usage)
        ids.append(e)
    return tuple(ids)


def _target_specs(d: Draft, e: int, vc: int) -> list[tuple[tuple[int, ...], ...]]:
    if e in d.copy_edges:
        node, index = d.copies[d.copy_edges[e]]
        specs = d.specs(d.value(vc).shape)
        return [specs[i] for i in index.tolist()]
    use = d.use_edges[e]
    return [s.operands[use.k] for s in d.strategies[use.op]]


def _copy_spans(d: Draft, edge_ids: tuple[int, ...]) -> list[list[tuple[int, int]]]:
    """For each edge, the (first, last) op of each copy that it stands for."""
    by_use: dict[tuple[int, int, int], int] = {}
    by_copy: dict[tuple[int, str], int] = {}
    for row, e in enumerate(edge_ids):
        if e in d.copy_edges:
            by_copy[d.copy_edges[e]] = row
        else:
            use: Use = d.use_edges[e]
            by_use[use.value, use.op, use.k] = row
    spans: list[list[tuple[int, int]]] = [[] for _ in edge_ids]
    open_copies: dict[tuple[int, int], tuple[int, int]] = {}
    value_class, op_class = d.classes.value_class.tolist(), d.classes.op_class.tolist()
    for op in d.graph.ops:
        for k, v in enumerate(op.inputs):
            if v is None:
                continue
            row = by_copy.get((value_class[v], op.phase))
            if row is not None:
                first, _ = open_copies.get((row, v), (op.id, op.id))
                open_copies[row, v] = first, op.id
            row = by_use.get((value_class[v], op_class[op.id], k))
            if row is not None:
                spans[row].append((op.id, op.id))
    for (row, _), span in open_copies.items():
        spans[row].append(span)
    return spans
