"""A program as kernels: what a compiler runs as one, what that reads and what it makes.

An op whose result has a buffer (`xshard.cost.fusion`) is a kernel, with all that is fused into it.
A result that others of its size are computed from is made by the first of these, if that is a loop
too ("multi-output fusion"). A resharded copy and sums that are finished are kernels of their own. A
barrier is a kernel that makes nothing, as is what holds a `jax.checkpoint` back until its cotangent
is there. A loop is a kernel of the computation in which it stands, its body another computation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Literal

from xshard.cost.fusion import ALIASES, Storage
from xshard.ir.graph import Address, Graph, Op

INTO_LOOPS = frozenset({"scan_const", "scan_x", "carry_in", "branch_in"})
OUT_OF_LOOPS = frozenset({"carry_out", "scan_y", "branch_out"})
PORTS = INTO_LOOPS | OUT_OF_LOOPS | {"predicate"}
FUSED = ("elementwise", "view")

WORKSPACE_BYTES = 4 << 20
"""What cuBLAS gets for a matmul."""

Kind = Literal["op", "copy", "sum", "barrier", "loop", "port"]
View = tuple[int, Hashable]
"""A buffer, and the order of dimensions in which it is read."""


@dataclass(slots=True)
class Kernel:
    """What runs as one.

    Attributes:
      ops: in the program's order.
      reads, makes: buffers.
      views: how it reads them.
      after: kernels of the same computation that run before, next to the makers of what it reads.
      scratch_bytes: what it needs while it runs.
    """

    kind: Kind
    ops: list[int] = field(default_factory=list[int])
    reads: set[int] = field(default_factory=set[int])
    makes: set[int] = field(default_factory=set[int])
    views: set[View] = field(default_factory=set[View])
    after: set[int] = field(default_factory=set[int])
    scratch_bytes: int = 0

    @property
    def is_collective(self) -> bool:
        """Whether it runs beside others."""
        return self.kind in ("copy", "sum")

    def absorb(self, other: Kernel) -> None:
        """Runs the other one as well."""
        self.ops = sorted([*self.ops, *other.ops])
        self.makes |= other.makes
        self.reads = (self.reads | other.reads) - self.makes
        self.views |= other.views
        self.after |= other.after


@dataclass(frozen=True, slots=True)
class Computation:
    """A program, or the body of a loop.

    Attributes:
      inner: kernel -> the body of the loop that it is.
      kept: buffers that outlive it.
    """

    kernels: Sequence[Kernel]
    inner: Mapping[int, Computation]
    kept: frozenset[int]


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What an op leaves before its sums are finished and put in place.

    Attributes:
      buffer: its number among buffers.
      together: equal for sums that a collective can finish together; None for those of its own.
    """

    buffer: int
    nbytes: int
    together: Hashable = None


