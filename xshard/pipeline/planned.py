"""`PlannedPipeline`: what a pipeline's plan was made for, from which its programs are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jax.sharding import Mesh

from xshard.cost.cluster import Cluster
from xshard.ir.trace import Traced
from xshard.mpmd.layout import Layout
from xshard.mpmd.plan import PipelinePlan
from xshard.mpmd.step import Pipeline
from xshard.pipeline.pinned import Pinned
from xshard.pipeline.search import (
    cuts_of,
    divided_step,
    donated_places,
    planned_before,
    tied_places,
)  # fmt: skip
from xshard.pipeline.solver import StagePlans
from xshard.run.call import Call


@dataclass(frozen=True, slots=True)
class PlannedPipeline:
    """A traced step and the plans of its stages.

    Attributes:
      donated: positions of the flat arguments that may be reused.
    """

    traced: Traced
    stages: StagePlans
    donated: frozenset[int]

    def on(
        self, plan: PipelinePlan, meshes: Sequence[Mesh], options: dict[str, Any] | None = None
    ) -> Pipeline:
        """The pipeline over groups of devices; `options`: of XLA."""
        layout = Layout(tuple(meshes), *self.stages.layout(meshes))
        ties = tied_places(self.traced)
        return Pipeline(self.stages.staged, plan.schedule, layout, ties, self.donated, options)


def planned_for(
    plan: PipelinePlan, traced: Traced, call: Call, cluster: Cluster, pins: Pinned,
    batch_axes: Any = None,
) -> PlannedPipeline:  # fmt: skip
    """What a plan that was made before is for; `cluster`: of one group of devices.

    Raises:
      PlanError: it is for something else.
    """
    donated = donated_places(traced, call)
    cuts = cuts_of(
        traced, divided_step(traced, batch_axes), plan.microbatches, len(plan.layers), donated
    )
    return PlannedPipeline(traced, planned_before(plan, cuts, cluster, pins), donated)
