"""Plans as JSON: round trips, the same bytes, atomic files, and all ways to be a wrong file."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plan.plans import alternatives, example
from xshard.errors import PlanError
from xshard.plan.check import KINDS
from xshard.plan.plan import (
    CostSources,
    LiveTensor,
    MemoryCurve,
    MemoryPart,
    Plan,
    PlannedArray,
    PlannedCollective,
    PlannedOp,
)
from xshard.spec import MeshShape

small = st.integers(0, 10**15)
text = st.text(max_size=6)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any plan."""
    names = draw(st.lists(text, min_size=1, max_size=3, unique=True))
    mesh = MeshShape(tuple(names), tuple(draw(st.integers(1, 9)) for _ in names))

    def spec(rank: int) -> Any:
        places = [draw(st.integers(-1, rank - 1)) for _ in names]
        return tuple(tuple(a for a, d in enumerate(places) if d == dim) for dim in range(rank))

    def several(make: Any) -> tuple[Any, ...]:
        return tuple(make() for _ in range(draw(st.integers(0, 2))))

    def shape() -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(0, 99), max_size=3)))

    def array() -> PlannedArray:
        dims = shape()
        figures = draw(small), draw(st.booleans())
        return PlannedArray(draw(text), dims, draw(text), spec(len(dims)), *figures)

    def op() -> PlannedOp:
        factors = tuple(draw(st.none() | text) for _ in names)
        ins, outs = several(lambda: spec(2)), several(lambda: spec(1))
        scope, rule = draw(text), draw(text)
        return PlannedOp("dot", "fwd", scope, "", 1, draw(small), rule, factors, ins, outs, 7)

    def collective() -> PlannedCollective:
        kind = draw(st.sampled_from(KINDS))
        axes = tuple(draw(st.lists(st.sampled_from(names), unique=True)))
        return PlannedCollective(kind, axes, draw(small), draw(small), 5, draw(text))

    def curve() -> MemoryCurve:
        starts = sorted(draw(st.lists(small, max_size=3)))
        nbytes = tuple(draw(small) for _ in starts)
        return MemoryCurve(tuple(starts), 10**15, (MemoryPart(draw(text), nbytes),), (("fwd", 0),))

    values = several(lambda: spec(2))
    copies = several(lambda: (len(values) - 1, draw(text), spec(1))) if values else ()
    return Plan(
        draw(text), mesh, draw(text), several(array), several(array), several(op), values, copies,
        several(collective), several(lambda: LiveTensor(draw(text), shape(), draw(text), 1, 2)),
        draw(small), draw(small), draw(small), draw(small), draw(small),
        draw(st.none() | st.integers(1, 10**15)), several(lambda: draw(text)),
        CostSources(draw(small), draw(small), draw(small)), {"solve": 1.0}, memory=several(curve),
    )  # fmt: skip


@given(plans())
@settings(max_examples=60)
def test_round_trip(plan: Plan):
    json_text = plan.to_json()
    again = Plan.from_json(json_text)
    assert again == plan
    assert again.to_json() == json_text
    assert again.seconds == {}
    assert str(again) and again._repr_html_()


def test_timings_and_callables_are_not_saved():
    slow = example(seconds={"solve": 99.0}, _alternatives=alternatives([]))
    assert slow.to_json() == example(seconds={}).to_json()
    assert Plan.from_json(slow.to_json())._alternatives is None


def test_every_field_is_saved_or_named_as_not():
    fields = {field.name for field in dataclasses.fields(Plan)}
    saved = set(json.loads(example().to_json())) - {"schema", "version"}
    assert fields - saved == {"seconds", "_alternatives", "_templates", "_step", "_replan"}


def test_files(tmp_path: Path):
    path = tmp_path / "plan.json"
    example().save(path)
    assert Plan.load(path) == Plan.load(str(path)) == example()
    assert os.listdir(tmp_path) == ["plan.json"]


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "plan.json"
    example().save(path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PlanError, match=r"cannot write .*: No space left on device"):
        example(cluster="other").save(path)
    assert Plan.load(path) == example()
    assert os.listdir(tmp_path) == ["plan.json"]


