"""Whether a memory limit is quickly proven to be too low, and by how much it is exceeded.

Two proofs. Before anything is modelled: a value takes least where it is split over all devices, so
that no plan on any mesh holds less at a moment than an equal share of all that is live then, if
ops run in one order (`nothing_fits`). For a model: prices of memory bound its peak from below
(`hopeless`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xshard.ir.graph import Graph
from xshard.prepare import Modelled, Prepared
from xshard.solve.build import gradients
from xshard.solve.memory import first_rows
from xshard.solve.search import least_peak

SURE = 1.1
"""Nothing fits where an equal share exceeds the limit so many times: the compiler's order of ops,
and with it what is live together, depends a little on the specs."""


@dataclass(frozen=True, slots=True)
class Hopeless:
    """What a device holds at a moment at which no specs bring it under the limit.

    Attributes:
      fixed_bytes: at least, of what is the same in any number of microbatches.
      rows_bytes: about the least of what is made of a microbatch's rows.
    """

    fixed_bytes: int
    rows_bytes: int

    def at(self, microbatches: int, of: int) -> float:
        """About the least peak in another number of microbatches than `of`."""
        return self.fixed_bytes + self.rows_bytes * of / microbatches


def nothing_fits(prepared: Prepared, limit: int) -> Hopeless | None:
    """What is held at least if that is more than the limit, on all meshes of so many devices."""
    graph, live, classes = prepared.request.traced.graph, prepared.live(), prepared.classes
    owned = [live.first[v] >= 0 and b == v for v, b in enumerate(prepared.storage.buffer)]
    held = np.flatnonzero(owned)
    sizes = np.array([graph.values[v].nbytes for v in held.tolist()], dtype=np.int64)
    change = np.zeros(live.num_times + 1, dtype=np.int64)
    np.add.at(change, live.first[held], sizes)
    np.add.at(change, live.last[held] + 1, -sizes)
    curve = np.cumsum(change)[:-1]
    devices = prepared.request.mesh.num_devices
    if curve.max(initial=0) <= SURE * limit * devices:
        return None
    at = int(curve.argmax())
    here = (live.first[held] <= at) & (at <= live.last[held])
    of_gradient = gradients(graph, classes, prepared.rules)
    is_gradient = [of_gradient[c] for c in classes.value_class.tolist()]
    rows = _made_for_rows(graph, is_gradient, held[here].tolist())
    fixed, of_rows = (int(sizes[here][w].sum()) // devices for w in (~rows, rows))
    return Hopeless(fixed, of_rows)


def hopeless(modelled: Modelled, limit: int) -> Hopeless | None:
    """Its least peak if it is quickly proven that nothing fits the limit; None for small models."""
    d, timeline = modelled.draft, modelled.timeline
    choices = least_peak(modelled.problem(limit, first_rows(d, timeline)))
    if choices is None:
        return None
    at = int(timeline.curve(d, choices).argmax())
    here = np.flatnonzero((timeline.first <= at) & (at <= timeline.last))
    owners, values = timeline.owner[here].tolist(), timeline.value[here].tolist()
    is_gradient = [d.is_gradient[c] for c in d.classes.value_class.tolist()]
    rows = _made_for_rows(d.graph, is_gradient, values)
    least = np.array([d.nodes[o].usage.min() if o >= 0 else 0 for o in owners], np.int64)
    fixed = int((least * timeline.weight[here])[~rows].sum())
    return Hopeless(fixed, int(timeline.sizes(d, choices)[here][rows].sum()))


def _made_for_rows(
    graph: Graph, is_gradient: Sequence[bool], values: Sequence[int]
) -> NDArray[np.bool_]:
    """Whether values are of a microbatch: what the update does not make, and no gradient."""

    def kept(v: int) -> bool:
        producer = graph.values[v].producer
        op = graph.ops[producer] if producer >= 0 else None
        return op is None or op.phase == "update" or op.prim in ("carry_in", "carry_out")

    return np.array([not kept(v) and not is_gradient[v] for v in values], bool)
