"""What a diff of two plans says."""

from __future__ import annotations

import dataclasses

from tests.plan.plans import ROWS, array, example
from xshard.plan.diff import Change
from xshard.spec import MeshShape

PLAN = example()


def test_equal_plans_do_not_differ():
    diff = PLAN.diff(example(seconds={}))
    assert not diff
    assert str(diff) == "the plans are equal"
    assert repr(diff) == "PlanDiff(0 changes; time none, peak memory none)"


def test_layers_that_change_alike_are_one_entry():
    moved = tuple(
        dataclasses.replace(a, spec=ROWS) if "params" in a.path else a for a in PLAN.arguments
    )
    diff = PLAN.diff(example(arguments=moved))
    assert diff.arguments == (
        Change(
            "args[0]['params']['layer_*']['mlp']['up']['kernel']",
            "float32[512,2048] P(None, 'model')",
            "float32[512,2048] P('data', None)",
            members=3,
        ),
    )
    assert diff and not diff.ops and not diff.settings
    assert repr(diff) == "PlanDiff(1 change; time none, peak memory none)"


def test_what_only_one_plan_has():
    diff = PLAN.diff(example(arguments=(*PLAN.arguments[:-1], array("args[2]", (8, 8), ROWS))))
    assert [(c.name, c.before is None, c.after is None) for c in diff.arguments] == [
        ("args[1]", False, True),
        ("args[2]", True, False),
    ]


def test_ops_are_matched_by_what_they_are_and_not_by_their_line():
    first, *rest = PLAN.ops
    moved = dataclasses.replace(first, source="model.py:99 (__call__)")
    assert not PLAN.diff(example(ops=(moved, *rest)))
    split = dataclasses.replace(moved, factors=(None, "i"))
    assert PLAN.diff(example(ops=(split, *rest))).ops == (
        Change("dot_general fwd layer_0/mlp/up (b i, i o -> b o)", "b→data, o→model", "i→model"),
    )


def test_equal_ops_are_told_apart_by_their_order():
    twice = (PLAN.ops[0], PLAN.ops[0])
    changed = (PLAN.ops[0], dataclasses.replace(PLAN.ops[0], factors=("b", None)))
    (change,) = example(ops=twice).diff(example(ops=changed)).ops
    assert change.name.endswith(" #2") and change.after == "b→data"


def test_ops_of_layers_that_change_alike_are_one_entry():
    layers = [dataclasses.replace(PLAN.ops[0], scope=f"h_{k}/up") for k in range(48)]
    moved = [dataclasses.replace(op, factors=("b", None)) for op in layers]
    (change,) = example(ops=tuple(layers)).diff(example(ops=tuple(moved))).ops
    assert change == Change(
        "dot_general fwd h_*/up (b i, i o -> b o)", "b→data, o→model", "b→data", members=48
    )


def test_a_long_list_is_cut_in_print_only():
    ops = tuple(dataclasses.replace(PLAN.ops[0], prim="f" * k) for k in range(1, 61))
    diff = example(ops=ops).diff(PLAN)
    assert len(diff.ops) == 63
    assert str(diff).endswith("and 23 other changes")


def test_settings_and_figures():
    other = example(
        mesh=MeshShape(("data", "model"), (4, 2)), memory_limit=None, objective_ns=5_000_000,
        peak_bytes=7_000_000, collectives=PLAN.collectives[:1],
    )  # fmt: skip
    diff = PLAN.diff(other)
    assert (diff.time_delta_ns, diff.peak_delta_bytes) == (214_433, -654_321)
    assert [c.name for c in diff.settings] == ["mesh", "memory limit"]
    assert [(c.name, c.after) for c in diff.figures] == [
        ("time", "5 ms  +214 µs (+4.5%)"),
        ("peak memory", "7 MB  -654 kB (-8.5%)"),
    ]
    assert diff.collectives == (Change("all-reduce data", "×4, 3.15 MB, 901 µs", None),)
    text = str(diff)
    assert "4.79 ms   5 ms  +214 µs (+4.5%)" in text and "30 GB                        none" in text
    assert "<table>" in diff._repr_html_()
