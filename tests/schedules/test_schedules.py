"""Each schedule, for any numbers: complete, without deadlock, and as its formulas say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.schedules.oracles import brute_force
from xshard.errors import ScheduleError
from xshard.schedules import (
    BWD,
    FWD,
    SCHEDULES,
    InFlight,
    Schedule,
    Task,
    Times,
    build,
    check,
    in_flight,
    simulate,
)
from xshard.schedules.formulas import bubble, makespan_ns, most_in_flight

NAMES = st.sampled_from(list(SCHEDULES))
FEW = st.integers(1, 5)
NS = st.integers(1, 30)


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    name = draw(NAMES)
    return build(
        name, draw(FEW), draw(st.integers(1, 9)), draw(FEW) if name == "interleaved" else 1
    )


@given(schedules())
def test_every_table_is_complete_and_comes_to_its_end(schedule: Schedule) -> None:
    check(schedule)


@given(schedules(), st.data())
def test_the_simulator_agrees_with_brute_force(schedule: Schedule, data: st.DataObject) -> None:
    """For times that differ from stage to stage, and transfers."""
    times = Times.even(schedule, **dict.fromkeys(schedule.parts, 1))
    times = Times(
        {key: data.draw(NS) for key in times.task_ns},
        {key: data.draw(st.integers(0, 9)) for key in times.transfer_ns},
    )
    assert dict(simulate(schedule, times).span_ns) == brute_force(schedule, times)


@given(NAMES, FEW, FEW, st.integers(1, 4), NS, NS)
def test_formulas_of_time(name: str, p: int, rounds: int, v: int, f: int, b: int) -> None:
    v = v if name == "interleaved" else 1
    b, w = (f, f) if name == "zero_bubble" else (b, 0)
    schedule = build(name, p, rounds * p, v)
    line = simulate(schedule, Times.even(schedule, fwd=f, bwd=b, bwd_weight=w))
    assert line.makespan_ns == makespan_ns(name, p, rounds * p, v, f=f, b=b, w=w)
    assert line.bubble == pytest.approx(bubble(name, p, rounds * p, v, f=f, b=b, w=w))


@given(schedules())
def test_formulas_of_memory(schedule: Schedule) -> None:
    p, m = schedule.num_groups, schedule.microbatches
    v = schedule.num_stages // p
    for g, held in enumerate(in_flight(schedule)):
        assert held.residuals == most_in_flight(schedule.name, g, p, m, v)


def test_a_table_as_text() -> None:
    assert str(build("1f1b", 2, 3)) == "group 0: F0 F1 B0 F2 B1 B2\ngroup 1: F0 B0 F1 B1 F2 B2"
    assert (
        str(build("zero_bubble", 2, 2)) == "group 0: F0 F1 B0 W0 B1 W1\ngroup 1: F0 B0 F1 B1 W0 W1"
    )
    assert str(build("interleaved", 2, 2, 2)).splitlines()[0] == (
        "group 0: F0 F1 F0'1 F1'1 B0'1 B1'1 B0 B1"
    )


def test_weight_parts_wait_on_later_groups() -> None:
    assert in_flight(build("zero_bubble", 3, 8)) == (InFlight(3, 1), InFlight(3, 2), InFlight(3, 3))


def _with_rows(rows: tuple[tuple[Task, ...], ...]) -> Schedule:
    return replace(build("gpipe", 2, 1), rows=rows)


WRONG = [
    (
        ((Task(0, FWD, 0),), (Task(1, FWD, 0), Task(1, BWD, 0))),
        "bwd of microbatch 0 on stage 0 is 0 t",
    ),
    (((Task(0, FWD, 0), Task(0, BWD, 0)), (Task(1, FWD, 0),) * 2), "stage 1 is 0 times"),
    (
        ((Task(1, FWD, 0), Task(0, BWD, 0)), (Task(0, FWD, 0), Task(1, BWD, 0))),
        "in the row of group 0",
    ),
    (
        ((Task(0, BWD, 0), Task(0, FWD, 0)), (Task(1, FWD, 0), Task(1, BWD, 0))),
        "group 0 has bwd of microbatch 0 on stage 0 next, which waits for fwd of microbatch 0 "
        "on stage 0; group 1 has fwd of microbatch 0 on stage 1 next, which waits for fwd",
    ),
]


@pytest.mark.parametrize(("rows", "message"), WRONG)
def test_a_wrong_table_is_refused(rows: tuple[tuple[Task, ...], ...], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        check(_with_rows(rows))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("2f2b", 2, 2), "'2f2b' is unknown; use one of gpipe, 1f1b, interleaved, zero_bubble"),
        (("gpipe", 0, 2), "at least one of groups, not 0"),
        (("1f1b", 2, 2, 2), "one stage on each group of devices, not 2; use 'interleaved'"),
    ],
)
def test_bad_input(arguments: tuple[str, int, int], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        build(*arguments)
