"""Specs for a stage of a pipeline: one problem for all that the stage runs in a step.

The forward and backward programs of one microbatch, the sums over the microbatches and the update
are one graph (`xshard.stages.graph`), so that a weight has one spec in all of them. Memory counts
the residuals of every microbatch that the schedule has in flight on the stage. Stages with equal
graphs are solved once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jax.sharding import Mesh, PartitionSpec

from xshard._jax import auto_mesh
from xshard.cost.cluster import Cluster
from xshard.cost.measured import Measured
from xshard.describe import op_times_ns
from xshard.errors import InfeasibleError, PlanError
from xshard.ir.graph import Address
from xshard.one_model import Hints
from xshard.pipeline.cuts import CutStep
from xshard.pipeline.pinned import Pinned
from xshard.plan.plan import Plan
from xshard.planning import Relaxed, Unfit, described, fastest, fitting, relaxed
from xshard.prepare import Modelled, Prepared, Request, model
from xshard.recall import forced
from xshard.run.annotate import Constraints, annotate
from xshard.run.constraints import constraints_of, partition_spec
from xshard.solve.memory import Timeline
from xshard.solve.problem import Solution
from xshard.spec import MeshShape, Spec, evened
from xshard.stages.graph import StageGraph
from xshard.stages.staged import PER_MICROBATCH, Staged


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A stage with its plan, whose arrays and ops are those of the stage's graph.

    Attributes:
      part_ns: by part ("fwd", "bwd", ...), the time of one microbatch, or of the step.
    """

    graph: StageGraph
    prepared: Prepared
    plan: Plan
    part_ns: Mapping[str, int]

    def spec(self, value: int) -> Spec | None:
        """How a value of the staged step lies on the stage, between programs: evenly."""
        if value not in self.graph.ids:
            return None
        v, request = self.graph.ids[value], self.prepared.request
        kept = self.plan.values[int(self.prepared.classes.value_class[v])]
        return evened(kept, request.traced.graph.values[v].shape, request.mesh)


@dataclass(frozen=True, slots=True)
class Loose:
    """A stage whose specs are chosen without a memory limit: no plan of it is faster.

    Attributes:
      relaxed: with the memory of its microbatches in flight.
    """

    graph: StageGraph
    in_flight: int
    prepared: Prepared
    fingerprint: str
    relaxed: Relaxed

    @property
    def key(self) -> tuple[str, int]:
        """Equal for stages that have equal plans."""
        return self.fingerprint, self.in_flight


class TooLargeError(InfeasibleError):
    """A stage has no plan within the memory limit.

    Attributes:
      modelled: of the stage, if that is known of the model and not only of a faster plan.
    """

    def __init__(self, modelled: Modelled | None) -> None:
        super().__init__("a stage does not fit the memory limit")
        self.modelled = modelled


