"""`Verification`: what a plan predicts against what XLA made of it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from xshard.plan.page.tables import to_html
from xshard.plan.table import Table, to_rich, to_text
from xshard.plan.units import size
from xshard.verify.audit_text import to_text as audit_text

if TYPE_CHECKING:
    from xshard.verify.audit import Audit
    from xshard.verify.collectives import Collective

SURPRISE_BYTES = 1_000_000
"""Unplanned communication of fewer bytes in a step is no surprise."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one device, as XLA counts them.

    Attributes:
      arguments, results: of the step.
      aliased: results that take the place of donated arguments; counted in both.
      temporaries: everything else at the peak.
    """

    arguments: int
    results: int
    aliased: int
    temporaries: int

    @property
    def total(self) -> int:
        """The peak."""
        return self.arguments + self.results - self.aliased + self.temporaries

    @classmethod
    def of_compiled(cls, compiled: Any) -> Memory:
        """What XLA allocates for a `jax.stages.Compiled`."""
        m = compiled.memory_analysis()
        return cls(
            m.argument_size_in_bytes, m.output_size_in_bytes, m.alias_size_in_bytes,
            m.temp_size_in_bytes,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verification:
    """A plan held against the compiler of its devices; `print` shows it as tables.

    Attributes:
      cluster, mesh: the plan's.
      platform: what was compiled for: "cuda", "tpu" or "cpu".
      predicted, compiled: memory of one device.
      audit: the collectives.
      memory_limit: the plan's, in bytes of a device, or None.
      seconds: wall-clock seconds of lowering and of compiling.
    """

    cluster: str
    mesh: str
    platform: str
    predicted: Memory
    compiled: Memory
    audit: Audit
    memory_limit: int | None
    seconds: dict[str, float]

    @property
    def compiled_bytes(self) -> int:
        """The peak of a device, as XLA allocates."""
        return self.compiled.total

    @property
    def memory_error(self) -> float:
        """Predicted over compiled peak memory, less 1."""
        return self.predicted.total / max(self.compiled.total, 1) - 1

    @property
    def fits(self) -> bool:
        """Whether what XLA allocates keeps to the plan's memory limit."""
        return self.memory_limit is None or self.compiled.total <= self.memory_limit

    @property
    def surprises(self) -> tuple[Collective, ...]:
        """Collectives that no planned one explains, of at least a megabyte in a step."""
        return tuple(c for c in self.audit.unplanned if c.total_bytes >= SURPRISE_BYTES)

    def ok(self, memory: float = 0.08, collectives: float = 0.05) -> bool:
        """Whether the step fits, its peak memory and collectives are as predicted within these
        tolerances (relative), and XLA added nothing of a megabyte or more."""
        exact = abs(self.memory_error) <= memory and self.audit.ok(collectives)
        return self.fits and exact and not self.surprises

    def record(self) -> dict[str, Any]:
        """Everything as plain data."""
        return {
            **asdict(self),
            "predicted": {**asdict(self.predicted), "total": self.predicted.total},
            "compiled": {**asdict(self.compiled), "total": self.compiled.total},
            "memory_error": self.memory_error,
            "fits": self.fits,
            "surprises": [asdict(c) for c in self.surprises],
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


def _parts(v: Verification) -> list[str | Table]:
    head = f"{v.mesh} on {v.cluster}, compiled for {v.platform}"
    return [head, _memory(v), audit_text(v.audit).rstrip(), verdict(v)]


def _memory(v: Verification) -> Table:
    names = ("arguments", "results", "aliased", "temporaries", "total")
    rows = [(name, getattr(v.predicted, name), getattr(v.compiled, name)) for name in names]
    return Table(
        "Memory of one device",
        ("", ">predicted", ">compiled", ">difference"),
        tuple((n if n != "total" else "peak", size(p), size(c), _error(p, c)) for n, p, c in rows),
    )


def _error(predicted: int, compiled: int) -> str:
    if predicted == compiled:
        return "0"
    return f"{predicted / compiled - 1:+.1%}" if compiled else f"{size(predicted)} more"


class Verdict(Protocol):
    """What `verdict` reads of a verification."""

    @property
    def fits(self) -> bool: ...
    @property
    def memory_limit(self) -> int | None: ...
    @property
    def surprises(self) -> tuple[Collective, ...]: ...
    @property
    def seconds(self) -> dict[str, float]: ...
    def ok(self) -> bool: ...


def verdict(v: Verdict) -> str:
    """The last lines of a verification's text."""
    lines: list[str] = []
    if not v.fits and v.memory_limit is not None:
        lines.append(f"✗ XLA allocates more than the limit of {size(v.memory_limit)}")
    if v.surprises:
        moved = sum(c.total_bytes for c in v.surprises)
        lines.append(f"✗ unplanned communication of {size(moved)} in a step")
    if not lines:
        tolerated = "as predicted" if v.ok() else "within the limit; some figures differ"
        lines.append(f"{'✓' if v.ok() else '!'} {tolerated}")
    seconds = ", ".join(f"{step} {s:.1f} s" for step, s in v.seconds.items())
    return "\n".join([*lines, f"({seconds})"])
