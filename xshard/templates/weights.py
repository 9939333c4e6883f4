"""What of a step is its state, and which ops read weights: read off the graph, without any name.

The state is what a step hands on or donates, and all that stands in an argument with it. A weight
is what is made of the state alone and read by a matmul, a convolution or an indexed read. Weights
of experts have a factor that all operands and the result share (a batch dimension of a
`dot_general`): each part of the input reads a part of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from xshard.ir.graph import Graph
from xshard.ir.trace import Traced
from xshard.prepare import Modelled
from xshard.rules.rule import Dim

_READERS = ("heavy", "gather")


@dataclass(frozen=True, slots=True)
class Weights:
    """See the module's docstring.

    Attributes:
      state: values of arguments.
      factors: for each class of ops, the factors of the weights that it reads; None for no weight.
      experts: for each class of ops, those of `factors` that part its inputs among experts.
      expert_shapes: of weights with such factors.
    """

    state: frozenset[int]
    factors: tuple[frozenset[str] | None, ...]
    experts: tuple[frozenset[str], ...]
    expert_shapes: frozenset[tuple[int, ...]]


def weights_of(m: Modelled) -> Weights:
    """The weights of a step."""
    r, d = m.prepared.request, m.draft
    state = _with_their_arguments(r.traced, set(r.ties.values()) | r.donated)
    of_batch = _reached(d.graph, (v for v in d.graph.inputs if v not in state))
    alone = _reached(d.graph, state) & ~of_batch
    factors, experts = list[frozenset[str] | None](), list[frozenset[str]]()
    shapes = set[tuple[int, ...]]()
    for c, rule in enumerate(d.rules):
        inputs = d.op(c).inputs if rule.kind in _READERS else ()
        read = [k for k, v in enumerate(inputs) if v is not None and alone[v]]
        parting = _in_all((*rule.operands, *rule.results)) - rule.blocked
        mine = [_factors(rule.operands[k]) for k in read]
        factors.append(frozenset[str]().union(*mine) if read else None)
        experts.append(parting if read and rule.kind == "heavy" else frozenset())
        if experts[-1]:
            shapes |= {d.graph.values[inputs[k] or 0].shape for k in read}
    return Weights(state, tuple(factors), tuple(experts), frozenset(shapes))


def _factors(dims: tuple[Dim, ...] | None) -> frozenset[str]:
    return frozenset(f for dim in dims or () for f in dim)


def _in_all(groups: Iterable[tuple[Dim, ...] | None]) -> frozenset[str]:
    return frozenset[str].intersection(*map(_factors, groups))


def _with_their_arguments(traced: Traced, held: set[int]) -> frozenset[int]:
    """All values that stand in an argument with one that is held, unless that is everything."""
    inputs, at, found = traced.graph.inputs, 0, set[int]()
    for tree in traced.in_tree.children():
        places = inputs[at : at + tree.num_leaves]
        at += tree.num_leaves
        if not held.isdisjoint(places):
            found.update(places)
    return frozenset(found if len(found) < len(inputs) else held)


def _reached(graph: Graph, start: Iterable[int]) -> NDArray[np.bool_]:
    """Which values depend on some."""
    reached, before = np.zeros(len(graph.values), bool), -1
    reached[list(start)] = True
    while before != (before := int(reached.sum())):  # a loop's carry is read before it is made
        for op in graph.ops:
            if any(v is not None and reached[v] for v in op.inputs):
                reached[list(op.outputs)] = True
    return reached
