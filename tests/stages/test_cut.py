"""A step cut into stage programs computes what the step computes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.microbatch import programs
from tests.stages.steps import assert_alike, staged
from xshard.errors import PipelineError

LOSSES = (
    programs.mean, programs.weighted, programs.with_aux, programs.classified, programs.dropped,
    programs.normalised, programs.tied,
)  # fmt: skip


@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
def test_results_are_those_of_the_step(loss: Any) -> None:
    assert_alike(programs.train(loss), programs.args(), 2, 4)


def test_more_stages_than_layers_are_refused() -> None:
    with pytest.raises(PipelineError, match=r"3 pipeline stages .* has 2 layers"):
        staged(programs.train(programs.mean), programs.args(), 3, 2)
