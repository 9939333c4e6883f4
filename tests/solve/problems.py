"""Random small problems, a brute-force oracle, and instances shaped like a real training step."""

from __future__ import annotations

from itertools import product

import numpy as np

from xshard.solve.check import Violation, check, evaluate, peak_of
from xshard.solve.problem import FORBIDDEN, Edge, Node, Problem, Row

EMPTY = np.zeros(0, np.int64)


def random_problem(seed, *, rows=True, forbidden=0.1, nodes=6, most=4):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, nodes + 1))
    sizes = rng.integers(1, most + 1, size=n)
    made = tuple(_node(rng, i, int(size), forbidden) for i, size in enumerate(sizes))
    pairs = [rng.choice(n, 2, replace=False) for _ in range(int(rng.integers(0, 2 * n)))]
    edges = tuple(_edge(rng, int(a), int(b), sizes, forbidden, rows) for a, b in pairs)
    if not rows:
        return Problem(made, edges).verify()
    live = tuple(_row(rng, t, n, len(edges)) for t in range(int(rng.integers(1, 4))))
    return Problem(made, edges, live, int(rng.integers(5, 60)), int(rng.integers(3))).verify()


def dense_problem(nodes, choices, memory):
    """Random costs on random pairs: far too wide to eliminate."""
    rng = np.random.default_rng(0)
    usage = rng.integers(0, 50, size=(nodes, choices)) * memory
    made = tuple(Node(f"n{i}", rng.integers(0, 99, choices), u) for i, u in enumerate(usage))
    pairs = [rng.choice(nodes, 2, replace=False) for _ in range(5 * nodes)]
    edges = [Edge(int(a), int(b), rng.integers(0, 99, (choices, choices))) for a, b in pairs]
    everyone = np.arange(nodes)
    rows = (Row(everyone, np.ones_like(everyone), EMPTY, EMPTY),) if memory else ()
    return Problem(made, tuple(edges), rows, 20 * nodes if memory else None).verify()


def _node(rng, i, size, forbidden):
    costs = rng.integers(0, 30, size=size)
    costs[rng.random(size) < forbidden / 2] = FORBIDDEN
    return Node(f"n{i}", costs, rng.integers(0, 12, size=size) * rng.integers(0, 2))


def _edge(rng, a, b, sizes, forbidden, rows):
    shape = (int(sizes[a]), int(sizes[b]))
    costs = rng.integers(0, rng.choice([1, 2, 30]) + 1, size=shape)
    costs[rng.random(shape) < forbidden] = FORBIDDEN
    usage = rng.integers(0, 8, size=shape) if rows and rng.random() < 0.3 else None
    return Edge(a, b, costs, usage)


def _row(rng, t, nodes, edges):
    live = np.flatnonzero(rng.random(nodes) < 0.6)
    copies = np.flatnonzero(rng.random(edges) < 0.6)
    counts = rng.integers(1, 3, size=len(live)), rng.integers(1, 3, size=len(copies))
    return Row(live, counts[0], copies, counts[1], int(rng.integers(5)), f"t{t}")


def brute_force(problem):
    """(least objective or None, least peak over all allowed choices or None).

    With several limits, the peak is what the largest becomes where all are raised alike.
    """
    best, peak = None, None
    for choices in product(*(range(len(n.costs)) for n in problem.nodes)):
        objective, live, _ = evaluate(problem, choices)
        if objective >= FORBIDDEN:
            continue
        limit = max(problem.limits, default=problem.limit)
        if problem.limits:
            live = max(
                limit - problem.limits[s] + peak_of(problem, choices, s)[0]
                for s in range(len(problem.limits))
            )
        peak = live if peak is None else min(peak, live)
        if limit is None or live <= limit:
            best = objective if best is None else min(best, objective)
    return best, peak


def fits(problem, choices):
    try:
        check(problem, choices)
    except Violation:
        return False
    return True


def _specs(sizes=(2, 4), dims=2):
    """Every way to put each mesh axis on one of `dims` dimensions or none, and its shards."""
    specs = list(product(range(-1, dims), repeat=len(sizes)))
    shards = [
        int(np.prod([s for s, d in zip(sizes, spec, strict=True) if d >= 0])) for spec in specs
    ]
    return specs, np.array(shards)


