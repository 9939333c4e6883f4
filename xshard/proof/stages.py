"""A pipeline's plan, compiled: every program of every stage, equal ones once."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from xshard.mpmd.held import Peak, peaks
from xshard.mpmd.plan import PipelinePlan
from xshard.mpmd.step import Pipeline
from xshard.pipeline.planned import PlannedPipeline
from xshard.plan.units import mesh_text
from xshard.proof.target import Target
from xshard.stages.staged import PER_MICROBATCH
from xshard.verify.audit import audit
from xshard.verify.collectives import Collective
from xshard.verify.hlo import collectives_in
from xshard.verify.stages import GroupVerification, PipelineVerification
from xshard.verify.step import planned_collectives
from xshard.verify.verification import Memory

_NAME = re.compile(r"^module @\S+", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class _Program:
    """What XLA made of a program."""

    memory: Memory
    collectives: tuple[Collective, ...]


def verified(
    plan: PipelinePlan, step: PlannedPipeline, target: Target, on_step: Callable[[str], None]
) -> PipelineVerification:
    """The plan against what XLA makes of its stages.

    All groups have equal devices, so that the programs of each are compiled for the same ones.
    """
    pipeline = step.on(plan, [target.mesh] * plan.schedule.num_groups)
    compiler = _Compiler(plan, target, on_step)
    programs = compiler.all_of(pipeline)
    more = {at: _grown(one.memory) for at, one in programs.items()}
    most = peaks(pipeline.tape, pipeline.local_bytes, more)
    return PipelineVerification(
        cluster=plan.cluster,
        mesh=mesh_text(plan.mesh),
        platform=target.platform,
        groups=tuple(
            _group(plan, pipeline, target.platform, programs, g, most[g])
            for g in range(plan.schedule.num_groups)
        ),
        memory_limit=plan.memory_limit,
        num_programs=len(programs),
        num_compiled=len(compiler.known),
        seconds=compiler.seconds,
    )


@dataclass(slots=True)
class _Compiler:
    """Compiles programs; those whose text is equal are compiled once."""

    plan: PipelinePlan
    target: Target
    on_step: Callable[[str], None]
    known: dict[str, _Program] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: {"lowering": 0.0, "compiling": 0.0})

    def all_of(self, pipeline: Pipeline) -> dict[int, _Program]:
        """By a program's place among the staged ones."""
        self.on_step("lowering")
        began = time.perf_counter()
        lowered = pipeline.lower(self.target.platform)
        texts = {at: _NAME.sub("module", one.as_text(), 1) for at, one in lowered.items()}
        self.seconds["lowering"] = time.perf_counter() - began
        names = pipeline.staged.programs
        return {
            at: self._one(f"compiling {names[at].name}", texts[at], one)
            for at, one in lowered.items()
        }

    def _one(self, doing: str, text: str, lowered: Any) -> _Program:
        if text not in self.known:
            self.on_step(doing)
            began, mesh = time.perf_counter(), self.plan.mesh
            compiled = self.target.compiled(lowered)
            found = collectives_in(compiled.as_text() or "", mesh.sizes, mesh.names)
            self.known[text] = _Program(Memory.of_compiled(compiled), found)
            self.seconds["compiling"] += time.perf_counter() - began
        return self.known[text]


def _grown(memory: Memory) -> int:
    """What a program needs beside its operands."""
    return memory.total - memory.arguments


def _group(
    plan: PipelinePlan, pipeline: Pipeline, platform: str, programs: Mapping[int, _Program],
    group: int, peak: Peak,
) -> GroupVerification:  # fmt: skip
    """A group's stages: what is held of all microbatches in flight, and what is moved in a step."""
    staged, schedule = pipeline.staged, plan.schedule
    mine = {at: p for at, p in programs.items()
            if schedule.placement[staged.programs[at].stage] == group}  # fmt: skip
    found: list[Collective] = []
    for at, one in mine.items():
        often = staged.microbatches if staged.programs[at].part in PER_MICROBATCH else 1
        found += [replace(c, count=c.count * often) for c in one.collectives]
    stages = tuple(s for s, g in enumerate(schedule.placement) if g == group)
    planned = [c for s in stages for c in planned_collectives(plan.programs[f"stage {s}"])]
    return GroupVerification(
        stages=stages,
        predicted_bytes=plan.peak_bytes[group],
        compiled_bytes=peak.bytes,
        at="" if peak.program is None else staged.programs[peak.program].name,
        programs={staged.programs[at].name: one.memory for at, one in mine.items()},
        audit=audit(planned, found, target=platform),
    )
