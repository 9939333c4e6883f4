"""The collectives that turn one `Spec` of an array into another, and their time.

`route` gives them for a pair of specs as fractions of the global bytes, independent of the array:
what XLA's partitioner does (`partitioner.py`). `Resharder` prices them for a mesh on a cluster, one
array or all pairs of a list of specs at once. `one_stop` finds the pairs for which two constraints
in sequence beat one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xshard.cost.collectives import CollectiveModel, Pieces
from xshard.cost.compute import bandwidth
from xshard.cost.moves import Move, Order, gathered_order
from xshard.cost.partitioner import moves
from xshard.cost.tiling import coordinates, of_spec
from xshard.spec import MeshShape, Spec, divides, num_shards


@dataclass(frozen=True, slots=True)
class Step:
    """One collective.

    Attributes:
      kind: as in `CollectiveModel`.
      axes: the mesh axes that differ within its groups.
      nbytes: its bytes, by the conventions of `CollectiveModel`.
      devices: how many devices a group has; fewer than the axes make where one axis is cut.
      order: how the array is rearranged around it, on devices where that takes time.
    """

    kind: str
    axes: tuple[int, ...]
    nbytes: float
    devices: int
    order: Order = "kept"


@lru_cache(maxsize=1 << 18)
def route(src: Spec, dst: Spec, mesh: MeshShape) -> tuple[Step, ...]:
    """The steps from `src` to `dst` for an array of one byte: bytes are fractions of the whole."""
    pairs = _short(src, dst)
    steps = _route(tuple(s for s, _ in pairs), tuple(d for _, d in pairs), mesh)
    if src[:1] == dst[:1] == ((),):
        inner: Order = "elements" if len(pairs) == 1 else "rows"
        return tuple(_within_rows(step, inner) for step in steps)
    return steps


def _short(src: Spec, dst: Spec) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The specs without leading dimensions that neither cuts, and one of each such run elsewhere.

    Where such dimensions stand matters to the partitioner, how many there are does not.
    """
    kept: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((), ())]
    for pair in zip(src, dst, strict=True):
        if pair != ((), ()) or kept[-1] != pair:
            kept.append(pair)
    return kept[1:]


def _within_rows(step: Step, order: Order) -> Step:
    """The step behind leading dimensions: what was gathered along the outermost no longer is."""
    if step.kind != "all-gather" or step.order != "kept":
        return step
    return Step(step.kind, step.axes, step.nbytes, step.devices, order)


@lru_cache(maxsize=1 << 16)
def _route(src: Spec, dst: Spec, mesh: MeshShape) -> tuple[Step, ...]:
    if all(d[: len(s)] == s for s, d in zip(src, dst, strict=True)):
        return ()
    if all(s[: len(d)] == d for s, d in zip(src, dst, strict=True)):
        return _gathers(src, dst, mesh)
    found = moves(of_spec(src, mesh), of_spec(dst, mesh))
    return tuple(_step(move, mesh) for move in found)


def _gathers(src: Spec, dst: Spec, mesh: MeshShape) -> tuple[Step, ...]:
    """All-gathers of the axes that each dimension loses innermost, the last dimension first."""
    steps, fraction = [], 1 / num_shards(src, mesh)
    for dim, (s, d) in reversed(list(enumerate(zip(src, dst, strict=True)))):
        size = mesh.size_of(s[len(d) :])
        if size > 1:
            fraction *= size
            axes = tuple(a for a in s[len(d) :] if mesh.sizes[a] > 1)
            order = gathered_order(dim, len(src))
            steps.append(Step("all-gather", axes, fraction, size, order))
    return tuple(steps)


