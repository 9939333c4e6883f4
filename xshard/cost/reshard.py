"""The collectives that turn one `Spec` of an array into another, and their time.

`route` gives them for a pair of specs as fractions of the global bytes, independent of the array;
`Resharder` prices them for a mesh on a cluster, one array or all pairs of a list of specs at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from xshard.cost.collectives import CollectiveModel, Pieces
from xshard.spec import MeshShape, Spec, num_shards


@dataclass(frozen=True, slots=True)
class Step:
    """One collective: its kind, mesh axes and bytes (conventions of `CollectiveModel`)."""

    kind: str
    axes: tuple[int, ...]
    nbytes: float


@lru_cache(maxsize=1 << 18)
def route(src: Spec, dst: Spec, mesh: MeshShape) -> tuple[Step, ...]:
    """The steps from `src` to `dst` for an array of one byte: bytes are fractions of the whole."""
    place = {axis: dim for dim, axes in enumerate(src) for axis in axes}
    goal = {axis: dim for dim, axes in enumerate(dst) for axis in axes}
    added = tuple(a for a in goal if a not in place)
    part = 1.0 / (num_shards(src, mesh) * mesh.size_of(added))
    moved: dict[tuple[int, int], tuple[int, ...]] = {}
    for axis in sorted(set(place) & set(goal)):
        if place[axis] != goal[axis]:
            key = place[axis], goal[axis]
            moved[key] = (*moved.get(key, ()), axis)
    steps = [Step("all-to-all", axes, part) for axes in moved.values()]
    lost = tuple(sorted(a for a in place if a not in goal))
    if lost:
        steps.append(Step("all-gather", lost, part * mesh.size_of(lost)))
    return tuple(s for s in steps if mesh.size_of(s.axes) > 1)


class Resharder:
    """Prices resharding on one mesh of one cluster.

    `nbytes` is always the size of the whole array over all devices.
    """

    def __init__(self, model: CollectiveModel) -> None:
        self.model = model
        self._layouts: dict[tuple[Spec, ...], list[_Slot]] = {}

    def steps(self, src: Spec, dst: Spec, nbytes: float) -> tuple[Step, ...]:
        """The collectives from `src` to `dst`; none where a slice does it."""
        path = route(src, dst, self.model.mesh)
        return tuple(Step(s.kind, s.axes, s.nbytes * nbytes) for s in path)

    def time_ns(self, src: Spec, dst: Spec, nbytes: float) -> int:
        """Nanoseconds of all the steps, one after the other."""
        steps = self.steps(src, dst, nbytes)
        return sum(self.model.time_ns(s.kind, s.nbytes, s.axes) for s in steps)

    def table(self, specs: tuple[Spec, ...], nbytes: float) -> NDArray[np.int64]:
        """`time_ns` from every spec (row) to every spec (column)."""
        times = np.zeros((len(specs), len(specs)), np.int64)
        for slot in self._layout(specs):
            taken = np.rint(slot.pieces.at(slot.fractions * nbytes)).astype(np.int64)
            times[slot.rows, slot.columns] += taken
        return times

    def _layout(self, specs: tuple[Spec, ...]) -> list[_Slot]:
        """The steps of all pairs, gathered by (place in the route, kind, axes)."""
        if specs not in self._layouts:
            self._layouts[specs] = self._gather(specs)
        return self._layouts[specs]

    def _gather(self, specs: tuple[Spec, ...]) -> list[_Slot]:
        found: dict[tuple[int, str, tuple[int, ...]], list[tuple[int, int, float]]] = {}
        for row, src in enumerate(specs):
            for column, dst in enumerate(specs):
                for place, step in enumerate(route(src, dst, self.model.mesh)):
                    entry = row, column, step.nbytes
                    found.setdefault((place, step.kind, step.axes), []).append(entry)
        return [
            _slot(entries, self.model.pieces(kind, axes))
            for (_, kind, axes), entries in found.items()
        ]


@dataclass(frozen=True, slots=True)
class _Slot:
    """The pairs (row, column) that share one step, with the fractions of the bytes it moves."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    fractions: NDArray[np.float64]
    pieces: Pieces


def _slot(entries: list[tuple[int, int, float]], pieces: Pieces) -> _Slot:
    rows, columns, fractions = zip(*entries, strict=True)
    return _Slot(np.array(rows), np.array(columns), np.array(fractions, np.float64), pieces)