@dataclass(slots=True)
class StageSolver:
    """Plans stages; those that were planned before, with as many microbatches in flight, are kept.

    Attributes:
      mesh, cluster: of one stage's devices.
      memory_limit: bytes of a device.
      pinned: what the user fixed.
      free: fingerprint -> a stage's problem and its best choices without a limit.
      hints: choices for stages that are like others but for their numbers of layers.
      known: (fingerprint, in flight) -> the plan; None: there is none.
    """

    mesh: MeshShape
    cluster: Cluster
    memory_limit: int | None = None
    time_limit_s: float = 60.0
    measured: Measured | None = None
    pinned: Pinned = field(default_factory=Pinned)
    free: dict[str, tuple[Modelled, Solution]] = field(default_factory=dict)
    hints: Hints = field(default_factory=dict)
    known: dict[tuple[str, int], Plan | TooLargeError] = field(default_factory=dict)

    def prepared(self, cut: CutStep, stage: int, pins: Mapping[int, Spec]) -> Prepared:
        """A stage, prepared; `pins`: specs of the staged step's values that are decided."""
        graph = cut.graph(stage)
        ids = graph.ids
        fixed = {**pins, **self.pinned.values(cut.staged)}
        here = {ids[v]: pin for v, pin in fixed.items() if v in ids}
        request = Request(
            graph.traced, self.mesh, self.cluster,
            pins=here, ties=self.pinned.kept_ties(graph.ties, here), donated=graph.donated,
            memory_limit=self.memory_limit, time_limit_s=self.time_limit_s, measured=self.measured,
            starts=tuple(graph.starts),
        )  # fmt: skip
        return cut.prepared(stage, request)

    def loose(self, cut: CutStep, stage: int, in_flight: int, pins: Mapping[int, Spec]) -> Loose:
        """A stage without a memory limit.

        Args:
          pins: specs of the staged step's values that are decided.

        Raises:
          InfeasibleError: the pins contradict each other.
        """
        prepared, graph = self.prepared(cut, stage, pins), cut.graph(stage)
        name = prepared.fingerprint
        if name not in self.free:
            modelled = model(prepared)
            found = relaxed([modelled], hints=self.hints)
            if not found:
                fastest([modelled])  # raises, with the pins at fault
            self.free[name] = modelled, found[0].free
        modelled, free = self.free[name]
        held = with_in_flight(replace(modelled, prepared=prepared), graph.held, in_flight)
        return Loose(graph, in_flight, prepared, name, Relaxed(held, free))

    def peak_bytes(self, loose: Loose, in_flight: int) -> int:
        """The peak of a stage's best choices without a limit, with so many microbatches."""
        held = self.holding(loose, in_flight).relaxed
        return held.modelled.peak_bytes(held.free.choices)

    def holding(self, loose: Loose, in_flight: int) -> Loose:
        """The same stage with so many microbatches."""
        if in_flight == loose.in_flight:
            return loose
        modelled, free = self.free[loose.fingerprint]
        prepared, graph = loose.prepared, loose.graph
        held = with_in_flight(replace(modelled, prepared=prepared), graph.held, in_flight)
        return replace(loose, in_flight=in_flight, relaxed=Relaxed(held, free))

    def plan(self, staged: Staged, loose: Loose, below: int | None = None) -> StagePlan:
        """The best plan of a stage within the limit.

        Args:
          below: plans that take so many ns or more are not wanted.

        Raises:
          TooLargeError: there is none.
        """
        plan = self.known.get(loose.key)
        if plan is None:
            plan = self._solved(loose, below)
            if isinstance(plan, Plan) or plan.modelled is not None:
                self.known[loose.key] = plan
        if isinstance(plan, TooLargeError):
            raise plan
        part_ns = _part_ns_of_plan(staged, loose.graph, loose.prepared, plan)
        return StagePlan(loose.graph, loose.prepared, plan, part_ns)

    def _solved(self, loose: Loose, below: int | None) -> Plan | TooLargeError:
        answer = fitting([loose.relaxed], below)
        return TooLargeError(answer.nearest) if isinstance(answer, Unfit) else described(*answer)


def with_in_flight(modelled: Modelled, held: frozenset[int], in_flight: int) -> Modelled:
    """The problem with the residuals of all microbatches in flight but the one that is computed."""
    buffer = modelled.prepared.storage.buffer
    buffers = np.array(sorted({buffer[v] for v in held}), dtype=np.int64)

    def longer(line: Timeline) -> Timeline:
        more = np.flatnonzero((line.owner >= 0) & np.isin(line.value, buffers) & (in_flight > 1))
        start = np.zeros(len(more), dtype=np.int64)
        return replace(
            line,
            owner=np.concatenate([line.owner, line.owner[more]]),
            first=np.concatenate([line.first, start]),
            last=np.concatenate([line.last, start + line.num_times - 1]),
            weight=np.concatenate([line.weight, line.weight[more] * (in_flight - 1)]),
            value=np.concatenate([line.value, line.value[more]]),
        )

    return forced(modelled.with_times(longer), modelled)


