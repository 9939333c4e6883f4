r"""`Problem`: the planning problem as plain integers.

Choose one $c_i$ for each node $i$ to minimise

$$\sum_i \mathrm{cost}_i[c_i] + \sum_{(i,j)} \mathrm{cost}_{ij}[c_i, c_j]$$

subject to, for every row $t$ of live memory,

$$\mathrm{base}_t + \sum_i n_{ti}\,\mathrm{usage}_i[c_i]
  + \sum_{(i,j)} n_{t,ij}\,\mathrm{usage}_{ij}[c_i, c_j] \le \mathrm{limit},$$

and, at every time $t$, for the nodes with a span $[\mathrm{first}, \mathrm{last})$ around $t$,

$$\sum_{i: \mathrm{first}_i \le t < \mathrm{last}_i} \mathrm{usage}_i[c_i] \le \mathrm{limit}.$$

Where devices differ in what they hold (the stages of a pipeline, kinds of devices), each row and
each node's span belongs to a stage with a limit of its own.

A cost of `FORBIDDEN` or more means that the choice (or pair) is not allowed. A node may stand for
many isomorphic ops: its costs then carry their number, and $n_{ti}$ counts how many of them are
live in row $t$.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

FORBIDDEN = 10**17
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Node:
    """One decision. `costs` and `usage` (bytes) have one entry a choice, both non-negative."""

    name: str
    costs: Ints
    usage: Ints


@dataclass(frozen=True, slots=True)
class Edge:
    """The cost of a pair of choices, shape (choices of `a`, choices of `b`).

    `usage` (bytes, same shape) is what the pair keeps alive in the rows that count it (the copy
    that a resharding makes); None where that is nothing.
    """

    a: int
    b: int
    costs: Ints
    usage: Ints | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Live memory at one moment: indices into nodes and edges, and how many of each are live.

    Attributes:
      stage: whose limit holds, where a problem has several.
    """

    nodes: Ints
    node_counts: Ints
    edges: Ints
    edge_counts: Ints
    base: int = 0
    name: str = ""
    stage: int = 0


def _no_spans() -> Ints:
    return np.zeros((0, 3), np.int64)


def _no_stages() -> Ints:
    return np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Problem:
    """See the module's docstring. `limit` is in bytes; None for no limit.

    Attributes:
      rows: moments, each with what is live then: for counts and for edges that use memory.
      constant: added to every objective: what the reductions have already decided.
      spans: (node, first, last): the node's usage is live at all times in [first, last). Shape
        (spans, 3). Where nodes live long this is a thousand times smaller than rows; `with_rows`
        states it as rows, which is what all the exact parts of the solver read.
      limits: in bytes, one for each stage; empty where `limit` holds for all.
      stages: the stage of each node, where its span counts; empty where all are in the first.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    rows: tuple[Row, ...] = ()
    limit: int | None = None
    constant: int = 0
    spans: Ints = field(default_factory=_no_spans)
    limits: tuple[int, ...] = ()
    stages: Ints = field(default_factory=_no_stages)

    def verify(self) -> Problem:
        """Returns self if shapes and indices fit together; AssertionError otherwise."""
        for node in self.nodes:
            assert len(node.costs) == len(node.usage) > 0, f"node {node.name} has no choices"
            assert (node.costs >= 0).all() and (node.usage >= 0).all(), node.name
        for e in self.edges:
            shape = (len(self.nodes[e.a].costs), len(self.nodes[e.b].costs))
            assert e.a != e.b and e.costs.shape == shape and (e.costs >= 0).all(), (e.a, e.b)
            assert e.usage is None or e.usage.shape == shape, (e.a, e.b)
        for row in self.rows:
            assert len(row.nodes) == len(row.node_counts), row.name
            assert len(row.edges) == len(row.edge_counts), row.name
        assert self.spans.shape[1:] == (3,), "spans are (node, first, last)"
        assert not len(self.spans) or (self.spans[:, 0] < len(self.nodes)).all()
        assert (self.spans[:, 1] <= self.spans[:, 2]).all(), "a span ends before it begins"
        self._verify_stages()
        return self

    def span_stages(self) -> Ints:
        """The stage of each span."""
        if not len(self.stages):
            return np.zeros(len(self.spans), np.int64)
        return self.stages[self.spans[:, 0]]

    def limit_of(self, stage: int) -> int | None:
        """The limit of a stage."""
        return self.limits[stage] if self.limits else self.limit

    def _verify_stages(self) -> None:
        assert not self.limits or self.limit is None, "one limit for all, and one for each stage"
        assert min(self.limits, default=0) >= 0, "a limit is negative"
        known = max(1, len(self.limits))
        assert len(self.stages) in (0, len(self.nodes)), "there is not one stage for each node"
        for stage in {*self.stages.tolist(), *(row.stage for row in self.rows)}:
            assert 0 <= stage < known, f"stage {stage} has no limit; there are {known}"


@dataclass(frozen=True, slots=True)
class Start:
    """What an answer to another problem says about this one, which differs in pins or the limit.

    Attributes:
      choices: to begin with; they need not fit, nor be allowed.
      bound: no choices of this problem cost less. An answer to a problem that allows more has one.
      prices: of memory, by the names of rows; only where the search begins depends on them.
    """

    choices: tuple[int, ...] | None = None
    bound: int = 0
    prices: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class Solution:
    """What the solver answers.

    Attributes:
      choices: one index a node.
      objective: the value of the choices, recomputed from the problem.
      bound: no choices at all have an objective below this.
      wall_s: seconds spent.
      notes: what was done, for the plan's report.
      prices: of memory (ns a byte) that the search ended with, by the names of rows.
    """

    choices: tuple[int, ...]
    objective: int
    bound: int
    wall_s: float = 0.0
    notes: dict[str, int | float | str] = field(default_factory=dict[str, int | float | str])
    prices: Mapping[str, float] = field(default_factory=dict[str, float])

    @property
    def gap(self) -> float:
        """How far from optimal at most: (objective - bound) / objective; 0 is proven optimal."""
        return 0.0 if self.objective <= self.bound else 1 - self.bound / self.objective


@dataclass(frozen=True, slots=True)
class Infeasible:
    """No choices fit.

    Attributes:
      smallest_limit: the smallest limit in bytes for which choices exist (proven if `proven`);
        None if no limit helps, because forbidden pairs leave no choices. Of several limits: what
        the largest becomes where all are raised by the same until choices exist.
      choices: choices that reach it.
      bound: where only cheaper choices were asked for: no choices that fit cost less than that.
    """

    smallest_limit: int | None
    choices: tuple[int, ...] | None = None
    proven: bool = True
    bound: int | None = None
