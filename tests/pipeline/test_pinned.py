"""`in_specs` and `out_specs` of a pipeline: kept on every stage that has the array."""

from __future__ import annotations

from typing import Any

import jax
import pytest
from jax.sharding import PartitionSpec as P

import xshard
from tests.api.oracles import assert_close
from tests.mpmd.programs import args, scanned, tied, train

OPTIONS: dict[str, Any] = {"pipeline": 2, "microbatches": 4, "schedule": "1f1b"}


def expected(loss: Any) -> Any:
    return jax.jit(train(loss))(*args(loss))


def ups(loss: Any, spec: P) -> Any:
    """The prefix of (state, batch) that pins the layers' first weights and the embedding."""
    params, _ = args(loss)[0]
    pins = jax.tree.map(lambda _: None, params)
    pins["embed"] = P("data")
    for layer in [pins["layers"]] if loss is scanned else pins["layers"]:
        layer["up"] = spec
    return ((pins, None), None)


def test_arguments_lie_as_they_are_pinned() -> None:
    """One of equal layers otherwise than the others; the embedding is on both groups."""
    pins = ups(tied, P())
    pins[0][0]["layers"][2]["up"] = P("data")
    step: Any = xshard.auto_shard(train(tied), 4, in_specs=pins, **OPTIONS)
    found = step(*args())
    assert_close(found, expected(tied), 8.0)
    params, _ = found[0]
    split = [any(layer["up"].sharding.spec) for layer in params["layers"]]
    assert split == [False, False, True, False]
    assert params["embed"].sharding.spec[0] == "data"
    again: Any = xshard.auto_shard(train(tied), 4, in_specs=pins, plan=step.plan)
    again.lower(*args())
    assert jax.tree.map(str, again.in_shardings) == jax.tree.map(str, step.in_shardings)
    with pytest.raises(xshard.PlanError, match="another step, or other shapes or devices"):
        xshard.auto_shard(train(tied), 4, plan=step.plan)(*args())


def test_stacked_weights_are_pinned_in_parts() -> None:
    pins = ups(scanned, P(None, None, "data"))
    step: Any = xshard.auto_shard(train(scanned), 4, in_specs=pins, **OPTIONS)
    found = step(*args(scanned))
    assert_close(found, expected(scanned), 8.0)
    (params, _), _ = found
    assert tuple(params["layers"]["up"].sharding.spec)[1:] == (None, "data")


def test_results_lie_otherwise_than_their_arguments() -> None:
    out = ((ups(tied, P())[0][0], None), None)
    step: Any = xshard.auto_shard(
        train(tied), 4, in_specs=ups(tied, P("data")), out_specs=out, **OPTIONS
    )
    found = step(*args())
    assert_close(found, expected(tied), 8.0)
    first, _ = step.in_shardings[0]
    last, _ = step.out_shardings[0]
    assert [tuple(s["up"].spec) for s in first["layers"]] == [("data", None)] * 4
    assert not any(any(s["up"].spec) for s in last["layers"])


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (((P("rows"), None), None), "names the axis 'rows', but the mesh has data=2"),
        ((({"embed": P()}, None), None), "the specs are no prefix of"),
    ],
)
def test_pins_that_cannot_hold(specs: Any, message: str) -> None:
    step: Any = xshard.auto_shard(train(tied), 4, in_specs=specs, **OPTIONS)
    with pytest.raises(xshard.PinError, match=message):
        step(*args())


def test_for_devices_that_are_not_here() -> None:
    pins = ups(tied, P(None, "data"))
    plan = xshard.plan_pipeline(
        train(tied), *args(), cluster="v100-sxm2-32gb:4", in_specs=pins, **OPTIONS
    )
    assert isinstance(plan, xshard.PipelinePlan)
    arguments = [a for stage in plan.programs.values() for a in stage.arguments]
    found = [a for a in arguments if a.path.startswith("args[0][0]") and "up" in a.path]
    assert [a.spec for a in found] == [((), (0,))] * 4
