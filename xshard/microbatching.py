"""In what ways a step can be run: in how many microbatches, with which layers recomputed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from xshard.cost.measured import Measured
from xshard.errors import MicrobatchError, RematError
from xshard.ir.trace import Traced
from xshard.microbatch.split import Divided, divided, found_axes, stated_axes
from xshard.plan.plan import Plan, RecomputedLayers
from xshard.prepare import Prepared, Request, measured, prepare_all
from xshard.remat.rewrite import Layered, layered
from xshard.spec import MeshShape
from xshard.ties import ties_of

Number = int | str
_IN_LOOP = 3
"""Length of the address of a port into the body of an outermost loop."""


def read_number(microbatches: Any) -> Number:
    """The option as it is, if it is a positive number or "auto".

    Raises:
      MicrobatchError: it is neither.
    """
    if microbatches == "auto" or (type(microbatches) is int and microbatches > 0):
        return microbatches
    raise MicrobatchError(f'microbatches={microbatches!r} is no number from 1 on, nor "auto"')


def read_remat(remat: Any) -> str:
    """The option as it is, if it is one.

    Raises:
      RematError: it is none.
    """
    if remat in ("auto", "none", "all"):
        return remat
    raise RematError(f'remat={remat!r} is none of "auto", "none" and "all"')


@dataclass(frozen=True, slots=True)
class Way:
    """How a step is run, beside its specs.

    Attributes:
      recomputed: of each chain of layers (`xshard.remat`), how many are recomputed; (): the step
        is left as it is; zeros: unrolled layers of its backward pass wait for each other.
      lanes: parts of each sum over the batch that are added up after the loop.
    """

    microbatches: int = 1
    recomputed: tuple[int, ...] = ()
    lanes: int = 1


@dataclass(slots=True)
class Candidates:
    """One step, prepared for each way to run it that is looked at.

    Attributes:
      requests: what to plan for a traced step, one for each mesh.
      microbatches, remat: as the user states them.
      batch_axes: as the user states them; None: found.
      donated: argument values whose memory may be reused.
      patience_s: how long the smallest limit is looked for where nothing fits.
      known: what is known of the devices by measurement.
    """

    traced: Traced
    requests: Callable[[Traced], list[Request]]
    microbatches: Number = "auto"
    batch_axes: Any = None
    donated: frozenset[int] = frozenset()
    patience_s: float = 60.0
    remat: str = "none"
    known: Measured | None = None
    _divided: dict[tuple[int, ...], Divided] = field(default_factory=dict)
    _layered: dict[tuple[Way, tuple[int, ...]], Layered] = field(default_factory=dict)
    _prepared: dict[tuple[Way, tuple[int, ...]], list[Prepared]] = field(default_factory=dict)

    def asking(self, requests: Callable[[Traced], list[Request]]) -> Candidates:
        """The same step with other requests; what was cut and rewritten of it is kept."""
        return replace(self, requests=requests, _prepared={})

    def know(self, known: Measured | None) -> None:
        """Prices are to be by what is known of the devices by measurement."""
        self.known = known
        self._prepared = {key: measured(made, known) for key, made in self._prepared.items()}

    def prepared(self, way: Way, dims: tuple[int, ...] | None = None) -> list[Prepared]:
        """The step as it is run that way, for each mesh that the lanes could be split over.

        Args:
          dims: the batch's dimension in each flattened argument, -1 for none, as a plan states it.

        Raises:
          MicrobatchError: the step cannot be divided so.
        """
        key = way, self._dims(way.microbatches, dims)
        if key not in self._prepared:
            traced, remat = self._run_so(way, key[1])
            requests = [r for r in self.requests(traced) if way.lanes in widths(r.mesh)]
            stated = {"microbatches": way.microbatches, "lanes": way.lanes, "remat": remat}
            requests = [replace(r, **stated) for r in requests]
            self._prepared[key] = measured(prepare_all(requests), self.known)
        return self._prepared[key]

    def with_lanes(self, way: Way, limit: int | None = None) -> list[Prepared]:
        """The step as it is run that way, with each number of lanes that could be of use."""
        found = self.prepared(way)
        lanes = set[int]().union(*(self.lanes(way, limit, p.request.mesh) for p in found))
        return [*found, *(p for n in sorted(lanes) for p in self.prepared(replace(way, lanes=n)))]

    def lanes(self, way: Way, limit: int | None, mesh: MeshShape) -> set[int]:
        """Numbers of lanes that could be of use on a mesh, and leave half of the limit to others
        if they and the arguments are split over all devices.
        """
        if way.microbatches == 1:
            return set()
        graph = self.prepared(way)[0].request.traced.graph
        rows = self.batch() // way.microbatches
        state = sum(graph.values[v].nbytes for v in graph.inputs)
        sums = sum(
            graph.values[v].nbytes
            for op in graph.ops
            if op.prim == "carry_in" and len(op.address) == _IN_LOOP
            and op.repeat == way.microbatches
            for v in op.outputs
        )  # fmt: skip
        most = math.inf if limit is None else limit * mesh.num_devices / 2
        return {n for n in widths(mesh) if n > 1 and rows % n == 0 and state + n * sums <= most}

    def stated(self) -> Way:
        """The step as it is stated: in one piece if the number is open, with all layers kept."""
        number = 1 if isinstance(self.microbatches, str) else self.microbatches
        return Way(number, self.all_layers(number) if self.remat == "all" else ())

    def first(self) -> list[Prepared]:
        """The step as it is stated, prepared."""
        return self.prepared(self.stated())

    def for_plan(self, plan: Plan) -> list[Prepared]:
        """The step as a plan runs it, or without its recomputation if there are no such layers."""
        way = Way(plan.microbatches, lanes=plan.lanes)
        if plan.remat:
            parts = self.layers(way, plan.batch_dims).parts
            if [part.length for part in parts] == [part.layers for part in plan.remat]:
                way = replace(way, recomputed=tuple(part.recomputed for part in plan.remat))
        return self.prepared(way, plan.batch_dims)

    def layers(self, way: Way, dims: tuple[int, ...] | None = None) -> Layered:
        """What can be recomputed of the step, run that way otherwise."""
        key = replace(way, recomputed=()), self._dims(way.microbatches, dims)
        if key not in self._layered:
            self._layered[key] = layered(self._cut(way, key[1]))
        return self._layered[key]

    def all_layers(self, number: int) -> tuple[int, ...]:
        """The numbers of layers that can be recomputed."""
        return tuple(part.length for part in self.layers(Way(number)).parts)

    def kept(self, number: int) -> Way:
        """All layers kept; unrolled ones wait in the backward pass for those behind them."""
        found = self.layers(Way(number))
        return Way(number, (0,) * len(found.parts) if found.may_wait else ())

    def dims(self) -> tuple[int, ...]:
        """The batch's dimension in each flattened argument, -1 for none."""
        if self.batch_axes is not None:
            axes = stated_axes(self.traced, self.batch_axes)
        else:
            inputs = self.traced.graph.inputs
            state = {*ties_of(self.traced).values(), *self.donated}
            axes = found_axes(self.traced, frozenset(i for i, v in enumerate(inputs) if v in state))
        return tuple(-1 if d is None else d for d in axes)

    def batch(self) -> int:
        """Rows of the full batch.

        Raises:
          MicrobatchError: the step cannot be divided.
        """
        return self._split(self.dims()).batch

    def _run_so(
        self, way: Way, dims: tuple[int, ...]
    ) -> tuple[Traced, tuple[RecomputedLayers, ...]]:
        if not way.recomputed:
            return self._cut(way, dims), ()
        found = self.layers(way, dims)
        parts = zip(found.parts, way.recomputed, strict=True)
        remat = tuple(RecomputedLayers(part.length, n, part.source) for part, n in parts)
        return found.recomputing(way.recomputed), remat

    def _cut(self, way: Way, dims: tuple[int, ...]) -> Traced:
        """The step in microbatches."""
        if way.microbatches == 1:
            return self.traced
        return self._split(dims).into(way.microbatches, way.lanes)

    def _dims(self, number: int, dims: tuple[int, ...] | None) -> tuple[int, ...]:
        return () if number == 1 else dims or self.dims()

    def _split(self, dims: tuple[int, ...]) -> Divided:
        if dims not in self._divided:
            axes = [None if d < 0 else d for d in dims]
            self._divided[dims] = divided(self.traced, axes)
        return self._divided[dims]


def widths(mesh: MeshShape) -> frozenset[int]:
    """The numbers of devices that some axes of the mesh make together."""
    sizes = mesh.sizes
    subsets = (c for k in range(len(sizes) + 1) for c in combinations(sizes, k))
    return frozenset(map(math.prod, subsets))


def numbers(batch: int) -> tuple[int, ...]:
    """Divisors of the batch, each at least twice the one before."""
    found = [1]
    for n in range(2, batch + 1):
        if batch % n == 0 and n >= 2 * found[-1]:
            found.append(n)
    return tuple(found)
