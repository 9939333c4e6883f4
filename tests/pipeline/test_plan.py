"""A stage is planned as one graph of all that it runs in a step."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

import xshard
from tests.stages import models
from tests.stages.steps import cuttable_step
from xshard.cost.cluster import Cluster
from xshard.pipeline.cuts import CutStep
from xshard.pipeline.solver import StagePlans, StageSolver
from xshard.spec import MeshShape
from xshard.stages.staged import PER_MICROBATCH, Staged

MESH = MeshShape(("x",), (2,))


def solver() -> StageSolver:
    return StageSolver(MESH, Cluster.parse("v100-sxm2-32gb:2"))


def plans(staged: Staged, in_flight: Sequence[int]) -> StagePlans:
    return StagePlans(CutStep(staged), (0, 1), in_flight, solver()).make()


def test_each_value_of_a_stage_has_a_spec_and_each_program_a_body() -> None:
    staged = cuttable_step(*models.plain(), 2).into((1, 1))
    made = plans(staged, (2, 1))
    for program in staged.programs:
        for v in {*program.reads, *program.makes} - {staged.number, *staged.consts}:
            assert (v, program.stage) in made.specs
    assert {p.part for p in staged.programs} == {part for _, part in made.task_ns()}


def test_memory_counts_the_microbatches_in_flight() -> None:
    staged = cuttable_step(*models.plain(), 4).into((1, 1))
    one, three = plans(staged, (1, 1)), plans(staged, (3, 1))
    more = three.stages[0].plan.peak_bytes - one.stages[0].plan.peak_bytes
    held = one.stages[0].graph.held
    values = one.stages[0].graph.traced.graph.values
    assert 0 < more <= 2 * sum(values[v].nbytes for v in held)
    assert three.stages[1].plan.peak_bytes == one.stages[1].plan.peak_bytes


def test_programs_of_a_microbatch_count_as_often_as_there_are() -> None:
    staged = cuttable_step(*models.plain(), 4).into((1, 1))
    stage = plans(staged, (2, 1)).stages[0]
    ops = stage.graph.traced.graph.ops
    for place, start, stop in zip(
        stage.graph.programs, stage.graph.starts, stage.graph.stops, strict=True
    ):
        often = {op.repeat for op in ops if start <= op.address[0] < stop}
        many = staged.programs[place].part in PER_MICROBATCH
        assert often == ({4} if many else {1})


def test_ways_to_run_a_step_are_searched() -> None:
    step, args = models.in_equinox()
    plan = xshard.plan_pipeline(
        step, *args, cluster="v100-sxm2-32gb:4", pipeline=2, microbatches="auto", schedule="auto"
    )
    assert isinstance(plan, xshard.PipelinePlan)
    assert {t.stages for t in plan.trials} == {2, 4}  # interleaved schedules have two on a group
    assert {t.microbatches for t in plan.trials} >= {4, 8}
    assert plan.objective_ns in {t.time_ns for t in plan.trials if t.outcome == "planned"}
    assert 0 < plan.bound_ns <= plan.objective_ns
    assert sum(plan.layers) == 4
    assert "Ways to run the step" in str(plan)


def test_one_program_is_among_the_candidates() -> None:
    """Stages idle without microbatches; with some, they save collectives in each of them."""
    step, args = models.in_equinox()
    one, staged = (
        xshard.plan_pipeline(step, *args, cluster="v100-sxm2-32gb:4", microbatches=m)
        for m in (1, 4)
    )
    assert isinstance(one, xshard.Plan)
    assert "stages are no faster" in str(one.notes)
    assert isinstance(staged, xshard.PipelinePlan)
    assert staged.trials[0].schedule == "none"
    assert staged.objective_ns <= (staged.trials[0].time_ns or 0)


def test_clusters_that_cannot_be_cut() -> None:
    with pytest.raises(xshard.PipelineError, match="v100-sxm2-32gb:2x4 cannot be cut into 3 eq"):
        xshard.plan_pipeline(
            lambda s, b: s, 0, 1, cluster="v100-sxm2-32gb:2x4", pipeline=3, microbatches=2
        )
