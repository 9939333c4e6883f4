"""Arrays of which each layer reads a part, `layer(stack[i], x)`, with the layers one by one.

If what the stages read lies in their order, such an array is taken apart between them, as one is
that a scan goes over.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from xshard.stages.flat import Flat, Node

Rows = tuple[int, int]
"""Start and stop along the first dimension."""


def slices_of(flat: Flat, forward: Sequence[Node], starts: Sequence[int]) -> dict[int, list[int]]:
    """For each argument that only parts are read of: where to cut it, from 0 to its length.

    Args:
      starts: the forward node that each stage but the first begins with, by number.
    """
    found: dict[int, list[int]] = {}
    for v, reads in _reads(flat, forward).items():
        parts = [(*rows, bisect_right(starts, at)) for rows, at in sorted(reads.items())]
        length = flat.avals[v].shape[0]
        ends = [(a[1], b[0]) for a, b in pairwise(parts)]
        tiled = parts[0][0] == 0 and parts[-1][1] == length and all(a == b for a, b in ends)
        stages = [stage for _, _, stage in parts]
        if tiled and stages == sorted(stages) and stages[0] < stages[-1]:
            cuts = [b[0] for a, b in pairwise(parts) if a[2] < b[2]]
            found[v] = [0, *cuts, length]
    return found


def rows_of(flat: Flat, node: Node) -> Rows | None:
    """The rows that a node takes of its array, if it is a slice of neighbouring rows."""
    params = node.eqn.params
    if node.eqn.primitive.name != "slice" or params["strides"] is not None:
        return None
    shape = flat.aval(node.ins[0]).shape
    start, stop = params["start_indices"], params["limit_indices"]
    whole = not any(start[1:]) and stop[1:] == shape[1:]
    return (start[0], stop[0]) if whole and len(shape) > 1 and stop[0] > start[0] else None


def _reads(flat: Flat, forward: Sequence[Node]) -> dict[int, dict[Rows, int]]:
    """By argument, its parts that are read, with the number of the first forward node to do so."""
    place = {n: i for i, n in enumerate(forward)}
    arguments, whole = set(flat.inputs), set[int]()
    part_of: dict[int, tuple[int, Rows]] = {}
    found: dict[int, dict[Rows, int]] = {}
    for node in (*flat.before, *flat.body):
        parts = [part_of[r] for r in node.reads if r in part_of]
        rows = rows_of(flat, node) if arguments.issuperset(node.reads) and node.reads else None
        if rows:
            part_of[node.outs[0]] = node.reads[0], rows
            continue
        whole |= arguments.intersection(node.reads)
        if node in place:
            for v, rows in parts:
                found.setdefault(v, {}).setdefault(rows, place[node])
        elif len(node.reads) == 1 and parts:
            part_of.update(dict.fromkeys(node.outs, parts[0]))
    return {v: reads for v, reads in found.items() if v not in whole}
