"""A time line as Chrome trace events."""

from __future__ import annotations

import json
from pathlib import Path

from xshard.schedules import Times, build, simulate
from xshard.schedules.trace import predicted, save_trace

EVENTS = [
    "M process_name predicted",
    "M thread_name group 0",
    "M thread_name group 1",
    "M thread_name group 0 to 1",
    "M thread_name group 1 to 0",
    "X fwd 0 @0 0+1",
    "X 0 @2 1+0.5",
    "X fwd 0 @1 1.5+1",
    "X bwd 0 @1 2.5+2",
    "X 0 @3 4.5+0.5",
    "X bwd 0 @0 5+2",
]


def _line(event: dict) -> str:
    if event["ph"] == "M":
        return f"M {event['name']} {event['args']['name']}"
    return f"X {event['name']} @{event['tid']} {event['ts']:g}+{event['dur']:g}"


def test_tasks_and_transfers_stand_on_their_tracks(tmp_path: Path) -> None:
    schedule = build("gpipe", 2, 1)
    times = Times.even(schedule, transfer_ns=500, fwd=1000, bwd=2000)
    save_trace(tmp_path / "plan.json", {"predicted": predicted(simulate(schedule, times), times)})
    trace = json.loads((tmp_path / "plan.json").read_text())
    assert list(map(_line, trace["traceEvents"])) == EVENTS
