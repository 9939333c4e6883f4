"""The order in which XLA:GPU runs the kernels of a program.

XLA orders a module for memory (xla/hlo/transforms/simplifiers/hlo_memory_scheduler.cc): it makes
three orders and takes the one whose peak is least.

- "list": of the kernels that are ready, the one that frees most more than it makes. How much that
  is, is looked at when a kernel becomes ready, and again only when another one has run that reads
  the same view of an array. So a weight gradient, which reads the transpose of what the gradient of
  the activations reads, does not learn that it would free it, and waits.
- "dfs": operands before readers, those first that have many readers and hold much.
- "post": operands before readers, in the program's order.

Then each collective starts as soon as it can, and ends just before its result is read
(xla/service/gpu/gpu_hlo_schedule.cc); until then it holds operand and result. The scheduler that
hides latencies is off by default.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from xshard.cost.kernels import Computation, Kernel, Sizes

WAYS = ("list", "dfs", "post")
"""What XLA tries."""
_SCALAR_BYTES = 8
"""A kernel that makes no more runs as soon as it can."""
_SMALL_BYTES = 1 << 10
"""Readers of smaller arrays are not looked at again when one of them has run."""


@dataclass(frozen=True, slots=True)
class Order:
    """A computation's kernels in the order in which they run.

    Attributes:
      peak_bytes: of all that is made here.
      ends: for the place of each collective, that of the first kernel that reads what it makes.
      inner: for the place of each loop, the order of its body.
    """

    kernels: tuple[Kernel, ...]
    peak_bytes: int
    ends: dict[int, int]
    inner: dict[int, Order]


def ordered(computation: Computation, sizes: Sizes, ways: Sequence[str] = WAYS) -> Order:
    """The order of least peak; a computation and the loops in it are ordered in the same way."""
    orders = (_ordered(computation, sizes, _WAYS[way]) for way in ways)
    return min(orders, key=lambda order: order.peak_bytes)


def _ordered(computation: Computation, sizes: Sizes, way: _Way) -> Order:
    inner = {k: _ordered(c, sizes, way) for k, c in computation.inner.items()}
    wired = _Wired.of(computation, sizes)
    places = wired.started(way(wired))
    ends = wired.ends(places)
    within = {i: inner[k] for i, k in enumerate(places) if k in inner}
    peak = wired.peak_bytes(places, ends, within)
    return Order(tuple(computation.kernels[k] for k in places), peak, ends, within)


@dataclass(frozen=True, slots=True)
class _Wired:
    """Kernels as a graph.

    Attributes:
      makes: bytes of what each kernel makes.
      before, behind: of each kernel, those that it waits for and those that wait for it.
      readers: of each buffer that a kernel makes, the kernels that read it.
      kept: buffers that outlive the computation.
    """

    kernels: Sequence[Kernel]
    sizes: Sizes
    makes: list[int]
    before: list[set[int]]
    behind: list[list[int]]
    readers: dict[int, list[int]]
    kept: frozenset[int]

    @staticmethod
    def of(computation: Computation, sizes: Sizes) -> _Wired:
        kernels = computation.kernels
        makers = {b: k for k, kernel in enumerate(kernels) for b in kernel.makes}
        readers: dict[int, list[int]] = {b: [] for b in makers}
        before: list[set[int]] = []
        behind: list[list[int]] = [[] for _ in kernels]
        for k, kernel in enumerate(kernels):
            inside = [b for b in kernel.reads if b in makers]
            for b in inside:
                readers[b].append(k)
            before.append({*(makers[b] for b in inside), *kernel.after} - {k})
            for other in before[k]:
                behind[other].append(k)
        makes = [sum(map(sizes.bytes_of, kernel.makes)) for kernel in kernels]
        return _Wired(kernels, sizes, makes, before, behind, readers, computation.kept)

    def started(self, places: Sequence[int]) -> list[int]:
        """The order in which collectives start as soon as they can."""
        waiting, order = [len(b) for b in self.before], list[int]()
        done = [False] * len(waiting)

        def run(k: int) -> None:
            done[k] = True
            order.append(k)
            for other in self.behind[k]:
                waiting[other] -= 1

        def start(candidates: Sequence[int]) -> None:
            for k in candidates:
                if self.kernels[k].is_collective and not waiting[k] and not done[k]:
                    run(k)

        start(range(len(waiting)))
        for k in places:
            if not done[k]:
                run(k)
            start(self.behind[k])
        return order

    def ends(self, places: Sequence[int]) -> dict[int, int]:
        """For the place of each collective, that of the first kernel that reads what it makes."""
        at = {k: i for i, k in enumerate(places)}
        return {
            i: min((at[r] for b in self.kernels[k].makes for r in self.readers[b]), default=i)
            for i, k in enumerate(places)
            if self.kernels[k].is_collective
        }

    def peak_bytes(
        self, places: Sequence[int], ends: dict[int, int], inner: dict[int, Order]
    ) -> int:
        """Bytes of all that is made here at the fullest moment."""
        left = {b: len(r) + (b in self.kept) for b, r in self.readers.items()}
        reading: defaultdict[int, list[int]] = defaultdict(list)
        for i, k in enumerate(places):
            reading[ends.get(i, i)].append(k)
        live = most = 0
        for i, k in enumerate(places):
            made = self.kernels[k].makes
            live += sum(map(self.sizes.kept_bytes, made))
            most = max(most, live + (inner[i].peak_bytes if i in inner else 0))
            gone = [b for b in made if not left[b]]
            for b in (b for r in reading[i] for b in self.kernels[r].reads if b in left):
                left[b] -= 1
                gone += [] if left[b] else [b]
            live -= sum(map(self.sizes.kept_bytes, gone))
        return most


_Way = Callable[[_Wired], list[int]]


class _List:
    """The greedy order; of equal kernels, the one that was looked at last."""

    def __init__(self, w: _Wired) -> None:
        self.w = w
        self.left = {b: len(r) + (b in w.kept) for b, r in w.readers.items()}
        self.waiting = [len(b) for b in w.before]
        self.done = [False] * len(w.kernels)
        self.rank: dict[int, tuple[int, int]] = {}
        self.heap: list[tuple[int, int, int, int]] = []
        self.alike: defaultdict[object, list[int]] = defaultdict(list)
        for k, kernel in enumerate(w.kernels):
            for view in self._views(kernel):
                self.alike[view].append(k)

    def _views(self, kernel: Kernel) -> Iterator[object]:
        large = (view for view in kernel.views if view[0] in self.left)
        return (view for view in large if self.w.sizes.bytes_of(view[0]) >= _SMALL_BYTES)

    def places(self) -> list[int]:
        """The kernels in order."""
        for k in range(len(self.waiting)):
            self._look(k)
        order: list[int] = []
        while self.heap:
            freed, behind, _, k = heapq.heappop(self.heap)
            if not self.done[k] and self.rank[k] == (-freed, -behind):
                order.append(k)
                self._run(k)
        assert len(order) == len(self.done), "kernels wait for each other"
        return order

    def _run(self, k: int) -> None:
        self.done[k] = True
        is_last_but_one = False
        for b in self.w.kernels[k].reads & self.left.keys():
            self.left[b] -= 1
            is_last_but_one |= self.left[b] == 1
        for other in self.w.behind[k]:
            self.waiting[other] -= 1
            self._look(other)
        if is_last_but_one:
            for view in self._views(self.w.kernels[k]):
                for other in self.alike[view]:
                    self._look(other)

    def _look(self, k: int) -> None:
        if self.done[k] or self.waiting[k]:
            return
        rank = self._rank(k)
        if self.rank.get(k) != rank:
            self.rank[k] = rank
            heapq.heappush(self.heap, (-rank[0], -rank[1], -len(self.heap), k))

    def _rank(self, k: int) -> tuple[int, int]:
        kernel, made = self.w.kernels[k], self.w.makes[k]
        if kernel.makes and made <= _SCALAR_BYTES:
            return 1 << 60, 0
        freed = sum(self.w.sizes.bytes_of(b) for b in kernel.reads if self.left.get(b) == 1)
        return freed - made - kernel.scratch_bytes, len(self.w.behind[k])


def _list(w: _Wired) -> list[int]:
    return _List(w).places()


def _post(w: _Wired) -> list[int]:
    return _visited(w, [sorted(b) for b in w.before])


def _dfs(w: _Wired) -> list[int]:
    readers, held = [0] * len(w.kernels), [0] * len(w.kernels)
    most = sum(w.makes)
    for k in _topological(w):
        more = max(len(w.behind[k]) - 1, 0) + sum(readers[b] for b in w.before[k])
        readers[k] = min(more, len(w.kernels))
        held[k] = min(w.makes[k] + sum(held[b] for b in w.before[k]), most)
    return _visited(w, [sorted(b, key=lambda o: (-readers[o], -held[o], o)) for b in w.before])


_WAYS: dict[str, _Way] = {"list": _list, "dfs": _dfs, "post": _post}


def _visited(w: _Wired, operands: Sequence[Sequence[int]]) -> list[int]:
    """Post-order from the kernels that nothing waits for."""
    order: list[int] = []
    opened, done = [False] * len(w.kernels), [False] * len(w.kernels)
    stack = [k for k in reversed(range(len(w.kernels))) if not w.behind[k]]
    while stack:
        k = stack[-1]
        if not opened[k]:
            opened[k] = True
            stack += [o for o in reversed(operands[k]) if not opened[o]]
            continue
        stack.pop()
        if not done[k]:
            done[k] = True
            order.append(k)
    return order


def _topological(w: _Wired) -> Iterator[int]:
    waiting = [len(b) for b in w.before]
    ready = [k for k, n in enumerate(waiting) if not n]
    while ready:
        k = ready.pop()
        yield k
        for other in w.behind[k]:
            waiting[other] -= 1
            if not waiting[other]:
                ready.append(other)
