"""`PipelinePlan`: what a pipelined step does, predicted: stages, schedule, time, memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from xshard.plan import store
from xshard.plan.page import pipeline
from xshard.plan.plan import Plan
from xshard.plan.table import Table, to_text
from xshard.plan.units import duration, mesh_text, size
from xshard.schedules import Schedule, Timeline, Times, in_flight, simulate
from xshard.schedules.trace import predicted, save_trace
from xshard.spec import MeshShape


@dataclass(frozen=True)
class PipelinePlan:
    """The plan of a step in pipeline stages.

    Attributes:
      layers: units of the forward pass on each stage.
      mesh: of each group of devices.
      cluster: as of `Plan`.
      times: of tasks and transfers.
      once_ns: by group, what runs before and after the microbatches, one after the other.
      peak_bytes: by group, the most that a device of it holds at once.
      programs: the plan of all that a stage runs, by stage.
      trials: (schedule, stages, predicted time) of all that were looked at.
    """

    schedule: Schedule
    layers: tuple[int, ...]
    mesh: MeshShape
    cluster: str
    times: Times
    once_ns: tuple[int, ...]
    peak_bytes: tuple[int, ...]
    programs: Mapping[str, Plan]
    trials: tuple[tuple[str, int, int], ...] = ()

    @property
    def timeline(self) -> Timeline:
        """The microbatches' part of the step, simulated."""
        return simulate(self.schedule, self.times)

    @property
    def microbatches(self) -> int:
        """Parts of the batch."""
        return self.schedule.microbatches

    @property
    def objective_ns(self) -> int:
        """The predicted time of a step."""
        return self.timeline.makespan_ns + max(self.once_ns, default=0)

    def trace(self, path: str | os.PathLike[str]) -> None:
        """Writes the predicted schedule as a Chrome trace, for https://ui.perfetto.dev."""
        save_trace(path, {"predicted": predicted(self.timeline, self.times)})

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Writes the schedule and the stages' plans as one page without scripts.

        Raises:
          PlanError: the file cannot be written.
        """
        text = pipeline.page(self._head(), self.timeline, (self._table(),), self.programs)
        store.write(path, text)

    def _repr_html_(self) -> str:
        return pipeline.fragment(self._head(), self.timeline, (self._table(),))

    def __str__(self) -> str:
        return f"{self._head()}\n{to_text((self._table(),))}"

    def _head(self) -> str:
        schedule, line = self.schedule, self.timeline
        lines = {
            "stages": f"{schedule.num_stages} on {schedule.num_groups} groups of "
            f"{self.mesh.num_devices} devices ({mesh_text(self.mesh)})",
            "cluster": self.cluster,
            "schedule": f"{schedule.name}, {schedule.microbatches} microbatches, "
            f"bubble {line.bubble:.1%}" + self._tried(),
            "predicted time": f"{duration(self.objective_ns)} a step",
            "peak memory": f"{size(max(self.peak_bytes))} a device",
        }
        return "\n".join(f"{name:<15} {text}" for name, text in lines.items())

    def _tried(self) -> str:
        if len(self.trials) < 2:
            return ""
        tried = (f"{name} with {n} stages: {duration(ns)}" for name, n, ns in self.trials)
        return f" (tried {', '.join(tried)})"

    def _table(self) -> Table:
        placement, chunk = self.schedule.placement, self.schedule.chunk
        held = in_flight(self.schedule)
        rows = tuple(
            (
                f"stage {s}", f"group {placement[s]}", str(self.layers[s]),
                *(duration(self.times.task_ns[s, part]) for part in self.schedule.parts),
                str(held[placement[s]].residuals) if not chunk[s] else "",
                size(self.peak_bytes[placement[s]]) if not chunk[s] else "",
            )
            for s in range(self.schedule.num_stages)
        )  # fmt: skip
        parts = tuple(f">{part}" for part in self.schedule.parts)
        columns = ("stage", "devices", ">layers", *parts, ">in flight", ">on a device")
        return Table("Stages", columns, rows, "")
