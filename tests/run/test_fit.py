"""The compiled program keeps a memory limit: plans are tightened by what XLA allocates."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from xshard import InfeasibleError
from xshard.place import Place
from xshard.run.fit import within_limit

LIMIT = 1000


class Compiler:
    """Plans that use all of a limit, down to `least`; XLA needs `more` times as much."""

    def __init__(self, more: float, least: int = 0) -> None:
        self.more, self.least, self.targets = more, least, list[int]()

    def __call__(self, target: int) -> Any:
        self.targets.append(target)
        if target < self.least:
            raise InfeasibleError(
                f"the smallest limit that works is {self.least} bytes", self.least
            )
        memory = SimpleNamespace(
            argument_size_in_bytes=int(target * self.more), output_size_in_bytes=30,
            alias_size_in_bytes=30, temp_size_in_bytes=0,
        )  # fmt: skip
        compiled = SimpleNamespace(memory_analysis=lambda: memory)
        lowered = SimpleNamespace(compile=lambda: compiled)
        return SimpleNamespace(
            plan=SimpleNamespace(predicted_peak_bytes=target),
            lower=lambda _: lowered,
            target=target,
        )


def fitted(make: Any, patience_s: float = 60.0) -> Any:
    call: Any = None
    return within_limit(make, call, LIMIT, patience_s)


def test_a_plan_that_xla_keeps_is_taken() -> None:
    make = Compiler(more=1.0)
    assert fitted(make).target == LIMIT
    assert make.targets == [LIMIT]


def test_a_plan_that_xla_exceeds_is_tightened() -> None:
    make = Compiler(more=1.25)
    assert fitted(make).target == pytest.approx(LIMIT / 1.25, rel=0.02)


def test_a_limit_without_a_plan_may_be_kept_all_the_same() -> None:
    """Where XLA needs less than predicted."""
    assert fitted(Compiler(more=0.9, least=LIMIT + 100)).target == LIMIT + 100


def test_a_tighter_limit_without_a_plan_ends_the_search() -> None:
    """If it is not known which limit has one, as in pipelines."""
    make = Compiler(more=1.25)

    def strict(target: int) -> Any:
        if target < LIMIT:
            raise InfeasibleError("no stages fit")
        return make(target)

    with pytest.raises(InfeasibleError, match="A limit of 1250 bytes works"):
        fitted(strict)


def test_the_error_of_no_plan_says_what_xla_needs() -> None:
    with pytest.raises(InfeasibleError, match="the smallest limit that works is 2000 bytes") as got:
        fitted(Compiler(more=1.0, least=2000))
    assert got.value.smallest_limit_bytes == 2000
    text = r"that has a plan is 2000 bytes\nXLA allocates .*: a limit of 2500 bytes works"
    with pytest.raises(InfeasibleError, match=text) as got:
        fitted(Compiler(more=1.25, least=2000))
    assert got.value.smallest_limit_bytes == 2500


@pytest.mark.parametrize(("least", "patience_s"), [(900, 60.0), (0, -1.0)])
def test_the_error_names_what_was_compiled(least: int, patience_s: float) -> None:
    """900 / 1.25 is no more than 1000, but 900 is the least that has a plan."""
    make = Compiler(more=1.25, least=least)
    with pytest.raises(InfeasibleError, match="XLA allocates") as caught:
        fitted(make, patience_s)
    assert caught.value.smallest_limit_bytes == max(least, LIMIT * (not least)) * 1.25


def test_under_a_limit_a_plan_says_what_is_recomputed():
    """XLA would do so by itself above 80% of a GPU's memory, and be slower than planned."""
    gpus, cpus = (
        Place(np.array([SimpleNamespace(platform=name)], object), []) for name in ("gpu", "cpu")
    )
    assert gpus.compiler_options(2**30) == {"xla_gpu_memory_limit_slop_factor": 1000}
    assert gpus.compiler_options(None) is None
    assert not any("gpu" in name for name in cpus.compiler_options(2**30) or ())
