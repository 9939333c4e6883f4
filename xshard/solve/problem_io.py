"""Problems and solutions as JSON; docs/solver.md describes the format.

    {"problem": {
       "name": "example",
       "nodes": {"costs": [[15], [55, 65]], "usages": [[10], [25, 25]],
                 "intervals": [[30, 70], [40, 70]], "names": ["a", "b"]},
       "edges": {"nodes": [[0, 1]], "costs": [[30, 40]], "usages": [null]},
       "rows": [{"name": "t", "base": 0, "nodes": [0, 1], "node_counts": [1, 1],
                 "edges": [], "edge_counts": []}],
       "usage_limit": 50, "constant": 0}}

Several limits, `"usage_limit": [50, 80]`, are of stages: `"stages": [0, 1]` among the nodes says in
which the interval of each node counts, `"stage": 1` in a row whose limit it is; 0 where they are
left out.

The public format of the intra-operator parallelism contest is this without names, rows, usages of
edges, stages and a constant. Costs of an edge are row-major, the first node's choices as rows. A
cost of 1e17 or more (or null, or Infinity) means that the choice or pair is not allowed.
"""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any, cast

import numpy as np

from xshard.errors import ProblemError
from xshard.solve.problem import FORBIDDEN, Edge, Ints, Node, Problem, Row, Solution

Json = dict[str, Any]
MOST_COST = float(FORBIDDEN)


def load_problem(path: str | Path) -> Problem:
    """Reads a problem, gzip-compressed or not.

    Raises:
      ProblemError: the file cannot be read, is no JSON, or does not describe a problem.
    """
    return problem_of(_read(Path(path)), str(path))


def load_choices(path: str | Path, problem: Problem) -> tuple[int, ...]:
    """The choices in a file that `xshard solve --out` wrote; what they cost need not be allowed.

    Raises:
      ProblemError: the file cannot be read, or is no solution of a problem with these choices.
    """
    found = cast(Json, _read(Path(path)))
    choices = cast(list[int], found.get("choices") if type(found) is dict else None)
    if type(choices) is not list or not all(type(c) is int for c in choices):
        raise ProblemError(f"{path} holds no choices; it must be what xshard solve --out wrote")
    if len(choices) != len(problem.nodes):
        raise ProblemError(
            f"{path} is of a problem with {len(choices)} nodes, this one has {len(problem.nodes)}"
        )
    for i, (c, node) in enumerate(zip(choices, problem.nodes, strict=True)):
        if not 0 <= c < len(node.costs):
            raise ProblemError(f"{path}: node {i} has no choice {c}, only {len(node.costs)}")
    return tuple(choices)


def save_problem(problem: Problem, path: str | Path, name: str = "") -> None:
    """Writes a problem, gzip-compressed if the name ends in .gz."""
    text = json.dumps({"problem": problem_json(problem, name)}).encode()
    Path(path).write_bytes(gzip.compress(text, mtime=0) if str(path).endswith(".gz") else text)


def solution_json(problem: Problem, solution: Solution, peaks_bytes: list[int]) -> Json:
    """What `xshard solve` writes; with several limits, the peak of each stage."""
    return {
        "objective": solution.objective,
        "bound": solution.bound,
        "gap": solution.gap,
        "peak_bytes": peaks_bytes if problem.limits else peaks_bytes[0],
        "limit_bytes": list(problem.limits) or problem.limit,
        "wall_s": round(solution.wall_s, 3),
        "choices": list(solution.choices),
    }


