"""`Plan`: the frozen result of planning, without any JAX object inside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from xshard.spec import MeshShape, Spec


@dataclass(frozen=True, slots=True)
class PlannedArray:
    """An argument or result of the step.

    Attributes:
      path: "args[0]['params']['w']", or "result[1]['loss']".
      local_bytes: bytes on one device.
      pinned: whether the user fixed the spec.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    spec: Spec
    local_bytes: int
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class PlannedOp:
    """A class of isomorphic ops and its strategy.

    Attributes:
      prim, phase, scope, source: of one member.
      members: how many ops of the program the class has.
      count: how often they run in one step, all together.
      rule: the op's rule in its text form.
      factors: for each mesh axis, the factor that it splits, or None.
      operands, results: specs; results after partial sums were reduced.
      time_ns: of all members in one step, without resharding.
      known: False if the primitive has no rule and runs whole on every device.
    """

    prim: str
    phase: str
    scope: str
    source: str
    members: int
    count: int
    rule: str
    factors: tuple[str | None, ...]
    operands: tuple[Spec, ...]
    results: tuple[Spec, ...]
    time_ns: int
    known: bool = True


@dataclass(frozen=True, slots=True)
class PlannedCollective:
    """Communication that the plan expects, for all members of a class together.

    Attributes:
      kind: "all-reduce", "all-gather", "reduce-scatter", "all-to-all" or "permute".
      axes: names of the mesh axes along which it communicates.
      nbytes: bytes of one execution on one device: the operand's (all-reduce, reduce-scatter,
        all-to-all, permute) or the result's (all-gather).
      count: executions in one step.
      time_ns: of all executions.
      value: what is communicated.
      source: the user's line.
    """

    kind: str
    axes: tuple[str, ...]
    nbytes: int
    count: int
    time_ns: int
    value: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class LiveTensor:
    """A class of tensors that is live at the peak: `members` of them, `nbytes` in all on a device."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    members: int
    nbytes: int
    source: str = ""


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another spec for a value, and what the best plan with it would cost.

    Attributes:
      spec: the alternative; the chosen one is among them.
      time_ns: predicted step time of the best plan with this spec; None if none fits.
      extra_ns: that minus the chosen plan's.
      peak_bytes: predicted peak memory per device of that plan.
    """

    spec: Spec
    time_ns: int | None
    extra_ns: int | None
    peak_bytes: int | None
    chosen: bool = False


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
      notes: what the user should know (an op without a rule, a limit of time that struck).
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
    seconds: dict[str, float] = field(default_factory=dict, compare=False)
    _alternatives: Callable[[str], tuple[Alternative, ...]] | None = field(
        default=None, compare=False, repr=False
    )

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
