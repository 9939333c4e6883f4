r"""The CP-SAT model of a problem. Variables are Booleans; every line names its function.

- $x_{ic} = 1$: node $i$ takes choice $c$; $\sum_c x_{ic} = 1$ (`_choices`). A class of choices
  has the literal $X_{iS} = \sum_{c \in S} x_{ic}$ (`Variables.member`).
- A forbidden pair of classes: $\bar X_{iS} \lor \bar X_{jT}$ (`_forbid`).
- What an edge charges, cost or usage, is a sum of literals that is at least its matrix $m$ at the
  chosen pair, and no more at the best (`_charge`). The matrix first shrinks to its distinct rows
  $r$ and columns $c$. Small ones get the local polytope (`_pairs`): $y_{rc} \ge 0$,
  $\sum_c y_{rc} = X_r$, $\sum_r y_{rc} = X_c$, charge $\sum m_{rc} y_{rc}$. Large ones get
  thresholds (`_thresholds`): with $v_0 < v_1 < \dots$ the values in column $c$,
  $y_{ck} \ge X_c - \sum_{r: m_{rc} < v_k} X_r$, charge
  $\sum_c (v_0 X_c + \sum_k (v_k - v_{k-1}) y_{ck})$.
- Live memory, for each row: $\mathrm{base}_t + \sum n u(x) + \sum n u(y) \le L$ (`_live`), where
  $L$ is the limit, or the variable to minimise (`minimise_peak`).
- The objective: $\sum \mathrm{cost}\, x + \sum \mathrm{charge}$ (`minimise_cost`), divided by
  `scale` and rounded down where it might not fit into 64 bits, so that a bound stays a bound.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise, product

import numpy as np
from ortools.sat.python import cp_model

from xshard.solve.classes import Classes, joint, slices
from xshard.solve.problem import FORBIDDEN, Edge, Ints, Problem

MOST_PAIRS = 400
LARGEST_SUM = 1 << 55
Literal = cp_model.BoolVarT
Terms = list[tuple[int, Literal]]


@dataclass(slots=True)
class Variables:
    """The model under construction: `picks[i][c]` is $x_{ic}$, `members` the class literals."""

    cp: cp_model.CpModel
    picks: list[list[Literal]]
    members: dict[tuple[int, bytes], Literal] = field(
        default_factory=dict[tuple[int, bytes], Literal]
    )

    def member(self, node: int, choices: Ints) -> Literal:
        """The literal of node `node` taking one of `choices`."""
        picks = [self.picks[node][int(c)] for c in choices]
        if len(picks) == 1:
            return picks[0]
        key = (node, choices.tobytes())
        if key not in self.members:
            literal = self.cp.new_bool_var("")
            self.cp.add(sum(picks) == literal)
            self.members[key] = literal
        return self.members[key]


@dataclass(frozen=True, slots=True)
class Outcome:
    """An answer of CP-SAT: `infeasible` and `optimal` are proofs; `bound` holds in any case.

    `spent_s` are deterministic seconds.
    """

    choices: tuple[int, ...] | None
    bound: int
    infeasible: bool
    optimal: bool
    spent_s: float


@dataclass(frozen=True, slots=True)
class Model:
    """A built model. Objective value × `scale` + `constant` bounds the problem's from below."""

    variables: Variables
    scale: int
    constant: int

    def run(self, effort_s: float, time_s: float, workers: int, seed: int) -> Outcome:
        """Solves the model within so many deterministic seconds, and seconds of the clock."""
        solver = cp_model.CpSolver()
        p = solver.parameters
        p.num_workers, p.random_seed = workers if workers > 2 else 1, seed
        p.interleave_search = p.num_workers > 1
        p.linearization_level = 2
        p.max_deterministic_time, p.max_time_in_seconds = effort_s, time_s
        p.catch_sigint_signal = False
        status = _solved(solver, self.variables.cp)
        optimal, infeasible = status == cp_model.OPTIMAL, status == cp_model.INFEASIBLE
        choices = None
        if optimal or status == cp_model.FEASIBLE:
            values = ([solver.boolean_value(x) for x in xs] for xs in self.variables.picks)
            choices = tuple(line.index(True) for line in values)
        bound = int(np.ceil(solver.best_objective_bound - 1e-6))
        spent_s = solver.response_proto.deterministic_time
        return Outcome(choices, self.constant + self.scale * bound, infeasible, optimal, spent_s)