def _step(move: Move, mesh: MeshShape) -> Step:
    """A move of devices as a step over mesh axes."""
    places = coordinates(mesh)[:, move.groups]
    differ = (places != places[..., :1]).any(axis=(1, 2))
    axes = tuple(int(a) for a in np.flatnonzero(differ))
    devices = mesh.size_of(axes) if move.kind == "permute" else move.groups.shape[1]
    return Step(move.kind, axes, move.fraction, devices, move.order)


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
        return tuple(Step(s.kind, s.axes, s.nbytes * nbytes, s.devices, s.order) for s in path)

    def time_ns(self, src: Spec, dst: Spec, nbytes: float) -> int:
        """Nanoseconds of all the steps, one after the other."""
        return sum(map(self.step_ns, self.steps(src, dst, nbytes)))

    def step_ns(self, step: Step) -> int:
        """Nanoseconds of one step."""
        pieces = self.model.pieces(step.kind, step.axes, step.devices)
        copies_ns = step.nbytes * self._copies_ns_per_byte(step)
        return int(np.rint(pieces.at(np.asarray(step.nbytes, np.float64)) + copies_ns))

    def _copies_ns_per_byte(self, step: Step) -> float:
        """Time to rearrange what a step receives, and for a transpose what it sends, too."""
        device = self.model.cluster.device
        if not device.copies_operands or step.order == "kept":
            return 0.0
        if step.order == "rows":
            return 2e9 / bandwidth(device, "elementwise", "float32")
        return (1 + 1 / step.devices) * 2e9 / bandwidth(device, "transpose", "float32")

    def table(self, specs: tuple[Spec, ...], nbytes: float) -> NDArray[np.int64]:
        """`time_ns` from every spec (row) to every spec (column)."""
        times = np.zeros((len(specs), len(specs)), np.int64)
        for slot in self._layout(specs):
            moved = slot.fractions * nbytes
            taken = np.rint(slot.pieces.at(moved) + slot.copies_ns_per_byte * moved)
            times[slot.rows, slot.columns] += taken.astype(np.int64)
        return times

    def _layout(self, specs: tuple[Spec, ...]) -> list[_Slot]:
        """The steps of all pairs, gathered by (place in the route, kind, axes)."""
        if specs not in self._layouts:
            self._layouts[specs] = self._gather(specs)
        return self._layouts[specs]

    def _gather(self, specs: tuple[Spec, ...]) -> list[_Slot]:
        found: dict[tuple[Any, ...], list[tuple[int, int, float]]] = {}
        for row, src in enumerate(specs):
            for column, dst in enumerate(specs):
                for place, step in enumerate(route(src, dst, self.model.mesh)):
                    key = step.kind, step.axes, 1.0, step.devices, step.order, place
                    found.setdefault(key, []).append((row, column, step.nbytes))
        return [self._slot(entries, Step(*key[:-1])) for key, entries in found.items()]

    def _slot(self, entries: list[tuple[int, int, float]], step: Step) -> _Slot:
        rows, columns, fractions = map(np.array, zip(*entries, strict=True))
        pieces = self.model.pieces(step.kind, step.axes, step.devices)
        return _Slot(rows, columns, fractions, pieces, self._copies_ns_per_byte(step))


def one_stop(times: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The least time between specs when one intermediate spec may be asked for on the way.

    The partitioner does not look for the shortest route; constraints in sequence make it take one.

    Args:
      times: a `Resharder.table`, shape (specs, specs).

    Returns:
      the least times, and for each pair the index of the spec to stop at; -1 where direct is best.
    """
    best, via = times.copy(), np.full(times.shape, -1, np.int64)
    for stop in range(len(times)):
        there = times[:, stop, None] + times[None, stop, :]
        shorter = there < best
        best[shorter], via[shorter] = there[shorter], stop
    return best, via


def indirect(specs: tuple[Spec, ...], shape: tuple[int, ...], mesh: MeshShape) -> NDArray[np.bool_]:
    """The pairs of specs between which padded shards would move: XLA gathers the array instead.

    A padded dimension is gathered whole or cut from whole; anything else goes by such a stop.
    """
    padded = [s for s in specs if not divides(s, shape, mesh)]
    found = np.zeros((len(specs), len(specs)), bool)
    if padded:
        for row, src in enumerate(specs):
            for column, dst in enumerate(specs):
                found[row, column] = (src in padded or dst in padded) and not (
                    _cut_from(src, dst, shape, mesh) or _cut_from(dst, src, shape, mesh)
                )
    return found


def _cut_from(coarse: Spec, fine: Spec, shape: tuple[int, ...], mesh: MeshShape) -> bool:
    """Whether each shard of `fine` lies within the device's shard of `coarse`."""
    return all(
        c == f or not c or (f[: len(c)] == c and n % mesh.size_of(f) == 0)
        for c, f, n in zip(coarse, fine, shape, strict=True)
    )


@dataclass(frozen=True, slots=True)
class _Slot:
    """The pairs (row, column) that share one step, with the fractions of the bytes it moves."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    fractions: NDArray[np.float64]
    pieces: Pieces
    copies_ns_per_byte: float
