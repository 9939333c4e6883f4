"""Unrolled layers: what of a layer's forward pass is run again, and where."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from xshard.ir.layers import Chain
from xshard.remat.program import Program


@dataclass(frozen=True, slots=True)
class Clones:
    """A part of one layer that is run again.

    Attributes:
      at: index of the node before which it runs: the first that reads one of `made`.
      nodes: indices of the nodes to run, in order.
      inputs: values that they read: the layer's input, its weights.
      made: values that backward nodes then read as made again.
    """

    at: int
    nodes: tuple[int, ...]
    inputs: tuple[int, ...]
    made: tuple[int, ...]

    def nbytes(self, program: Program) -> int:
        """Bytes of `made`."""
        return sum(nbytes(program.avals[v]) for v in self.made)


def nbytes(aval: Any) -> int:
    """Bytes of an array of this type."""
    return getattr(aval, "size", 0) * getattr(getattr(aval, "dtype", None), "itemsize", 0)


def clones_of(program: Program, chain: Chain, graph_nodes: dict[int, int]) -> list[Clones | None]:
    """For each layer what is run again; None where there is nothing.

    A value that backward nodes read is made again, unless something else needs it anyway: another
    layer, a result, or a `jax.checkpoint` of the user, which states what it keeps. What has an
    effect is never run twice.

    Args:
      graph_nodes: the index of the node of each op of the graph.
    """
    readers = program.readers()
    layers = [sorted({graph_nodes[o] for o in layer.forward}) for layer in chain.layers]
    return [_clones(program, readers, nodes) for nodes in layers]


def _clones(program: Program, readers: list[list[int]], layer: Collection[int]) -> Clones | None:
    inside = set(layer)
    made = {v for i in layer for v in program.nodes[i].outs}
    kept = {v for v in made if _is_kept(program, (i for i in readers[v] if i not in inside))}
    kept |= {v for i in layer if program.nodes[i].eqn.effects for v in program.nodes[i].outs}
    again = {v for v in made - kept if any(i not in inside for i in readers[v])}
    if not again:
        return None
    needed, nodes, inputs = set(again), list[int](), dict[int, None]()
    for i in sorted(layer, reverse=True):
        node = program.nodes[i]
        if needed.isdisjoint(node.outs):
            continue
        nodes.append(i)
        for a in node.reads:
            if a in made and a not in kept:
                needed.add(a)
            else:
                inputs[a] = None
    at = min(i for v in again for i in readers[v] if i not in inside)
    return Clones(at, tuple(reversed(nodes)), tuple(inputs), tuple(sorted(again)))


def _is_kept(program: Program, readers: Iterable[int]) -> bool:
    """Whether a node outside of the layer reads a value as it was made."""
    for i in readers:
        if i == len(program.nodes):
            return True
        node = program.nodes[i]
        if node.phase != "bwd" or node.is_checkpoint or node.body is not None:
            return True
    return False
