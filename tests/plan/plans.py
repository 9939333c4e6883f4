"""A plan made by hand: two matmul layers on a 2×4 mesh, with all kinds of entries."""

from __future__ import annotations

import dataclasses
from typing import Any

from xshard.plan.plan import (
    Alternative,
    LiveTensor,
    Plan,
    PlannedArray,
    PlannedCollective,
    PlannedOp,
)
from xshard.spec import MeshShape

MESH = MeshShape(("data", "model"), (2, 4))
ROWS, COLUMNS, WHOLE = ((0,), ()), ((), (1,)), ((), ())


def array(path: str, shape: tuple[int, ...], spec: Any, **kwargs: Any) -> PlannedArray:
    """A float32 argument."""
    nbytes = 4
    for n, axes in zip(shape, spec, strict=True):
        nbytes *= n // MESH.size_of(axes)
    return PlannedArray(path, shape, "float32", spec, nbytes, **kwargs)


def example(**changes: Any) -> Plan:
    """The plan, with some fields replaced."""
    kernels = [
        array(f"args[0]['{tree}']['layer_{k}']['mlp']['up']['kernel']", (512, 2048), COLUMNS)
        for tree in ("params", "mu")
        for k in range(3)
    ]
    step = PlannedArray("args[0]['step']", (), "int32", (), 4)
    batch = array("args[1]", (64, 512), ROWS, pinned=True)
    dot = PlannedOp(
        "dot_general", "fwd", "layer_0/mlp/up", "model.py:31 (__call__)", 3, 3,
        "b i, i o -> b o", ("b", "o"), (ROWS, COLUMNS), (((0,), (1,)),), 1_234_567,
    )  # fmt: skip
    back = dataclasses.replace(
        dot, phase="bwd", rule="b o, i o -> b i", results=(ROWS,), time_ns=2_000_000
    )
    odd = PlannedOp(
        "eigh", "fwd", "", "model.py:40 (norm)", 1, 1, "? -> ?, ?", (None, None),
        (WHOLE,), (WHOLE, ((),)), 50_000, known=False,
    )  # fmt: skip
    plan = Plan(
        fingerprint="0123456789abcdef",
        mesh=MESH,
        cluster="cpu:1x8",
        arguments=(*kernels, step, batch),
        results=(array("result['loss']", (), ()),),
        ops=(dot, odd, back),
        values=(ROWS, COLUMNS, WHOLE),
        copies=((2, "bwd", ROWS),),
        collectives=(
            PlannedCollective("all-reduce", ("model",), 65_536, 3, 600_000, "dx", "model.py:31"),
            PlannedCollective("all-reduce", ("data",), 1_048_576, 3, 900_000, "dw", "model.py:31"),
            PlannedCollective("all-reduce", ("data",), 4, 1, 1_000, "loss", "model.py:50"),
        ),
        peak=(LiveTensor("kernel", (512, 2048), "float32", 3, 3_145_728, "model.py:31"),),
        objective_ns=4_785_567,
        bound_ns=4_785_567,
        compute_ns=3_284_567,
        communication_ns=1_501_000,
        peak_bytes=7_654_321,
        memory_limit=30_000_000_000,
        notes=("eigh has no rule and runs whole on every device (model.py:40)",),
        seconds={"trace": 0.25, "solve": 1.5},
    )
    return dataclasses.replace(plan, **changes)


def alternatives(asked: list[str]) -> Any:
    """A planner's answer, which notes what it is asked."""

    def answer(key: str) -> tuple[Alternative, ...]:
        asked.append(key)
        return (
            Alternative(WHOLE, 6_000_000, 1_214_433, 9_000_000),
            Alternative(ROWS, None, None, None),
            Alternative(COLUMNS, 4_785_567, 0, 7_654_321, chosen=True),
        )

    return answer
