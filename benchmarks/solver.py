"""The solver on instances of the intra-operator parallelism contest, against plain CP-SAT.

    python -m benchmarks.solver FOLDER --instances B,G

FOLDER holds NAME.json.gz in the contest's format. Both solvers get the contest's time limit of the
instance, or --time-limit, with the same number of workers. The plain model has a Boolean for each
choice and each pair with a cost, and no reductions, bounds or start; it is left out where it has
more than --plain-pairs pairs.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from math import exp, log
from pathlib import Path

import numpy as np
from ortools.sat.python import cp_model

from xshard.solve.check import check
from xshard.solve.problem import FORBIDDEN, Problem, Solution
from xshard.solve.problem_io import load_problem
from xshard.solve.search import solve
from xshard.solve.spans import as_rows

CONTEST = {
    "A": (60, 6548641531),
    "B": (60, 532843),
    "C": (60, 84102445260),
    "G": (120, 217039),
    "K": (180, 2274276676),
    "P": (240, 662197407330),
    "V": (300, 1632051),
}
"""The contest's time limit in seconds (for eight cores), and the best of its twenty teams."""
HEAD = (
    "| instance | limit | ours | best known | ratio | bound | gap | time | processor "
    "| plain CP-SAT | its ratio |"
)


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the table; None where nothing was found or nothing is known."""

    name: str
    limit_s: float
    ours: int | None
    best: int | None
    bound: int
    wall_s: float
    cpu_s: float
    plain: int | None
    plain_built: bool

    def line(self) -> str:
        """As Markdown."""
        gap = f"{1 - self.bound / self.ours:.1%}" if self.ours else "–"
        plain = str(self.plain or "nothing") if self.plain_built else "too large"
        return (
            f"| {self.name} | {self.limit_s:.0f} s | {self.ours or 'nothing'} | {self.best or '–'} "
            f"| {_ratio(self.ours, self.best)} | {self.bound} | {gap} | {self.wall_s:.1f} s "
            f"| {self.cpu_s:.0f} s | {plain} | {_ratio(self.plain, self.best)} |"
        )


def _ratio(value: int | None, best: int | None) -> str:
    return f"{value / best:.4f}" if value and best else "–"


def run(path: Path, limit_s: float, best: int | None, args: argparse.Namespace) -> Result:
    """Both solvers on one instance; whatever they find is checked without them."""
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    problem = load_problem(path)
    answer = solve(problem, time_limit_s=limit_s, workers=args.workers, began_s=began_s)
    wall_s, cpu_s = time.monotonic() - began_s, time.process_time() - began_cpu_s
    ours, bound = None, 0
    if isinstance(answer, Solution):
        ours, bound = check(problem, answer.choices), answer.bound
    built = sum(e.costs.size for e in problem.edges) <= args.plain_pairs
    choices = plain_cp_sat(problem, limit_s, args.workers) if built else None
    plain = None if choices is None else check(problem, choices)
    name = path.name.split(".")[0]
    return Result(name, limit_s, ours, best, bound, wall_s, cpu_s, plain, built)


def plain_cp_sat(problem: Problem, limit_s: float, workers: int) -> list[int] | None:
    """What the plain model finds in the time."""
    cp = cp_model.CpModel()
    picks = [[cp.new_bool_var("") for _ in n.costs] for n in problem.nodes]
    terms = [
        t for n, xs in zip(problem.nodes, picks, strict=True) for t in zip(n.costs, xs, strict=True)
    ]
    for n, xs in zip(problem.nodes, picks, strict=True):
        cp.add_exactly_one(xs)
        cp.add_bool_and([~x for c, x in zip(n.costs, xs, strict=True) if c >= FORBIDDEN])
    for e in problem.edges:
        for r, c in np.argwhere(e.costs > 0).tolist():
            pair = [~picks[e.a][r], ~picks[e.b][c]]
            if e.costs[r, c] < FORBIDDEN:
                both = cp.new_bool_var("")
                terms.append((e.costs[r, c], both))
                pair.append(both)
            cp.add_bool_or(pair)
    for row in as_rows(problem).rows:
        live = [
            int(k * u) * x
            for i, k in zip(row.nodes, row.node_counts, strict=True)
            for u, x in zip(problem.nodes[i].usage, picks[i], strict=True)
        ]
        cp.add(sum(live) + row.base <= (problem.limit or 0))
    cp.minimize(sum(int(c) * x for c, x in terms if 0 < c < FORBIDDEN))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = limit_s
    solver.parameters.num_workers = workers
    if solver.solve(cp) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    return [[solver.boolean_value(x) for x in xs].index(True) for xs in picks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--instances", default=",".join(CONTEST), help="comma-separated")
    parser.add_argument("--best", type=Path, help='JSON: {"NAME": [seconds, best known], …}')
    parser.add_argument("--time-limit", type=float, help="seconds, instead of the contest's")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--plain-pairs", type=int, default=300_000)
    args = parser.parse_args()
    known = {**CONTEST, **(json.loads(args.best.read_text()) if args.best else {})}
    print(f"{args.workers} workers, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print(HEAD + "\n|" + "---|" * 11)
    ratios: list[float] = []
    for name in args.instances.split(","):
        limit_s, best = known.get(name, (60, None))
        path = next(
            p for p in (args.folder / f"{name}.json.gz", args.folder / f"{name}.json") if p.exists()
        )
        result = run(path, args.time_limit or limit_s, best, args)
        print(result.line(), flush=True)
        if result.ours and best:
            ratios.append(result.ours / best)
    if ratios:
        mean = exp(sum(map(log, ratios)) / len(ratios))
        print(f"\ngeometric mean of the ratios {mean:.4f}, largest {max(ratios):.4f}")


if __name__ == "__main__":
    main()