def _solved(solver: cp_model.CpSolver, model: cp_model.CpModel) -> cp_model.CpSolverStatus:
    """Its status; in a thread, so that an interrupt ends it at once and is raised here."""
    with ThreadPoolExecutor(1) as pool:
        status = pool.submit(solver.solve, model)
        try:
            return status.result()
        except KeyboardInterrupt:
            solver.stop_search()
            raise


def minimise_cost(problem: Problem, *, below: int | None = None) -> Model:
    """The cheapest choices that fit the rows; with `below`, only such with a cost under it."""
    v = _choices(problem)
    terms: Terms = []
    for node, picks in zip(problem.nodes, v.picks, strict=True):
        terms += [(int(c), x) for c, x in zip(node.costs, picks, strict=True) if c < FORBIDDEN]
    live = [_charge(v, e, terms) for e in problem.edges]
    if problem.limit is not None:
        for t in range(len(problem.rows)):
            v.cp.add(_live(v, problem, t, live) <= problem.limit)
    scale = 1 + sum(c for c, _ in terms) // LARGEST_SUM
    objective = _sum([(c // scale, x) for c, x in terms])
    if below is not None:
        v.cp.add(objective <= (below - 1 - problem.constant) // scale)
    v.cp.minimize(objective)
    return Model(v, scale, problem.constant)


def minimise_peak(problem: Problem, *, below: int | None = None) -> Model:
    """The choices with the least peak over the rows; costs only forbid."""
    v = _choices(problem)
    unused: Terms = []
    live = [_charge(v, e, unused) for e in problem.edges]
    most = sum(_most(problem, t) for t in range(len(problem.rows)))
    peak = v.cp.new_int_var(0, most if below is None else max(below - 1, 0), "peak")
    if below == 0:
        v.cp.add_bool_or([])
    for t in range(len(problem.rows)):
        v.cp.add(_live(v, problem, t, live) <= peak)
    v.cp.minimize(peak)
    return Model(v, 1, 0)


def _most(problem: Problem, t: int) -> int:
    row = problem.rows[t]
    counted = [(problem.nodes[i].usage, n) for i, n in _entries(row.nodes, row.node_counts)]
    edges = _entries(row.edges, row.edge_counts)
    counted += [(u, n) for k, n in edges if (u := problem.edges[k].usage) is not None]
    return row.base + sum(n * int(u.max()) for u, n in counted)


def _entries(indices: Ints, counts: Ints) -> list[tuple[int, int]]:
    return [(int(i), int(n)) for i, n in zip(indices, counts, strict=True)]


def _choices(problem: Problem) -> Variables:
    cp = cp_model.CpModel()
    v = Variables(cp, [])
    if problem.constant >= FORBIDDEN:
        cp.add_bool_or([])
    for node in problem.nodes:
        picks: list[Literal]
        match len(node.costs):
            case 1:
                picks = [cp.new_constant(1)]
            case 2:
                x = cp.new_bool_var("")
                picks = [x, x.negated()]
            case size:
                picks = [cp.new_bool_var("") for _ in range(size)]
                cp.add_exactly_one(picks)
        for cost, literal in zip(node.costs, picks, strict=True):
            if cost >= FORBIDDEN:
                cp.add_bool_and([literal.negated()])
        v.picks.append(picks)
    return v


def _charge(v: Variables, edge: Edge, cost: Terms) -> Terms:
    """Adds the edge's cost to `cost`; returns what it keeps alive."""
    usage = np.zeros_like(edge.costs) if edge.usage is None else edge.usage
    rows, columns = (_joint_classes(edge.costs, usage, axis) for axis in (0, 1))
    index = np.ix_(rows.firsts, columns.firsts)
    small = edge.costs[index], usage[index]
    if small[0].size <= MOST_PAIRS:
        y = _pairs(v, edge, rows, columns, small[0])
        cost += [(int(small[0][rc]), x) for rc, x in y.items() if small[0][rc]]
        return [(int(small[1][rc]), x) for rc, x in y.items() if small[1][rc]]
    _forbid(v, edge, rows, columns, small[0])
    allowed = np.where(small[0] < FORBIDDEN, small[0], 0)
    cost += _thresholds(v, edge, rows, columns, allowed)
    return _thresholds(v, edge, rows, columns, small[1])


def _joint_classes(costs: Ints, usage: Ints, axis: int) -> Classes:
    parts = [slices(costs, axis).labels, slices(usage, axis).labels]
    return joint(parts, costs.shape[axis])


def _literals(v: Variables, node: int, classes: Classes) -> list[Literal]:
    every = range(len(classes.firsts))
    return [v.member(node, np.flatnonzero(classes.labels == k)) for k in every]


def _pairs(
    v: Variables, edge: Edge, rows: Classes, columns: Classes, costs: Ints
) -> dict[tuple[int, int], Literal]:
    xa, xb = _literals(v, edge.a, rows), _literals(v, edge.b, columns)
    if len(xa) == 1 or len(xb) == 1:
        both = product(enumerate(xa), enumerate(xb))
        pairs = {(r, c): a if len(xb) == 1 else b for (r, a), (c, b) in both}
        v.cp.add_bool_and([x.negated() for rc, x in pairs.items() if costs[rc] >= FORBIDDEN])
        return {rc: x for rc, x in pairs.items() if costs[rc] < FORBIDDEN}
    allowed = [(int(r), int(c)) for r, c in np.argwhere(costs < FORBIDDEN)]
    y: dict[tuple[int, int], Literal] = {rc: v.cp.new_bool_var("") for rc in allowed}
    for r, a in enumerate(xa):
        v.cp.add(sum(y[rc] for rc in allowed if rc[0] == r) == a)
    for c, b in enumerate(xb):
        v.cp.add(sum(y[rc] for rc in allowed if rc[1] == c) == b)
    return y


def _forbid(v: Variables, edge: Edge, rows: Classes, columns: Classes, costs: Ints) -> None:
    xa, xb = _literals(v, edge.a, rows), _literals(v, edge.b, columns)
    for r, c in np.argwhere(costs >= FORBIDDEN):
        v.cp.add_bool_or([xa[int(r)].negated(), xb[int(c)].negated()])


def _thresholds(v: Variables, edge: Edge, rows: Classes, columns: Classes, values: Ints) -> Terms:
    by_row = sum(len(np.unique(line)) for line in values)
    if by_row < sum(len(np.unique(line)) for line in values.T):
        turned = Edge(edge.b, edge.a, edge.costs.T)
        return _thresholds(v, turned, columns, rows, values.T)
    xb = _literals(v, edge.b, columns)
    terms: Terms = []
    for c, literal in enumerate(xb):
        levels = [int(level) for level in np.unique(values[:, c])]
        terms.append((levels[0], literal))
        for low, high in pairwise(levels):
            below = np.flatnonzero((values[:, c] < high)[rows.labels])
            y = v.cp.new_bool_var("")
            v.cp.add_bool_or([literal.negated(), y, *(v.picks[edge.a][i] for i in below)])
            terms.append((high - low, y))
    return [term for term in terms if term[0]]


def _live(v: Variables, problem: Problem, t: int, live: list[Terms]) -> cp_model.LinearExprT:
    row = problem.rows[t]
    terms: Terms = []
    for i, n in _entries(row.nodes, row.node_counts):
        used = zip(problem.nodes[i].usage, v.picks[i], strict=True)
        terms += [(n * int(u), x) for u, x in used if u]
    for k, n in _entries(row.edges, row.edge_counts):
        terms += [(n * u, x) for u, x in live[k]]
    return _sum(terms) + row.base


def _sum(terms: Terms) -> cp_model.LinearExpr:
    literals, coefficients = [x for _, x in terms], [c for c, _ in terms]
    return cp_model.LinearExpr.weighted_sum(  # pyright: ignore[reportUnknownMemberType]
        literals, coefficients
    )
