"""Layers: equal parts of the forward pass, one after the other, each with its backward part.

They are found by structure alone, in two forms. A `Chain` is a stretch of unrolled forward ops that
repeats (`xshard.ir.fold`), cut where the fewest bytes pass from one copy to the next; a backward op
belongs to the layer whose values it reads, or else to that of the cotangents that it reads. A
`Loop` is a forward scan whose stacked results are read by a backward scan.

A *region* is where layers stand side by side: the step itself, or a loop's body that holds a
forward and a backward pass, such as a loop over microbatches. It is named by the address of its
jaxpr.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xshard.ir.fold import interned, signature, tandem_repeats
from xshard.ir.graph import Address, Graph, Op

_INSIDE = frozenset("scan_const scan_x carry_in branch_in".split())
_OUTSIDE = frozenset("scan_y carry_out branch_out".split())


@dataclass(frozen=True, slots=True)
class Layer:
    """Op ids in program order. `backward` is empty where nothing is differentiated."""

    forward: tuple[int, ...]
    backward: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Chain:
    """Unrolled layers, in the order of the forward pass.

    Attributes:
      region: where they stand.
      before, after: forward and backward ops of the region that come before the first layer and
        behind the last one (embedding and head, say), in program order.
    """

    region: Address
    layers: tuple[Layer, ...]
    before: Layer
    after: Layer

    @property
    def length(self) -> int:
        """The number of layers."""
        return len(self.layers)


@dataclass(frozen=True, slots=True)
class Loop:
    """Layers that are turns of a scan.

    Attributes:
      region: where it stands.
      forward, backward: addresses of the scan and of the one that goes back.
      length: the number of layers.
    """

    region: Address
    forward: Address
    backward: Address
    length: int


def find_layers(graph: Graph) -> tuple[Chain | Loop, ...]:
    """All chains and loops of a step, in the order of the forward pass."""
    places = Places(graph)
    found = [part for r in places.regions() for part in (*_chains(places, r), *_loops(places, r))]
    return tuple(sorted(found, key=lambda part: _first(graph, part)))


def _first(graph: Graph, part: Chain | Loop) -> int:
    if isinstance(part, Chain):
        return part.layers[0].forward[0]
    depth = len(part.forward)
    return next(op.id for op in graph.ops if op.address[:depth] == part.forward)


class Places:
    """Where the ops of a graph stand: their regions, and the equations of a region.

    Attributes:
      control: addresses of the equations with bodies (scan, while, cond).
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.control = frozenset(map(_control, graph.ops)) - {()}

    def regions(self) -> Iterator[Address]:
        """Regions that hold forward and backward ops."""
        phases: dict[Address, set[str]] = defaultdict(set)
        for op in self.graph.ops:
            phases[self.region(op.address)].add(op.phase)
        return (region for region, found in phases.items() if found >= {"fwd", "bwd"})

    def region(self, address: Address) -> Address:
        """The region in which an op stands; ports stand beside their equation."""
        bodies = [n for n in self._enclosing(address) if n + 1 < len(address)]
        depth = max((n + 1 for n in bodies if address[n + 1] >= 0), default=0)
        return address[:depth]

    def equation(self, address: Address, region: Address) -> Address:
        """The equation of a region that an op is or is inside of; calls count as inlined."""
        inside = [n for n in self._enclosing(address) if n > len(region)]
        return address[: inside[0]] if inside else address

    def ops(self, region: Address) -> list[Op]:
        """All ops in a region and in what it holds, but the region's own inputs."""
        depth = len(region)
        return [
            op for op in self.graph.ops if op.address[:depth] == region and op.address[depth] >= 0
        ]

    def _enclosing(self, address: Address) -> list[int]:
        """Lengths of the prefixes of an address that are equations with bodies."""
        return [n for n in range(1, len(address), 2) if address[:n] in self.control]


def _control(op: Op) -> Address:
    """The address of an equation with bodies that an op tells of; ()."""
    if op.prim in _INSIDE:
        return op.address[:-2]
    if op.prim in _OUTSIDE:
        return op.address[:-1]
    return op.address if op.prim == "predicate" else ()


def _chains(places: Places, region: Address) -> Iterator[Chain]:
    ops = places.ops(region)
    for run in _forward_runs(ops):
        s = interned([signature(places.graph, op) for op in run])
        for start, stop, period in tandem_repeats(s):
            cuts = _cuts(places, region, run, start, stop, period)
            if len(cuts) > 2:
                yield _chain(places.graph, region, ops, run, cuts)


def _forward_runs(ops: Sequence[Op]) -> list[list[Op]]:
    """Forward ops between which no backward op stands."""
    runs: list[list[Op]] = [[]]
    for op in ops:
        if op.phase == "fwd":
            runs[-1].append(op)
        elif op.phase == "bwd" and runs[-1]:
            runs.append([])
    return runs