def reshard(size_bytes, ns_per_kib=1):
    """Costs (ns) and copies (bytes) between all specs of a tensor."""
    specs, shards = _specs()
    local = size_bytes // shards
    same = np.array([[a == b for b in specs] for a in specs])
    steps = np.array(
        [[sum(x != y for x, y in zip(a, b, strict=True)) for b in specs] for a in specs]
    )
    free = np.array(
        [[all(x in (-1, y) for x, y in zip(a, b, strict=True)) for b in specs] for a in specs]
    )
    moved = np.maximum(local[:, None], local) // 1024
    costs = np.where(free, 0, steps * (1000 + moved * ns_per_kib))
    return costs.astype(np.int64), np.where(same | free, 0, local).astype(np.int64)


def training_step(layers=12, *, wide=6, seed=0, fraction=None, copies=True):
    """A forward and backward chain of `layers`, each of `wide` ops with parameters and residuals.

    `fraction` sets the limit between the least and the unconstrained peak.
    """
    build = _Step(np.random.default_rng(seed), copies)
    for layer in range(layers):
        build.layer(layer, wide)
    return build.problem()


class _Step:
    def __init__(self, rng, copies):
        self.rng, self.copies = rng, copies
        self.nodes, self.edges, self.forward, self.params, self.flow = [], [], [], [], []

    def op(self, name, size, flops, inputs):
        """One op on a mesh of (2, 4): each axis on one of four factors, or on none."""
        strategies = list(product(range(-1, 4), repeat=2))
        specs, _ = _specs()
        out = np.array([specs.index(tuple(d if d < 2 else -1 for d in s)) for s in strategies])
        need = np.array(
            [specs.index(tuple(d - 1 if d in (1, 2) else -1 for d in s)) for s in strategies]
        )
        degree = np.array([2 ** (a >= 0) * 4 ** (b >= 0) for a, b in strategies])
        partial = np.array([sum(d == 2 for d in s) for s in strategies])
        costs = flops // degree + partial * (size // 512)
        usage = size // _specs()[1][out]
        self.nodes.append((Node(name, costs.astype(np.int64), usage.astype(np.int64)), out, need))
        here = len(self.nodes) - 1
        for source, way in inputs:
            self.link(source, here, way)
        return here

    def link(self, a, b, way):
        costs, copy = reshard(int(self.nodes[a][0].usage.max()))
        index = np.ix_(self.nodes[a][1], self.nodes[b][2 if way else 1])
        self.edges.append(Edge(a, b, costs[index], copy[index] if self.copies else None))

    def layer(self, layer, wide):
        for k in range(wide):
            size = int(self.rng.choice([1, 2, 4])) << 24
            param = self.op(f"p{layer}.{k}", size, 2 * size // 64, [])
            before = [(self.forward[-1], True)] if self.forward else []
            if k == wide - 1 and len(self.forward) >= wide:
                before.append((self.forward[-wide], False))
            flops = int(self.rng.integers(1, 20)) * 200_000
            self.params.append(param)
            self.forward.append(self.op(f"f{layer}.{k}", size, flops, [(param, False), *before]))

    def backward(self):
        out = []
        for act, param in zip(reversed(self.forward), reversed(self.params), strict=True):
            size = int(self.nodes[act][0].usage.max())
            before = [(out[-1][0], True)] if out else []
            flops = int(self.rng.integers(1, 20)) * 200_000
            grad = self.op(f"b{act}", size, flops, [(act, False), (param, True), *before])
            update = self.op(f"u{param}", size, size // 64, [(grad, True), (param, False)])
            out.append((grad, update))
        return out

    def problem(self):
        grads = self.backward()
        edges_into = {}
        for k, e in enumerate(self.edges):
            edges_into.setdefault(e.b, []).append(k)
        rows, live = [], list(self.params)
        for act in self.forward:
            live.append(act)
            rows.append(self.row(live, edges_into.get(act, [])))
        for (grad, update), act in zip(grads, reversed(self.forward), strict=True):
            rows.append(self.row([*live, grad], edges_into[grad]))
            live.remove(act)
            live.append(update)
        nodes = tuple(n for n, _, _ in self.nodes)
        return Problem(nodes, tuple(self.edges), tuple(rows)).verify()

    def row(self, live, copies):
        copies = copies if self.copies else []
        nodes, edges = np.array(live, np.int64), np.array(copies, np.int64)
        return Row(nodes, np.ones_like(nodes), edges, np.ones_like(edges), 0, f"t{live[-1]}")
