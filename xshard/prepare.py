"""A request -> all that does not depend on the answer (classes, rules, prices) -> the problem."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from xshard.cost.cluster import Cluster
from xshard.cost.fusion import Storage, storage
from xshard.cost.kernels import FUSED, Program, Sizes
from xshard.cost.liveness import IN_PLACE, Liveness, liveness
from xshard.cost.measured import Measured
from xshard.cost.measured_prices import prices_of
from xshard.cost.moments import moments
from xshard.cost.prices import ClusterPrices
from xshard.fingerprint import fingerprint
from xshard.ir.fold import Classes, fold
from xshard.ir.trace import Traced
from xshard.plan.plan import RecomputedLayers
from xshard.rules import Rule, rule_of
from xshard.solve.build import draft
from xshard.solve.draft import Draft, Pin
from xshard.solve.memory import Timeline, add_memory
from xshard.solve.problem import Problem, Row
from xshard.solve.sizes import Choices, sizes_of
from xshard.spec import MeshShape

SMALLEST_COPY_BYTES = 1 << 14
"""Resharded copies of smaller arrays are left out of the memory model."""
_SAVED_BY_ORDER = 1.5
"""How much lower a peak is thought to be at most in the order that goes by a plan's own sizes than
in the order for values that are all split alike. A guess; 1.43 has been seen (GPT-3 39B)."""
_MOST_TIMELINES = 32
"""So many are kept of each model."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be planned.

    Attributes:
      pins: value id -> what the user fixed.
      results: position among the results -> what the user fixed of it as it is returned.
      ties: result value -> the argument whose next value it is.
      donated: argument values whose memory may be reused.
      memory_limit: bytes per device, or None.
      time_limit_s: of the solver.
      measured: what is known of the devices by measurement.
      microbatches: in how many the traced step runs.
      lanes: parts of each sum over the batch that it adds up after the loop.
      remat: of each chain of layers, how many are recomputed.
      starts: the first equations of programs that the traced step has one behind the other.
    """

    traced: Traced
    mesh: MeshShape
    cluster: Cluster
    pins: Mapping[int, Pin] = field(default_factory=dict[int, Pin])
    results: Mapping[int, Pin] = field(default_factory=dict[int, Pin])
    ties: Mapping[int, int] = field(default_factory=dict[int, int])
    donated: frozenset[int] = frozenset()
    memory_limit: int | None = None
    time_limit_s: float = 60.0
    measured: Measured | None = None
    microbatches: int = 1
    lanes: int = 1
    remat: tuple[RecomputedLayers, ...] = ()
    starts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Timed:
    """What is known of when things run; found when it is asked for.

    Attributes:
      lives: what is live when if all values are split alike, by what it depends on.
      programs: kernels, by where the programs start that a graph has one behind the other.
    """

    lives: dict[Hashable, Liveness] = field(default_factory=dict[Hashable, Liveness])
    programs: dict[tuple[int, ...], Program] = field(default_factory=dict[tuple[int, ...], Program])


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request with everything that does not depend on the solver's answer.

    Attributes:
      timed: shared with the requests for other meshes.
    """

    request: Request
    classes: Classes
    rules: tuple[Rule, ...]
    storage: Storage
    prices: ClusterPrices
    timed: Timed = field(default_factory=Timed, compare=False)

    @property
    def fingerprint(self) -> str:
        """Identifies graph, mesh, devices and pins."""
        r = self.request
        return fingerprint(r.traced.graph, r.mesh, str(r.cluster), r.pins, r.results)

    @property
    def replaced(self) -> frozenset[int]:
        """Values whose buffer is a donated argument's."""
        return frozenset(self.storage.buffer[v] for v in self._aliased)

    @property
    def _aliased(self) -> dict[int, int]:
        ties = self.request.ties.items()
        return {result: arg for result, arg in ties if arg in self.request.donated}

    def live(self, sizes: Sizes | None = None) -> Liveness:
        """When each value has memory.

        Args:
          sizes: by which the compiler orders ops; None: as if all values were split alike.
        """
        if sizes is not None:
            return self._live(sizes)
        orders = self.request.cluster.device.keeps is not None
        key = orders, self.request.starts, frozenset(self._aliased.items())
        lives = self.timed.lives
        if key not in lives:
            nbytes = [v.nbytes for v in self.request.traced.graph.values]
            lives[key] = self._live(Sizes(nbytes, replaced=self.replaced))
        return lives[key]

    def _live(self, sizes: Sizes) -> Liveness:
        order, graph = None, self.request.traced.graph
        if self.request.cluster.device.keeps is not None:
            order = moments(self._program(), sizes)
        kinds = self._kinds()
        in_place = {op.id for op in graph.ops if kinds[op.id] in FUSED or op.prim in IN_PLACE}
        return liveness(graph, self.storage, self._aliased, order, in_place, sizes.carried)

    def _program(self) -> Program:
        programs, starts = self.timed.programs, self.request.starts
        if starts not in programs:
            graph = self.request.traced.graph
            programs[starts] = Program.of(graph, self.storage, self._kinds(), starts)
        return programs[starts]

    def _kinds(self) -> list[str]:
        return [self.rules[c].kind for c in self.classes.op_class.tolist()]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a search under a limit (None: without one) ended with.

    Attributes:
      choices: the best that were found, with their objective; None for none.
      bound: no choices under this limit, or a smaller one, cost less.
      prices: of memory, by the names of rows.
      effort_s: the time limit of the search; 0 if it was for something else.
    """

    limit: int | None
    bound: int
    choices: tuple[int, ...] | None = None
    objective: int = 0
    prices: Mapping[str, float] = field(default_factory=dict[str, float])
    effort_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Modelled:
    """The problem of a prepared request.

    Attributes:
      timeline: in the order in which ops would run if all values were split alike.
      retime: the same in their order under some choices; None where that is always the same.
      crowded: moments that answers under a limit have exceeded; the next search begins with them.
      answers: what was found, or is known of a model that differs in pins alone.
    """

    prepared: Prepared
    draft: Draft
    timeline: Timeline
    retime: Callable[[Choices], Timeline] | None = None
    crowded: list[Row] = field(default_factory=list[Row])
    answers: list[Answer] = field(default_factory=list["Answer"])
    _retimed: dict[Choices, Timeline] = field(default_factory=dict[Choices, Timeline])

    def problem(self, limit: int | None, rows: tuple[Row, ...]) -> Problem:
        """The plain instance, with these rows of live memory."""
        limited = rows if limit is not None else ()
        return Problem(tuple(self.draft.nodes), tuple(self.draft.edges), limited, limit)

    def timeline_of(self, choices: Choices) -> Timeline:
        """What is live when under these choices."""
        if self.retime is None:
            return self.timeline
        if choices not in self._retimed:
            if len(self._retimed) >= _MOST_TIMELINES:
                self._retimed.clear()
            self._retimed[choices] = self.retime(choices)
        return self._retimed[choices]

    def with_times(self, change: Callable[[Timeline], Timeline]) -> Modelled:
        """The same with other intervals."""
        of = self.timeline_of
        changed = None if self.retime is None else lambda choices: change(of(choices))
        return replace(self, timeline=change(self.timeline), retime=changed, _retimed={})

    def peak_bytes(self, choices: Choices) -> int:
        """The predicted peak of a device."""
        return int(self.timeline_of(choices).curve(self.draft, choices).max(initial=0))

    def fits(self, choices: Choices, limit: int | None) -> bool:
        """Whether the predicted peak of a device is within a limit.

        The order under these choices is not looked at where any order would exceed it.
        """
        if limit is None:
            return True
        anyhow = self.timeline.curve(self.draft, choices).max(initial=0) / _SAVED_BY_ORDER
        return anyhow <= limit and self.peak_bytes(choices) <= limit


def prepare(request: Request) -> Prepared:
    """Classes, their rules, and where values are stored."""
    graph = request.traced.graph
    keys = {v: request.results.get(i) for i, v in enumerate(graph.outputs) if v is not None}
    classes = fold(graph, {**{v: pin for v, pin in keys.items() if pin}, **request.pins})
    rules = tuple(rule_of(graph, graph.ops[m[len(m) // 2]]) for m in classes.members)
    keeps = request.cluster.device.keeps
    stored = storage(graph, [rules[c] for c in classes.op_class.tolist()], keeps)
    prices = prices_of(graph, stored, request.cluster, request.mesh, request.measured)
    return Prepared(request, classes, rules, stored, prices)


def prepare_all(requests: Sequence[Request]) -> list[Prepared]:
    """Prepares requests for one function; those with equal pins share all but their prices."""
    found: list[Prepared] = []
    for request in requests:
        like = next((p for p in found if _pinned_alike(p.request, request)), None)
        if like is None:
            found.append(prepare(request))
            continue
        found.append(priced(replace(like, request=request)))
    return found


def _pinned_alike(a: Request, b: Request) -> bool:
    return (a.pins, a.results) == (b.pins, b.results)


def measured(tried: Sequence[Prepared], known: Measured | None) -> list[Prepared]:
    """The same with prices by what is known of the devices by measurement."""
    if not known:
        return list(tried)
    return [priced(replace(p, request=replace(p.request, measured=known))) for p in tried]


def priced(prepared: Prepared) -> Prepared:
    """The same with the prices of its request."""
    r = prepared.request
    prices = prices_of(r.traced.graph, prepared.storage, r.cluster, r.mesh, r.measured)
    return replace(prepared, prices=prices)


def model(prepared: Prepared) -> Modelled:
    """The problem: nodes, edges and what is live when."""
    r, graph = prepared.request, prepared.request.traced.graph
    d = draft(
        graph, prepared.classes, r.mesh, prepared.rules, prepared.storage, prepared.prices,
        r.pins, r.ties, r.results,
    )  # fmt: skip
    device = r.cluster.device
    timeline = add_memory(d, prepared.storage, prepared.live(), SMALLEST_COPY_BYTES, device)
    if device.keeps is None:
        return Modelled(prepared, d, timeline)

    def retime(choices: Choices) -> Timeline:
        live = prepared.live(sizes_of(d, timeline, choices, prepared.replaced))
        changed = add_memory(d, prepared.storage, live, SMALLEST_COPY_BYTES, device)
        return replace(changed, name=f"{zlib.crc32(np.array(choices).tobytes()):08x}@")

    return Modelled(prepared, d, timeline, retime)