def _cuts(
    places: Places, region: Address, run: Sequence[Op], start: int, stop: int, period: int
) -> range:
    """Where copies begin, and where the last one ends: the phase that hands on the fewest bytes.

    None where equations do not begin alike, or where copies do not read the ones before.
    """
    passing = _passing_bytes(places.graph, run, start)
    equations = [places.equation(op.address, region) for op in run[start:stop]]
    middle = start + (stop - start) // (2 * period) * period

    def cut(offset: int) -> int:
        return middle + offset - (period if middle + offset >= stop else 0)

    def hands_on(offset: int) -> bool:
        at = cut(offset)
        made = {v for op in run[max(start, at - period) : at] for v in op.outputs}
        return any(v in made for op in run[at : min(stop, at + period)] for v in op.inputs)

    def begins(offset: int) -> bool:
        places = range(offset or period, len(equations), period)
        return all(equations[i] != equations[i - 1] for i in places)

    free = [o for o in range(period) if begins(o)]
    if not free:
        return range(0)
    best = min(free, key=lambda o: (int(passing[cut(o)]), -((stop - start - o) // period), o))
    if not hands_on(best):
        return range(0)
    return range(start + best, stop + 1, period)


def _passing_bytes(graph: Graph, run: Sequence[Op], start: int) -> NDArray[np.int64]:
    """For each place in a run, the bytes of what is made between `start` and it and read behind."""
    place = {op.id: i for i, op in enumerate(run)}
    last: dict[int, int] = {}
    for i, op in enumerate(run):
        last.update((v, i) for v in op.inputs if v is not None)
    change = np.zeros(len(run) + 2, dtype=np.int64)
    for v, end in last.items():
        made = place.get(graph.values[v].producer, -1)
        if start <= made < end:
            change[made + 1] += graph.values[v].nbytes
            change[end + 1] -= graph.values[v].nbytes
    return np.cumsum(change)


def _chain(
    graph: Graph, region: Address, ops: Sequence[Op], run: Sequence[Op], cuts: range
) -> Chain:
    number = {op.id: -1 if i < cuts[0] else (i - cuts[0]) // cuts.step for i, op in enumerate(run)}
    n = len(cuts) - 1
    number = {op: min(k, n) for op, k in number.items()}
    back = _backward(graph, [op for op in ops if op.phase == "bwd"], number, n)
    parts = [Layer(_numbered(number, k), _numbered(back, k)) for k in (*range(n), -1, n)]
    return Chain(region, tuple(parts[:n]), parts[-2], parts[-1])


def _numbered(number: dict[int, int], layer: int) -> tuple[int, ...]:
    return tuple(op for op, k in number.items() if k == layer)


def _backward(graph: Graph, ops: Sequence[Op], number: dict[int, int], n: int) -> dict[int, int]:
    """The layer of each backward op, -1 for those before the chain and n for those behind.

    It is the smallest of the layers whose values it reads and those of the backward ops whose
    results it reads, since the backward pass goes from the last layer to the first.
    """
    layers = _value_layers(graph, number)
    found: dict[int, int] = {}
    for op in ops:
        made = [graph.values[v].producer for v in op.inputs if v is not None]
        told = [found[p] for p in made if p in found]
        told += [layers[v] for v in op.inputs if v is not None and v in layers]
        if told:
            found[op.id] = min(told)
    for op in reversed(ops):
        for v in op.inputs if op.id in found else ():
            made = -1 if v is None else graph.values[v].producer
            if made >= 0 and graph.ops[made].phase == "bwd":
                found.setdefault(made, found[op.id])
    return {op.id: found.get(op.id, n) for op in ops}


def _value_layers(graph: Graph, number: dict[int, int]) -> dict[int, int]:
    """The one layer that reads a value, or else makes it; values that several read have none."""
    readers: dict[int, set[int]] = defaultdict(set)
    made: dict[int, int] = {}
    for o, layer in number.items():
        for v in graph.ops[o].inputs:
            if v is not None:
                readers[v].add(layer)
        made |= dict.fromkeys(graph.ops[o].outputs, layer)
    found = {v: made[v] for v in made if not readers[v]}
    for v, read in readers.items():
        later = read - {made.get(v, -2)}
        if len(later or read) == 1:
            found[v] = next(iter(later or read))
    return found


def _loops(places: Places, region: Address) -> Iterator[Loop]:
    """Forward scans of a region with the backward scan that reads what they stack."""
    graph, found = places.graph, dict[Address, Loop]()
    for op in graph.ops:
        read = op.inputs[0] if op.prim == "scan_x" and op.phase == "bwd" else None
        if read is None or graph.values[read].producer < 0:
            continue
        maker = graph.ops[graph.values[read].producer]
        here = places.region(maker.address) == region == places.region(op.address)
        if here and (maker.prim, maker.phase) == ("scan_y", "fwd"):
            forward, length = maker.address[:-1], op.repeat // maker.repeat
            found.setdefault(forward, Loop(region, forward, op.address[:-2], length))
    yield from found.values()
