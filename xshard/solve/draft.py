"""The problem in the making: what its nodes and edges mean in the graph's terms."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from xshard.cost.fusion import Storage
from xshard.ir.fold import Classes
from xshard.ir.graph import Graph, Op, Value
from xshard.rules.rule import Rule
from xshard.solve.problem import FORBIDDEN, Edge, Node
from xshard.spec import MeshShape, Spec
from xshard.strategies import Strategy, specs_of

Pin = tuple[tuple[int, ...] | None, ...]
"""What the user fixed: axes for each dimension, None where the solver is free."""
Ints = NDArray[np.int64]
Place = tuple[int, Ints]
"""A node, and for each of its choices the index of a spec."""
Returned = tuple[int, Pin]
"""A value class, and what the user fixed of it as it is returned."""
Indexed = tuple[tuple[Spec, ...], dict[Spec, int]]
"""Specs, and their positions."""


class Prices(Protocol):
    """Times in nanoseconds; see `xshard.cost.prices`."""

    def op_ns(self, graph: Graph, op: Op, rule: Rule, strategy: Strategy) -> int: ...

    def alike(self, op: Op) -> Hashable:
        """Equal for ops that cost the same if their signatures are equal."""
        ...

    def reshard_ns(self, shape: tuple[int, ...], itemsize: float) -> Ints:
        """Square matrix over `specs_of(shape)`."""
        ...

    def reduce_ns(
        self,
        shape: tuple[int, ...],
        itemsize: float,
        raw: Spec,
        partial: tuple[int, ...],
        combined: bool,
    ) -> Ints:
        """From partial sums over `partial` to each of `specs_of(shape)`."""
        ...


@dataclass(frozen=True, slots=True)
class Use:
    """Operand `k` of op class `op` reads value class `value`.

    Attributes:
      times: how often a step reshards each value of the class that is read, for these ops alone.
    """

    value: int
    op: int
    k: int
    times: Mapping[int, int]

    @property
    def count(self) -> int:
        """How often a step reshards for this use alone."""
        return copies_of([self])


def copies_of(uses: Iterable[Use]) -> int:
    """How often a step reshards for uses in one phase that share copies of each value."""
    most: dict[int, int] = {}
    for use in uses:
        for v, times in use.times.items():
            most[v] = max(times, most.get(v, 0))
    return sum(most.values())


@dataclass(slots=True)
class Draft:
    """The problem in the making, and what its nodes mean.

    Attributes:
      chained: for each op class, whether it shares its node with a chain of elementwise ops; such
        a node's usage is in elements, not bytes.
      is_gradient: for each value class, whether only the update reads what the backward made.
      strategies, op_node: for each op class, its strategies and the node whose choice picks one.
      stored: value class -> (node, for each of its choices the index of a spec): where it is kept.
      copies: (value class, phase) -> the same for the resharded copy that its readers share.
      returned: (value class, pin) -> the same for results that are returned as the pin says.
      copy_edges, use_edges: what an edge reshards.
      sum_edges: edge -> (op class, which result): where partial sums are finished.
      pins: value id -> what the user fixed of it.
      results: position among the results -> what the user fixed of it as it is returned.
      tied: result value -> the argument value whose place it takes, in that argument's spec.
      choices: what ops of one signature may choose from, with the time of one run.
      ties: (class of a result, class of the argument whose place it takes) -> how many.
    """

    graph: Graph
    classes: Classes
    mesh: MeshShape
    rules: tuple[Rule, ...]
    storage: Storage
    prices: Prices
    chained: tuple[bool, ...] = ()
    is_gradient: tuple[bool, ...] = ()
    pins: Mapping[int, Pin] = field(default_factory=dict[int, "Pin"])
    tied: Mapping[int, int] = field(default_factory=dict[int, int])
    ties: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])
    results: Mapping[int, Pin] = field(default_factory=dict[int, "Pin"])
    returned: dict[Returned, Place] = field(default_factory=dict[Returned, Place])
    nodes: list[Node] = field(default_factory=list[Node])
    edges: list[Edge] = field(default_factory=list[Edge])
    strategies: list[tuple[Strategy, ...]] = field(default_factory=list[tuple[Strategy, ...]])
    op_node: list[int] = field(default_factory=list[int])
    stored: dict[int, Place] = field(default_factory=dict[int, Place])
    copies: dict[tuple[int, str], Place] = field(default_factory=dict[tuple[int, str], Place])
    uses: list[Use] = field(default_factory=list[Use])
    copy_edges: dict[int, tuple[int, str]] = field(default_factory=dict[int, tuple[int, str]])
    use_edges: dict[int, Use] = field(default_factory=dict[int, Use])
    sum_edges: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    choices: dict[Hashable, tuple[tuple[Strategy, ...], Ints]] = field(
        default_factory=dict[Hashable, tuple[tuple[Strategy, ...], Ints]]
    )
    _indices: dict[Hashable, Ints] = field(default_factory=dict[Hashable, Ints])
    _spec_index: dict[tuple[int, ...], Indexed] = field(
        default_factory=dict[tuple[int, ...], Indexed]
    )

    def specs(self, shape: tuple[int, ...]) -> tuple[Spec, ...]:
        """All specs of arrays of this shape."""
        return self._specs(shape)[0]

    def spec_index(self, shape: tuple[int, ...], spec: Spec) -> int:
        """Position of `spec` among `specs(shape)`."""
        return self._specs(shape)[1][spec]

    def result_index(
        self, strategies: tuple[Strategy, ...], k: int, shape: tuple[int, ...]
    ) -> Ints:
        """For each strategy, the position of its `k`-th result's spec."""
        key = True, id(strategies), k  # `choices` keeps the tuples, so ids stay
        if key not in self._indices:
            self._indices[key] = self._index(shape, [s.results[k] for s in strategies])
        return self._indices[key]

    def operand_index(
        self, strategies: tuple[Strategy, ...], k: int, shape: tuple[int, ...]
    ) -> Ints:
        """For each strategy, the position of its `k`-th operand's spec."""
        key = False, id(strategies), k
        if key not in self._indices:
            self._indices[key] = self._index(shape, [s.operands[k] for s in strategies])
        return self._indices[key]

    def _index(self, shape: tuple[int, ...], specs: Sequence[Spec]) -> Ints:
        position = self._specs(shape)[1]
        return np.array([position[s] for s in specs], dtype=np.int64)

    def _specs(self, shape: tuple[int, ...]) -> tuple[tuple[Spec, ...], dict[Spec, int]]:
        if shape not in self._spec_index:
            specs = specs_of(shape, self.mesh)
            self._spec_index[shape] = specs, {s: i for i, s in enumerate(specs)}
        return self._spec_index[shape]

    def value(self, value_class: int) -> Value:
        """A member of the class."""
        return self.graph.values[self.classes.value_members[value_class][0]]

    def op(self, op_class: int) -> Op:
        """A member of the class, from the middle of the repeats."""
        members = self.classes.members[op_class]
        return self.graph.ops[members[len(members) // 2]]

    def times_returned(self, value_class: int, pin: Pin) -> int:
        """How many results are of that class and returned as the pin says."""
        members = set(self.classes.value_members[value_class]).difference(self.tied)
        return sum(self.graph.outputs[i] in members for i, p in self.results.items() if p == pin)

    def name_of(self, value: Value) -> str:
        """What made a value that has no name of its own."""
        op = self.graph.ops[value.producer] if value.producer >= 0 else None
        return f"{op.prim} {op.scope}".strip() if op else "constant"

    def is_stored(self, value_class: int) -> bool:
        """Whether any member has a buffer of its own."""
        return any(self.storage.stored[v] for v in self.classes.value_members[value_class])

    def add_node(self, name: str, costs: list[int] | Ints, usage: Ints | None = None) -> int:
        costs = np.asarray(costs, dtype=np.int64)
        usage = np.zeros_like(costs) if usage is None else usage
        self.nodes.append(Node(name, costs, usage))
        return len(self.nodes) - 1

    def add_edge(self, a: int, b: int, costs: Ints) -> int:
        self.edges.append(Edge(a, b, costs))
        return len(self.edges) - 1


@dataclass(frozen=True, slots=True)
class Assignment:
    """A solution in the graph's terms.

    Attributes:
      strategies: for each op class.
      specs: for each value class, the spec it is kept in.
      copies: (value class, phase) -> spec of the copy that its readers share.
      returned: (value class, pin) -> spec in which results with that pin are returned.
    """

    strategies: tuple[Strategy, ...]
    specs: tuple[Spec, ...]
    copies: dict[tuple[int, str], Spec]
    returned: dict[Returned, Spec]


def encode(d: Draft, a: Assignment) -> tuple[int, ...]:
    """The choices that mean an assignment; where one is not open, as pins say, another.

    Args:
      a: of a draft with the same classes, whose pins may be others.
    """
    choices = [0] * len(d.nodes)

    def put(vc: int, place: Place, spec: Spec) -> None:
        node, index = place
        found = np.flatnonzero(index == d.spec_index(d.value(vc).shape, spec))
        allowed = found[d.nodes[node].costs[found] < FORBIDDEN]
        choices[node] = int(allowed[0]) if len(allowed) else int(d.nodes[node].costs.argmin())

    for vc, place in d.stored.items():
        put(vc, place, a.specs[vc])
    for key, place in d.copies.items():
        put(key[0], place, a.copies.get(key, a.specs[key[0]]))
    for key, place in d.returned.items():
        put(key[0], place, a.returned.get(key, a.specs[key[0]]))
    for node, found, strategy in zip(d.op_node, d.strategies, a.strategies, strict=True):
        k = found.index(strategy)
        allows = d.nodes[node].costs[k] < FORBIDDEN
        choices[node] = k if allows else int(d.nodes[node].costs.argmin())
    return tuple(choices)


def decode(d: Draft, choices: tuple[int, ...]) -> Assignment:
    """What the chosen indices mean."""
    strategies = tuple(
        found[choices[node]] for node, found in zip(d.op_node, d.strategies, strict=True)
    )

    def spec(vc: int, place: tuple[int, Ints]) -> Spec:
        node, index = place
        return d.specs(d.value(vc).shape)[int(index[choices[node]])]

    specs = tuple(spec(vc, d.stored[vc]) for vc in range(len(d.classes.value_members)))
    copies = {key: spec(key[0], place) for key, place in d.copies.items()}
    returned = {key: spec(key[0], place) for key, place in d.returned.items()}
    return Assignment(strategies, specs, copies, returned)
