"""Where a step's time goes: one bar by kind, and what is communicated along which axes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from xshard.plan.page.markup import Element, element
from xshard.plan.plan import Plan, PlannedCollective
from xshard.plan.units import duration, size

WIDTH = 1060
_HEIGHT = 26
_LABEL = 150
PHASES = {"fwd": "forward", "bwd": "backward", "update": "update"}


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a bar: its name, its CSS class and its time."""

    name: str
    look: str
    time_ns: int


def shares(plan: Plan) -> tuple[Share, ...]:
    """The step's time by phase of computation and kind of collective, without what takes none."""
    computed = [
        Share(f"compute, {name}", phase, sum(op.time_ns for op in plan.ops if op.phase == phase))
        for phase, name in PHASES.items()
    ]
    rest = plan.compute_ns - sum(share.time_ns for share in computed)
    kinds = dict.fromkeys(c.kind for c in plan.collectives)
    moved = [Share(kind, kind, _total(c for c in plan.collectives if c.kind == kind))
             for kind in kinds]  # fmt: skip
    moved.sort(key=lambda share: -share.time_ns)
    parts = (*computed, Share("other compute", "whole", rest), *moved)
    return tuple(share for share in parts if share.time_ns > 0)


def time_bar(plan: Plan) -> Element:
    """One bar of the whole step, and what its colours mean."""
    parts = shares(plan)
    total = sum(share.time_ns for share in parts)
    svg = _canvas(_HEIGHT, "time of a step by kind")
    _stack(svg, parts, 0, 0, WIDTH / max(total, 1))
    return element("div", element("div", svg, class_="wide"), time_keys(parts, total))


def time_keys(parts: Sequence[Share], total: int) -> Element:
    """Colours, names, times and percentages."""
    return keys((s.look, f"{s.name} {duration(s.time_ns)} ({s.time_ns / total:.0%})")
                for s in parts)  # fmt: skip


def keys(entries: Iterable[tuple[str, str]]) -> Element:
    """What colours mean: (CSS class, name)."""
    shown = [element("span", element("i", class_=look), name) for look, name in entries]
    return element("div", *shown, class_="keys")


def collective_bars(plan: Plan) -> Element | None:
    """For each set of mesh axes a bar of the time of its collectives; None where there are none."""
    rows = sorted(_by_axes(plan).items(), key=lambda row: -_total(row[1]))
    if not rows:
        return None
    scale = (WIDTH - _LABEL - 210) / max(_total(rows[0][1]), 1)
    svg = _canvas(len(rows) * (_HEIGHT + 6), "time of collectives by mesh axes")
    for i, (axes, found) in enumerate(rows):
        top = i * (_HEIGHT + 6)
        svg.append(element("text", axes, x=0, y=top + 17, class_="mono"))
        kinds = dict.fromkeys(c.kind for c in found)
        parts = [Share(kind, kind, _total(c for c in found if c.kind == kind)) for kind in kinds]
        end = _stack(svg, parts, _LABEL, top, scale)
        moved = size(sum(c.nbytes * c.count for c in found))
        text = f"{duration(_total(found))}, {moved} a device"
        svg.append(element("text", text, x=end + 8, y=top + 17))
    kinds = dict.fromkeys(c.kind for c in plan.collectives)
    return element("div", element("div", svg, class_="wide"), keys((k, k) for k in kinds))


def _by_axes(plan: Plan) -> dict[str, list[PlannedCollective]]:
    found: dict[str, list[PlannedCollective]] = {}
    for c in plan.collectives:
        found.setdefault("×".join(c.axes), []).append(c)
    return found


def _stack(svg: Element, parts: Iterable[Share], left: float, top: float, scale: float) -> float:
    """Draws parts one after the other; returns where the last one ends."""
    for share in parts:
        wide = share.time_ns * scale
        title = element("title", f"{share.name}: {duration(share.time_ns)}")
        svg.append(element("rect", title, x=left, y=top, width=max(wide, 0.5), height=_HEIGHT,
                           class_=share.look))  # fmt: skip
        if wide > 7 * len(share.name) + 8:
            svg.append(element("text", share.name, x=left + 6, y=top + 17, class_="onfill"))
        left += wide
    return left


def _canvas(height: float, what: str) -> Element:
    return element("svg", element("title", what), width=WIDTH, height=height, role="img",
                   viewBox=f"0 0 {WIDTH} {height:g}")  # fmt: skip


def _total(found: Iterable[PlannedCollective]) -> int:
    return sum(c.time_ns for c in found)
