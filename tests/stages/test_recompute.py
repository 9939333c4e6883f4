"""Units that are run again in the backward pass change no results, and keep less for it."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from tests.api.oracles import FAST_COMPILE
from tests.stages import models
from tests.stages.steps import CLOSE, cuttable_step, results
from tests.stages.test_cut import NEAR, sent
from xshard.stages.staged import PER_MICROBATCH, Staged


def kept_bytes(staged: Staged, stage: int) -> int:
    """What a stage keeps of a microbatch for its backward pass."""
    programs = [p for p in staged.programs if p.stage == stage]
    made = {v for p in staged.programs if p.part in PER_MICROBATCH for v in p.makes}
    early = {v for p in programs if p.part == "fwd" for v in (*p.reads, *p.makes)}
    late = {v for p in programs if p.part.startswith("bwd") for v in p.reads}
    avals = [staged.avals[v] for v in made & early & late]
    return sum(int(np.prod(a.shape)) * a.dtype.itemsize for a in avals)


CASES = [
    # step, stages, of them recomputed, weight parts apart, closeness
    (lambda: models.gpt3(dropout=0.1, num_layers=2), (2, 3), (2, 1), True, NEAR),
    (models.skips, (3, 5), (3, 5), False, CLOSE),
    (models.encoder_decoder, (5, 6), (1, 6), False, CLOSE),
    (models.scaled, (1, 1), (1, 1), False, CLOSE),
    (lambda: models.gpt3(dropout=0.1, num_layers=4, layers="scanned"), (2, 3), (1, 3), True, NEAR),
]


@pytest.mark.parametrize(
    ("case", "counts", "again", "apart", "close"),
    CASES,
    ids=["gpt3", "skips", "both", "scaled", "scanned"],
)  # fmt: skip
def test_results_are_those_of_the_step(
    case: Any, counts: Any, again: Any, apart: bool, close: Any
) -> None:
    """Dropout drops what it dropped; masks and random bits are made again, too."""
    step, args = case()
    cut = cuttable_step(step, args, 2)
    kept, less = (cut.into(counts, split_backward=apart, recomputed=r) for r in ((0, 0), again))
    assert sent(less) == sent(kept)
    for stage in (0, 1):
        assert kept_bytes(less, stage) < kept_bytes(kept, stage)
    close(results(less, step, args), jax.jit(step, compiler_options=FAST_COMPILE)(*args))


def test_only_what_comes_to_a_unit_is_kept() -> None:
    """A stage of attention and an MLP keeps an array of activations for each."""
    cut = cuttable_step(*models.skips(), 2).into((2, 6), recomputed=(2, 6))
    assert kept_bytes(cut, 1) <= 7 * 4 * models.LENGTH * models.WIDTH * 4


def test_what_the_user_checkpoints_stays_as_it_is() -> None:
    cut = cuttable_step(*models.gpt3(remat=True, num_layers=3), 2)
    counts = (2, len(cut.units) - 2)
    kept, again = cut.into(counts), cut.into(counts, recomputed=counts)
    assert kept_bytes(again, 0) > 0.9 * kept_bytes(kept, 0)
