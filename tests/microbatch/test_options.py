"""`microbatches` and `batch_axes` as a user states them, sharded, saved and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import xshard
from models.gpt3.config import TINY
from models.gpt3.step import make_train_step
from tests.api.oracles import TIME_LIMIT_S, assert_close, assert_same
from tests.microbatch import programs

CONFIG = TINY.replace(
    num_layers=2, hidden=24, num_heads=6, batch=16, seq_len=8, vocab=48, warmup_steps=2
)


@pytest.mark.parametrize(("shape", "number"), [((8,), 2), ((2, 4), 4), ((2, 4), 8)])
@pytest.mark.parametrize("loss", [programs.weighted, programs.with_aux], ids=lambda f: f.__name__)
def test_sharded_steps_compute_the_same(
    loss: Any, shape: tuple[int, ...], number: int, mesh: Any
) -> None:
    step = assert_same(
        programs.train(loss), programs.args(), mesh(*shape), 4.0, microbatches=number
    )
    assert step.plan.microbatches == number
    audit = step.audit()
    assert audit.ok(), str(audit)


@pytest.mark.parametrize(
    ("layers", "dtype", "shape", "number"),
    [("unrolled", "float32", (2, 4), 4), ("scanned", "bfloat16", (8,), 2)],
)
def test_gpt3_trains_alike(
    layers: Any, dtype: Any, shape: tuple[int, ...], number: int, mesh: Any
) -> None:
    """Dropout is on: the bits are those of the whole batch."""
    config = CONFIG.replace(layers=layers, dtype=dtype, num_layers=1 + (layers == "scanned"))
    steps = make_train_step(config)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab, (config.batch, config.seq_len + 1), np.int32)
    batch = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:]}
    step = xshard.auto_shard(
        steps.train, mesh(*shape), time_limit=TIME_LIMIT_S, microbatches=number
    )
    state = step.init(steps.init, jax.random.key(0), batch)
    expected = jax.jit(steps.train)(state, batch)
    got = step(state, batch)
    assert_close(got[1], expected[1], 30.0 if dtype == "float32" else 2000.0)


def wide() -> tuple[Any, Any]:
    """Shapes with 32 kB of parameters, 0.4 MB of batch and 16 MB for each activation."""
    array = jax.ShapeDtypeStruct
    params = {"up": array((8, 1024), np.float32), "down": array((1024, 4), np.float32)}
    batch = {"x": array((4096, 8), np.float32), "y": array((4096, 4), np.float32)}
    return (params, jax.eval_shape(programs.ADAM.init, params)), batch


def test_memory_falls(mesh: Any) -> None:
    """Activations are most of it."""
    temps, predicted = list[int](), list[int]()
    for number in (1, 4, 16):
        step = xshard.auto_shard(programs.train(programs.mean), mesh(8), microbatches=number)
        memory = step.lower(*wide()).compile().memory_analysis()
        assert memory is not None
        temps.append(memory.temp_size_in_bytes)
        predicted.append(step.plan.peak_bytes)
    assert temps[0] > 2 * temps[1] > 4 * temps[2]
    assert predicted == sorted(predicted, reverse=True)


def test_auto_takes_more_where_a_limit_asks_for_it() -> None:
    step = programs.train(programs.mean)

    def planned(**options: Any) -> xshard.Plan:
        options = {"microbatches": "auto", **options}
        return xshard.plan(step, *wide(), cluster="cpu:1x8", mesh=(8,), **options)

    ample = planned()
    assert ample.microbatches == 1 and not ample.trials
    tight = planned(memory_limit=int(0.6 * ample.peak_bytes))
    assert tight.microbatches > 1 and tight.peak_bytes <= 0.6 * ample.peak_bytes
    fits = {t.microbatches: t.time_ns for t in tight.trials if t.time_ns is not None}
    assert tight.objective_ns == fits[tight.microbatches] == min(fits.values())
    assert f"microbatches    {tight.microbatches} (tried" in str(tight)
    assert "microbatches" in str(ample.diff(tight))
    with pytest.raises(xshard.InfeasibleError, match=r"no plan fits 2 kB.*\n(.*\n)*.*microbatches"):
        planned(memory_limit=2000)


def test_auto_stays_at_one_where_the_step_is_no_sum() -> None:
    step, options = programs.train(programs.batch_norm), {"cluster": "cpu:1x8", "mesh": (8,)}
    free = xshard.plan(step, *programs.args(), **options)
    found = xshard.plan(
        step, *programs.args(), **options, memory_limit=free.peak_bytes - 1, microbatches="auto"
    )
    assert found.microbatches == 1
    assert any("not in microbatches" in note and "batch_norm" in note for note in found.notes)


def test_a_saved_plan_brings_its_microbatches(tmp_path: Path, mesh: Any) -> None:
    args = programs.args()
    step = xshard.auto_shard(programs.train(programs.mean), mesh(8), microbatches=4)
    expected = step(*args)
    step.plan.save(tmp_path / "plan.json")
    again = xshard.Plan.load(tmp_path / "plan.json")
    assert again == step.plan and again.microbatches == 4
    other = xshard.auto_shard(programs.train(programs.mean), mesh(8), plan=again)
    assert_close(other(*args), expected)
    with pytest.raises(xshard.PlanError, match="the plan is for microbatches=4, not 2"):
        xshard.auto_shard(programs.train(programs.mean), mesh(8), plan=again, microbatches=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"microbatches": 3},
            "microbatches=3 does not divide the batch of 16 rows; use one of 1",
        ),
        ({"microbatches": 0}, 'microbatches=0 is no number from 1 on, nor "auto"'),
        ({"microbatches": True}, "microbatches=True is no number"),
        ({"microbatches": 2, "batch_axes": (None, None)}, "no argument was found"),
        (
            {"microbatches": 2, "batch_axes": (None, {"x": 1, "y": 0, "label": 0, "weight": 0})},
            r"the batch has 16 rows in args\[1\]\['y'\] and 8 in args\[1\]\['x'\]",
        ),
        ({"microbatches": 2, "batch_axes": (None, 5)}, r"batch_axes states 5 for args\[1\]"),
        ({"microbatches": 2, "batch_axes": (None, [0])}, "batch_axes is no prefix"),
    ],
)
def test_bad_options_get_one_sentence(options: dict[str, Any], message: str, mesh: Any) -> None:
    with pytest.raises(xshard.XshardError, match=message):
        xshard.auto_shard(programs.train(programs.mean), mesh(8), **options)(*programs.args())


def test_a_step_that_is_no_sum_is_refused_with_its_line(mesh: Any) -> None:
    step = xshard.auto_shard(programs.train(programs.batch_norm), mesh(8), microbatches=2)
    with pytest.raises(xshard.XshardError, match=r"no sum over the batch: .* \(batch_norm\)"):
        step(*programs.args())
