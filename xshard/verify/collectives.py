"""One collective of a compiled program, and the sum of many."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

Kind = Literal[
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
]
CountFrom = Literal["known", "condition", "unknown"]


@dataclass(frozen=True, slots=True)
class Collective:
    """A collective instruction of an XLA module.

    Attributes:
      name: the instruction's name in the module.
      kind: the operation, without `-start`.
      axes: the mesh axes along which it communicates, in mesh order; () when the groups are not
        those of any set of axes (see `recognised`), or when every group has one device.
      bytes: the full payload that one device holds, in one execution: of the operands for
        all-reduce, reduce-scatter, all-to-all, permute and broadcast; of the results for
        all-gather; summed over the arrays of a combined collective. As XLA moves them: the CPU
        compiler moves bfloat16 as float32.
      dtype: the element type as XLA writes it (`bf16`); several are joined by "+".
      count: executions in one call: the product of the trip counts of the loops around it.
      count_from: "known" when XLA states every trip count, "condition" when one was read from a
        loop's condition (assuming a count from 0 by 1), "unknown" when one loop is counted once.
      in_branch: it stands in a branch of a conditional, so `count` is an upper bound.
      group_size: devices that communicate with one another.
      groups: the replica groups or source-target pairs as XLA wrote them.
      op_name: JAX's name stack of the op; empty when XLA made it up.
      source: "file:line" of the innermost frame outside of libraries; empty when unknown.
      beside: whether in XLA's schedule a matmul, a loop or a library call stands between its two
        ends; None where it is one instruction.
    """

    name: str
    kind: Kind
    axes: tuple[str, ...]
    bytes: int
    dtype: str
    count: int
    count_from: CountFrom
    in_branch: bool
    group_size: int
    groups: str
    op_name: str
    source: str
    beside: bool | None = None

    @property
    def total_bytes(self) -> int:
        """Payload bytes per device in one call of the program."""
        return self.bytes * self.count

    @property
    def recognised(self) -> bool:
        """Whether `axes` says all about who communicates with whom."""
        return bool(self.axes) or self.group_size == 1


def share_beside(collectives: Iterable[Collective]) -> float | None:
    """The part of the bytes that move beside matmuls; None where no start has an end apart."""
    moving = [c for c in collectives if c.group_size > 1]
    if all(c.beside is None for c in moving):
        return None
    return sum(c.total_bytes for c in moving if c.beside) / sum(c.total_bytes for c in moving)


def summarize(
    collectives: Iterable[Collective],
) -> dict[tuple[Kind, tuple[str, ...]], tuple[int, int]]:
    """(kind, axes) → (executions, payload bytes per device) in one call.

    Collectives over groups of one device move nothing and are left out.
    """
    table: defaultdict[tuple[Kind, tuple[str, ...]], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for c in collectives:
        if c.group_size > 1:
            count, total = table[c.kind, c.axes]
            table[c.kind, c.axes] = (count + c.count, total + c.total_bytes)
    return dict(table)
