"""Any program is what it is on one device: programs by chance, over several meshes."""

from __future__ import annotations

import math
import os
from typing import Any

import hypothesis
import jax
from hypothesis import strategies as st

import xshard
from benchmarks.attractive import attractive_plan
from tests.api.random_programs import RandomProgram, programs
from xshard.compare.difference import wide

EXAMPLES = int(os.environ.get("XSHARD_RANDOM_PROGRAMS", "20"))
"""With `XSHARD_RANDOM_PROGRAMS=500` in the environment so many others, new ones each time."""

MESHES = ((8,), (2, 4), (3, 2), (2, 2, 2))


@hypothesis.settings(
    max_examples=EXAMPLES, derandomize=EXAMPLES == 20, database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.filter_too_much],
)  # fmt: skip
@hypothesis.given(programs(), st.sampled_from(MESHES))
def test_a_random_program_equals_one_device(
    mesh: Any, program: RandomProgram, shape: tuple[int, ...]
) -> None:
    args, where = program.args(), mesh(*shape)
    hypothesis.assume(
        all(math.isfinite(wide(x).sum()) for x in jax.tree.leaves(program.step(*args)))
    )
    plan = attractive_plan(program.step, args, where, tight=len(program.lines) % 2 == 0)
    found = xshard.auto_shard(program.step, where, plan=plan).check(*args)
    assert found, str(found)
