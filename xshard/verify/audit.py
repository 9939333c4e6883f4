"""Planned against compiled collectives, in bytes per kind and mesh axes.

    planned, compiled
       │  _as_compiled      what the target's compiler is known to write differently
       ▼
    Ledger per (kind, axes)
       │  match.settle      all-reduces over (a) and (b) ⇄ one over (a, b)
       ▼
    rows ─ match.leftovers → unplanned and missing collectives

Bytes are compared, not counts: XLA's combiners merge collectives of one kind and group.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xshard.verify.audit_text import to_text
from xshard.verify.collectives import share_beside
from xshard.verify.match import leftovers, settle

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from xshard.verify.collectives import Collective, Kind

# What the CPU compiler does to every program: it has no reduce-scatter for partitioned sums, and it
# computes, so also moves, these types as the next wider one.
_KIND_ON: dict[str, dict[Kind, Kind]] = {"cpu": {"reduce-scatter": "all-reduce"}}
_WIDENED_ON: dict[str, dict[str, int]] = {
    "cpu": dict.fromkeys(
        ("bf16", "bfloat16", "f8e4m3fn", "float8_e4m3fn", "f8e5m2", "float8_e5m2"), 2
    )
}
# Below this an execution costs its latency only: a loss, a norm, a finiteness flag.
SCALAR_BYTES = 16


@dataclass(frozen=True, slots=True)
class PlannedCollective:
    """A collective that the plan expects; bytes by the convention of `Collective.bytes`.

    Attributes:
      bytes: full payload per device of one execution, in the planned dtype.
      count: executions in one call.
      value: the name of the value that is communicated.
      source: "file:line" in the user's code, or "".
      dtype: numpy's or XLA's name of the element type; "" is taken as moved unchanged.
    """

    kind: Kind
    axes: tuple[str, ...]
    bytes: int
    count: int = 1
    value: str = ""
    source: str = ""
    dtype: str = ""

    @property
    def total_bytes(self) -> int:
        """Payload bytes per device in one call of the program."""
        return self.bytes * self.count


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One (kind, axes): executions and payload bytes per device in one call.

    `settled_bytes` is what of `compiled_bytes` was emitted over other axes: positive when those
    all-reduces do the work of this row, negative when this row's do the work of theirs.
    """

    kind: Kind
    axes: tuple[str, ...]
    planned_count: int
    planned_bytes: int
    compiled_count: int
    compiled_bytes: int
    settled_bytes: int = 0

    @property
    def delta_bytes(self) -> int:
        """Compiled minus planned bytes, after settling."""
        return self.compiled_bytes + self.settled_bytes - self.planned_bytes

    def ok(self, tolerance: float) -> bool:
        """Whether the difference is within `tolerance` of the plan, or scalars only."""
        executions = max(self.planned_count, self.compiled_count)
        return abs(self.delta_bytes) <= max(
            tolerance * self.planned_bytes, SCALAR_BYTES * executions
        )


@dataclass(frozen=True, slots=True)
class Audit:
    """The comparison; `print(audit)` shows it as a table.

    Attributes:
      rows: one per (kind, axes), largest first.
      unplanned: compiled collectives that no planned one explains: resharding that XLA added.
      missing: planned collectives that no compiled one explains.
      beside: the part of the bytes that XLA's schedule moves beside matmuls, where it says.
    """

    target: str
    rows: tuple[AuditRow, ...]
    unplanned: tuple[Collective, ...]
    missing: tuple[PlannedCollective, ...]
    beside: float | None = None

    def ok(self, tolerance: float = 0.05) -> bool:
        """Whether every row's bytes are within `tolerance` (relative) of the plan."""
        return all(row.ok(tolerance) for row in self.rows)

    def to_json(self) -> str:
        """Everything as a JSON object."""
        fields: dict[str, Any] = dataclasses.asdict(self)
        return json.dumps({**fields, "ok": self.ok()}, indent=1)

    def __str__(self) -> str:
        return to_text(self)


def audit(
    planned: Iterable[PlannedCollective], compiled: Sequence[Collective], *, target: str
) -> Audit:
    """Compare a plan's collectives with those of the compiled module (`hlo.collectives_in`).

    Args:
      planned: the plan's expectation; groups of one device belong in neither list.
      compiled: what the module executes; groups of one device are left out here.
      target: the platform compiled for ("cpu", "gpu"): which rewritings are no surprise.
    """
    kinds = _KIND_ON.get(target, {})
    expected = [_as_compiled(p, target) for p in planned]
    emitted = [c for c in compiled if c.group_size > 1]
    rows = settle(_rows(expected, emitted, kinds))
    unplanned: list[Collective] = []
    missing: list[PlannedCollective] = []
    for row in rows:
        ours = [p for p in expected if (p.kind, p.axes) == (row.kind, row.axes)]
        theirs = [c for c in emitted if (kinds.get(c.kind, c.kind), c.axes) == (row.kind, row.axes)]
        unplanned += leftovers(theirs, ours, row.delta_bytes)
        missing += leftovers(ours, theirs, -row.delta_bytes)
    beside = share_beside(emitted)
    return Audit(target, tuple(rows), tuple(unplanned), tuple(missing), beside)


def _as_compiled(planned: PlannedCollective, target: str) -> PlannedCollective:
    """What the target's compiler is known to make of a planned collective."""
    return dataclasses.replace(
        planned,
        kind=_KIND_ON.get(target, {}).get(planned.kind, planned.kind),
        bytes=planned.bytes * _WIDENED_ON.get(target, {}).get(planned.dtype, 1),
    )


def _rows(
    planned: list[PlannedCollective], compiled: list[Collective], kinds: dict[Kind, Kind]
) -> list[AuditRow]:
    sums: dict[tuple[Kind, tuple[str, ...]], list[int]] = {}
    for p in planned:
        _add(sums.setdefault((p.kind, p.axes), [0, 0, 0, 0]), 0, p)
    for c in compiled:
        _add(sums.setdefault((kinds.get(c.kind, c.kind), c.axes), [0, 0, 0, 0]), 2, c)
    rows = [AuditRow(kind, axes, *numbers) for (kind, axes), numbers in sums.items()]
    return sorted(rows, key=lambda r: (-max(r.planned_bytes, r.compiled_bytes), r.kind, r.axes))


def _add(numbers: list[int], at: int, item: Collective | PlannedCollective) -> None:
    numbers[at] += item.count
    numbers[at + 1] += item.total_bytes