@dataclass(frozen=True, slots=True)
class Copy:
    """A resharded copy; `is_tied`: made when another operand of its reader is there."""

    buffer: int
    nbytes: int
    is_tied: bool = False


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes on a device. Buffers are values, and behind them copies and what is unfinished.

    Attributes:
      nbytes: of each buffer.
      unfinished: by value.
      copies: by (value, op that reads it).
      replaced: values whose buffer is a donated argument's.
      combined_bytes: results of sums that a collective finishes together, at most.
    """

    nbytes: Sequence[int]
    unfinished: Mapping[int, Unfinished] = field(default_factory=dict[int, Unfinished])
    copies: Mapping[tuple[int, int], Copy] = field(default_factory=dict[tuple[int, int], Copy])
    replaced: frozenset[int] = frozenset()
    combined_bytes: int = 31457287

    def bytes_of(self, buffer: int) -> int:
        """What a buffer takes."""
        return self.nbytes[buffer]

    def kept_bytes(self, buffer: int) -> int:
        """The same; 0 if it has no memory of its own."""
        return 0 if buffer in self.replaced else self.nbytes[buffer]


@dataclass(frozen=True, slots=True)
class Program:
    """What of a program's kernels does not depend on sizes.

    Attributes:
      kinds: of each op's rule.
      parts: ops that are compiled together, one part behind the other.
      paths: the loops around each op, ports of a loop inside of it, from the outermost.
      checkpoints: op of the backward pass -> the `jax.checkpoint` that it belongs to.
    """

    graph: Graph
    storage: Storage
    kinds: Sequence[str]
    parts: Sequence[Sequence[int]]
    paths: Sequence[tuple[Address, ...]]
    checkpoints: Mapping[int, Address]

    @staticmethod
    def of(
        graph: Graph, storage: Storage, kinds: Sequence[str], starts: Sequence[int] = ()
    ) -> Program:
        """The kernels' frame.

        Args:
          starts: the first equations of programs that the graph has one behind the other.
        """
        loops = {op.address[:-2] for op in graph.ops if op.prim in INTO_LOOPS}
        loops |= {op.address[:-1] for op in graph.ops if op.prim in OUT_OF_LOOPS}
        paths = [tuple(p for p in _prefixes(op.address) if p in loops) for op in graph.ops]
        parts: defaultdict[int, list[int]] = defaultdict(list)
        for op in graph.ops:
            parts[sum(start <= op.address[0] for start in starts)].append(op.id)
        ordered = [parts[p] for p in sorted(parts)]
        return Program(graph, storage, kinds, ordered, paths, _checkpoints(graph))

    def computations(self, sizes: Sizes) -> Iterator[Computation]:
        """The kernels of each part."""
        return (_Builder(self, sizes, part, 0).build() for part in self.parts)


def _prefixes(address: Address) -> Iterator[Address]:
    return (address[:n] for n in range(1, len(address)))


def _checkpoints(graph: Graph) -> dict[int, Address]:
    """The innermost calls of the backward pass that compute something again and something new."""
    inside: defaultdict[Address, set[tuple[str, bool]]] = defaultdict(set)
    for op in graph.ops:
        for prefix in _prefixes(op.address):
            inside[prefix].add((op.phase, op.recomputed))
    calls = set[Address]()
    for op in graph.ops:
        if op.recomputed:
            mixed = [p for p in _prefixes(op.address) if ("bwd", False) in inside[p]]
            calls |= {p for p in mixed[-1:] if all(phase == "bwd" for phase, _ in inside[p])}
    return {op.id: p for op in graph.ops for p in _prefixes(op.address) if p in calls}


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
        place = self._merged()
        self._add_sums()
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

    def _merged(self) -> list[int]:
        """Lets loops make what only they and later kernels read; returns where each kernel went."""
        into = list(range(len(self.kernels)))
        first = self._first_readers()
        for k, kernel in enumerate(self.kernels):
            reader = first.get(min(kernel.makes, default=-1))
            if reader is not None and len(kernel.makes) == 1 and self._is_loop(kernel):
                into[k] = reader if self._runs_over(reader, min(kernel.makes)) else k

        def root(k: int) -> int:
            while into[k] != k:
                k = into[k]
            return k

        roots = [root(k) for k in range(len(into))]
        for k, r in enumerate(roots):
            if r != k:
                self.kernels[r].absorb(self.kernels[k])
        places = {k: i for i, k in enumerate(k for k, r in enumerate(roots) if k == r)}
        self.kernels = [self.kernels[k] for k in places]
        for i, kernel in enumerate(self.kernels):
            kernel.after = {places[roots[a]] for a in kernel.after} - {i}
        return [places[r] for r in roots]

    def _first_readers(self) -> dict[int, int]:
        found: dict[int, int] = {}
        last = [max(kernel.ops, default=-1) for kernel in self.kernels]
        for k in sorted(range(len(last)), key=lambda k: last[k]):
            for b in self.kernels[k].reads:
                found.setdefault(b, k)
        return found

    def _is_loop(self, kernel: Kernel) -> bool:
        op = self.graph.ops[kernel.ops[0]] if kernel.kind == "op" else None
        return op is not None and (self.program.kinds[op.id] in FUSED or op.prim == "random_bits")

    def _runs_over(self, k: int, value: int) -> bool:
        """Whether a kernel is a loop, or a reduction, over as many elements as a value has."""
        if self.kernels[k].kind != "op":
            return False
        op = self.graph.ops[self.kernels[k].ops[0]]
        sizes = [self.graph.values[v].size for v in (*op.inputs, *op.outputs) if v is not None]
        is_loop = self.program.kinds[op.id] in (*FUSED, "reduce")
        return is_loop and max(sizes) == self.graph.values[value].size

    def _add_sums(self) -> None:
        """Collectives that finish sums; those that can wait for each other are one.

        One that a barrier holds back until another is finished is not joined with that.
        """
        before = self._sums_before()
        groups: dict[Hashable, tuple[int, int, int]] = {}
        ops = [(n, kernel) for n, kernel in enumerate(self.kernels) if kernel.kind == "op"]
        for n, kernel in ops:
            for b in sorted(kernel.makes & self.sizes.unfinished.keys()):
                raw, nbytes = self.sizes.unfinished[b], self.sizes.bytes_of(b)
                k, total, members = groups.get(raw.together, (-1, 0, 0))
                fits = total + nbytes <= self.sizes.combined_bytes and not before[n] & members
                if k < 0 or raw.together is None or not fits:
                    k, total, members = self._add("sum"), 0, 0
                groups[raw.together] = k, total + nbytes, members | 1 << n
                kernel.makes = (kernel.makes - {b}) | {raw.buffer}
                self.kernels[k].reads.add(raw.buffer)
                self.kernels[k].views.add((raw.buffer, None))
                self.kernels[k].makes.add(b)

    def _sums_before(self) -> list[int]:
        """For each kernel a mask of the kernels that leave sums and run before it."""
        makers = {b: k for k, kernel in enumerate(self.kernels) for b in kernel.makes}
        before = {
            k: {*(makers[b] for b in kernel.reads if b in makers), *kernel.after} - {k}
            for k, kernel in enumerate(self.kernels)
        }
        found = [0] * len(self.kernels)
        for k in TopologicalSorter(before).static_order():
            for other in before[k]:
                leaves = not self.sizes.unfinished.keys().isdisjoint(self.kernels[other].makes)
                found[k] |= found[other] | leaves << other
        return found

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
