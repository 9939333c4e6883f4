"""A step cut into stage programs computes what the step computes, and sends only what it must."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from tests.microbatch import programs
from tests.models.helpers import assert_trees_close
from tests.stages import models
from tests.stages.steps import assert_alike, cuttable_step, results
from xshard.errors import PipelineError
from xshard.stages.staged import Staged

LOSSES = (programs.weighted, programs.with_aux, programs.dropped, programs.normalised)


NEAR = partial(assert_trees_close, rtol=1e-4, atol=1e-5)
"""Adam makes much of gradients that are nothing but rounding."""


def sent(staged: Staged) -> list[str]:
    """What is sent in each microbatch: "source>target shape"."""
    makers = staged.makers
    return sorted(
        f"{source}>{target} {list(staged.avals[v].shape)}"
        for (v, target), source in staged.transfers().items()
        if v in makers and makers[v].part in ("fwd", "bwd")
    )


@pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
def test_any_step_in_microbatches(loss: Any) -> None:
    assert_alike(programs.train(loss), programs.args(), (1, 1), microbatches=4)


@pytest.mark.parametrize(
    ("case", "microbatches", "stages"),
    [
        (models.plain, 1, [(4,), (1, 1, 1, 1)]),
        (models.in_equinox, 8, [(1, 2, 1)]),
        (models.scaled, 2, [(1, 1)]),
        (models.skips, 4, [(1, 7), (3, 3, 2)]),
        (models.encoder_decoder, 2, [(3, 4, 4)]),
        (models.two_stacks, 2, [(1, 3, 1)]),
        (models.sliced, 2, [(3, 4)]),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_any_layers(case: Any, microbatches: int, stages: Any) -> None:
    assert_alike(*case(), *stages, microbatches=microbatches)


@pytest.mark.parametrize("layers", ["unrolled", "scanned"])
def test_gpt3(layers: str) -> None:
    """With dropout, a tied head and clipping; activations are all that is sent."""
    step, args = models.gpt3(layers=layers, dropout=0.1, num_layers=3)
    units = cuttable_step(step, args, 2).units
    [cut] = assert_alike(step, args, (2, len(units) - 2), microbatches=2, close=NEAR)
    assert sent(cut) == ["0>1 [4, 8, 24]", "1>0 [4, 8, 24]"]


def test_layers_of_a_scan_live_on_their_stages() -> None:
    cut = cuttable_step(*models.gpt3(layers="scanned", num_layers=3), 2).into((1, 1, 2))
    apart = [pieces for pieces in cut.inputs if len(pieces) > 1]
    assert len(apart) == 3 * 16  # weights and both moments
    for pieces in apart:
        assert [(p.start, p.stop) for p in pieces] == [(0, 1), (1, 2), (2, 3)]
        assert [cut.homes[p.value] for p in pieces] == [0, 1, 2]


def test_slices_of_stacked_weights_live_where_they_are_read() -> None:
    """The second stage begins between the second layer's attention and its MLP."""
    step, args = models.sliced()
    cut = cuttable_step(step, args, 2).into((3, 4))
    apart = {
        path[-1].key: [(p.start, p.stop, cut.homes[p.value]) for p in pieces]
        for (path, _), pieces in zip(
            jax.tree_util.tree_leaves_with_path(args), cut.inputs, strict=True
        )
        if len(pieces) > 1
    }
    mlp = [(0, 1, 0), (1, 3, 1)]
    assert apart == {"bias": mlp, "down": mlp, "up": mlp, "qkv": [(0, 2, 0), (2, 3, 1)]}
    sums = [cut.avals[t.total].shape for t in cut.totals]
    assert not any(shape[0] == 3 for shape in sums if shape)  # none is of the whole stack


def test_a_tied_gradient_is_summed_on_each_stage() -> None:
    """What crosses once a step is the sum, not each microbatch's part."""
    cut = cuttable_step(*models.skips(), 8).into((2, 6))
    assert sent(cut) == ["0>1 [1, 6, 8]", "1>0 [1, 6, 8]"]
    tables = [t for t in cut.totals if cut.avals[t.total].shape == (models.VOCAB, models.WIDTH)]
    assert sorted(cut.stage_of[t.total] for t in tables) == [0, 1]


def test_a_step_that_overflows_is_skipped() -> None:
    step, (state, batch) = models.scaled()
    batch["x"] = np.where(np.arange(8)[:, None] == 5, np.inf, batch["x"])
    [cut] = assert_alike(step, (state, batch), (1, 1), microbatches=2)
    assert cut.num_stages == 2


def test_the_norm_of_all_gradients_takes_two_more_waves() -> None:
    cut = cuttable_step(*models.plain(), 2).into((1, 1))
    after = [(p.wave, p.stage) for p in cut.programs if p.part == "after"]
    assert after == [(0, 0), (0, 1), (1, 0), (2, 1)]


def test_gradients_of_weights_are_a_part_of_their_own() -> None:
    step, args = models.plain()
    cut = cuttable_step(step, args, 2).into((1, 1), split_backward=True)
    NEAR(results(cut, step, args), jax.jit(step)(*args))
    parts = {(p.part, p.stage): p for p in cut.programs}
    shares = {t.share for t in cut.totals}
    assert shares.isdisjoint(parts["bwd", 1].makes)
    assert "dot_general" in str(parts["bwd_weight", 0].closed_jaxpr)
    assert all(shares.issuperset(parts["bwd_weight", s].makes) for s in (0, 1))


def test_bad_cuts_are_refused() -> None:
    found = cuttable_step(*models.plain(), 2)
    with pytest.raises(PipelineError, match=r"9 pipeline stages .* has 2 layers"):
        found.balanced(9)
    with pytest.raises(PipelineError, match=r"stages of 1, 0 layers"):
        found.into((1, 0))
