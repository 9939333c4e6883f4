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
from typing import Literal

from xshard.cost.fusion import Storage
from xshard.ir.graph import Address, Graph

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
      carried: carry_in ops whose loop makes the next value split like the last one; None: all.
      combined_bytes: results of sums that a collective finishes together, at most.
    """

    nbytes: Sequence[int]
    unfinished: Mapping[int, Unfinished] = field(default_factory=dict[int, Unfinished])
    copies: Mapping[tuple[int, int], Copy] = field(default_factory=dict[tuple[int, int], Copy])
    replaced: frozenset[int] = frozenset()
    carried: frozenset[int] | None = None
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
