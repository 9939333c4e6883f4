"""A pipeline keeps its memory limit as XLA compiles it, or is planned again with less."""

from __future__ import annotations

import re
from typing import Any

import jax
import pytest

import xshard
from tests.mpmd.programs import args, skips, train
from xshard.mpmd.runnable import MpmdRunnable

OPTIONS: dict[str, Any] = {
    "pipeline": 2, "microbatches": 4, "schedule": "1f1b", "remat": "auto", "time_limit": 5,
}  # fmt: skip


def planned(limit: int | None, groups: Any = 2) -> Any:
    options = {**OPTIONS, "pipeline": groups}
    step: Any = xshard.auto_shard(train(skips), 4, memory_limit=limit, **options)
    step.lower(*args())
    return step


def test_a_pipeline_is_planned_again_where_xla_needs_more(monkeypatch: pytest.MonkeyPatch) -> None:
    free = planned(planned(None).plan.predicted_peak_bytes).plan.predicted_peak_bytes
    limits: list[int] = []

    def needed(made: MpmdRunnable) -> int:
        """A twentieth more than is predicted."""
        limits.append(made.plan.memory_limit or 0)
        return round(made.plan.predicted_peak_bytes * 1.05)

    monkeypatch.setattr(MpmdRunnable, "compiled_bytes", needed)
    step = planned(free)
    assert len(limits) > 1 and limits[0] == free
    assert limits == sorted(limits, reverse=True)
    assert step.plan.predicted_peak_bytes * 1.05 <= free
    monkeypatch.setattr(MpmdRunnable, "compiled_bytes", lambda _: 10 * free)
    with pytest.raises(xshard.InfeasibleError, match="no plan was found whose compiled program"):
        planned(free)


def test_what_is_compiled_is_within_the_limit() -> None:
    step = planned(40_000)
    found: Any = step._planned()
    assert 0 < found.compiled_bytes() <= 40_000


def test_programs_that_were_looked_at_are_not_compiled_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with jax.log_compiles():
        planned(40_000)(*args())
    found = re.findall(r"Compiling jit\((\w+of_stage\w+)\)", caplog.text)
    assert len(found) == len(set(found)) > 2