def _read(path: Path) -> Any:
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        return json.loads(data)
    except OSError as error:
        raise ProblemError(f"cannot read {path}: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise ProblemError(f"{path} is a broken gzip file: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ProblemError(f"{path} is no JSON: {error}") from error


def problem_of(data: Any, where: str = "the data") -> Problem:
    """The problem that the JSON describes.

    Raises:
      ProblemError: naming the first thing that is wrong.
    """
    try:
        found = _problem(data["problem"])
    except ProblemError as error:
        raise ProblemError(f"{where}: {error}") from error
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else f"is malformed: {error}"
        raise ProblemError(f"{where} {what}; docs/solver.md describes the format") from error
    try:
        return found.verify()
    except AssertionError as error:
        raise ProblemError(f"{where} contradicts itself: {error}") from error


def _problem(p: Json) -> Problem:
    n = cast(Json, p["nodes"])
    costs = [_costs(c, f"costs of node {i}") for i, c in enumerate(n["costs"])]
    names = n.get("names") or [str(i) for i in range(len(costs))]
    usages: list[Any] = n.get("usages") or [()] * len(costs)
    _same("nodes", costs=costs, names=names, usages=usages)
    nodes = tuple(
        Node(str(name), c, _ints(u, len(c), f"usages of node {i}"))
        for i, (name, c, u) in enumerate(zip(names, costs, usages, strict=True))
    )
    edges = _edges(p.get("edges") or {"nodes": [], "costs": []}, nodes)
    rows = tuple(_row(r, len(nodes), len(edges)) for r in p.get("rows") or ())
    limit, limits = _limits(p.get("usage_limit"))
    spans = _spans(n.get("intervals") if limits or limit is not None else None, len(nodes))
    given = n.get("stages")
    stages = _ints(given, len(nodes), "stages of nodes") if given else np.zeros(0, np.int64)
    constant = int(p.get("constant", 0))
    return Problem(nodes, edges, rows, limit, constant, spans, limits, stages)


def _limits(given: Any) -> tuple[int | None, tuple[int, ...]]:
    """One limit for all, or those of the stages."""
    if not isinstance(given, list):
        return None if given is None else int(given), ()
    limits = cast(list[int], given)
    return None, tuple(_ints(limits, len(limits), "limits").tolist())


def _edges(e: Json, nodes: tuple[Node, ...]) -> tuple[Edge, ...]:
    usages = e.get("usages") or [None] * len(e["nodes"])
    _same("edges", nodes=e["nodes"], costs=e["costs"], usages=usages)
    edges: list[Edge] = []
    for k, (ends, costs, usage) in enumerate(zip(e["nodes"], e["costs"], usages, strict=True)):
        if len(ends) != 2 or ends[0] == ends[1]:
            raise ProblemError(f"edge {k} joins {ends}; an edge joins two different nodes")
        a, b = (_index(i, len(nodes), f"edge {k}") for i in ends)
        shape = len(nodes[a].costs), len(nodes[b].costs)
        flat = _costs(costs, f"costs of edge {k}")
        if len(flat) != shape[0] * shape[1]:
            raise ProblemError(f"edge {k} has {len(flat)} costs, its nodes {shape[0]}×{shape[1]}")
        used = None
        if usage is not None:
            used = _ints(usage, len(flat), f"usages of edge {k}").reshape(shape)
        edges.append(Edge(a, b, flat.reshape(shape), used))
    return tuple(edges)


def _costs(values: Any, what: str) -> Ints:
    raw = np.array(values, dtype=np.float64)
    if raw.ndim != 1 or not len(raw):
        raise ProblemError(f"the {what} are no list of numbers, or empty")
    raw[np.isnan(raw)] = MOST_COST
    if (raw < 0).any():
        raise ProblemError(f"the {what} are negative")
    if (raw != np.floor(raw)).any():
        raise ProblemError(f"the {what} are not whole numbers; scale them to integers")
    large = raw >= MOST_COST
    if raw[~large].max(initial=0) < 2**53:
        return np.where(large, MOST_COST, raw).astype(np.int64)
    exact = [FORBIDDEN if v is None or v >= FORBIDDEN else int(v) for v in values]
    return np.array(exact, np.int64)


def _ints(values: Any, size: int, what: str) -> Ints:
    found = np.array(values if len(values) else [0] * size)
    if found.shape != (size,):
        raise ProblemError(f"the {what} are {len(values)} numbers for {size} costs")
    if found.dtype.kind not in "iu" or (found < 0).any():
        raise ProblemError(f"the {what} are not whole numbers of bytes from 0 up to 2**63")
    return found.astype(np.int64)


def _spans(intervals: Any, nodes: int) -> Ints:
    if intervals is None:
        return np.zeros((0, 3), np.int64)
    found = np.array(intervals, dtype=np.int64).reshape(-1, 2)
    if len(found) != nodes:
        raise ProblemError(f"there are {len(found)} intervals for {nodes} nodes")
    worst = np.flatnonzero(found[:, 0] > found[:, 1])
    if len(worst):
        raise ProblemError(f"the interval of node {worst[0]} ends before it begins")
    spans = np.concatenate([np.arange(nodes)[:, None], found], axis=1)
    return spans[found[:, 0] < found[:, 1]]


def _row(r: Json, nodes: int, edges: int) -> Row:
    name = str(r.get("name", ""))
    n, m = r.get("nodes", []), r.get("edges", [])
    for i in n:
        _index(i, nodes, f"row {name}")
    for i in m:
        _index(i, edges, f"row {name}")
    counts = [r.get("node_counts", [1] * len(n)), r.get("edge_counts", [1] * len(m))]
    _same(f"row {name}", nodes=n, node_counts=counts[0])
    _same(f"row {name}", edges=m, edge_counts=counts[1])
    a, b, c, d = (np.array(x, np.int64) for x in (n, counts[0], m, counts[1]))
    return Row(a, b, c, d, int(r.get("base", 0)), name, int(r.get("stage", 0)))


def _index(i: Any, size: int, what: str) -> int:
    if not isinstance(i, int) or not 0 <= i < size:
        raise ProblemError(f"{what} names number {i}, there are 0 to {size - 1}")
    return i


def _same(what: str, **lists: Any) -> None:
    if len({len(x) for x in lists.values()}) > 1:
        sizes = ", ".join(f"{len(x)} {name}" for name, x in lists.items())
        raise ProblemError(f"{what} do not fit together: {sizes}")


def problem_json(problem: Problem, name: str = "") -> Json:
    """The problem as what `problem_of` reads below "problem"."""
    intervals = [[0, 0] for _ in problem.nodes]
    if len(set(problem.spans[:, 0].tolist())) < len(problem.spans):
        raise ProblemError("a node with two spans has no place in this format; state them as rows")
    for node, first, last in problem.spans.tolist():
        intervals[node] = [first, last]
    edges = problem.edges
    nodes: Json = {
        "names": [n.name for n in problem.nodes],
        "costs": [n.costs.tolist() for n in problem.nodes],
        "usages": [n.usage.tolist() for n in problem.nodes],
    }
    if len(problem.spans):
        nodes["intervals"] = intervals
    if len(problem.stages):
        nodes["stages"] = problem.stages.tolist()
    return {
        "name": name,
        "nodes": nodes,
        "edges": {
            "nodes": [[e.a, e.b] for e in edges],
            "costs": [e.costs.reshape(-1).tolist() for e in edges],
            "usages": [None if e.usage is None else e.usage.reshape(-1).tolist() for e in edges],
        },
        "rows": [_row_json(r) for r in problem.rows],
        "usage_limit": list(problem.limits) or problem.limit,
        "constant": problem.constant,
    }


def _row_json(row: Row) -> Json:
    stage: Json = {"stage": row.stage} if row.stage else {}
    return {
        **stage,
        "name": row.name,
        "base": row.base,
        "nodes": row.nodes.tolist(),
        "node_counts": row.node_counts.tolist(),
        "edges": row.edges.tolist(),
        "edge_counts": row.edge_counts.tolist(),
    }
