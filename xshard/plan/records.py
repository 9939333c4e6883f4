"""What a plan is made of: arrays, ops, communication, memory, alternatives."""

from __future__ import annotations

from dataclasses import dataclass

from xshard.spec import Spec


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
      dtype: of what is communicated.
    """

    kind: str
    axes: tuple[str, ...]
    nbytes: int
    count: int
    time_ns: int
    value: str
    source: str = ""
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class CostSources:
    """How much of a plan's predicted time comes from where; together its ops and collectives.

    Attributes:
      measured_ns: from measurements of just these signatures.
      interpolated_ns: from measurements of the same with a smaller and a larger size.
      analytic_ns: from the figures of the device's table.
    """

    measured_ns: int = 0
    interpolated_ns: int = 0
    analytic_ns: int = 0


@dataclass(frozen=True, slots=True)
class LiveTensor:
    """A class of tensors live at the peak: `members` of them, `nbytes` in all on a device."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    members: int
    nbytes: int
    source: str = ""


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """One kind of live memory, in bytes on a device for each stretch of a `MemoryCurve`."""

    kind: str
    nbytes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MemoryCurve:
    """What is live on a device through one step, in a few hundred stretches of time at most.

    A loop's turns are drawn as one turn that takes the time of all.

    Attributes:
      starts_ns: when each stretch begins, by the predicted times of ops and collectives.
      end_ns: when the step ends.
      parts: by kind, the bytes at the moment of each stretch at which most is live in all.
      phases: ("fwd", "bwd" or "update", when it begins), in order.
    """

    starts_ns: tuple[int, ...]
    end_ns: int
    parts: tuple[MemoryPart, ...]
    phases: tuple[tuple[str, int], ...]

    def totals(self) -> tuple[int, ...]:
        """Bytes of all kinds together in each stretch."""
        return tuple(sum(column) for column in zip(*(p.nbytes for p in self.parts), strict=True))


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
class Template:
    """A well-known way to split the step on the plan's mesh, and what its best plan would cost.

    Attributes:
      name: "data parallel", "FSDP", "Megatron" or "expert parallel".
      roles: what each mesh axis does: (its name, "data", "shard", "model" or "expert").
      time_ns: predicted step time, whether it fits the memory limit or not.
      peak_bytes: predicted peak memory per device.
    """

    name: str
    roles: tuple[tuple[str, str], ...]
    time_ns: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class RecomputedLayers:
    """A chain of equal layers, of which the first are recomputed in the backward pass.

    Attributes:
      layers: how many there are.
      recomputed: how many of them keep only their input for the backward pass.
      source: the user's line of a layer.
    """

    layers: int
    recomputed: int
    source: str = ""


@dataclass(frozen=True, slots=True)
class Trial:
    """A way to run the step that was looked at.

    Attributes:
      microbatches: parts of the batch.
      recomputed: of each chain of layers, how many are recomputed; empty: none.
      time_ns, peak_bytes: predicted, of the best plan; None if none fits, or none is better.
      at_least_ns: what every such plan takes, where that is no less than another way's best.
    """

    microbatches: int
    time_ns: int | None
    peak_bytes: int | None
    recomputed: tuple[int, ...] = ()
    at_least_ns: int | None = None
