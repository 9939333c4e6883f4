"""Lines and tables of a report as HTML."""

from __future__ import annotations

from collections.abc import Sequence

from xshard.plan.page.markup import Element, element, render
from xshard.plan.page.style import style
from xshard.plan.table import Part, Table


def to_html(parts: Sequence[Part]) -> str:
    """The report as an HTML fragment; all text is escaped."""
    return render(element("div", style(), *map(part_element, parts), class_="xshard"))


def part_element(part: Part) -> Element:
    """Lines as they stand, or a titled table."""
    return element("pre", part) if isinstance(part, str) else titled(part)


def titled(table: Table) -> Element:
    """A table under its title."""
    return element("section", element("h4", table.title), plain(table))


def plain(table: Table) -> Element:
    """A table without its title, as wide as it needs, in a box that scrolls."""
    sides = ["right" if name.startswith(">") else None for name in table.columns]
    head = _row("th", [name.removeprefix(">") for name in table.columns], sides)
    body = element("tbody", *(_row("td", row, sides) for row in table.rows))
    foot = element("p", table.foot, class_="quiet") if table.foot else None
    grid = element("table", element("thead", head), body)
    return element("div", grid, foot, class_="wide")


def folded(title: str, *content: Element) -> Element:
    """What the reader opens when wanted."""
    return element("details", element("summary", title), *content)


def _row(tag: str, cells: Sequence[str], sides: Sequence[str | None]) -> Element:
    pairs = zip(cells, sides, strict=True)
    return element("tr", *(element(tag, cell, class_=side) for cell, side in pairs))
