"""`PipelineVerification`: what a pipeline's plan predicts against what XLA made of its stages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from xshard.plan.page.tables import to_html
from xshard.plan.table import Table, to_rich, to_text
from xshard.plan.units import size
from xshard.verify.verification import SURPRISE_BYTES, Memory, verdict

if TYPE_CHECKING:
    from xshard.verify.audit import Audit
    from xshard.verify.collectives import Collective


@dataclass(frozen=True, slots=True)
class GroupVerification:
    """The stages of one group of devices.

    Attributes:
      predicted_bytes: the plan's peak of a device.
      compiled_bytes: the most that a device holds at once: arguments, the residuals of all
        microbatches in flight, sums, and what XLA allocates for the program that runs then.
      at: that program's name; "" while a value arrives.
      programs: by name, each program's own memory.
      audit: the collectives of a step.
    """

    stages: tuple[int, ...]
    predicted_bytes: int
    compiled_bytes: int
    at: str
    programs: Mapping[str, Memory]
    audit: Audit

    @property
    def memory_error(self) -> float:
        """Predicted over compiled peak memory, less 1."""
        return self.predicted_bytes / max(self.compiled_bytes, 1) - 1

    @property
    def surprises(self) -> tuple[Collective, ...]:
        """As of `Verification`."""
        return tuple(c for c in self.audit.unplanned if c.total_bytes >= SURPRISE_BYTES)

    def record(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            **asdict(self),
            "memory_error": self.memory_error,
            "surprises": [asdict(c) for c in self.surprises],
        }


@dataclass(frozen=True, slots=True)
class PipelineVerification:
    """A pipeline's plan held against the compiler of its devices; `print` shows it as a table.

    Attributes:
      cluster, mesh, platform: as of `Verification`, of one group of devices.
      groups: in order.
      memory_limit: the plan's, in bytes of a device, or None.
      num_programs, num_compiled: programs of all stages, and those of them that are unlike.
      seconds: wall-clock seconds of lowering and of compiling.
    """

    cluster: str
    mesh: str
    platform: str
    groups: tuple[GroupVerification, ...]
    memory_limit: int | None
    num_programs: int
    num_compiled: int
    seconds: dict[str, float]

    @property
    def compiled_bytes(self) -> int:
        """The peak of the fullest device, as XLA allocates."""
        return max(group.compiled_bytes for group in self.groups)

    @property
    def memory_error(self) -> float:
        """Predicted over compiled peak memory of the group that is furthest off, less 1."""
        return max((group.memory_error for group in self.groups), key=abs)

    @property
    def fits(self) -> bool:
        """Whether what XLA allocates keeps to the plan's memory limit."""
        return self.memory_limit is None or self.compiled_bytes <= self.memory_limit

    @property
    def surprises(self) -> tuple[Collective, ...]:
        """Collectives that no planned one explains, of at least a megabyte in a step."""
        return tuple(c for group in self.groups for c in group.surprises)

    def ok(self, memory: float = 0.08, collectives: float = 0.05) -> bool:
        """As of `Verification`, for every group."""
        audited = all(group.audit.ok(collectives) for group in self.groups)
        return self.fits and abs(self.memory_error) <= memory and audited and not self.surprises

    def record(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            **asdict(self),
            "groups": [group.record() for group in self.groups],
            "compiled_bytes": self.compiled_bytes,
            "memory_error": self.memory_error,
            "fits": self.fits,
            "ok": self.ok(),
        }

    def to_json(self) -> str:
        """`record` as a JSON object."""
        return json.dumps(self.record(), indent=1) + "\n"

    def __str__(self) -> str:
        return to_text(_parts(self))

    def __rich__(self) -> object:
        return to_rich(_parts(self))

    def _repr_html_(self) -> str:
        return to_html(_parts(self))


def _parts(v: PipelineVerification) -> list[str | Table]:
    head = (
        f"{len(v.groups)} groups of {v.mesh} on {v.cluster}, compiled for {v.platform}: "
        f"{v.num_programs} programs, {v.num_compiled} of them unlike"
    )
    return [head, _table(v), verdict(v)]


def _table(v: PipelineVerification) -> Table:
    columns = ("group", "stages", ">predicted", ">compiled", ">difference", "fullest in",
               ">planned collectives", ">compiled collectives", "")  # fmt: skip
    rows = tuple(
        (f"group {g}", ", ".join(map(str, group.stages)), size(group.predicted_bytes),
         size(group.compiled_bytes), f"{group.memory_error:+.1%}", group.at,
         size(sum(r.planned_bytes for r in group.audit.rows)),
         size(sum(r.compiled_bytes for r in group.audit.rows)),
         "✓" if group.audit.ok() and not group.surprises else "✗")
        for g, group in enumerate(v.groups)
    )  # fmt: skip
    return Table("Peak memory of a device, and what it moves in a step", columns, rows)
