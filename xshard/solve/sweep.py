r"""One elimination order, compiled, to be swept many times with other prices on memory.

With a price $\lambda_t \ge 0$ (ns a byte) on each row, every node and every edge costs
$\mathrm{cost} + \lfloor \sum_t \lambda_t n_t\, \mathrm{usage} \rfloor$, the rows are gone, and

$$D(\lambda) = \min_c \mathrm{priced}(c) - \sum_t \lambda_t (\mathrm{limit} - \mathrm{base}_t)$$

is below every feasible objective (rounding down keeps it there). `Sweep.up` computes the minimum
by elimination, `Sweep.down` restores a minimiser, and `Sweep.marginals` gives, for every single
choice, the least priced cost of all choices that contain it: what exceeds the best known objective
can go.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xshard.solve.classes import Classes, joint, slices
from xshard.solve.eliminate import MOST_ENTRIES, Eliminate
from xshard.solve.problem import FORBIDDEN, Edge, Ints, Problem

Index = NDArray[np.intp]


class Input(NamedTuple):
    """A table that a step adds: `entries` (shaped to broadcast) of table `table`."""

    table: int
    entries: Index
    axes: tuple[int, ...]


MOST_AXES = 64
"""Of an array of NumPy: a table is over fewer nodes."""


@dataclass(frozen=True, slots=True)
class Step:
    """The elimination of `node`; axes are `scope` and, last, the node's own classes."""

    node: int
    scope: tuple[int, ...]
    labels: tuple[Index, ...]
    own: Index
    order: Index
    starts: Index
    inputs: tuple[Input, ...]

    @property
    def entries(self) -> int:
        """Of the table whose minimum over the node's own axis is taken."""
        return math.prod(int(labels.max()) + 1 for labels in self.labels) * len(self.starts)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Compiled steps. Table k < `edges` belongs to edge k, with `rows[k]` and `columns[k]`."""

    steps: tuple[Step, ...]
    rows: tuple[Classes, ...]
    columns: tuple[Classes, ...]

    @staticmethod
    def of(problem: Problem) -> Sweep | None:
        """Compiles for `problem`; None if its nodes can not all be eliminated.

        Here tables are as wide as any prices may make them, so what `Eliminate` can do for the
        costs as they are may still be too wide.
        """
        bare = tuple(replace(n, usage=np.zeros_like(n.usage)) for n in problem.nodes)
        apart = tuple(Edge(e.a, e.b, _telling(e)) for e in problem.edges)
        found = Eliminate.find(Problem(bare, apart))
        if found.kept:
            return None
        rows = tuple(_edge_classes(e, 0) for e in problem.edges)
        columns = tuple(_edge_classes(e, 1) for e in problem.edges)
        compiler = _Compiler(problem, rows, columns)
        steps: list[Step] = []
        for s in found.steps:
            if len(compiler.scope(s.node)) >= MOST_AXES:
                return None
            steps.append(compiler.step(s.node))
            if steps[-1].entries > MOST_ENTRIES:
                return None
        return Sweep(tuple(steps), rows, columns)

    def edge_tables(self, edges: Sequence[Ints]) -> list[Ints]:
        """Dense edge matrices over the classes of this sweep."""
        parts = zip(edges, self.rows, self.columns, strict=True)
        return [e[np.ix_(r.firsts, c.firsts)] for e, r, c in parts]

    def minimise(
        self, costs: Sequence[Ints], tables: Sequence[Ints]
    ) -> tuple[int, tuple[int, ...]]:
        """The least total, and choices that reach it."""
        all_tables = list(tables)
        least = self.up(costs, all_tables)
        return least, self.down(costs, all_tables)

    def bounds(self, costs: Sequence[Ints], tables: Sequence[Ints]) -> list[Ints]:
        """For every node and choice, the least total of all choices that contain it."""
        all_tables = list(tables)
        return self.marginals(costs, all_tables, self.up(costs, all_tables))

    def up(self, costs: Sequence[Ints], tables: list[Ints]) -> int:
        """The least total; appends one table a step to `tables`, which starts with the edges'."""
        least = 0
        for step in self.steps:
            total = _total(step, costs, tables)
            tables.append(np.minimum(total.min(axis=-1), FORBIDDEN))
            if not step.scope:
                least += int(tables[-1])
        return least

    def down(self, costs: Sequence[Ints], tables: list[Ints]) -> tuple[int, ...]:
        """Choices that reach what `up` computed."""
        choices = [0] * len(costs)
        for step in reversed(self.steps):
            at = tuple(int(lab[choices[v]]) for v, lab in zip(step.scope, step.labels, strict=True))
            line = costs[step.node].copy()
            for part in step.inputs:
                shape = part.entries.shape[:-1]
                here = tuple(min(i, s - 1) for i, s in zip(at, shape, strict=True))
                line += tables[part.table].reshape(-1)[part.entries[here]][step.own]
            choices[step.node] = int(line.argmin())
        return tuple(choices)

    def marginals(self, costs: Sequence[Ints], tables: list[Ints], least: int) -> list[Ints]:
        """For every node and choice, the least total of all choices that contain it."""
        edges = len(self.rows)
        above: dict[int, Ints] = {}
        out: list[Ints] = [np.zeros(0, np.int64)] * len(costs)
        for at in reversed(range(len(self.steps))):
            step = self.steps[at]
            mine = tables[edges + at]
            rest = above.pop(edges + at) if step.scope else least - mine
            total = np.minimum(_total(step, costs, tables) + np.asarray(rest)[..., None], FORBIDDEN)
            own = total.min(axis=tuple(range(len(step.scope))))
            spare = costs[step.node] - _own_least(step, costs)[step.own]
            out[step.node] = np.minimum(own[step.own] + spare, FORBIDDEN)
            for part in step.inputs:
                if part.table >= edges:
                    above[part.table] = _rest(part, total, tables[part.table])
        return out