def part_ns_of(staged: Staged, loose: Loose) -> dict[str, int]:
    """The time of each part without a memory limit."""
    free, d = loose.relaxed.free, loose.relaxed.modelled.draft
    ops_ns = op_times_ns(d, free.choices, loose.prepared.prices)
    return _part_ns(staged, loose.graph, loose.prepared, ops_ns, free.objective)


def _part_ns_of_plan(
    staged: Staged, graph: StageGraph, prepared: Prepared, plan: Plan
) -> dict[str, int]:
    ops_ns = [op.time_ns for op in plan.ops]
    return _part_ns(staged, graph, prepared, ops_ns, plan.objective_ns)


def _part_ns(
    staged: Staged, graph: StageGraph, prepared: Prepared, ops_ns: Sequence[int], objective: int
) -> dict[str, int]:
    """The time by part; communication goes with the parts as their computation does.

    Args:
      ops_ns: the time of each class of ops.
      objective: of all, communication counted in.
    """
    ops = prepared.request.traced.graph.ops
    part_of = [""] * (max(graph.stops, default=0) + 1)
    for place, start, stop in zip(graph.programs, graph.starts, graph.stops, strict=True):
        part_of[start:stop] = [staged.programs[place].part] * (stop - start)
    found: dict[str, int] = {}
    for c, ns in enumerate(ops_ns):
        at = ops[prepared.classes.members[c][0]].address[0]
        part = part_of[at] if at < len(part_of) else ""
        found[part or "after"] = found.get(part or "after", 0) + ns
    compute = max(sum(found.values()), 1)
    scale = objective / compute
    return {
        part: round(ns * scale / (staged.microbatches if part in PER_MICROBATCH else 1))
        for part, ns in found.items()
    }


