"""The published figures: every row is there once, and about a known configuration."""

from models.gpt3.config import CONFIGS
from models.gpt3.published import published

SIZES = (1, 2, 4, 8, 16, 32)


def test_each_case_stands_once() -> None:
    keys = [row.key for row in published()]
    wanted = [("tensor", m) for m in ("350M", "760M", "1.3B")]
    wanted += [("pipeline", m) for m in ("760M", "1.3B")]
    assert keys == [(model, mode, size) for mode, model in wanted for size in SIZES]
    assert {row.model for row in published()} <= set(CONFIGS)


def test_a_plan_that_did_not_run_has_no_measurement() -> None:
    [row] = [row for row in published() if row.measured_s is None]
    assert row.key == ("1.3B", "pipeline", 8)
    assert row.measured_gb is None
