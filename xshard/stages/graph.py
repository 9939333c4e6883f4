"""What a stage runs in a step, as one graph: the programs of a stage, one behind the other.

It has each program once, for one microbatch; ops of those that run for each microbatch count as
often as there are microbatches. A total is an argument that a share is added to, as the runtime
keeps it. What another stage makes is an argument too, and what another reads is a result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax

from xshard._jax import JaxprEqn, Literal, Var, made_of, opened
from xshard.ir.graph import Graph
from xshard.ir.trace import Traced, build_graph
from xshard.stages.flat import struct
from xshard.stages.staged import PER_MICROBATCH, Staged, StageProgram, Total


@dataclass(frozen=True, slots=True)
class StageGraph:
    """The programs of one stage as a step of their own.

    Attributes:
      programs: their places among the staged programs, in order.
      starts: for each, the number of its first equation in the jaxpr.
      stops: for each, the number behind its last.
      ids: graph values by the staged step's values; of a total, the argument that it is.
      held: graph values that are kept for every microbatch in flight.
      crossing: graph values that go from one program to another, so that they are in memory.
      ties: result -> argument whose next value it is; total -> argument that it was.
      donated: arguments whose memory may be reused.
    """

    stage: int
    traced: Traced
    programs: tuple[int, ...]
    starts: tuple[int, ...]
    stops: tuple[int, ...]
    ids: Mapping[int, int]
    held: frozenset[int]
    crossing: frozenset[int]
    ties: Mapping[int, int]
    donated: frozenset[int]


def stage_graph(
    staged: Staged, stage: int, names: Mapping[int, str], ties: Mapping[int, int],
    donated: Iterable[int],
) -> StageGraph:  # fmt: skip
    """The graph of a stage.

    Args:
      names: of values that are arguments.
      ties: result value -> the argument value that it takes the place of.
      donated: argument values.
    """
    return _Writer(staged, stage).write(names, ties, frozenset(donated))


class _Writer:
    def __init__(self, staged: Staged, stage: int) -> None:
        self.staged, self.stage = staged, stage
        self.variables: dict[int, Var] = {}
        self.inputs: list[int] = []
        self.eqns: list[JaxprEqn] = []
        self.sums: dict[int, Var] = {}  # totals as they are before a share is added
        places = [i for i, p in enumerate(staged.programs) if p.stage == stage]
        self.places = places
        self.programs = [staged.programs[i] for i in places]
        self.makers = staged.makers

    def write(
        self, names: Mapping[int, str], ties: Mapping[int, int], donated: frozenset[int]
    ) -> StageGraph:
        """All programs; totals are added up behind the last that runs for each microbatch."""
        starts, stops = self._programs()
        outs = self._outs()
        ins = [*(self.variables[v] for v in self.inputs), *self.sums.values()]
        jaxpr = made_of(self.eqns, ins, [self.variables[v] for v in outs], self._like)
        labels = [names.get(v, self._label(v)) for v in self.inputs]
        labels += [f"the sum of {self.staged.avals[t].str_short()}" for t in self.sums]
        graph, consts = build_graph(jaxpr, labels)
        many = [(a, b) for p, a, b in zip(self.programs, starts, stops, strict=True)
                if p.part in PER_MICROBATCH]  # fmt: skip
        graph = _repeated(graph, many, self.staged.microbatches)
        ids = self._ids(graph, outs)
        tree = jax.tree.structure((*[0] * len(ins),))
        traced = Traced(
            jaxpr, graph, tree, jax.tree.structure([0] * len(outs)),
            tuple(v.aval for v in ins), tuple(self.staged.avals[v] for v in outs),
            tuple(labels), tuple(f"[{k}]" for k in range(len(outs))), consts,
        )  # fmt: skip
        kept = {ids[r]: ids[a] for r, a in ties.items() if r in outs and a in self.inputs}
        totals = dict(zip(self.sums, graph.inputs[len(self.inputs) :], strict=True))
        kept |= {ids[t]: a for t, a in totals.items() if t in ids}
        return StageGraph(
            self.stage, traced, tuple(self.places), tuple(starts), tuple(stops),
            {**ids, **totals}, self._held(ids), self._crossing(ids), kept,
            frozenset(ids[v] for v in donated if v in self.inputs) | frozenset(totals.values()),
        )  # fmt: skip

    @property
    def _like(self) -> Any:
        return self.programs[0].closed_jaxpr

    def _programs(self) -> tuple[list[int], list[int]]:
        starts: list[int] = []
        stops: list[int] = []
        for k, program in enumerate(self.programs):
            if program.part == "after" and (k == 0 or self.programs[k - 1].part != "after"):
                self._totals()
            starts.append(len(self.eqns))
            self._program(program)
            stops.append(len(self.eqns))
        if not any(p.part == "after" for p in self.programs):
            self._totals()
        return starts, stops

    def _variable(self, v: int) -> Var:
        """The variable of a value; one that nothing has made yet becomes an input."""
        if v not in self.variables:
            self.variables[v] = Var(self.staged.avals[v])
            self.inputs.append(v)
        return self.variables[v]

    def _program(self, program: StageProgram) -> None:
        inner = opened(program.closed_jaxpr)
        env: dict[Any, Var] = dict(
            zip(inner.invars, map(self._variable, program.reads), strict=True)
        )
        made = dict(zip(inner.outvars, program.makes, strict=True))
        for eqn in inner.eqns:
            ins = [v if isinstance(v, Literal) else env[v] for v in eqn.invars]
            for var in eqn.outvars:
                env[var] = Var(var.aval)
                if var in made:
                    self.variables[made[var]] = env[var]
            self.eqns.append(eqn.replace(invars=ins, outvars=[env[v] for v in eqn.outvars]))

    def _totals(self) -> None:
        """Adds each share that the stage makes to its total."""
        for total in self.staged.totals:
            if total.share in self.variables and total.share not in self.inputs:
                self._total(total)

    def _total(self, total: Total) -> None:
        """Two equations: the addition for each microbatch, and what is there in the end."""
        aval = self.staged.avals[total.total]
        share = self.variables[total.share]
        jaxpr = _addition(struct(aval), struct(share.aval))
        self.sums[total.total] = Var(aval)
        env: dict[Any, Var] = dict(zip(jaxpr.invars, (self.sums[total.total], share), strict=True))
        for eqn in jaxpr.eqns:
            env.update((v, Var(v.aval)) for v in eqn.outvars)
            ins = [v if isinstance(v, Literal) else env[v] for v in eqn.invars]
            self.eqns.append(eqn.replace(invars=ins, outvars=[env[v] for v in eqn.outvars]))
        self.variables[total.total] = env[jaxpr.outvars[0]]

    def _outs(self) -> list[int]:
        """Results of the step, and what other stages read."""
        wanted = {p.value for pieces in self.staged.results for p in pieces}
        wanted |= {v for p in self.staged.programs if p.stage != self.stage for v in p.reads}
        wanted |= {s.row for s in self.staged.stacks}
        made = [v for p in self.programs for v in p.makes]
        return [v for v in (*made, *self.sums) if v in wanted]

    def _ids(self, graph: Graph, outs: list[int]) -> dict[int, int]:
        """Graph values of inputs, results, and all that the programs make."""
        ids = dict(zip(self.inputs, graph.inputs, strict=False))
        ids |= {v: g for v, g in zip(outs, graph.outputs, strict=True) if g is not None}
        at = {op.address: op.outputs for op in graph.ops}
        places = {
            var: (i, k) for i, eqn in enumerate(self.eqns) for k, var in enumerate(eqn.outvars)
        }
        for v, var in self.variables.items():
            if v not in ids and var in places:
                i, k = places[var]
                found = at.get((i, ~k)) or at.get((i,), ())[k : k + 1]
                ids.update((v, g) for g in found[:1])
        return ids

    def _held(self, ids: Mapping[int, int]) -> frozenset[int]:
        """What the backward pass reads that the forward pass has read or made."""
        late = {v for p in self.programs if p.part.startswith("bwd") for v in p.reads}
        early = {v for p in self.programs if p.part == "fwd" for v in (*p.reads, *p.makes)}
        many = {v for p in self.staged.programs if p.part in PER_MICROBATCH for v in p.makes}
        return frozenset(ids[v] for v in late & early & many if v in ids)

    def _crossing(self, ids: Mapping[int, int]) -> frozenset[int]:
        return frozenset(ids[v] for p in self.programs for v in p.makes if v in ids)

    def _label(self, v: int) -> str:
        maker = self.makers.get(v)
        return "a constant" if maker is None else f"from {maker.name}"


@lru_cache(maxsize=256)
def _addition(total: jax.ShapeDtypeStruct, share: jax.ShapeDtypeStruct) -> Any:
    """The jaxpr that adds a share to its total."""

    def add(so_far: Any, share: Any) -> Any:
        wide = jax.lax.convert_element_type(share, total.dtype)
        return jax.lax.optimization_barrier(jax.lax.add(so_far, wide))

    return opened(jax.make_jaxpr(add)(total, share))


def _repeated(graph: Graph, spans: list[tuple[int, int]], times: int) -> Graph:
    """The graph with the ops of these equations running so often."""
    return replace(graph, ops=tuple(
        replace(op, repeat=op.repeat * times)
        if any(a <= op.address[0] < b for a, b in spans) else op
        for op in graph.ops
    ))  # fmt: skip