def test_a_linked_file_stays_a_link(tmp_path: Path):
    (tmp_path / "link.json").symlink_to(tmp_path / "plan.json")
    example().save(tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert Plan.load(tmp_path / "plan.json") == example()


def test_a_file_that_cannot_be_written_or_read(tmp_path: Path):
    gone = tmp_path / "none" / "plan.json"
    with pytest.raises(
        PlanError, match=r"cannot write .*plan\.json: No such file.*; give the path"
    ):
        example().save(gone)
    with pytest.raises(PlanError, match=r"cannot read plan file .*plan\.json: No such file"):
        Plan.load(gone)
    with pytest.raises(PlanError, match="Is a directory"):
        Plan.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"\x80\x04\x95", "is not a plan of xshard: it is not text"),
        (b"hello", "is not a plan of xshard: no JSON in line 1"),
        (b"[1, 2]", "is not a plan of xshard: it holds no JSON object"),
        (b'{"params": 3}', 'is not a plan of xshard: no "schema": "xshard.plan"'),
        (b'{"a": 1, "a": 2}', "is not a plan of xshard: field 'a' stands twice"),
        (b"[" * 200_000, "is not a plan of xshard"),
        (b"9" * 9_999, "is not a plan of xshard"),
    ],
)
def test_foreign_files(tmp_path: Path, content: bytes, problem: str):
    path = tmp_path / "foreign.json"
    path.write_bytes(content)
    with pytest.raises(PlanError) as error:
        Plan.load(path)
    message = str(error.value)
    assert message.startswith(f"plan file {path} {problem}")
    assert message.endswith("; save the plan again with plan.save(path)")
    assert "\n" not in message


@pytest.mark.parametrize("keep", range(1, len(example().to_json()) - 2, 97))
def test_a_truncated_file_says_so(keep: int):
    cut = example().to_json()[:keep]
    with pytest.raises(PlanError, match=r"^the plan is truncated: it ends in line \d+"):
        Plan.from_json(cut)


WRONG = [
    (("version",), 1, "the plan has version 1 of the format, and this xshard reads version 3"),
    (("version",), True, "has version True of the format"),
    (("fingerprint",), 3, "field fingerprint must be a string, and is 3"),
    (("peak_bytes",), 1.5, "field peak_bytes must be an integer, and is 1.5"),
    (("peak_bytes",), True, "field peak_bytes must be an integer, and is True"),
    (("peak_bytes",), -1, "field peak_bytes is negative: -1"),
    (("memory_limit",), "30GB", "field memory_limit must be an integer, and is '30GB'"),
    (("memory_limit",), 0, "field memory_limit is not positive"),
    (("mesh",), None, "field mesh must be an object, and is None"),
    (("mesh", "sizes"), [2], "the plan cannot be used: field mesh: "),
    (("mesh", "sizes", 1), 0, "field mesh: a mesh axis has at least one device"),
    (("arguments", 0, "shape", 1), "x", r"field arguments\[0\].shape\[1\] must be an integer"),
    (("arguments", 0, "spec", 0), 1, r"field arguments\[0\].spec\[0\] must be a list, and is 1"),
    (
        ("arguments", 0, "spec", 1),
        [5],
        r"field arguments\[0\].spec names no axis of data=2×model=4",
    ),
    (("arguments", 0, "spec", 1), [1, 1], r"field arguments\[0\].spec uses a mesh axis twice"),
    (("arguments", 0, "spec"), [[]], r"field arguments\[0\].spec needs 2 dimensions"),
    (("arguments", 0, "pinned"), 1, r"field arguments\[0\].pinned must be true or false, and is 1"),
    (("arguments", 0), [], r"field arguments\[0\] must be an object"),
    (("ops", 1, "factors"), [None], r"field ops\[1\].factors needs 2 entries"),
    (("copies", 0), [2, "bwd"], r"field copies\[0\] must have 3 items, and has 2"),
    (("copies", 0, 0), 9, r"field copies\[0\]\[0\] names no value: 9"),
    (("collectives", 0, "kind"), "gossip", r"field collectives\[0\].kind is none of all-reduce"),
    (("collectives", 0, "axes", 0), "z", r"field collectives\[0\].axes names no axis of the mesh"),
    (("extra",), 1, "field extra is unknown"),
    (("arguments", 0, "extra"), 1, r"field arguments\[0\].extra is unknown"),
]


@pytest.mark.parametrize(("where", "value", "problem"), WRONG)
def test_a_wrong_field_is_named(where: tuple[Any, ...], value: Any, problem: str):
    record = json.loads(example().to_json())
    place = record
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    with pytest.raises(PlanError, match=problem):
        Plan.from_json(json.dumps(record))


def test_a_missing_field_is_named():
    whole = json.loads(example().to_json())
    for name in set(whole) - {"schema", "version"}:
        record = copy.deepcopy(whole)
        del record[name]
        with pytest.raises(PlanError, match=f"the plan cannot be used: field {name} is missing; "):
            Plan.from_json(json.dumps(record))
