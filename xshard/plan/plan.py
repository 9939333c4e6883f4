"""`Plan`: the frozen result of planning, without any JAX object inside."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from xshard.errors import PlanError
from xshard.plan.records import (
    Alternative,
    CostSources,
    LiveTensor,
    MemoryCurve,
    MemoryPart,
    PlannedArray,
    PlannedCollective,
    PlannedOp,
    RecomputedLayers,
    Template,
    Trial,
)
from xshard.spec import MeshShape, Spec

if TYPE_CHECKING:
    from xshard.plan.diff import PlanDiff
    from xshard.plan.explain import Explanation

__all__ = [
    "Alternative", "CostSources", "LiveTensor", "MemoryCurve", "MemoryPart", "Plan",
    "PlannedArray", "PlannedCollective", "PlannedOp", "RecomputedLayers",
    "Template", "Trial",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """What `auto_shard` decided for one function, mesh and set of shapes.

    Attributes:
      fingerprint: of the graph, shapes, mesh, device kind and pins; a plan is refused elsewhere.
      mesh: axis names and sizes.
      cluster: the device kind and counts that costs are for ("cpu:1x8").
      arguments, results: in flattened order.
      ops: classes in program order.
      values: the spec of each value class, in the order of the graph's classes.
      copies: (value class, phase, spec): resharded copies that the readers of a phase share.
      collectives: expected communication.
      peak: the tensors that are live at the predicted peak, largest first.
      objective_ns, bound_ns: the predicted step time, and a time that no plan is below.
      compute_ns, communication_ns: the parts of `objective_ns`.
      peak_bytes: predicted peak memory per device.
      memory_limit: bytes per device, or None.
      microbatches: parts of the batch that the step goes through one after the other.
      batch_dims: for each argument, its dimension that is cut into microbatches, -1 for none; empty
        if there is one microbatch.
      lanes: parts in which sums over the batch are kept until all microbatches are done; with more
        than one, devices that share the batch add up their gradients once a step.
      memory: what is live through the step: one curve, or one a stage.
      remat: the chains of layers, if any layer is recomputed in the backward pass.
      trials: the ways to run the step that were looked at, if more than one was.
      notes: what the user should know (an op without a rule, a limit of time that struck).
      sources: how much of the predicted time is measured, interpolated and analytic.
      seconds: wall-clock seconds of each planning step; not saved, not compared.
    """

    fingerprint: str
    mesh: MeshShape
    cluster: str
    arguments: tuple[PlannedArray, ...]
    results: tuple[PlannedArray, ...]
    ops: tuple[PlannedOp, ...]
    values: tuple[Spec, ...]
    copies: tuple[tuple[int, str, Spec], ...]
    collectives: tuple[PlannedCollective, ...]
    peak: tuple[LiveTensor, ...]
    objective_ns: int
    bound_ns: int
    compute_ns: int
    communication_ns: int
    peak_bytes: int
    memory_limit: int | None = None
    notes: tuple[str, ...] = ()
    sources: CostSources = field(default_factory=CostSources)
    seconds: dict[str, float] = field(default_factory=dict[str, float], compare=False)
    microbatches: int = 1
    batch_dims: tuple[int, ...] = ()
    lanes: int = 1
    remat: tuple[RecomputedLayers, ...] = ()
    trials: tuple[Trial, ...] = ()
    memory: tuple[MemoryCurve, ...] = ()
    _alternatives: Callable[[str], tuple[Alternative, ...]] | None = field(
        default=None, compare=False, repr=False
    )
    _templates: Callable[[], tuple[Template, ...]] | None = field(
        default=None, compare=False, repr=False
    )
    _step: object = field(default=None, compare=False, repr=False)  # what `xshard.verify` compiles
    _replan: Callable[..., Plan] | None = field(default=None, compare=False, repr=False)

    @property
    def gap(self) -> float:
        """At most this share of the predicted time could be saved by another plan."""
        return 0.0 if self.objective_ns <= self.bound_ns else 1 - self.bound_ns / self.objective_ns

    @property
    def predicted_time_s(self) -> float:
        """Predicted seconds of one step."""
        return self.objective_ns * 1e-9

    @property
    def predicted_peak_bytes(self) -> int:
        """Predicted peak memory of one device, in bytes."""
        return self.peak_bytes

    @property
    def templates(self) -> tuple[Template, ...]:
        """What well-known ways to split the step would take on this mesh, the fastest first.

        Data parallel, FSDP, Megatron and expert parallel, each at its best under the same costs and
        in as many microbatches, whether it fits the memory limit or not. Found when they are first
        asked for. None of a plan that was read, of a step without a state, or on one device.
        """
        return () if self._templates is None else self._templates()

    def __repr__(self) -> str:
        from xshard.plan.text import summary

        return summary(self)

    def __str__(self) -> str:
        from xshard.plan import table, text

        return table.to_text(text.report(self))

    def __rich__(self) -> object:
        from xshard.plan import table, text

        return table.to_rich(text.report(self))

    def _repr_html_(self) -> str:
        from xshard.plan.page.report import fragment

        return fragment(self)

    def diff(self, other: Plan) -> PlanDiff:
        """What changes from this plan to `other`: printable, and false if nothing does."""
        from xshard.plan.diff import diff

        return diff(self, other)

    def explain(self, what: str) -> Explanation:
        """The alternatives for a value, with their costs, and the chosen one marked.

        Args:
          what: an argument or result ("args[0]['params']['w']", "params/w" or another unique
            ending), an op's scope ("layers_0/attn"), its line ("model.py:31"), or "ops[7]".

        Raises:
          XshardError: `what` names nothing or several things; lists close matches.
          PlanError: the plan was read from a file, which holds no alternatives.
        """
        from xshard.plan.explain import explain

        return explain(self, what)

    def replan(
        self, memory_limit: int | float | str | EllipsisType | None = ..., in_specs: Any = ...,
        out_specs: Any = ...,
    ) -> Plan:  # fmt: skip
        """The best plan of the same step under another limit or other pins, from this one on.

        Nothing is traced, and what was found for this plan is made use of: under another limit it
        takes a fraction of the time, and with further pins too. A plan that was read from the
        cache, or given to `auto_shard`, is where the search begins. `auto_shard` takes the result
        as `plan=`.

        Args:
          memory_limit, in_specs, out_specs: as of `xshard.plan`; `...`: as for this plan.

        Raises:
          PlanError: the plan was read from a file, and no step was made with it.
          InfeasibleError, PinError: as of `xshard.plan`.
        """
        if self._replan is None:
            raise PlanError(
                "this plan comes from a file, which keeps nothing to plan again with; plan the "
                "step with xshard.plan or auto_shard, and replan that"
            )
        return self._replan(memory_limit, in_specs, out_specs)

    def to_json(self) -> str:
        """Deterministic JSON text of the decision, without `seconds`."""
        from xshard.plan.store import to_json

        return to_json(self)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
          PlanError: the text is truncated, foreign, of another version, or a field is wrong.
        """
        from xshard.plan.store import from_json

        return from_json(text)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes `to_json` to a file, at once or not at all.

        Raises:
          PlanError: the file cannot be written.
        """
        from xshard.plan.store import save

        save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """The plan in a file that `save` wrote.

        Raises:
          PlanError: there is no such file, or it holds no plan.
        """
        from xshard.plan.store import load

        return load(path)

    def to_html(
        self,
        path: str | os.PathLike[str],
        against: Plan | None = None,
        explain: tuple[str, ...] = (),
    ) -> None:
        """Writes a report: figures and tables on one page that needs no other file and no script.

        Args:
          against: another plan to compare with.
          explain: names of values whose alternatives are shown, as `explain` takes them.

        Raises:
          PlanError: the file cannot be written, or alternatives are asked of a plan from a file.
        """
        from xshard.plan import store
        from xshard.plan.page.report import page

        store.write(path, page(self, against, tuple(self.explain(what) for what in explain)))
