"""The rows of a problem as arrays: what its memory costs at given prices, and what is too much."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from xshard.solve.check import Ledger
from xshard.solve.net import Floats, Net, net_of, plus
from xshard.solve.problem import Ints, Problem


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows with counts, and with edges that keep something alive.

    Attributes:
      net: costs and tables without memory.
      room: bytes left in each row when nothing is alive but what always is.
      at, owner, change: from a row to the next, how many more of a node are alive, or of an edge
        (behind the nodes).
      usage: of all choices.
      loads: what each pair keeps alive, placed as `net.tables` are.
      column: for each place of `net.near`, its edge.
      ends: of the edges.
      starts: where the table of each edge stands, its second end's choices as rows.
    """

    net: Net
    room: Floats
    at: Ints
    owner: Ints
    change: Floats
    usage: Floats
    loads: Floats
    column: Ints
    ends: Ints
    starts: Ints

    @staticmethod
    def of(problem: Problem) -> Rows:
        """All rows of a problem with a limit."""
        assert problem.limit is not None
        ledger = Ledger.of(problem)
        edge_counts = np.zeros((len(problem.rows), len(problem.edges)), np.int64)
        edge_counts[:, list(ledger.edges)] = ledger.edge_counts
        counts = np.concatenate([ledger.node_counts, edge_counts], axis=1)
        changes = np.diff(counts, axis=0, prepend=0)
        at, owner = np.nonzero(changes)
        used = [np.zeros_like(e.costs) if e.usage is None else e.usage for e in problem.edges]
        loads = tuple(replace(e, costs=u) for e, u in zip(problem.edges, used, strict=True))
        net = net_of(problem)
        ends = np.array([(e.a, e.b) for e in problem.edges], np.int64).reshape(-1, 2)
        edge, side = np.divmod(np.argsort(ends.reshape(-1), kind="stable"), 2)
        first = np.zeros(len(ends), np.int64)
        first[edge[side == 0]] = np.flatnonzero(side == 0)
        return Rows(
            net, (problem.limit - ledger.base).astype(np.float64), at, owner,
            changes[at, owner].astype(np.float64),
            np.concatenate([n.usage for n in problem.nodes]).astype(np.float64),
            net_of(Problem(problem.nodes, loads)).tables, edge, ends, net.at[first],
        )  # fmt: skip

    def priced(self, prices: Floats) -> tuple[Floats, Net]:
        """Costs of all choices, and the net with the tables of its edges, at prices a byte."""
        later: Floats = np.cumsum(prices[::-1])[::-1]
        nodes = len(self.net.offsets) - 1
        each = _sums(self.owner, self.change * later[self.at], nodes + len(self.ends))
        theta = self.net.costs + np.repeat(each[:nodes], np.diff(self.net.offsets)) * self.usage
        tables = plus(self.net, self.loads, each[nodes:][self.column])
        return theta, self.net._replace(tables=tables)

    def over(self, choices: Ints) -> Floats:
        """Live bytes beyond the room, one a row."""
        offsets = self.net.offsets
        a, b = self.ends.T
        pairs = self.starts + choices[b] * np.diff(offsets)[a] + choices[a]
        used = np.concatenate([self.usage[offsets[:-1] + choices], self.loads[pairs]])
        changes = _sums(self.at, self.change * used[self.owner], len(self.room))
        return np.cumsum(changes) - self.room


def _sums(at: Ints, values: Floats, size: int) -> Floats:
    return np.bincount(at, values, size).astype(np.float64)
