"""What a user asks of a step beside its function, as requests to the planner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xshard.cost.cluster import Cluster
from xshard.ir.trace import Traced
from xshard.pins import Pins, pins_of
from xshard.prepare import Request
from xshard.run.call import Call
from xshard.spec import MeshShape
from xshard.ties import ties_of


@dataclass(frozen=True, slots=True)
class Asked:
    """Where a step is to run, and what is fixed of its plan.

    Attributes:
      shapes: meshes over the cluster, of which the best is wanted.
      in_specs, out_specs: as of `auto_shard`.
      memory_limit: bytes per device, or None.
      time_limit_s: of the solver.
    """

    cluster: Cluster
    shapes: Sequence[MeshShape]
    in_specs: Any = None
    out_specs: Any = None
    memory_limit: int | None = None
    time_limit_s: float = 0.0

    def requests(self, traced: Traced, call: Call) -> list[Request]:
        """What to plan for a traced call, one for each mesh."""
        ties, donated = ties_of(traced), donated_values(traced, call)
        found: list[Request] = []
        for shape in self.shapes:
            pins = asked_pins(traced, call, shape, self.in_specs, self.out_specs)
            request = Request(
                traced, shape, self.cluster,
                pins=pins.values,
                results=pins.results,
                ties=_kept_ties(traced, ties, pins),
                donated=donated,
                memory_limit=self.memory_limit,
                time_limit_s=self.time_limit_s,
            )  # fmt: skip
            found.append(request)
        return found


def asked_pins(traced: Traced, call: Call, shape: MeshShape, ins: Any, outs: Any) -> Pins:
    """What `in_specs` and `out_specs` fix on a mesh; arguments given by name are free."""
    if call.names and isinstance(ins, tuple):
        ins = (*ins, *[None] * len(call.names))
    return pins_of(traced, shape, ins, outs)


def _kept_ties(traced: Traced, ties: dict[int, int], pins: Pins) -> dict[int, int]:
    """Ties, but for results that the user wants otherwise than the argument."""
    outputs = traced.graph.outputs
    fixed = [*((outputs[i], pin) for i, pin in pins.results.items()), *pins.values.items()]
    other = {v for v, pin in fixed if v in ties and pin != pins.values.get(ties[v])}
    return {v: argument for v, argument in ties.items() if v not in other}


def donated_values(traced: Traced, call: Call) -> frozenset[int]:
    """The argument values whose memory a call lets the step reuse."""
    dynamic = [i for i in range(len(call.row)) if i not in call.static]
    leaves = iter(traced.graph.inputs)
    found: list[int] = []
    for i, tree in zip(dynamic, traced.in_tree.children(), strict=True):
        here = [next(leaves) for _ in range(tree.num_leaves)]
        found += here if i in call.donated else []
    return frozenset(found)
