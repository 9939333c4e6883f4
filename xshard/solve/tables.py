r"""Cost tables over a few nodes, and the step that eliminates one node from them.

A node $k$ with tables $f_1 \dots f_m$ on it is replaced by one table over its neighbours $S$
(`_project`),

$$g(c_S) = \min_{c_k} \big(\mathrm{cost}_k[c_k] + \sum_m f_m(c_k, c_S)\big),$$

whose minimiser restores $c_k$ afterwards. Tables are kept over *classes* of choices that they
cannot tell apart, which is what makes this fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from xshard.solve.classes import Classes, joint, slices
from xshard.solve.problem import FORBIDDEN, Ints


@dataclass(frozen=True, slots=True)
class Table:
    """Costs over classes: entry [labels[0][c_0], labels[1][c_1], …] for choices c of `scope`."""

    scope: tuple[int, ...]
    labels: tuple[NDArray[np.intp], ...]
    values: Ints

    @staticmethod
    def of(scope: tuple[int, ...], labels: Sequence[NDArray[np.intp]], values: Ints) -> Table:
        """The table with its equal slices joined, over the nodes that it depends on."""
        out: list[NDArray[np.intp]] = []
        for axis, old in enumerate(labels):
            found = slices(values, axis)
            values = values.take(found.firsts, axis)
            out.append(found.labels[old])
        kept = [axis for axis, size in enumerate(values.shape) if size != 1]
        values = values.reshape([values.shape[axis] for axis in kept])
        return Table(tuple(scope[k] for k in kept), tuple(out[k] for k in kept), values)

    def dense(self) -> Ints:
        """Costs over choices."""
        return self.values[np.ix_(*self.labels)]


@dataclass(frozen=True, slots=True)
class Step:
    """How to restore one node: `best` over the classes of its neighbours is its choice."""

    node: int
    scope: tuple[int, ...]
    labels: tuple[NDArray[np.intp], ...]
    best: NDArray[np.intp]

    def restore(self, choices: list[int]) -> None:
        """Writes the best choice of `node`, given the choices in `scope`."""
        at = tuple(int(lab[choices[v]]) for v, lab in zip(self.scope, self.labels, strict=True))
        choices[self.node] = int(self.best[at])


@dataclass(slots=True)
class State:
    """Tables while nodes disappear.

    Attributes:
      costs: the nodes' own tables.
      tables: those over several nodes, by serial number; `touching[i]` are the serials on node i.
      constant: the cost of what is decided.
      steps: the eliminations so far.
      work: table entries computed so far.
      wide: how many tables have more than two nodes.
    """

    costs: list[Ints]
    tables: dict[int, Table]
    touching: list[set[int]]
    constant: int
    steps: list[Step] = field(default_factory=list[Step])
    work: int = 0
    serial: int = 0
    wide: int = 0

    def copy(self) -> State:
        """A state that shares the arrays, none of which is ever changed in place."""
        touching = [set(t) for t in self.touching]
        return replace(
            self,
            costs=list(self.costs),
            tables=dict(self.tables),
            touching=touching,
            steps=list(self.steps),
        )

    def add(self, table: Table) -> None:
        """Adds a table; one over a single node goes into its costs, one over none is constant."""
        if not table.scope:
            self.constant = min(self.constant + int(table.values), FORBIDDEN)
        elif len(table.scope) == 1:
            (node,) = table.scope
            rise = table.dense()
            self.costs[node] = np.minimum(self.costs[node] + rise, FORBIDDEN)
        else:
            self.tables[self.serial] = table
            self.wide += len(table.scope) > 2
            for node in table.scope:
                self.touching[node].add(self.serial)
            self.serial += 1

    def around(self, node: int) -> list[Table]:
        """The tables on `node`, oldest first."""
        return [self.tables[t] for t in sorted(self.touching[node])]

    def neighbours(self, node: int) -> tuple[int, ...]:
        """The nodes that share a table with `node`, in order."""
        return tuple(sorted({v for t in self.around(node) for v in t.scope} - {node}))

    def entries(self, node: int) -> int:
        """At most so many sums it takes to eliminate `node`."""
        around = self.around(node)
        sizes: dict[int, int] = {}
        for table in around:
            for v, size in zip(table.scope, table.values.shape, strict=True):
                sizes[v] = min(sizes.get(v, 1) * size, len(self.costs[v]))
        return prod(sizes.values())

    def eliminate(self, node: int) -> tuple[int, ...]:
        """Replaces the node by a table over its neighbours, which are returned."""
        around = self.around(node)
        scope = self.neighbours(node)
        self.work += self.entries(node)
        step, table = _project(node, scope, around, self.costs)
        for t in list(self.touching[node]):
            self._remove(t)
        self.steps.append(step)
        self.add(table)
        return scope

    def _remove(self, serial: int) -> None:
        table = self.tables.pop(serial)
        self.wide -= len(table.scope) > 2
        for v in table.scope:
            self.touching[v].discard(serial)


def _project(
    node: int, scope: tuple[int, ...], tables: list[Table], costs: list[Ints]
) -> tuple[Step, Table]:
    classes = {v: _classes(v, tables, len(costs[v])) for v in (node, *scope)}
    own = classes[node].labels
    order = np.lexsort((costs[node], own))
    candidates = order[np.unique(own[order], return_index=True)[1]]
    axes = {v: axis for axis, v in enumerate((node, *scope))}
    total = costs[node][candidates].reshape(-1, *(1 for _ in scope))
    for table in tables:
        total = total + _spread(table, classes, axes)
    at = total.argmin(axis=0)
    values = np.minimum(np.take_along_axis(total, at[None], 0)[0], FORBIDDEN)
    labels = tuple(classes[v].labels for v in scope)
    return Step(node, scope, labels, candidates[at]), Table.of(scope, labels, values)


def _classes(node: int, tables: list[Table], size: int) -> Classes:
    on = [t.labels[t.scope.index(node)] for t in tables if node in t.scope]
    return joint(on, size)


def _spread(table: Table, classes: dict[int, Classes], axes: dict[int, int]) -> Ints:
    """The table over the joint classes, with an axis for every one of `axes`."""
    index = [lab[classes[v].firsts] for v, lab in zip(table.scope, table.labels, strict=True)]
    values = table.values[np.ix_(*index)]
    positions = [axes[v] for v in table.scope]
    values = values.transpose(np.argsort(positions))
    shape = [1] * len(axes)
    for v, ix in zip(table.scope, index, strict=True):
        shape[axes[v]] = len(ix)
    return values.reshape(shape)
