"""Layers of a scan on several stages: each has its own, and the user one array."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from tests.models.helpers import assert_trees_close
from tests.mpmd.pipelines import layout
from tests.stages import models
from tests.stages.steps import cuttable_step
from xshard.mpmd.step import Pipeline
from xshard.run.split import SplitArray
from xshard.schedules import build

CASES = [
    # layers of GPT-3 or case, units on each stage, schedule, groups, microbatches
    (4, (2, 3), "1f1b", 2, 4),
    (3, (1, 3), "zero_bubble", 2, 2),
    (4, (1, 1, 1, 2), "interleaved", 2, 2),
    (models.two_stacks, (1, 2, 1, 1), "gpipe", 4, 2),
]

near = partial(assert_trees_close, rtol=1e-3, atol=1e-4)
"""Adam makes much of gradients that are nothing but rounding."""


def made(
    case: Any, counts: Sequence[int], schedule: str, groups: int, microbatches: int
) -> tuple[Pipeline, Any, tuple[Any, ...]]:
    """A pipeline that may reuse its state's memory, its step and its arguments."""
    is_made = isinstance(case, int)
    step, args = models.gpt3(layers="scanned", num_layers=case) if is_made else case()
    staged = cuttable_step(step, args, microbatches, len(counts)).into(
        counts, split_backward=schedule == "zero_bubble"
    )
    state = frozenset(range(len(jax.tree.leaves(args[0]))))
    ties = {i: i for i in state}
    table = build(schedule, groups, microbatches, len(counts) // groups)
    return Pipeline(staged, table, layout(groups), ties, state), step, args


@pytest.mark.parametrize(("case", "counts", "schedule", "groups", "microbatches"), CASES)
def test_two_steps_are_those_of_one_device(
    case: Any, counts: Sequence[int], schedule: str, groups: int, microbatches: int
) -> None:
    found, step, args = made(case, counts, schedule, groups, microbatches)
    plain, (state, batch) = jax.jit(step), args
    leaves, count = jax.tree.leaves(jax.tree.map(np.asarray, args)), len(found.donated)
    for _ in range(2):
        placed = found.placed(leaves)
        results = found(*placed)
        assert all(x.is_deleted() for x in placed[:count] if x.ndim > 1)
        state, metrics = plain(state, batch)
        near([np.asarray(x) for x in results], jax.tree.leaves((state, metrics)))
        leaves = [*results[:count], *leaves[count:]]
        again = found.placed(leaves)
        assert all(a is b for a, b in zip(again[:count], results, strict=False))  # nothing moves


def test_equal_stages_make_one_array_of_all_layers() -> None:
    found, _, args = made(4, (2, 3), "1f1b", 2, 2)
    placed = found.placed(jax.tree.leaves(args))
    stacked = [x for leaf, x in zip(found.inputs, placed, strict=True) if len(leaf.parts) > 1]
    assert len(stacked) == 3 * 16  # weights and both moments
    leaf = next(leaf for leaf in found.inputs if len(leaf.parts) > 1)
    parts = leaf.taken(stacked[0])
    assert (
        [_at(x) for part in parts for x in part.addressable_shards]
        == [_at(x) for x in leaf.given(parts).addressable_shards]
        == [_at(x) for x in stacked[0].addressable_shards]
    )  # nothing is copied
    for x in stacked:
        assert isinstance(x, jax.Array)
        assert [(s.device.id, s.index[0]) for s in x.addressable_shards] == [
            (0, slice(0, 2)), (1, slice(2, 4)),
        ]  # fmt: skip


def _at(shard: Any) -> int:
    return shard.data.unsafe_buffer_pointer()


def test_unequal_stages_make_an_array_of_pieces() -> None:
    found, _, args = made(3, (1, 3), "1f1b", 2, 2)
    x = next(a for a in found.placed(jax.tree.leaves(args)) if isinstance(a, SplitArray))
    old = next(y for y in jax.tree.leaves(args) if y.shape == x.shape)
    assert repr(x).endswith("rows 1+2)")
    assert (x.ndim, x.size, x.nbytes, len(x)) == (old.ndim, old.size, old.nbytes, 3)
    np.testing.assert_array_equal(jax.numpy.asarray(x), old)
    np.testing.assert_array_equal(x[1], old[1])
    assert x.whole().sharding.device_set == set(jax.devices()[:2])


def test_layers_that_a_step_leaves_as_they_are_stay() -> None:
    """A donated stack that is a result, too."""
    step, args = models.sliced()

    def frozen(state: Any, batch: Any) -> Any:
        (_, adam), loss = step(state, batch)
        return (state[0], adam), loss

    staged = cuttable_step(frozen, args, 2, 2).into((3, 4))
    state = frozenset(range(len(jax.tree.leaves(args[0]))))
    found = Pipeline(staged, build("1f1b", 2, 2), layout(2), {i: i for i in state}, state)
    results = found(*found.placed(jax.tree.map(np.asarray, jax.tree.leaves(args))))
    near([np.asarray(x) for x in results], jax.tree.leaves(jax.jit(frozen)(*args)))
