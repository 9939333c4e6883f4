"""The report of a plan: a page for a file, and a smaller piece of it for a notebook.

A page has no script and loads nothing; its content policy forbids both, whatever a name contains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xshard.plan import diff, explain, text
from xshard.plan.page.bars import collective_bars, time_bar
from xshard.plan.page.markup import Element, element, render
from xshard.plan.page.memory import memory_figure
from xshard.plan.page.shardings import sharding_map
from xshard.plan.page.style import style
from xshard.plan.page.tables import folded, part_element, plain
from xshard.plan.plan import Plan, Trial
from xshard.plan.table import Table
from xshard.plan.units import change, duration, mesh_text, optimality, size

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(plan: Plan, against: Plan | None, explained: Sequence[explain.Explanation] = ()) -> str:
    """The whole report as one HTML file."""
    title = f"xshard: {plan.mesh} on {plan.cluster}"
    return document(title, *_sections(plan, against, explained))


def document(title: str, *content: Element) -> str:
    """An HTML file around these elements."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width"),
        element("title", title),
        style("page.css"),
        style(),
    )
    body = element("body", element("main", *content, class_="xshard"))
    return "<!doctype html>\n" + render(element("html", head, body, lang="en"))


def fragment(plan: Plan) -> str:
    """What a notebook shows: figures in front, tables folded."""
    found = text.tables(plan)
    curves = [memory_figure(curve, plan.memory_limit, height=220) for curve in plan.memory]
    tables = [folded(title, plain(table)) for title, table in found.items()]
    notes = [folded("Notes", *(element("p", note) for note in plan.notes))] if plan.notes else []
    figures = [time_bar(plan), *curves]
    head = folded("Settings and predictions", element("pre", text.header(plan)))
    whole = element("div", style(), tiles(plan), *figures, head, *tables, *notes, class_="xshard")
    return render(whole)


def tiles(plan: Plan, against: Plan | None = None) -> Element:
    """The figures that matter most, each with its distance to another plan's if there is one."""
    limit = "no limit" if plan.memory_limit is None else f"limit {size(plan.memory_limit)}"
    figures = [
        (duration(plan.objective_ns), "predicted time of a step"),
        (size(plan.peak_bytes), f"predicted peak of a device ({limit})"),
        (mesh_text(plan.mesh), plan.cluster),
        (f"{plan.gap:.1%}", optimality(plan.objective_ns, plan.bound_ns)),
    ]
    if plan.microbatches > 1:
        figures.append((str(plan.microbatches), "microbatches"))
    if against is not None:
        time = change(plan.objective_ns, against.objective_ns, duration)
        peak = change(plan.peak_bytes, against.peak_bytes, size)
        figures += [(time, "time of the other plan"), (peak, "memory of the other plan")]
    made = [element("div", element("strong", value), element("span", name), class_="tile")
            for value, name in figures]  # fmt: skip
    return element("div", *made, class_="tiles")


def _sections(
    plan: Plan, against: Plan | None, explained: Sequence[explain.Explanation]
) -> Iterator[Element]:
    tables = text.tables(plan)
    yield element("h1", "Plan")
    yield tiles(plan, against)
    yield element("pre", text.header(plan))
    if plan.notes:
        yield _section("Notes", *(element("p", note) for note in plan.notes))
    yield _section("Time of a step", time_bar(plan))
    yield from _memory(plan, tables)
    yield _section("Sharding map", sharding_map(plan))
    bars = collective_bars(plan)
    if bars is not None:
        yield _section("Communication by mesh axes", bars, plain(tables["Communication"]))
    if "Against templates" in tables:
        yield _section("Against templates", plain(tables["Against templates"]))
    yield from _lost(plan, explained)
    if against is not None:
        yield _section("The other plan", *_other(plan, against))
    yield _section("All tables", *(
        folded(title, plain(tables[title]))
        for title in ("Arguments", "Results", "Main ops") if title in tables
    ))  # fmt: skip


def _section(title: str, *content: Element) -> Element:
    return element("section", element("h2", title), *content)


def _memory(plan: Plan, tables: dict[str, Table]) -> Iterator[Element]:
    content: list[Element] = []
    for i, curve in enumerate(plan.memory):
        if len(plan.memory) > 1:
            content.append(element("h3", f"Stage {i}"))
        content.append(memory_figure(curve, plan.memory_limit))
    peak = "Live at the peak"
    content += [part_element(tables[peak])] if peak in tables else []
    if content:
        yield _section("Memory of a device", *content)


def _lost(plan: Plan, explained: Sequence[explain.Explanation]) -> Iterator[Element]:
    """What was looked at and not taken."""
    content: list[Element] = []
    if plan.trials:
        rows = tuple(_trial_row(trial, plan) for trial in plan.trials)
        columns = ("microbatches", ">time", ">peak memory", ">against the plan")
        content.append(part_element(Table("Ways to run the step", columns, rows)))
    for answer in explained:
        content += [part_element(part) for part in explain.report(answer)]
    if content:
        yield _section("Alternatives that lost", *content)


def _trial_row(trial: Trial, plan: Plan) -> tuple[str, ...]:
    if trial.time_ns is None:
        return text.way(trial), text.outcome(trial), "", ""
    taken = (trial.microbatches, trial.recomputed) == (
        plan.microbatches, tuple(layers.recomputed for layers in plan.remat)
    )  # fmt: skip
    more = "taken" if taken else change(plan.objective_ns, trial.time_ns, duration)
    return text.way(trial), text.outcome(trial), size(trial.peak_bytes or 0), more


def _other(plan: Plan, against: Plan) -> Iterator[Element]:
    yield element("pre", text.header(against))
    yield time_bar(against)
    for curve in against.memory:
        yield memory_figure(curve, against.memory_limit, height=220)
    yield from (part_element(part) for part in diff.report(plan.diff(against)))
