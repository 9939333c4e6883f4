"""A checkpoint of a pipeline's state goes on with other stages, with the same losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
import pytest

import xshard
from tests.mpmd.programs import args, scanned, skips, train


@pytest.mark.parametrize(("loss", "stages"), [(skips, 4), (scanned, 3)])
def test_restored_onto_other_stages(loss: Any, stages: int, tmp_path: Path) -> None:
    (state, batch), step = args(loss), train(loss)
    avals = jax.eval_shape(lambda: state)
    options: dict[str, Any] = {"microbatches": 2, "schedule": "1f1b"}
    two = xshard.auto_shard(step, 2, pipeline=2, **options)
    state, _ = two(state, batch)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", two.portable(state))
        checkpointer.wait_until_finished()
        more: Any = xshard.auto_shard(step, stages, pipeline=stages, **options)
        more.init(lambda: args(loss)[0], batch)
        restored = checkpointer.restore(tmp_path / "state", more.portable(avals))
    _, expected = two(state, batch)
    _, found = more(restored, batch)
    assert float(found["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-5)
