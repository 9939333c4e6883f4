"""Live memory over the time of a step, by kind, under the limit."""

from __future__ import annotations

from xshard.plan.page.bars import PHASES, WIDTH, keys
from xshard.plan.page.markup import Element, element
from xshard.plan.records import MemoryCurve
from xshard.plan.units import duration, size

_LEFT, _TOP, _BOTTOM = 76, 22, 24
_FAR = 2.5
"""A limit that many times above the peak is named and not drawn."""


class _Scale:
    """From nanoseconds and bytes to places in the figure."""

    def __init__(self, curve: MemoryCurve, top: int, height: int) -> None:
        self.height = height
        self.end_ns, self.top = max(curve.end_ns, 1), max(top, 1)

    def x(self, ns: float) -> float:
        return _LEFT + (WIDTH - _LEFT - 8) * ns / self.end_ns

    def y(self, nbytes: float) -> float:
        room = self.height - _TOP - _BOTTOM
        return _TOP + room * (1 - nbytes / self.top)


def memory_figure(curve: MemoryCurve, limit: int | None, height: int = 300) -> Element:
    """The curve as stacked areas, its peak and limit, phases and what the colours mean."""
    peak = max(curve.totals(), default=0)
    drawn = limit if limit is not None and limit <= _FAR * peak else None
    scale = _Scale(curve, int(1.08 * max(peak, drawn or 0)), height)
    svg = element("svg", element("title", "live memory over the time of a step"), width=WIDTH,
                  height=height, role="img", viewBox=f"0 0 {WIDTH} {height}")  # fmt: skip
    svg.extend(_grid(scale))
    svg.extend(_areas(curve, scale))
    svg.extend(_phases(curve, scale))
    svg.append(_peak(curve, scale, peak))
    svg.extend([] if drawn is None else _limit(drawn, scale))
    looks = [(_look(part.kind), part.kind) for part in curve.parts]
    note = None if limit is None or drawn else element("p", _far(limit, peak), class_="quiet")
    return element("div", element("div", svg, class_="wide"), keys(looks), note)


def _far(limit: int, peak: int) -> str:
    return f"The limit of {size(limit)} is {limit / max(peak, 1):.0f} times the peak: not drawn."


def _look(kind: str) -> str:
    return kind.partition(" ")[0]


def _grid(scale: _Scale) -> list[Element]:
    """Lines at quarters of the height, and times below."""
    found: list[Element] = []
    for i in range(5):
        y = scale.y(scale.top * i / 4)
        found.append(element("path", d=f"M{_LEFT} {y:.1f}H{WIDTH - 8}", class_="grid"))
        text = size(scale.top * i / 4)
        found.append(element("text", text, x=_LEFT - 8, y=y + 4, text_anchor="end"))
        x, place = (
            scale.x(scale.end_ns * i / 4),
            "end" if i == 4 else "start" if not i else "middle",
        )
        text = duration(scale.end_ns * i / 4)
        found.append(element("text", text, x=x, y=scale.height - 6, text_anchor=place))
    return found


def _areas(curve: MemoryCurve, scale: _Scale) -> list[Element]:
    """One area a kind, each on those before it."""
    below = [0] * len(curve.starts_ns)
    found: list[Element] = []
    for part in curve.parts:
        above = [a + b for a, b in zip(below, part.nbytes, strict=True)]
        edge = _steps(curve, above, scale)
        back = _steps(curve, below, scale)[::-1]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in (*edge, *back)) + "Z"
        title = element("title", f"{part.kind}: at most {size(max(part.nbytes, default=0))}")
        found.append(element("path", title, d=path, class_=_look(part.kind)))
        below = above
    return found


def _steps(curve: MemoryCurve, heights: list[int], scale: _Scale) -> list[tuple[float, float]]:
    """The corners of a curve that is level within each stretch; corners on a line are left out."""
    stops = [*curve.starts_ns, curve.end_ns][1:]
    found: list[tuple[float, float]] = []
    for start, stop, height in zip(curve.starts_ns, stops, heights, strict=True):
        y = scale.y(height)
        if found and found[-1][1] == y:
            found.pop()
        else:
            found.append((scale.x(start), y))
        found.append((scale.x(stop), y))
    return found


def _phases(curve: MemoryCurve, scale: _Scale) -> list[Element]:
    """Where forward, backward and update begin; names that would overlap are left out."""
    found: list[Element] = []
    free = 0.0
    for phase, start in curve.phases:
        x = scale.x(start)
        found.append(element("path", d=f"M{x:.1f} {_TOP - 8}V{scale.height - _BOTTOM}",
                             class_="grid"))  # fmt: skip
        if x >= free:
            name = PHASES.get(phase, phase)
            found.append(element("text", name, x=x + 4, y=12, class_="quiet"))
            free = x + 7 * len(name) + 8
    return found


def _peak(curve: MemoryCurve, scale: _Scale, peak: int) -> Element:
    totals = curve.totals()
    start = curve.starts_ns[totals.index(peak)] if totals else 0
    x, late = scale.x(start), start > scale.end_ns * 0.8
    return element("text", f"peak {size(peak)}", x=x + (-4 if late else 4), y=scale.y(peak) - 5,
                   text_anchor="end" if late else "start")  # fmt: skip


def _limit(limit: int, scale: _Scale) -> list[Element]:
    y = scale.y(limit)
    line = element("path", d=f"M{_LEFT} {y:.1f}H{WIDTH - 8}", class_="limit")
    text = element("text", f"limit {size(limit)}", x=WIDTH - 12, y=y - 5, text_anchor="end",
                   class_="limittext")  # fmt: skip
    return [line, text]
