"""Which values get a buffer of their own, and which live only inside a fused loop.

XLA runs a chain of elementwise ops as one loop: its inner values never reach memory. A reshape or
transpose of a buffer is the buffer itself. What remains is *stored*: inputs, results of matmuls,
gathers and loops, whatever those read, and elementwise results that are costly to compute twice and
are needed again later (the backward pass reads them).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from xshard.cost.recompute import keep_sources
from xshard.ir.graph import Graph, Op
from xshard.rules.rule import Rule

EXPENSIVE = frozenset(
    "exp exp2 expm1 log log1p log2 tanh tan sin cos erf erfc erf_inv logistic pow atan2 lgamma "
    "digamma cbrt random_bits threefry2x32 rng_bit_generator cumsum div sqrt rsqrt".split()
)
"""Elementwise primitives that XLA does not compute twice to save a buffer."""

ALIASES = frozenset(
    "reshape squeeze expand_dims transpose sharding_constraint scan_const carry_in carry_out "
    "branch_in branch_out copy_p optimization_barrier reshard mesh_cast pvary "
    "random_wrap random_unwrap stop_gradient name".split()
)
"""Primitives whose result is their first operand's buffer."""

_MOST_LOOPS = 16
"""More loops that need one value are not counted."""

_STORES_OPERANDS = ("heavy", "gather", "opaque")
_STORES_RESULTS = ("heavy", "gather", "opaque", "reduce")


@dataclass(frozen=True, slots=True)
class Storage:
    """Where values live.

    Attributes:
      buffer: for each value, the value whose buffer it is (itself unless an alias).
      stored: for each value, whether it has a buffer of its own.
      readers: for each value, how many loops need it. Where the compiler gives each result of a
        fusion a loop of its own, as XLA does on CPU, so many compute it, if it has no buffer.
    """

    buffer: tuple[int, ...]
    stored: tuple[bool, ...]
    readers: tuple[int, ...] = ()

    def is_stored(self, value: int) -> bool:
        """Whether `value` can be read from memory."""
        return self.stored[self.buffer[value]]

    def loops(self, op: Op, rule: Rule) -> int:
        """In how many loops an op runs."""
        return max(1, *(self.readers[v] for v in op.outputs)) if _inside(op, rule, self) else 1


def storage(graph: Graph, rules: list[Rule], keeps: Collection[str] | None = None) -> Storage:
    """Decides for every value; `rules` has one rule an op.

    Args:
      keeps: on a device that computes cheap values again rather than keep them, what it does not
        compute twice; see `xshard.cost.recompute`.
    """
    buffer = _buffers(graph)
    stored = [False] * len(graph.values)
    for v in (*graph.inputs, *graph.consts, *(o for o in graph.outputs if o is not None)):
        stored[buffer[v]] = True
    for op in graph.ops:
        if keeps is None or op.prim != "random_bits":
            _mark(op, rules[op.id], buffer, stored)
    if keeps is None:
        _keep_for_later(graph, rules, buffer, stored)
    else:
        keep_sources(graph, rules, buffer, stored, keeps)
    found = Storage(tuple(buffer), tuple(stored))
    return replace(found, readers=_readers(graph, rules, found))


def _buffers(graph: Graph) -> list[int]:
    """Views are their operand's buffer; but each result of the step is a buffer of its own."""
    buffer = list(range(len(graph.values)))
    taken = {*graph.inputs, *graph.consts}
    results = set(graph.outputs)
    for op in graph.ops:
        for k, out in enumerate(op.outputs):
            source = op.inputs[k] if op.prim in ALIASES and k < len(op.inputs) else None
            if source is not None and graph.values[source].size == graph.values[out].size:
                buffer[out] = buffer[source]
            if out in results:
                buffer[out] = out if buffer[out] in taken else buffer[out]
                taken.add(buffer[out])
    return buffer


def _mark(op: Op, rule: Rule, buffer: list[int], stored: list[bool]) -> None:
    if rule.kind in _STORES_RESULTS or op.prim == "scan_y":
        for v in op.outputs:
            stored[buffer[v]] = True
    if rule.kind in _STORES_OPERANDS or (rule.kind == "port" and op.prim != "scan_y"):
        for v in op.inputs:
            if v is not None:
                stored[buffer[v]] = True


def _keep_for_later(graph: Graph, rules: list[Rule], buffer: list[int], stored: list[bool]) -> None:
    """Stores fused results that hold an expensive op and are read in another phase or again."""
    readers: list[set[str]] = [set() for _ in graph.values]
    for op in graph.ops:
        for v in op.inputs:
            if v is not None:
                readers[buffer[v]].add(op.phase)
    costly = [False] * len(graph.values)
    for op in graph.ops:
        fused = rules[op.id].kind in ("elementwise", "view")
        inside = any(v is not None and costly[buffer[v]] for v in op.inputs)
        for v in op.outputs:
            b = buffer[v]
            if b != v or stored[b] or not fused:
                continue
            costly[v] = op.prim in EXPENSIVE or inside
            if costly[v] and readers[v] - {op.phase}:
                stored[v], costly[v] = True, False


def _readers(graph: Graph, rules: list[Rule], storage: Storage) -> tuple[int, ...]:
    """For each value, how many loops need it."""
    loops: list[frozenset[int]] = [frozenset() for _ in graph.values]
    for op in reversed(graph.ops):
        reached = frozenset[int]()
        if _inside(op, rules[op.id], storage):
            reached = reached.union(*(loops[v] for v in op.outputs))
        mine = reached or frozenset((op.id,))
        for v in op.inputs:
            if v is not None and len(loops[v]) < _MOST_LOOPS:
                loops[v] |= mine
    return tuple(map(len, loops))


def _inside(op: Op, rule: Rule, storage: Storage) -> bool:
    """Whether an op runs within the loops that read its result."""
    if op.prim in ALIASES:
        return True
    fused = rule.kind in ("elementwise", "view") and op.prim not in EXPENSIVE
    return fused and not any(storage.stored[v] for v in op.outputs)
