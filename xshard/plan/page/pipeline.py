"""The report of a pipelined step: its schedule, its stages, and the plan of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from xshard.plan.page.bars import collective_bars, time_bar
from xshard.plan.page.markup import Element, element, render
from xshard.plan.page.memory import memory_figure
from xshard.plan.page.report import document
from xshard.plan.page.schedule import schedule_figure
from xshard.plan.page.shardings import sharding_map
from xshard.plan.page.style import style
from xshard.plan.page.tables import folded, plain
from xshard.plan.plan import Plan
from xshard.plan.table import Table
from xshard.schedules import Timeline


def page(head: str, line: Timeline, tables: Sequence[Table], programs: Mapping[str, Plan]) -> str:
    """A whole HTML file.

    Args:
      head: the step's figures, a line each.
      programs: the plan of each stage, by name.
    """
    title = f"xshard: {line.schedule.num_stages} stages, {line.schedule.name}"
    stages = (folded(name, *_stage(plan)) for name, plan in programs.items())
    return document(title, *_front("h1", head, line, tables), element("h2", "Stages"), *stages)


def fragment(head: str, line: Timeline, tables: Sequence[Table]) -> str:
    """What a notebook shows."""
    return render(element("div", style(), *_front("h4", head, line, tables), class_="xshard"))


def _front(tag: str, head: str, line: Timeline, tables: Sequence[Table]) -> Iterator[Element]:
    yield element(tag, "Pipeline")
    yield element("pre", head)
    yield schedule_figure(line)
    yield from (plain(table) for table in tables)


def _stage(plan: Plan) -> Iterator[Element]:
    yield element("h3", "Time of all that the stage runs once")
    yield time_bar(plan)
    for curve in plan.memory:
        yield element("h3", "Memory of a device")
        yield memory_figure(curve, plan.memory_limit, height=220)
    yield sharding_map(plan)
    bars = collective_bars(plan)
    if bars is not None:
        yield bars
