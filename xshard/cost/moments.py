"""When each op of a program runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from xshard.cost.computations import computations
from xshard.cost.kernels import Program, Sizes
from xshard.cost.schedule import Order, ordered

Times = Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Moments:
    """The order of a program: at each moment an op runs, or a collective for it starts.

    Attributes:
      ops: of each moment, the op.
      of_op: when each op runs.
      of_copy: (value, op that reads a copy of it) -> when the copy begins to be made.
      of_sum: value -> when the sum that it is begins to be finished.
      end_of_sum: value -> until when what its op left is held.
    """

    ops: tuple[int, ...]
    of_op: tuple[int, ...]
    of_copy: Mapping[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])
    of_sum: Times = field(default_factory=dict[int, int])
    end_of_sum: Times = field(default_factory=dict[int, int])

    @staticmethod
    def in_order(num_ops: int) -> Moments:
        """The program's own order."""
        return Moments(tuple(range(num_ops)), tuple(range(num_ops)))


def moments(program: Program, sizes: Sizes) -> Moments:
    """The order in which XLA:GPU runs a program whose values have these sizes."""
    slots = _Slots(program, sizes)
    for computation in computations(program, sizes):
        slots.add(ordered(computation, sizes))
    return slots.moments()


class _Slots:
    """Kernels one behind the other, loops unrolled into their bodies.

    Attributes:
      ops: in each slot, the op that runs, or for which a collective starts.
      begins: buffer -> the slot in which a collective starts to make it.
      ends: buffer -> the slot in which it is read first.
    """

    def __init__(self, program: Program, sizes: Sizes) -> None:
        self.program, self.sizes = program, sizes
        self.ops: list[int] = []
        self.own: dict[int, int] = {}
        self.begins: dict[int, int] = {}
        self.ends: dict[int, int] = {}
        self._reader = {copy.buffer: o for (_, o), copy in reversed([*sizes.copies.items()])}

    def add(self, order: Order) -> None:
        """A computation behind what is there."""
        began: list[int] = []
        for i, kernel in enumerate(order.kernels):
            began.append(len(self.ops))
            if i in order.inner:
                self.add(order.inner[i])
            elif kernel.is_collective:
                self.begins.update(dict.fromkeys(kernel.makes, len(self.ops)))
                self.ops.append(self._op_of(min(kernel.makes)))
            else:
                self.own.update({o: len(self.ops) + n for n, o in enumerate(kernel.ops)})
                self.ops += kernel.ops
        for i, end in order.ends.items():
            self.ends.update(dict.fromkeys(order.kernels[i].makes, began[end]))

    def _op_of(self, buffer: int) -> int:
        """For which op a collective runs."""
        if buffer in self._reader:
            return self._reader[buffer]
        return self.program.graph.values[buffer].producer

    def moments(self) -> Moments:
        """With ops that have no kernel: they run with their first reader."""
        end = len(self.ops)
        with_slot: defaultdict[int, list[int]] = defaultdict(list)
        for o, slot in self._fused(end).items():
            with_slot[slot].append(o)
        ops: list[int] = []
        of_op = [0] * len(self.program.graph.ops)
        moved: list[int] = []
        for slot in range(end + 1):
            for o in sorted(with_slot[slot]):
                of_op[o] = len(ops)
                ops.append(o)
            moved.append(len(ops))
            ops += self.ops[slot : slot + 1]
        for o, slot in self.own.items():
            of_op[o] = moved[slot]
        copies = {k: c.buffer for k, c in self.sizes.copies.items() if c.buffer in self.begins}
        sums = [v for v in self.sizes.unfinished if v in self.begins]
        return Moments(
            tuple(ops),
            tuple(of_op),
            {key: moved[self.begins[b]] for key, b in copies.items()},
            {v: moved[self.begins[v]] for v in sums},
            {v: moved[self.ends[v]] for v in sums},
        )

    def _fused(self, end: int) -> dict[int, int]:
        """Ops without a kernel, and the slots of their first readers."""
        found: dict[int, int] = {}
        read: dict[int, int] = {}
        for op in reversed(self.program.graph.ops):
            slot = self.own.get(op.id)
            if slot is None:
                slot = found[op.id] = min((read[v] for v in op.outputs if v in read), default=end)
            for v in op.inputs:
                if v is not None:
                    read[v] = min(read.get(v, slot), slot)
        return found
