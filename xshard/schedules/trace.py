"""Time lines as Chrome trace events, for chrome://tracing or https://ui.perfetto.dev.

The format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xshard.schedules.schedule import Task
from xshard.schedules.simulate import Timeline, Times


@dataclass(frozen=True, slots=True)
class Span:
    """Something that a track does for a while.

    Attributes:
      track: what does it, a row of the picture: "stage group 0".
      name: such as "fwd 3".
      kind: spans of a kind have a colour.
      start_ns, end_ns: from the start of the step.
      facts: shown when it is clicked at.
    """

    track: str
    name: str
    kind: str
    start_ns: int
    end_ns: int
    facts: Mapping[str, Any]


def predicted(line: Timeline, times: Times | None = None) -> list[Span]:
    """The spans of a simulated step; with `times`, its transfers as well."""
    placement = line.schedule.placement
    spans = [task_span(line.schedule.placement[t.stage], t, *s) for t, s in line.span_ns.items()]
    for task, (start, _) in line.span_ns.items() if times else ():
        for needed in line.schedule.waits_for(task):
            a, b = placement[needed.stage], placement[task.stage]
            took = times.transfer_ns.get((needed.stage, task.stage), 0) if times else 0
            if a != b and took:
                end = line.span_ns[needed][1]
                spans.append(transfer_span(a, b, task, end, min(end + took, start)))
    return spans


def task_span(group: int, task: Task, start_ns: int, end_ns: int) -> Span:
    """A task on its group's track."""
    facts = {"stage": task.stage, "microbatch": task.microbatch}
    name = f"{task.part} {task.microbatch}"
    return Span(f"group {group}", name, task.part, start_ns, end_ns, facts)


def transfer_span(a: int, b: int, task: Task, start_ns: int, end_ns: int) -> Span:
    """What is sent from group to group for a task."""
    facts = {"stage": task.stage, "microbatch": task.microbatch}
    return Span(f"group {a} to {b}", str(task.microbatch), "transfer", start_ns, end_ns, facts)


def chrome_trace(lines: Mapping[str, Sequence[Span]]) -> dict[str, Any]:
    """The JSON object of a trace with a process for each named line ("predicted", "measured")."""
    events: list[dict[str, Any]] = []
    for pid, (name, spans) in enumerate(lines.items()):
        events.append(_meta("process_name", pid, 0, name))
        tracks = sorted({s.track for s in spans}, key=_by_number)
        for tid, track in enumerate(tracks):
            events.append(_meta("thread_name", pid, tid, track))
        events += _events(pid, tracks, spans)
    return {"traceEvents": events, "displayTimeUnit": "ns"}


def save_trace(path: str | os.PathLike[str], lines: Mapping[str, Sequence[Span]]) -> None:
    """Writes the trace, one event a line."""
    trace = chrome_trace(lines)
    events = ",\n".join(map(json.dumps, trace["traceEvents"]))
    with open(path, "w", encoding="utf-8") as file:
        file.write(f'{{"traceEvents": [\n{events}\n], "displayTimeUnit": "ns"}}\n')


def _events(pid: int, tracks: Sequence[str], spans: Sequence[Span]) -> Iterator[dict[str, Any]]:
    place = {track: tid for tid, track in enumerate(tracks)}
    for s in sorted(spans, key=lambda s: (s.start_ns, s.track)):
        yield {
            "name": s.name, "cat": s.kind, "ph": "X", "pid": pid, "tid": place[s.track],
            "ts": s.start_ns / 1000, "dur": (s.end_ns - s.start_ns) / 1000, "args": dict(s.facts),
        }  # fmt: skip


def _meta(what: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}


def _by_number(track: str) -> tuple[bool, list[int], str]:
    """Tracks of groups in their order, those of transfers behind them."""
    return " to " in track, [int(word) for word in track.split() if word.isdigit()], track
