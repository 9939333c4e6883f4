"""Reports as plain data (lines and tables of strings), and their look in a terminal.

Every string is shown as it is: names from the user's code are no markup. `page/` has their HTML.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich import table as rich_table
from rich.console import Console, Group, RenderableType
from rich.text import Text

WIDTH = 110
"""Columns of a plain text report."""


@dataclass(frozen=True, slots=True)
class Table:
    """A titled table; columns whose name starts with ">" are aligned to the right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    foot: str = ""


Part = str | Table


def to_rich(parts: Sequence[Part]) -> RenderableType:
    """The report for a rich console."""
    return Group(*(Text(p, overflow="fold") if isinstance(p, str) else _rich(p) for p in parts))


def to_text(parts: Sequence[Part], width: int = WIDTH) -> str:
    """The report as plain text of a fixed width, without colour and trailing blanks."""
    out = io.StringIO()
    console = Console(
        file=out, width=width, color_system=None, force_terminal=False, legacy_windows=False,
        force_jupyter=False, highlight=False,
    )  # fmt: skip
    console.print(to_rich(parts))
    return "\n".join(line.rstrip() for line in out.getvalue().strip("\n").splitlines())


def _rich(table: Table) -> RenderableType:
    shown = rich_table.Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in table.columns:
        right = column.startswith(">")
        shown.add_column(
            Text(column.removeprefix(">")), overflow="fold", justify="right" if right else "left",
            no_wrap=right,
        )  # fmt: skip
    for row in table.rows:
        shown.add_row(*(Text(cell) for cell in row))
    head = Text(f"\n{table.title}", style="bold")
    return Group(head, shown, *([Text(table.foot, style="dim")] if table.foot else []))
