"""Holds a compiled step against its plan."""

from __future__ import annotations

from typing import cast

from xshard.plan.plan import Plan
from xshard.verify.audit import Audit, PlannedCollective, audit
from xshard.verify.collectives import Kind
from xshard.verify.hlo import collectives_in


def audit_step(plan: Plan, compiled_text: str, target: str) -> Audit:
    """Planned against compiled collectives; `target` is the platform ("cpu", "cuda", "tpu")."""
    compiled = collectives_in(compiled_text, plan.mesh.sizes, plan.mesh.names)
    return audit(planned_collectives(plan), compiled, target=target)


def planned_collectives(plan: Plan) -> list[PlannedCollective]:
    """Those of a plan, of one step."""
    return [
        PlannedCollective(
            kind=cast(Kind, _KINDS.get(c.kind, c.kind)), axes=c.axes, bytes=c.nbytes,
            count=c.count, value=c.value, source=c.source, dtype=c.dtype,
        )
        for c in plan.collectives
    ]  # fmt: skip


_KINDS = {"permute": "collective-permute"}