def _telling(edge: Edge) -> Ints:
    """A matrix whose equal rows and columns are those equal in both cost and usage."""
    if edge.usage is None:
        return edge.costs
    costs, usage = (np.unique(m, return_inverse=True)[1] for m in (edge.costs, edge.usage))
    codes = costs.astype(np.int64) * (int(usage.max()) + 1) + usage
    return codes.reshape(edge.costs.shape)


def _edge_classes(edge: Edge, axis: int) -> Classes:
    return slices(_telling(edge), axis)


def _own_least(step: Step, costs: Sequence[Ints]) -> Ints:
    return np.minimum.reduceat(costs[step.node][step.order], step.starts)


def _total(step: Step, costs: Sequence[Ints], tables: list[Ints]) -> Ints:
    total = _own_least(step, costs).reshape((1,) * len(step.scope) + (-1,))
    for part in step.inputs:
        total = total + tables[part.table].reshape(-1)[part.entries]
    shape = [int(labels.max()) + 1 for labels in step.labels]
    return np.broadcast_to(total, (*shape, len(step.starts)))


def _rest(part: Input, total: Ints, table: Ints) -> Ints:
    """The least of everything but `table`, over its classes; FORBIDDEN where the table is."""
    others = tuple(a for a in range(total.ndim) if a not in part.axes)
    least = np.full(table.size, FORBIDDEN)
    reduced = total.min(axis=others)
    np.minimum.at(least, part.entries.reshape(reduced.shape).reshape(-1), reduced.reshape(-1))
    flat = table.reshape(-1)
    return np.where(flat < FORBIDDEN, np.maximum(least - flat, 0), FORBIDDEN).reshape(table.shape)


class _Compiler:
    """Replays an elimination order symbolically: scopes and labels only."""

    def __init__(self, problem: Problem, rows: Sequence[Classes], columns: Sequence[Classes]):
        self.sizes = [len(n.costs) for n in problem.nodes]
        self.scopes: list[tuple[int, ...]] = [(e.a, e.b) for e in problem.edges]
        self.labels = [(r.labels, c.labels) for r, c in zip(rows, columns, strict=True)]
        self.on: list[list[int]] = [[] for _ in problem.nodes]
        for table, scope in enumerate(self.scopes):
            for v in scope:
                self.on[v].append(table)

    def scope(self, node: int) -> tuple[int, ...]:
        """The nodes that stand in tables with it."""
        return tuple(sorted({v for t in self.on[node] for v in self.scopes[t]} - {node}))

    def step(self, node: int) -> Step:
        """Compiles the elimination of `node` and takes its tables away."""
        tables, scope = list(self.on[node]), self.scope(node)
        variables = (*scope, node)
        classes = {v: self._classes(v, tables) for v in variables}
        inputs = tuple(self._input(t, variables, classes) for t in tables)
        for t in tables:
            for v in self.scopes[t]:
                self.on[v].remove(t)
        own = classes[node].labels
        order = np.argsort(own, kind="stable")
        starts = np.searchsorted(own[order], np.arange(len(classes[node].firsts)))
        labels = tuple(classes[v].labels for v in scope)
        self._add(scope, labels)
        return Step(node, scope, labels, own, order, starts, inputs)

    def _add(self, scope: tuple[int, ...], labels: tuple[Index, ...]) -> None:
        for v in scope:
            self.on[v].append(len(self.scopes))
        self.scopes.append(scope)
        self.labels.append(labels)  # type: ignore[arg-type]

    def _classes(self, node: int, tables: list[int]) -> Classes:
        with_node = [t for t in tables if node in self.scopes[t]]
        labels = [self.labels[t][self.scopes[t].index(node)] for t in with_node]
        return joint(labels, self.sizes[node])

    def _input(self, t: int, variables: tuple[int, ...], classes: dict[int, Classes]) -> Input:
        scope, labels = self.scopes[t], self.labels[t]
        axes = tuple(variables.index(v) for v in scope)
        index = np.zeros((1,) * len(variables), np.intp)
        for axis, v, lab in zip(axes, scope, labels, strict=True):
            shape = [1] * len(variables)
            shape[axis] = -1
            size = int(lab.max()) + 1
            index = index * size + lab[classes[v].firsts].reshape(shape)
        return Input(t, index, axes)
