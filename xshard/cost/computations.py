"""The kernels of a program, wired: what reads what, and what waits for what."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence

from xshard.cost.fusion import ALIASES
from xshard.cost.joined import add_sums, merged
from xshard.cost.kernels import (
    INTO_LOOPS,
    OUT_OF_LOOPS,
    PORTS,
    WORKSPACE_BYTES,
    Computation,
    Kernel,
    Kind,
    Program,
    Sizes,
)
from xshard.ir.graph import Address, Graph, Op


def computations(program: Program, sizes: Sizes) -> Iterator[Computation]:
    """The kernels of each part of a program."""
    return (_Builder(program, sizes, part, 0).build() for part in program.parts)


class _Builder:
    """Makes the kernels of one computation.

    Attributes:
      depth: how many loops are around it.
      of_op: op -> its kernel.
      holds: a checkpoint -> the kernel that holds it back.
      sources, waits: of a value without a buffer, the buffers and kernels that its readers need.
      copy_of: view of a copy -> the copy.
    """

    def __init__(self, program: Program, sizes: Sizes, ops: Sequence[int], depth: int) -> None:
        self.program, self.sizes, self.depth = program, sizes, depth
        self.graph, self.storage = program.graph, program.storage
        self.ops = [self.graph.ops[o] for o in ops]
        self.here = frozenset(ops)
        self.kernels: list[Kernel] = []
        self.inner: dict[int, Computation] = {}
        self.of_op: dict[int, int] = {}
        self.holds: dict[Address, int] = {}
        self.sources: dict[int, frozenset[int]] = {}
        self.waits: dict[int, frozenset[int]] = {}
        self.copies: dict[int, int] = {}
        self.copy_of: dict[int, int] = {}

    def build(self) -> Computation:
        self._add_loops()
        self._add_ops()
        for op in self.ops:
            if self.of_op.get(op.id) not in self.inner or self._enters(op) or self._leaves(op):
                self._wire(op)
        for k, kernel in enumerate(self.kernels):
            kernel.reads -= kernel.makes
            kernel.after.discard(k)
        place = merged(self.kernels, self.program)
        add_sums(self.kernels, self.sizes)
        inner = {place[k]: c for k, c in self.inner.items()}
        return Computation(self.kernels, inner, self._kept())

    def _add(self, kind: Kind, ops: Sequence[int] = ()) -> int:
        self.kernels.append(Kernel(kind, list(ops)))
        return len(self.kernels) - 1

    def _add_loops(self) -> None:
        nested: defaultdict[Address, list[int]] = defaultdict(list)
        for op in self.ops:
            path = self.program.paths[op.id]
            if len(path) > self.depth:
                nested[path[self.depth]].append(op.id)
        for members in nested.values():
            k = self._add("loop", members)
            self.of_op.update(dict.fromkeys(members, k))
            self.inner[k] = _Builder(self.program, self.sizes, members, self.depth + 1).build()

    def _add_ops(self) -> None:
        barriers: dict[Address, int] = {}
        for op in self.ops:
            if op.id in self.of_op:
                continue
            call = self.program.checkpoints.get(op.id)
            if call is not None and call not in self.holds:
                self.holds[call] = self._add("barrier")
            if op.prim == "optimization_barrier":
                k = barriers.setdefault(op.address[:-1], len(self.kernels))
                if k == len(self.kernels):
                    self._add("barrier")
                self.kernels[k].ops.append(op.id)
                self.of_op[op.id] = k
            elif self._is_kernel(op):
                self.of_op[op.id] = self._add("op", [op.id])
                self.kernels[-1].scratch_bytes = _scratch_bytes(op)
            elif op.prim in PORTS:
                self.of_op[op.id] = self._add("port", [op.id])

    def _is_kernel(self, op: Op) -> bool:
        return op.prim not in (*ALIASES, "scan_y") and any(map(self._is_own, op.outputs))

    def _is_own(self, value: int) -> bool:
        return self.storage.buffer[value] == value and self.storage.stored[value]

    def _read(self, value: int) -> tuple[frozenset[int], frozenset[int]]:
        """The buffers from which a value is read, and kernels to wait for."""
        if value in self.copy_of:
            return frozenset((self.copy_of[value],)), frozenset()
        b, waits = self.storage.buffer[value], self.waits.get(value, frozenset[int]())
        if self.storage.stored[b]:
            return frozenset((b,)), waits
        return self.sources.get(value, frozenset[int]()), waits

    def _wire(self, op: Op) -> None:
        k = self.of_op.get(op.id)
        call = self.program.checkpoints.get(op.id)
        hold = None if call is None else self.holds.get(call)
        reads, waits = set[int](), set[int]()
        operands = (
            op.inputs[:1] if op.prim == "carry_in" else op.inputs
        )  # the other: the next turn's
        for side, v in enumerate(operands):
            if v is None:
                continue
            buffers, kernels = self._read(v)
            if hold is not None and self.program.checkpoints.get(self._producer(v)) != call:
                self.kernels[hold].reads |= buffers
                self.kernels[hold].after |= kernels
            if hold is not None and op.recomputed:
                kernels |= {hold}
            if (v, op.id) in self.sizes.copies and k not in self.inner:
                buffers, kernels = self._copy(op, v, buffers, kernels), frozenset[int]()
            reads |= buffers
            waits |= kernels
            if k is not None:
                how = _layout(op, side, self.graph)
                self.kernels[k].views |= {(b, how) for b in buffers}
        self._put(op, k, frozenset(reads), frozenset(waits))

    def _put(self, op: Op, k: int | None, reads: frozenset[int], waits: frozenset[int]) -> None:
        """Where an op's results come from."""
        if k is None:
            self.sources.update(dict.fromkeys(op.outputs, reads))
            self.waits.update(dict.fromkeys(op.outputs, waits))
            return
        kernel = self.kernels[k]
        kernel.reads |= reads
        kernel.after |= waits
        if kernel.kind != "op":
            self.sources.update(dict.fromkeys(op.outputs, reads))
            self.waits.update(dict.fromkeys(op.outputs, frozenset((k,))))
        if kernel.kind == "op" or (kernel.kind == "loop" and self._leaves(op)):
            made = {self.storage.buffer[v] for v in op.outputs}
            mine = (b for b in made if self.of_op.get(self._producer(b)) == k)
            kernel.makes |= {b for b in mine if self.storage.stored[b]}

    def _enters(self, op: Op) -> bool:
        """Whether an op is where a loop of this computation begins."""
        return op.prim in INTO_LOOPS and op.address[:-2] == self.program.paths[op.id][self.depth]

    def _leaves(self, op: Op) -> bool:
        """Whether an op is where a loop of this computation ends."""
        return op.prim in OUT_OF_LOOPS and op.address[:-1] == self.program.paths[op.id][self.depth]

    def _producer(self, value: int) -> int:
        return self.graph.values[value].producer

    def _copy(
        self, op: Op, v: int, buffers: frozenset[int], waits: frozenset[int]
    ) -> frozenset[int]:
        """The copy that an op reads; views of it are the copy, too."""
        copy = self.sizes.copies[v, op.id]
        if copy.buffer not in self.copies:
            self.copies[copy.buffer] = self._add("copy")
            kernel = self.kernels[-1]
            kernel.reads, kernel.makes = set(buffers), {copy.buffer}
            kernel.views = {(b, None) for b in buffers}
            kernel.after = {*waits, *(self._tied(op, v) if copy.is_tied else ())}
        if op.prim in ALIASES and op.prim != "optimization_barrier":
            self.copy_of.update(dict.fromkeys(op.outputs, copy.buffer))
        return frozenset((copy.buffer,))

    def _tied(self, op: Op, v: int) -> Iterator[int]:
        """Kernels that make the largest other operand (`xshard.run.annotate` ties them so)."""
        others = [w for w in op.inputs if w is not None and w != v]
        if others:
            largest = max(others, key=lambda w: self.graph.values[w].size)
            read = (b for b in self._read(largest)[0] if b < len(self.graph.values))
            makers = (self.of_op.get(self._producer(b)) for b in read)
            yield from (k for k in makers if k is not None)

    def _kept(self) -> frozenset[int]:
        made = {b for kernel in self.kernels for b in kernel.makes}
        buffer, ops = self.storage.buffer, self.graph.ops
        kept = {buffer[v] for v in self.graph.outputs if v is not None}
        if self.depth:
            ends = (op for op in self.ops if op.prim in OUT_OF_LOOPS)
            kept |= {buffer[v] for op in ends for v in (*op.inputs, *op.outputs) if v is not None}
        elif len(self.program.parts) > 1:
            others = (op for op in ops if op.id not in self.here)
            kept |= {buffer[v] for op in others for v in op.inputs if v is not None}
        return frozenset(kept & made)


def _scratch_bytes(op: Op) -> int:
    return WORKSPACE_BYTES if op.prim == "dot_general" else 0


def _layout(op: Op, side: int, graph: Graph) -> Hashable:
    """The order in which a matmul reads an operand: batch, free and summed dimensions."""
    v = op.inputs[side]
    if op.prim != "dot_general" or v is None:
        return None
    summed, batch = (tuple(dims[side]) for dims in op.params["dimension_numbers"])
    rank = range(len(graph.values[v].shape))
    free = tuple(d for d in rank if d not in summed and d not in batch)
    parts = (batch, free, summed) if side == 0 else (batch, summed, free)
    return tuple(d for part in parts for d in part), len(parts[0]) + len(parts[1])
