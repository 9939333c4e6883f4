"""Specs for the programs of a staged step, each planned by the solver after those that it reads of.

A value has one spec on a group of devices: that of the first program there that reads or makes it.
What comes from another group comes as it lies there. The parameters' specs are thus what is best
for the forward passes; the others take them as pinned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from xshard._jax import auto_mesh, opened
from xshard.cost.cluster import Cluster
from xshard.cost.measured import Measured
from xshard.ir.trace import Traced, build_graph
from xshard.plan.plan import Plan
from xshard.planning import Prepared, Request, make_plan, prepare
from xshard.run.annotate import annotate
from xshard.run.constraints import constraints_of, partition_spec
from xshard.spec import MeshShape, Spec
from xshard.stages.staged import Staged, StageProgram


@dataclass(slots=True)
class StagePlans:
    """Plans of all programs, by their places.

    Attributes:
      placement: by stage, its group.
      mesh: of each group.
      ties: result value -> the argument value whose next value it is.
      specs: (value, group) -> spec.
    """

    staged: Staged
    placement: Sequence[int]
    mesh: MeshShape
    cluster: Cluster
    ties: Mapping[int, int]
    time_limit_s: float
    measured: Measured | None = None
    specs: dict[tuple[int, int], Spec] = field(default_factory=dict)
    plans: dict[int, Plan] = field(default_factory=dict)
    prepared: dict[int, Prepared] = field(default_factory=dict)

    def make(self) -> StagePlans:
        """Plans everything."""
        for at, program in enumerate(self.staged.programs):
            self._plan(at, program, self.placement[program.stage])
        return self

    def layout(
        self, meshes: Sequence[Mesh]
    ) -> tuple[Mapping[Any, PartitionSpec], Mapping[int, Any]]:
        """(specs, bodies) as of `Layout`."""
        specs = {(v, g): partition_spec(s, meshes[g]) for (v, g), s in self.specs.items()}
        return specs, {at: self._body(at, meshes) for at in self.plans}

    def task_ns(self) -> dict[tuple[int, str], int]:
        """By stage and part, what all its programs take for one microbatch."""
        found: dict[tuple[int, str], int] = {}
        for at, plan in self.plans.items():
            program = self.staged.programs[at]
            key = program.stage, program.part
            found[key] = found.get(key, 0) + plan.objective_ns
        return found

    def _plan(self, at: int, program: StageProgram, group: int) -> None:
        traced = _traced(program)
        inputs, outputs = traced.graph.inputs, traced.graph.outputs
        where = self.staged.stage_of
        pins = dict[int, Any]()
        for v, value in zip(program.reads, inputs, strict=True):
            home = self.placement[where[v]] if v in where else group
            known = self.specs.get((v, group), self.specs.get((v, home)))
            if known is not None:
                pins[value] = known
        place = dict(zip(program.reads, inputs, strict=True))
        results, ties = dict[int, Any](), dict[int, int]()
        for i, v in enumerate(program.makes):
            old, made = self.ties.get(v, -1), outputs[i]
            if (old, group) in self.specs:
                results[i] = self.specs[old, group]
            elif old in place and made is not None:
                ties[made] = place[old]
        request = Request(
            traced, self.mesh, self.cluster, pins=pins, results=results, ties=ties,
            time_limit_s=self.time_limit_s, measured=self.measured,
        )  # fmt: skip
        self.prepared[at] = prepare(request)
        plan = self.plans[at] = make_plan([self.prepared[at]])
        self._learn(program, group, plan)

    def _learn(self, program: StageProgram, group: int, plan: Plan) -> None:
        for v, array in zip(program.reads, plan.arguments, strict=True):
            self.specs.setdefault((v, group), array.spec)
        for v, array in zip(program.makes, plan.results, strict=True):
            self.specs.setdefault((v, group), array.spec)
        for t in self.staged.totals:
            if t.share in program.makes:
                self.specs[t.total, group] = self.specs[t.share, group]
        for s in self.staged.stacks:
            if s.row in program.makes:
                self.specs[s.stacked, group] = ((), *self.specs[s.row, group])

    def _body(self, at: int, meshes: Sequence[Mesh]) -> Callable[..., list[Any]]:
        made, plan = self.prepared[at], self.plans[at]
        mesh = auto_mesh(meshes[self.placement[self.staged.programs[at].stage]])
        traced = made.request.traced
        told = constraints_of(plan, traced.graph, made.classes, made.rules, mesh, made.prices.path)
        return annotate(traced, told)


def _traced(program: StageProgram) -> Traced:
    """A program as a traced function of what it reads."""
    jaxpr = program.closed_jaxpr
    ins = tuple(f"value {v}" for v in program.reads)
    outs = tuple(f"value {v}" for v in program.makes)
    graph, consts = build_graph(jaxpr, ins)
    in_avals = tuple(v.aval for v in opened(jaxpr).invars)
    return Traced(
        jaxpr, graph, jax.tree.structure(ins), jax.tree.structure(list(outs)), in_avals,
        tuple(jaxpr.out_avals), ins, outs, consts,
    )  # fmt: skip
