"""A plan is refused where it does not belong, with the reason that helps most."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tests.plan.plans import MESH, example
from xshard.errors import PlanError
from xshard.plan.refuse import check_fits
from xshard.spec import MeshShape

PLAN = example()
CALL = {a.path: jax.ShapeDtypeStruct(a.shape, a.dtype) for a in PLAN.arguments}
STEP, BATCH = "args[0]['step']", "args[1]"


def check(
    call: dict[str, Any], fingerprint: str = PLAN.fingerprint, mesh: MeshShape = MESH,
    cluster: str | None = None,
) -> None:  # fmt: skip
    check_fits(PLAN, fingerprint, mesh, list(call), list(call.values()), cluster)


def test_the_plan_of_this_call_is_accepted():
    check(CALL, cluster="cpu:1x8")


def test_arrays_serve_as_avals():
    check(CALL | {STEP: jnp.zeros((), jnp.int32)})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"call": CALL | {BATCH: jax.ShapeDtypeStruct((32, 512), "float32")}},
         "args[1] is float32[64,512] in the plan and float32[32,512] here"),
        ({"call": CALL | {STEP: jax.ShapeDtypeStruct((), "float32")}},
         "args[0]['step'] is int32[] in the plan and float32[] here"),
        ({"call": {path: jax.ShapeDtypeStruct((1,), "int8") for path in CALL}},
         "float32[512,2048] in the plan and int8[1] here (and 7 more arguments)"),
        ({"call": {BATCH: CALL[BATCH]}},
         "the plan has an argument args[0]['params']['layer_0']['mlp']['up']['kernel'] "
         "that the call lacks (and 6 more arguments)"),
        ({"call": CALL | {"args[2]": CALL[BATCH]}},
         "the call has an argument args[2] that the plan lacks"),
        ({"call": dict(reversed(CALL.items()))}, "the arguments stand in another order"),
        ({"mesh": MeshShape(("data", "model"), (4, 2))},
         "it is for the mesh data=2×model=4, and the mesh here is data=4×model=2"),
        ({"mesh": MeshShape(("x", "y"), (2, 4))}, "and the mesh here is x=2×y=4"),
        ({"cluster": "h200:1x8"}, "the cluster cpu:1x8, and the cluster here is h200:1x8"),
        ({"fingerprint": "fedcba9876543210"},
         "the function, its pins or its options are not those that were planned "
         "(fingerprint 0123456789ab, here fedcba987654)"),
        # Shapes say more than a fingerprint, which they change too.
        ({"call": CALL | {BATCH: CALL[STEP]}, "fingerprint": "f", "mesh": MeshShape((), ())},
         "args[1] is float32[64,512] in the plan and int32[] here"),
    ],
)  # fmt: skip
def test_refusals(changes: dict[str, Any], reason: str):
    with pytest.raises(PlanError) as error:
        check(changes.get("call", CALL), **{k: v for k, v in changes.items() if k != "call"})
    message = str(error.value)
    assert message.startswith("the plan does not belong to this call: ")
    assert reason in message
    assert message.endswith("; plan again for this call, or pass the plan that belongs to it")