@dataclass(slots=True)
class StagePlans:
    """Plans of all stages of a staged step.

    Attributes:
      placement: by stage, its group of devices.
      in_flight: by stage, the microbatches whose residuals it holds at most.
      specs: (value, group) -> spec.
      made: by stage, those that are planned.
    """

    cut: CutStep
    placement: Sequence[int]
    in_flight: Sequence[int]
    solver: StageSolver
    specs: dict[tuple[int, int], Spec] = field(default_factory=dict)
    made: dict[int, StagePlan] = field(default_factory=dict)
    _loose: dict[int, tuple[dict[int, Spec], Loose]] = field(default_factory=dict)

    @property
    def staged(self) -> Staged:
        """The step."""
        return self.cut.staged

    @property
    def stages(self) -> list[StagePlan]:
        """All stages' plans, in order."""
        return [self.made[s] for s in range(self.staged.num_stages)]

    @property
    def groups(self) -> set[int]:
        """Groups of devices with stages on them."""
        return set(self.placement)

    def make(self) -> StagePlans:
        """Plans everything; a value that two stages of a group read has one spec there.

        Raises:
          TooLargeError: a stage does not fit the memory limit.
        """
        for stage in range(self.staged.num_stages):
            self.add(stage)
        return self

    def add(self, stage: int) -> StagePlan:
        """Plans a stage; one that is planned stays as it is.

        Raises:
          TooLargeError: it does not fit the memory limit.
        """
        if stage not in self.made:
            self._add(stage, self.solver.plan(self.staged, self.loose(stage)))
        return self.made[stage]

    def take(self, stage: int, plan: Plan) -> None:
        """Takes a plan that was made before.

        Raises:
          PlanError: it is for something else.
        """
        prepared = self.solver.prepared(self.cut, stage, self._pins(stage))
        if prepared.fingerprint != plan.fingerprint:
            raise PlanError(
                f"the pipeline's plan is for another step, or other shapes or devices: stage "
                f"{stage} is not what was planned; plan again, or call the step of the plan"
            )
        graph = self.cut.graph(stage)
        part_ns = _part_ns_of_plan(self.staged, graph, prepared, plan)
        self._add(stage, StagePlan(graph, prepared, plan, part_ns))

    def _pins(self, stage: int) -> dict[int, Spec]:
        """What stages of the same group have decided."""
        group, ids = self.placement[stage], self.cut.graph(stage).ids
        return {v: s for (v, g), s in self.specs.items() if g == group and v in ids}

    def loose(self, stage: int) -> Loose:
        """A stage without a memory limit, and with the specs of those that are planned."""
        pins = self._pins(stage)
        known = self._loose.get(stage)
        if known is None or known[0] != pins:
            known = pins, self.solver.loose(self.cut, stage, self.in_flight[stage], pins)
            self._loose[stage] = known
        return known[1]

    def _add(self, stage: int, made: StagePlan) -> None:
        group = self.placement[stage]
        self.made[stage] = made
        for v in made.graph.ids:
            spec = made.spec(v)
            if spec is not None:
                self.specs.setdefault((v, group), spec)
        for s in self.staged.stacks:
            if (s.row, group) in self.specs:
                self.specs[s.stacked, group] = ((), *self.specs[s.row, group])

    def layout(
        self, meshes: Sequence[Mesh]
    ) -> tuple[dict[tuple[int, int], PartitionSpec], dict[int, Callable[..., Any]]]:
        """(specs by value and group, annotated programs by their places)."""
        ends = self.specs | self._next_specs()
        specs = {(v, g): partition_spec(s, meshes[g]) for (v, g), s in ends.items()}
        bodies = {
            place: body
            for stage, made in enumerate(self.stages)
            for place, body in self._bodies(made, meshes[self.placement[stage]])
        }
        return specs, bodies

    def _next_specs(self) -> dict[tuple[int, int], Spec]:
        """Results that are arguments of the next step lie as these do, if not pinned otherwise."""
        pinned, arguments = self.solver.pinned, defaultdict[int, dict[int, Spec]](dict)
        for (v, g), spec in self.specs.items():
            arguments[v][g] = spec
        ties = pinned.kept_ties(self.cut.ties, pinned.values(self.staged))
        return {(r, g): s for r, a in ties.items() for g, s in arguments[a].items()}

    def task_ns(self) -> dict[tuple[int, str], int]:
        """By stage and part, the time of one microbatch, or of the step."""
        return {(s, part): ns for s, made in enumerate(self.stages)
                for part, ns in made.part_ns.items()}  # fmt: skip

    def _bodies(self, made: StagePlan, mesh: Mesh) -> Iterator[tuple[int, Callable[..., Any]]]:
        prepared = made.prepared
        traced = prepared.request.traced
        told = constraints_of(
            made.plan, traced.graph, prepared.classes, prepared.rules, auto_mesh(mesh),
            prepared.prices.path,
        )  # fmt: skip
        for place, start, stop in zip(
            made.graph.programs, made.graph.starts, made.graph.stops, strict=True
        ):
            jaxpr = self.staged.programs[place].closed_jaxpr
            part = replace(traced, closed_jaxpr=jaxpr, consts=())
            yield place, annotate(part, within(told, start, stop))


def within(told: Constraints, start: int, stop: int) -> Constraints:
    """The constraints of equations start:stop, as those of a program that begins with them."""

    def moved(key: tuple[Address, int]) -> tuple[Address, int] | None:
        (first, *rest), k = key
        return ((first - start, *rest), k) if start <= first < stop else None

    def kept(table: Mapping[Any, Any]) -> dict[Any, Any]:
        return {new: x for key, x in table.items() if (new := moved(key)) is not None}

    shared = {
        key: first for key, old in kept(told.shared).items() if (first := moved(old)) is not None
    }
    return Constraints(
        told.mesh, kept(told.results), kept(told.operands), shared,
        frozenset(k for key in told.barriers if (k := moved(key)) is not None),
    )  # fmt: skip
