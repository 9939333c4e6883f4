"""The published figures that ours stand beside: `published.json`, where their source is stated."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

PATH = Path(__file__).with_name("published.json")
Mode = Literal["tensor", "pipeline"]


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One training step as an earlier planner predicted it and as it ran.

    Attributes:
      model: a name in `models.gpt3.config.CONFIGS`.
      mode: tensor parallelism only, or with pipeline stages.
      microbatch_size: sequences in a microbatch.
      memory_limit_gb: what the planner was allowed of each device.
      estimated_s, estimated_gb: its own prediction of a step and of a device's memory.
      measured_s, measured_gb: what the devices did; None where the plan could not be run.
      planning_s: what the planner took.
    """

    model: str
    mode: Mode
    microbatch_size: int
    memory_limit_gb: int
    estimated_s: float
    measured_s: float | None
    estimated_gb: float
    measured_gb: float | None
    planning_s: float

    @property
    def key(self) -> tuple[str, Mode, int]:
        """What the row is about."""
        return self.model, self.mode, self.microbatch_size


def published() -> tuple[PublishedRow, ...]:
    """All rows, in the published order."""
    return tuple(PublishedRow(**row) for row in json.loads(PATH.read_text("utf-8"))["rows"])
