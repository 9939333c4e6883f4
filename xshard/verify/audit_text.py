"""An audit as readable text: the table of bytes, then what XLA added and what it left out."""

from __future__ import annotations

import io
from collections import Counter
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from xshard.verify.audit import Audit, PlannedCollective
    from xshard.verify.collectives import Collective

# Lines that the lists show; `Audit.unplanned`, `Audit.missing` and the JSON have all.
LISTED = 30


def to_text(audit: Audit) -> str:
    """The text that `print(audit)` shows."""
    file = io.StringIO()
    console = Console(file=file, width=110, color_system=None)
    console.print(_rows_table(audit))
    for title, lines in (
        ("Unplanned: XLA added", [_compiled_line(c) for c in audit.unplanned]),
        ("Missing: planned, not emitted", [_planned_line(p) for p in audit.missing]),
    ):
        if lines:
            console.print(title, *_folded(lines), sep="\n  ", soft_wrap=True, markup=False)
    if audit.beside is not None:
        console.print(f"{audit.beside:.0%} of the bytes move beside matmuls, by XLA's schedule")
    return file.getvalue()


def _rows_table(audit: Audit) -> Table:
    title = f"Collectives in one call, bytes per device, on {audit.target}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("collective")
    table.add_column("axes")
    for column in ("planned", "compiled", "settled", "difference"):
        table.add_column(column, justify="right")
    table.add_column("")
    for r in audit.rows:
        table.add_row(
            r.kind,
            ", ".join(r.axes) or "other groups",
            f"{r.planned_count}× {r.planned_bytes:,}",
            f"{r.compiled_count}× {r.compiled_bytes:,}",
            f"{r.settled_bytes:+,}" if r.settled_bytes else "",
            f"{r.delta_bytes:+,}",
            "✓" if r.ok(0.05) else "✗",
        )
    return table


def _folded(lines: list[str]) -> list[str]:
    """Equal lines once, and no more than a screen of them."""
    counted = [f"{line}  (×{n})" if n > 1 else line for line, n in Counter(lines).items()]
    more = len(counted) - LISTED
    return [*counted[:LISTED], f"and {more} more"] if more > 0 else counted


def _compiled_line(c: Collective) -> str:
    where = ", ".join(c.axes) or c.groups
    flag = "" if c.count_from != "unknown" else " (in a loop of unknown length)"
    return (
        f"{c.kind} over {where}: {c.count}× {c.bytes:,} B {c.dtype}{flag}  {c.source} {c.op_name}"
    )


def _planned_line(p: PlannedCollective) -> str:
    return f"{p.kind} over {', '.join(p.axes)}: {p.count}× {p.bytes:,} B  {p.source} {p.value}"
