"""What a compiler keeps for the backward pass, if it rather computes cheap values again.

XLA:GPU fuses a producer into each of its readers where that moves fewer bytes than a buffer would
("priority fusion"). So of the values that are read in a later phase, directly or through others
without a buffer, one is kept if several ops read it and either

- it is costly: its chain holds an op that the device's table names (`Device.keeps`), or
- what it would be computed from is larger than the value itself.

A value whose sources are several times larger is kept even where it is read in its own phase only:
a gradient of the residual stream would be computed from all the layers behind.

Random numbers are kept where they meet other data even if only one op reads them, for they are not
fused into it.

A float32 softmax over float16 scores is computed again from the scores; a residual stream, a sum of
two arrays of its own size, is kept; so is a dropout mask, one byte where the random word has four.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from xshard.ir.graph import Graph, Op
from xshard.rules.rule import Rule

FUSED = ("elementwise", "view")
_SMALL_BYTES = 1 << 10
"""Sources of so few bytes are keys and scalars."""
_MANY_TIMES = 4
"""What takes so many times its bytes to read again is kept within a phase, too."""
_MOST_SOURCES = 16
"""A value of more sources than this counts as larger to read than to keep."""


def keep_sources(
    graph: Graph,
    rules: Sequence[Rule],
    buffer: Sequence[int],
    stored: list[bool],
    keeps: Collection[str],
) -> None:
    """Marks in `stored` what is kept.

    Args:
      rules: one for each op.
      buffer: for each value, the value whose buffer it is.
      keeps: primitives that are not computed twice.
    """
    readers, later = _readers(graph, buffer), _phases_of_readers(graph, buffer, stored)
    sources: list[frozenset[int]] = [frozenset() for _ in graph.values]
    costly = [False] * len(graph.values)

    def small(v: int) -> bool:
        return _nbytes(graph, {v} if stored[v] else sources[v]) <= _SMALL_BYTES

    for op in graph.ops:
        read = {buffer[v] for v in op.inputs if v is not None}
        if not all(map(small, read)):
            for b in read:
                stored[b] = stored[b] or (costly[b] and small(b))
        mine = frozenset[int]().union(*({b} if stored[b] else sources[b] for b in read))
        inside = op.prim in keeps or any(costly[b] and not stored[b] for b in read)
        for v in op.outputs:
            if buffer[v] != v:
                continue
            sources[v], costly[v] = mine, inside
            if not _is_fused(op, rules):
                continue
            if not stored[v] and readers[v] > 1 and later[v] - {op.phase}:
                stored[v] = inside or _nbytes(graph, mine) > graph.values[v].nbytes
            if not stored[v] and readers[v] > 1:
                stored[v] = _nbytes(graph, mine) > _MANY_TIMES * graph.values[v].nbytes


def _is_fused(op: Op, rules: Sequence[Rule]) -> bool:
    return rules[op.id].kind in FUSED or op.prim == "random_bits"


def _nbytes(graph: Graph, values: Collection[int]) -> float:
    if len(values) > _MOST_SOURCES:
        return float("inf")
    return sum(graph.values[v].nbytes for v in values)


def _readers(graph: Graph, buffer: Sequence[int]) -> list[int]:
    """How many ops read each buffer; views of it do not count."""
    count = [0] * len(graph.values)
    for op in graph.ops:
        made = {buffer[v] for v in op.outputs}
        for b in {buffer[v] for v in op.inputs if v is not None} - made:
            count[b] += 1
    return count


def _phases_of_readers(
    graph: Graph, buffer: Sequence[int], stored: Sequence[bool]
) -> list[set[str]]:
    """The phases in which a value is read, or would be to compute its readers again."""
    phases: list[set[str]] = [set() for _ in graph.values]
    for op in reversed(graph.ops):
        made = [buffer[v] for v in op.outputs]
        through = set[str]().union(*(phases[b] for b in made if not stored[b]))
        for v in op.inputs:
            if v is not None and buffer[v] not in made:
                phases[buffer[v]] |= {op.phase, *through}
    return phases
