"""The schedule of a pipeline: what each group of devices runs when, and when it waits."""

from __future__ import annotations

from collections import defaultdict

from xshard.plan.page.bars import WIDTH, keys
from xshard.plan.page.markup import Element, element
from xshard.plan.units import duration
from xshard.schedules import Timeline

_LEFT, _ROW, _BOTTOM = 76, 30, 24
_LOOKS = {"fwd": "fwd", "bwd": "bwd", "bwd_weight": "update"}
_NAMES = {"fwd": "forward", "bwd": "backward", "bwd_weight": "gradients of weights"}


def schedule_figure(line: Timeline) -> Element:
    """A row for each group with its tasks, numbered by microbatch where there is room.

    Tasks of a group's second and further stages (interleaved schedules) are paler.
    """
    schedule, end = line.schedule, max(line.makespan_ns, 1)
    height = _ROW * schedule.num_groups + _BOTTOM
    svg = element("svg", element("title", "pipeline schedule"), width=WIDTH, height=height,
                  role="img", viewBox=f"0 0 {WIDTH} {height}")  # fmt: skip
    scale = (WIDTH - _LEFT - 8) / end
    for group in range(schedule.num_groups):
        svg.append(element("text", f"group {group}", x=0, y=group * _ROW + 18))
        svg.append(element("rect", x=_LEFT, y=group * _ROW, width=end * scale, height=_ROW - 4,
                           class_="whole"))  # fmt: skip
    svg.extend(_tasks(line, scale))
    svg.extend(_numbers(line, scale))
    for i in range(5):
        place = "end" if i == 4 else "middle" if i else "start"
        svg.append(element("text", duration(end * i / 4), x=_LEFT + end * i / 4 * scale,
                           y=height - 6, text_anchor=place))  # fmt: skip
    looks = [(_LOOKS[part], _NAMES[part]) for part in schedule.parts]
    wide = element("div", svg, class_="wide")
    return element("div", wide, keys([*looks, ("whole", f"waiting ({line.bubble:.1%})")]))


def _tasks(line: Timeline, scale: float) -> list[Element]:
    """One path for all tasks of a part and a chunk: there may be thousands."""
    schedule = line.schedule
    paths: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for task, (start, stop) in line.span_ns.items():
        group = schedule.placement[task.stage]
        later = task.stage != schedule.placement.index(group)
        wide = max((stop - start) * scale - 0.6, 0.4)
        left, top = _LEFT + start * scale, group * _ROW
        paths[task.part, later].append(f"M{left:.1f} {top}h{wide:.1f}v{_ROW - 4}h{-wide:.1f}z")
    return [
        element("path", d="".join(found), class_=_LOOKS[part], opacity=0.6 if later else None)
        for (part, later), found in sorted(paths.items())
    ]


def _numbers(line: Timeline, scale: float) -> list[Element]:
    """The microbatches' numbers, from 1."""
    found: list[Element] = []
    for task, (start, stop) in line.span_ns.items():
        text = str(task.microbatch + 1)
        if (stop - start) * scale > 7 * len(text) + 4:
            x, group = _LEFT + (start + stop) / 2 * scale, line.schedule.placement[task.stage]
            found.append(element("text", text, x=x, y=group * _ROW + 17, text_anchor="middle",
                                 class_="onfill"))  # fmt: skip
    return found
