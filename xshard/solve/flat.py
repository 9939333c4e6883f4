"""`Flat`: a problem with spans as a few long arrays, for loops that see all of it at once."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from xshard.solve.problem import FORBIDDEN, Ints, Problem


@dataclass(frozen=True, slots=True)
class Flat:
    """A problem without rows, its lists behind one another.

    Attributes:
      offsets: choices of node i are offsets[i] … offsets[i + 1], shape (nodes + 1,).
      costs: of all choices.
      ends: the two nodes of each edge, shape (edges, 2).
      starts: the table of edge k is tables[starts[k] : starts[k + 1]], the first end's choices as
        rows.
      tables: of all edges.
      span_nodes, span_from, span_to: what is alive in which half-open stretch of moments.
      span_starts: the usage of span s is usage[span_starts[s] : span_starts[s + 1]], a choice each.
      usage: of all spans, in bytes.
      room: bytes left at each moment when every usage is 0.
      constant: added to every objective.
    """

    offsets: Ints
    costs: Ints
    ends: Ints
    starts: Ints
    tables: Ints
    span_nodes: Ints
    span_from: Ints
    span_to: Ints
    span_starts: Ints
    usage: Ints
    room: Ints
    constant: int

    @property
    def sizes(self) -> Ints:
        """How many choices each node has."""
        return np.diff(self.offsets)

    def of_nodes(self, kept: Ints) -> Flat:
        """Over these nodes alone; edges and spans of the others must not matter."""
        number = np.full(len(self.sizes), -1, np.int64)
        number[kept] = np.arange(len(kept))
        ends, nodes = number[self.ends], number[self.span_nodes]
        assert (ends >= 0).all() and (nodes >= 0).all()
        return replace(
            self,
            offsets=offsets_of(self.sizes[kept]),
            costs=self.costs[np.repeat(number >= 0, self.sizes)],
            ends=ends,
            span_nodes=nodes,
        )

    @staticmethod
    def of(problem: Problem) -> Flat:
        """All of a problem that has no rows and no edges with usage."""
        assert not problem.rows and all(e.usage is None for e in problem.edges)
        offsets = offsets_of([len(n.costs) for n in problem.nodes])
        costs = np.concatenate([n.costs for n in problem.nodes])
        starts = offsets_of([e.costs.size for e in problem.edges])
        tables = [e.costs.reshape(-1) for e in problem.edges]
        ends = np.array([(e.a, e.b) for e in problem.edges], np.int64).reshape(-1, 2)
        spans = problem.spans if problem.limit is not None else problem.spans[:0]
        usage = [problem.nodes[int(i)].usage for i in spans[:, 0]]
        first, last, count = moments(spans[:, 1], spans[:, 2])
        return Flat(
            offsets, np.minimum(costs, FORBIDDEN), ends, starts,
            np.minimum(np.concatenate([np.zeros(0, np.int64), *tables]), FORBIDDEN),
            spans[:, 0].copy(), first, last, offsets_of([len(u) for u in usage]),
            np.concatenate([np.zeros(0, np.int64), *usage]),
            np.full(count, problem.limit or 0, np.int64), problem.constant,
        )  # fmt: skip


def offsets_of(sizes: list[int] | Ints) -> Ints:
    return np.concatenate([[0], np.cumsum(np.asarray(sizes, np.int64))]).astype(np.int64)


def moments(first: Ints, last: Ints) -> tuple[Ints, Ints, int]:
    """The stretches over the moments that matter: those before an end and after a start.

    What is alive at any other moment is alive at one of these too.
    """
    times = np.unique(np.concatenate([first, last]))
    begins = np.isin(times, first[first < last])
    stops = np.isin(times, last[first < last])
    kept = np.zeros(len(times), bool)
    fresh = False
    for t in range(len(times)):  # the stretch between times[t] and times[t + 1]
        fresh = (fresh and not stops[t]) or bool(begins[t])
        if fresh and t + 1 < len(times) and stops[t + 1]:
            kept[t] = True
            fresh = False
    number = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    at = np.searchsorted(times, first), np.searchsorted(times, last)
    return number[at[0]], number[at[1]], int(number[-1])
