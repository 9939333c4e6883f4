"""A checkpoint of a pipeline's state goes on with other stages, with the same losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import pytest

import xshard
from tests.mpmd.programs import args, skips, train


def test_restored_onto_other_stages(tmp_path: Path) -> None:
    (state, batch), loss = args(), train(skips)
    avals = jax.eval_shape(lambda: state)
    options: dict[str, Any] = {"microbatches": 2, "schedule": "1f1b"}
    two = xshard.auto_shard(loss, 2, pipeline=2, **options)
    state, _ = two(state, batch)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        four: Any = xshard.auto_shard(loss, 4, pipeline=4, **options)
        four.init(lambda: args()[0], batch)
        place = lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)  # noqa: E731
        target = jax.tree.map(place, avals, four.in_shardings[0])
        restored = checkpointer.restore(tmp_path / "state", target)
    _, expected = two(state, batch)
    _, found = four(restored, batch)
    assert float(found["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-5)
