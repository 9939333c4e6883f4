"""Plans of pipelines, chosen among numbers of stages and microbatches, meshes and schedules."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from math import inf
from typing import Any

from xshard.cost.cluster import Cluster
from xshard.errors import InfeasibleError, PlanError
from xshard.ir.trace import Traced
from xshard.microbatch.split import Divided, divided, found_axes, stated_axes
from xshard.microbatching import numbers
from xshard.mpmd.plan import PipelinePlan, PipelineTrial
from xshard.pipeline.assemble import pipeline_plan
from xshard.pipeline.boundaries import BoundarySearch
from xshard.pipeline.cuts import Cuts
from xshard.pipeline.pinned import Pinned
from xshard.pipeline.solver import StagePlans, StageSolver, TooLargeError
from xshard.prepare import Modelled
from xshard.refusal import limited
from xshard.run.call import Call
from xshard.run.fit import patience_s
from xshard.schedules import build
from xshard.spec import MeshShape
from xshard.stages.cut import Cuttable, cuttable
from xshard.ties import ties_of

AUTO = ("1f1b", "interleaved", "zero_bubble")
"""The schedules that "auto" looks at; GPipe takes as long as 1F1B, and holds more."""
CHUNKS = 2
"""Stages on each group under "interleaved"."""
PER_STAGE = 4
"""Microbatches for each stage with which the walk over their numbers begins."""
MOST_SEARCHED = 6
"""Numbers of groups, meshes and schedules for which plans are made; of others a bound is known. In
the order of what they take at least, the best was the first or second for GPT-3 of 2.6B to 39B."""
CLOSE = 0.07
"""Boundaries are searched to the end where the first ones are so little slower than the best: as
much as a search to the end has gained (2% to 7% for GPT-3 of 2.6B, 6.7B and 15B)."""

Pins = Callable[[MeshShape], Pinned]
"""What the user fixed, on the mesh of a group."""
Devices = Callable[[int], Sequence[tuple[MeshShape, Cluster]]]
"""For a number of groups of devices, the meshes of one group that are looked at."""


@dataclass(frozen=True, slots=True)
class Best:
    """A pipeline: its plan, and the plans of its stages with what they are plans of."""

    plan: PipelinePlan
    stages: StagePlans


@dataclass(slots=True)
class PipelineSearch:
    """The search over numbers of groups, microbatches, shapes of meshes, and schedules.

    Attributes:
      donated: positions of the flat arguments that may be reused.
      devices: what groups of devices there are.
      microbatches: a number, or "auto": divisors of the batch, from some for each stage on, up and
        down as long as that is faster.
      schedule: a name, or "auto".
      remat: "none", "all" or "auto".
      below: plans that take so many ns or more are not wanted.
      pins: what the user fixed.
      trials: what was looked at.
      _shared: the least ratio of planned stages to their units' sums: what units share counts for
        each of them there.
    """

    traced: Traced
    donated: frozenset[int]
    devices: Devices
    microbatches: int | str
    schedule: str = "1f1b"
    batch_axes: Any = None
    memory_limit: int | None = None
    time_limit_s: float = 60.0
    remat: str = "none"
    below: float = inf
    pins: Pins = field(default=lambda _: Pinned())
    trials: list[PipelineTrial] = field(default_factory=list)
    found: Best | None = None
    bound_ns: float = inf
    too_large: list[TooLargeError] = field(default_factory=list)
    _shared: float = 1.0
    _began_s: float | None = None
    _divided: Divided | None = None
    _cuts: dict[int, Cuts] = field(default_factory=dict)
    _solvers: dict[tuple[MeshShape, Cluster, int | None], StageSolver] = field(default_factory=dict)

    def best(self, groups: Sequence[int]) -> Best:
        """The fastest plan over one of these numbers of groups of devices.

        Raises:
          InfeasibleError: none fits the memory limit.
          PipelineError: the step has not so many layers.
        """
        self.look(groups)
        if self.found is None:
            raise self.refusal()
        return Best(self.plan(), self.found.stages)

    def plan(self) -> PipelinePlan:
        """The best plan, with what else was tried."""
        assert self.found is not None
        plan = self.found.plan
        bound = round(min(plan.objective_ns, self.bound_ns))
        return replace(plan, trials=tuple(self.trials), bound_ns=bound)

    def under(self, limit: int) -> PipelineSearch:
        """A search for the same step within another limit, which has not looked at anything."""
        return replace(self, memory_limit=limit, trials=[], found=None, bound_ns=inf, too_large=[])

    def look(self, groups: Sequence[int]) -> None:
        """Looks at these numbers of groups."""
        many = len(groups) > 1
        if self.microbatches == "auto":
            for number in groups:
                self._walk(number, many)
        else:
            m = int(self.microbatches)
            self._try([n for n in groups if not self._skips(n, m, many)], m)

    def _walk(self, number: int, among_others: bool) -> None:
        open_ = numbers(self._step().batch)
        start = next((i for i, m in enumerate(open_) if m >= PER_STAGE * number), len(open_) - 1)
        if self._skips(number, open_[start], among_others):
            return
        least = self._try([number], open_[start])
        for step in (1, -1):
            i, best = start + step, least
            while 0 <= i < len(open_) and (ns := self._try([number], open_[i])) < best:
                i, best = i + step, ns

    def _skips(self, number: int, microbatches: int, among_others: bool) -> bool:
        """Whether there are too few layers for so many groups, which matters to no other number."""
        return among_others and number > len(self._cut(microbatches, number).cut.units)

    def _cut(self, microbatches: int, least: int) -> Cuts:
        found = self._cuts.get(microbatches)
        if found is None or len(found.cut.units) < least:
            found = cuts_of(self.traced, self._step(), microbatches, least, self.donated)
            self._cuts[microbatches] = found
        return found

    def _step(self) -> Divided:
        if self._divided is None:
            self._divided = divided_step(self.traced, self.batch_axes)
        return self._divided

    def _try(self, groups: Sequence[int], microbatches: int) -> float:
        """The best time over one of so many groups, infinite if it is no better than before.

        The way that promises most is looked at further: at its units, then at the boundaries that
        look best. Those that come close to the best of them are searched to the end.
        """
        end, looked = self._end_s(), list[BoundarySearch]()
        searches = [s for n in groups for s in self._searches(n, microbatches)]
        waiting = [(0.0, i, s) for i, s in enumerate(searches)]
        while waiting:
            promise, i, search = heappop(waiting)
            best = min((s.best_ns for s in looked), default=inf)
            fits = sum(s.best_ns < inf for s in looked)
            late = fits >= MOST_SEARCHED or (fits > 0 and time.monotonic() > end)
            if late or promise >= min(best, self._below):
                self._note(search, "not planned")
            elif search.is_open:
                search.go_on()
                heappush(waiting, (search.promise_ns, i, search))
            else:
                search.look(min(best * (1 + CLOSE), self._below), 1)
                looked.append(search)
                self._shared = min(self._shared, *search.table.ratios, 1.0)
        looked.sort(key=lambda s: s.best_ns)
        best = looked[0].best_ns if looked else inf
        return min((self._finished(s, best) for s in looked), default=inf)

    def _end_s(self) -> float:
        if self._began_s is None:
            self._began_s = time.monotonic()
        return self._began_s + patience_s(self.time_limit_s)

    @property
    def _below(self) -> float:
        return self.below if self.found is None else self.found.plan.objective_ns

    def _searches(self, groups: int, microbatches: int) -> Iterator[BoundarySearch]:
        cuts = self._cut(microbatches, groups)
        for name, chunks in self._schedules(cuts.cut, groups):
            schedule = build(name, groups, microbatches, chunks)
            limit = self.memory_limit and self.memory_limit // chunks
            for shape, cluster in self.devices(groups):
                solver = self._solver(shape, cluster, limit)
                yield BoundarySearch(cuts, schedule, solver, self.remat)

    def _schedules(self, cut: Cuttable, groups: int) -> list[tuple[str, int]]:
        """(name, stages on each group) of what is looked at."""
        if self.schedule != "auto":
            return [(self.schedule, CHUNKS if self.schedule == "interleaved" else 1)]
        if groups == 1:
            return [("1f1b", 1)]
        fits = len(cut.units) >= CHUNKS * groups
        return [(name, CHUNKS if name == "interleaved" else 1)
                for name in AUTO if fits or name != "interleaved"]  # fmt: skip

    def _finished(self, search: BoundarySearch, best: float) -> float:
        """Searches the boundaries to the end if that may give the best plan; its time, or inf."""
        below = self._below
        if search.best_ns == inf:
            self.too_large += search.too_large[:1]
            self._note(search, "does not fit" if search.too_large else "at least")
            return inf
        if search.best_ns > min(best * (1 + CLOSE), below):
            self._note(search, "planned", search.best_ns)
            return inf
        search.look(below)
        found = search.found()
        plan = pipeline_plan(found.plans, search.schedule, found.counts, found.recomputed)
        self._note(search, "planned", plan.objective_ns)
        if plan.objective_ns >= below:
            return inf
        self.found = Best(plan, found.plans)
        return plan.objective_ns

    def _solver(self, shape: MeshShape, cluster: Cluster, limit: int | None) -> StageSolver:
        key = shape, cluster, limit
        if key not in self._solvers:
            alike = (s for k, s in self._solvers.items() if k[:2] == key[:2])
            free = next((s.free for s in alike), {})  # of whatever limit
            self._solvers[key] = StageSolver(
                shape, cluster, limit, self.time_limit_s, pinned=self.pins(shape), free=free
            )
        return self._solvers[key]

    def _note(self, search: BoundarySearch, outcome: str, ns: float | None = None) -> None:
        """Enters what came of it; without a time, what it takes at least."""
        s, fits = search.schedule, outcome != "does not fit"
        bound = search.bound_ns * (1.0 if search.looks else self._shared)
        shown = round(bound if ns is None else ns) if fits else None
        self.trials.append(
            PipelineTrial(s.name, s.num_stages, s.microbatches, search.solver.mesh, outcome, shown)
        )
        if fits:
            self.bound_ns = min(self.bound_ns, bound)

    def refusal(self) -> InfeasibleError:
        """Why nothing fits, by the stage that comes nearest."""
        models = [e.modelled for e in self.too_large if e.modelled is not None]
        if not models:
            return InfeasibleError("no stages fit the memory limit")
        try:
            limited(min(models, key=_known_peak_bytes), len(models))
        except InfeasibleError as error:
            return InfeasibleError(f"a stage of a pipeline: {error}", error.smallest_limit_bytes)
        return InfeasibleError(
            "no stages that fit the memory limit were found in time; a larger time_limit may help"
        )


def _known_peak_bytes(modelled: Modelled) -> float:
    """The least that known choices hold, of whatever limit."""
    known = [a.choices for a in modelled.answers if a.choices is not None]
    return min(map(modelled.peak_bytes, known), default=inf)


def cuts_of(
    traced: Traced, step: Divided, microbatches: int, least: int, donated: frozenset[int]
) -> Cuts:
    """The step in so many microbatches, to be cut; into so many units at least, if that can be."""
    cut = cuttable(step.looped(microbatches).closed_jaxpr, microbatches, least)
    return Cuts(cut, tied_places(traced), donated, traced.in_paths)


def planned_before(plan: PipelinePlan, cuts: Cuts, cluster: Cluster, pinned: Pinned) -> StagePlans:
    """The stages of a plan that was made before.

    Raises:
      PlanError: they are for something else.
    """
    if sum(plan.layers) != len(cuts.cut.units):
        raise PlanError(
            f"the pipeline's plan is for a step of {sum(plan.layers)} layers, and this one has "
            f"{len(cuts.cut.units)}; plan again"
        )
    cut = cuts.into(plan.layers, plan.recomputed, split_backward=plan.schedule.split_backward)
    solver = StageSolver(plan.mesh, cluster, pinned=pinned)
    placement = plan.schedule.placement
    stages = StagePlans(cut, placement, [1] * len(placement), solver)
    for s, stage in enumerate(plan.programs.values()):
        stages.take(s, stage)
    return stages


def divided_step(traced: Traced, batch_axes: Any) -> Divided:
    """The step that can be cut into microbatches.

    Raises:
      MicrobatchError: it cannot.
    """
    if batch_axes is not None:
        axes = stated_axes(traced, batch_axes)
    else:
        state = set(ties_of(traced).values())
        held = (i for i, v in enumerate(traced.graph.inputs) if v in state)
        axes = found_axes(traced, frozenset(held))
    return divided(traced, axes)


def tied_places(traced: Traced) -> dict[int, int]:
    """Result -> the argument whose next value it is, by position."""
    ties, place = ties_of(traced), {v: i for i, v in enumerate(traced.graph.inputs)}
    return {i: place[ties[v]] for i, v in enumerate(traced.graph.outputs) if v in ties}


def donated_places(traced: Traced, call: Call) -> frozenset[int]:
    """Positions of the flat arguments that may be reused."""
    dynamic = [i for i in range(len(call.row)) if i not in call.static]
    flags = [
        i in call.donated
        for i, tree in zip(dynamic, traced.in_tree.children(), strict=True)
        for _ in range(tree.num_leaves)
    ]
    return frozenset(k for k, flag in enumerate(flags) if flag)
