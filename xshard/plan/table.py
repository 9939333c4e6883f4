"""Reports as plain data (lines and tables of strings), and their two looks: terminal and HTML.

Every string is shown as it is: names from the user's code are neither markup nor HTML.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rich import box
from rich import table as rich_table
from rich.console import Console, Group, RenderableType
from rich.text import Text

WIDTH = 110
"""Columns of a plain text report."""

_STYLE = "body{font:14px sans-serif;margin:2em} td,th{padding:2px 12px 2px 0}"


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


def to_html(parts: Sequence[Part]) -> str:
    """The report as an HTML fragment; all text is escaped."""
    inner = "".join(f"<pre>{escape(p)}</pre>" if isinstance(p, str) else _html(p) for p in parts)
    return f'<div class="xshard">{inner}</div>'


def to_page(title: str, fragment: str) -> str:
    """A whole HTML page around a fragment that `to_html` made."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{fragment}</body></html>\n'


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


def _html(table: Table) -> str:
    align = ["right" if c.startswith(">") else "left" for c in table.columns]
    head = _html_row("th", [c.removeprefix(">") for c in table.columns], align)
    body = "".join(_html_row("td", row, align) for row in table.rows)
    foot = f"<p>{escape(table.foot)}</p>" if table.foot else ""
    title = f"<h4>{escape(table.title)}</h4>"
    return f"{title}<table><thead>{head}</thead><tbody>{body}</tbody></table>{foot}"


def _html_row(tag: str, cells: Sequence[str], align: Sequence[str]) -> str:
    pairs = zip(cells, align, strict=True)
    inner = "".join(f'<{tag} style="text-align:{a}">{escape(c)}</{tag}>' for c, a in pairs)
    return f"<tr>{inner}</tr>"
