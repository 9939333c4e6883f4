"""Planned against compiled: a table of small ledgers."""

import json
from typing import Any

import pytest

from xshard.verify.audit import PlannedCollective, audit
from xshard.verify.collectives import Collective, Kind

Short = tuple[Kind, str, int, int]  # kind, axes as letters, bytes, count


def planned(kind: Kind, axes: str, size: int, count: int = 1, **more: Any) -> PlannedCollective:
    return PlannedCollective(kind, tuple(axes), size, count, **more)


def compiled(kind: Kind, axes: str, size: int, count: int = 1, **more: Any) -> Collective:
    given: dict[str, Any] = {"dtype": "f32", "group_size": 2, "groups": "{}"}
    given |= {"count_from": "known", "in_branch": False, "op_name": "", "source": ""}
    return Collective("name", kind, tuple(axes), size, count=count, **{**given, **more})


AR, AG, RS, A2A = "all-reduce", "all-gather", "reduce-scatter", "all-to-all"
S = 800  # bytes; beyond the size of scalars
CASES = {  # name: target, planned, compiled, ok, unplanned, missing
    "equal": ("gpu", [(AR, "a", 800, 1)], [(AR, "a", 800, 1)], True, [], []),
    "nothing": ("gpu", [], [], True, [], []),
    "combined": ("gpu", [(AG, "a", 400, 2)], [(AG, "a", 800, 1)], True, [], []),
    "unrolled": ("gpu", [(AG, "a", 400, 3)], [(AG, "a", 400, 1)] * 3, True, [], []),
    "within 5%": ("gpu", [(AR, "a", 1000, 1)], [(AR, "a", 1040, 1)], True, [], []),
    "a scalar more": ("gpu", [], [(AR, "a", 4, 24)], True, [(AR, "a", 4, 24)], []),
    "padding": ("gpu", [(AR, "a", 1000, 1)], [(AR, "a", 1100, 1)], False, [], []),
    "surprise": ("gpu", [(AR, "a", 900, 1)], [(AR, "a", 900, 1), (AG, "b", 500, 2)], False,
                 [(AG, "b", 500, 2)], []),
    "surprise beside its like": ("gpu", [(AG, "a", 900, 3)], [(AG, "a", 900, 3), (AG, "a", 500, 2)],
                                 False, [(AG, "a", 500, 2)], []),
    "surprise of a planned size": ("gpu", [(AG, "a", 100, 3)],
                                   [(AG, "a", 300, 1), (AG, "a", 100, 1)],
                                   False, [(AG, "a", 100, 1)], []),
    "absent": ("gpu", [(AR, "a", 900, 1), (A2A, "b", 700, 1)], [(AR, "a", 900, 1)], False,
               [], [(A2A, "b", 700, 1)]),
    "gpu scatters": ("gpu", [(RS, "a", 800, 1)], [(AR, "a", 800, 1)], False,
                     [(AR, "a", 800, 1)], [(RS, "a", 800, 1)]),
    "cpu reduces": ("cpu", [(RS, "a", 800, 1)], [(AR, "a", 800, 1)], True, [], []),
    "cpu scatters too": ("cpu", [(RS, "a", 800, 1)], [(RS, "a", 800, 1)], True, [], []),
    "one over both": ("gpu", [(AR, "a", S, 1), (AR, "b", S, 1)], [(AR, "ab", S, 1)], True, [], []),
    "both for one": ("gpu", [(AR, "ab", S, 1)], [(AR, "a", S, 1), (AR, "b", S, 1)], True, [], []),
    "three for one": ("gpu", [(AR, "abc", S, 1)], [(AR, x, S, 1) for x in "abc"], True, [], []),
    "a pair, one": ("gpu", [(AR, "abc", S, 1)], [(AR, "ac", S, 1), (AR, "b", S, 1)], True, [], []),
    "half is not both": ("gpu", [(AR, "ab", S, 1)], [(AR, "a", S, 1)], False,
                         [(AR, "a", S, 1)], [(AR, "ab", S, 1)]),
    "gathers do not settle": ("gpu", [(AG, "ab", S, 1)], [(AG, "a", S, 1), (AG, "b", S, 1)], False,
                              [(AG, "a", S, 1), (AG, "b", S, 1)], [(AG, "ab", S, 1)]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    target, plan, found, ok, unplanned, missing = CASES[name]
    result = audit([planned(*p) for p in plan], tuple(compiled(*c) for c in found), target=target)
    assert [(c.kind, "".join(c.axes), c.bytes, c.count) for c in result.unplanned] == unplanned
    assert [(p.kind, "".join(p.axes), p.bytes, p.count) for p in result.missing] == missing
    assert result.ok() is ok


def test_the_cpu_compiler_moves_bfloat16_as_float32() -> None:
    plan = [planned("all-gather", "a", 400, dtype="bfloat16")]
    assert audit(plan, (compiled("all-gather", "a", 800),), target="cpu").ok()
    assert not audit(plan, (compiled("all-gather", "a", 800),), target="gpu").ok()


def test_groups_of_one_device_do_not_count() -> None:
    assert audit([], (compiled("all-reduce", "", 800, group_size=1),), target="gpu").rows == ()


def test_tolerance() -> None:
    result = audit(
        [planned("all-reduce", "a", 1000)], (compiled("all-reduce", "a", 1090),), target="gpu"
    )
    assert not result.ok()
    assert result.ok(tolerance=0.1)


def test_text_and_json() -> None:
    plan = [
        planned("all-reduce", "a", 2_000_000, value="loss"),
        planned("all-to-all", "b", 640, value="h"),
    ]
    strange = compiled("all-gather", "", 4096, 6, groups="{{0,1}}", source="f.py:7", op_name="dot")
    result = audit(plan, (compiled("all-reduce", "a", 2_000_000), strange, strange), target="gpu")
    assert [line.rstrip() for line in str(result).splitlines()] == GOLDEN.splitlines()
    data = json.loads(result.to_json())
    assert data["ok"] is False
    assert [row["kind"] for row in data["rows"]] == ["all-reduce", "all-gather", "all-to-all"]
    assert data["unplanned"][0]["source"] == "f.py:7"


GOLDEN = """\
Collectives in one call, bytes per device, on gpu

  collective   axes                planned       compiled   settled   difference
 ────────────────────────────────────────────────────────────────────────────────────
  all-reduce   a              1× 2,000,000   1× 2,000,000                     +0   ✓
  all-gather   other groups           0× 0     12× 49,152                +49,152   ✗
  all-to-all   b                    1× 640           0× 0                   -640   ✗

Unplanned: XLA added
  all-gather over {{0,1}}: 6× 4,096 B f32  f.py:7 dot  (×2)
Missing: planned, not emitted
  all-to-all over b: 1× 640 B   h
"""
