"""`PipelinePlan`: what a pipelined step does, predicted: stages, schedule, time, memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from xshard.plan import store
from xshard.plan.page import pipeline
from xshard.plan.plan import Plan
from xshard.plan.table import Table, to_text
from xshard.plan.units import duration, mesh_text, size
from xshard.schedules import Schedule, Timeline, Times, in_flight, simulate
from xshard.schedules.trace import predicted, save_trace
from xshard.spec import MeshShape


@dataclass(frozen=True, slots=True)
class PipelineTrial:
    """A way to run the step in stages that was looked at.

    Attributes:
      schedule: its name; "none" for one program over all devices.
      mesh: of each group of devices.
      outcome: "planned", "at least" (no plan is faster than that, which another was), "does not
        fit" the memory limit, or "not planned" (others promised more; it takes at least that long).
      time_ns: predicted, or the bound.
    """

    schedule: str
    stages: int
    microbatches: int
    mesh: MeshShape | None
    outcome: str = ""
    time_ns: int | None = None

    def row(self) -> tuple[str, ...]:
        """For a table."""
        mesh = "" if self.mesh is None else mesh_text(self.mesh)
        time = "" if self.time_ns is None else duration(self.time_ns)
        return self.schedule, str(self.stages), mesh, str(self.microbatches), self.outcome, time

    def __str__(self) -> str:
        schedule, stages, _, microbatches, outcome, time = self.row()
        told = f"{outcome if outcome != 'planned' else ''} {time}".strip()
        return f"{schedule} with {stages} stages, {microbatches} microbatches: {told}"


@dataclass(frozen=True)
class PipelinePlan:
    """The plan of a step in pipeline stages.

    Attributes:
      layers: units of the forward pass on each stage.
      recomputed: how many of them each stage runs again in the backward pass, the first ones.
      mesh: of each group of devices.
      cluster: as of `Plan`.
      times: of tasks and transfers.
      once_ns: by group, what runs before and after the microbatches, one after the other.
      peak_bytes: by group, the most that a device of it holds at once.
      programs: the plan of all that a stage runs, by stage.
      trials: all that were looked at.
      bound_ns: a time that no plan is below, of all that were open.
    """

    schedule: Schedule
    layers: tuple[int, ...]
    recomputed: tuple[int, ...]
    mesh: MeshShape
    cluster: str
    times: Times
    once_ns: tuple[int, ...]
    peak_bytes: tuple[int, ...]
    programs: Mapping[str, Plan]
    trials: tuple[PipelineTrial, ...] = ()
    bound_ns: int = 0
    _step: object = field(default=None, compare=False, repr=False)  # what `xshard.verify` compiles

    def to_json(self) -> str:
        """Deterministic JSON text of all of it."""
        from xshard.mpmd.plan_file import to_json

        return to_json(self)

    @classmethod
    def from_json(cls, text: str) -> PipelinePlan:
        """The plan that `to_json` wrote.

        Raises:
          PlanError: the text is truncated, foreign, of another version, or a field is wrong.
        """
        from xshard.mpmd.plan_file import from_json

        return from_json(text)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `to_json` to a file, at once or not at all.

        Raises:
          PlanError: the file cannot be written.
        """
        store.write(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PipelinePlan:
        """The plan in a file that `save` wrote.

        Raises:
          PlanError: there is no such file, or it holds no plan of a pipeline.
        """
        from xshard.mpmd.plan_file import from_json

        return from_json(*store.text_in(path))

    @property
    def timeline(self) -> Timeline:
        """The microbatches' part of the step, simulated."""
        return simulate(self.schedule, self.times)

    @property
    def microbatches(self) -> int:
        """Parts of the batch."""
        return self.schedule.microbatches

    @property
    def memory_limit(self) -> int | None:
        """Bytes of a device, which stages on one group share alike."""
        schedule = self.schedule
        each = next(iter(self.programs.values())).memory_limit
        return each and each * (schedule.num_stages // schedule.num_groups)

    @property
    def objective_ns(self) -> int:
        """The predicted time of a step."""
        return self.timeline.makespan_ns + max(self.once_ns, default=0)

    @property
    def predicted_time_s(self) -> float:
        """Predicted seconds of one step."""
        return self.objective_ns * 1e-9

    @property
    def predicted_peak_bytes(self) -> int:
        """Predicted peak memory of the fullest device, in bytes."""
        return max(self.peak_bytes)

    @property
    def gap(self) -> float:
        """At most this share of the predicted time could be saved by another plan."""
        return max(0.0, 1 - self.bound_ns / self.objective_ns) if self.objective_ns else 0.0

    def trace(self, path: str | os.PathLike[str]) -> None:
        """Writes the predicted schedule as a Chrome trace, for https://ui.perfetto.dev."""
        save_trace(path, {"predicted": predicted(self.timeline, self.times)})

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Writes the schedule and the stages' plans as one page without scripts.

        Raises:
          PlanError: the file cannot be written.
        """
        text = pipeline.page(self._head(), self.timeline, self._tables(), self.programs)
        store.write(path, text)

    def _repr_html_(self) -> str:
        return pipeline.fragment(self._head(), self.timeline, self._tables())

    def __str__(self) -> str:
        return f"{self._head()}\n{to_text(self._tables())}"

    def _tables(self) -> tuple[Table, ...]:
        """The stages, and what else was looked at."""
        if len(self.trials) < 2:
            return (self._table(),)
        rows = tuple(t.row() for t in self.trials)
        columns = ("schedule", ">stages", "mesh", ">microbatches", "outcome", ">time")
        return self._table(), Table("Ways to run the step", columns, rows, "")

    def _head(self) -> str:
        schedule, line = self.schedule, self.timeline
        lines = {
            "stages": f"{schedule.num_stages} on {schedule.num_groups} groups of "
            f"{self.mesh.num_devices} devices ({mesh_text(self.mesh)})",
            "cluster": self.cluster,
            "schedule": f"{schedule.name}, {schedule.microbatches} microbatches, "
            f"bubble {line.bubble:.1%}",
            "predicted time": f"{duration(self.objective_ns)} a step, gap {self.gap:.1%}",
            "peak memory": f"{size(max(self.peak_bytes))} a device",
        }
        return "\n".join(f"{name:<15} {text}" for name, text in lines.items())

    def _table(self) -> Table:
        placement, chunk = self.schedule.placement, self.schedule.chunk
        held = in_flight(self.schedule)
        rows = tuple(
            (
                f"stage {s}", f"group {placement[s]}", str(self.layers[s]), str(self.recomputed[s]),
                *(duration(self.times.task_ns[s, part]) for part in self.schedule.parts),
                str(held[placement[s]].residuals) if not chunk[s] else "",
                size(self.peak_bytes[placement[s]]) if not chunk[s] else "",
            )
            for s in range(self.schedule.num_stages)
        )  # fmt: skip
        parts = tuple(f">{part}" for part in self.schedule.parts)
        layers = ("stage", "devices", ">layers", ">recomputed")
        columns = (*layers, *parts, ">in flight", ">on a device")
        return Table("Stages", columns, rows, "")
