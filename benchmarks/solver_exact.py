"""The solver on random small problems against brute force, and twice on each.

    python -m benchmarks.solver_exact [--instances 1000] [--first-seed 0]

Half of the problems state memory as rows, with usage on edges and counts, half as spans; with
--stages they have one to three memory limits, each row and span under one of them. Of each,
the best objective must be that of brute force; where nothing fits, so must the smallest limit. The
second answer must be the same bytes as the first. With --blocks the problems with spans go to the
search by blocks that large ones get, which is no exact method: its differences are counted too.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace

import numpy as np

from tests.solve.problems import brute_force, random_problem
from xshard.solve.check import check
from xshard.solve.large import solve_spans
from xshard.solve.one_limit import OneLimit
from xshard.solve.problem import Infeasible, Problem, Solution
from xshard.solve.search import solve

MOST_TIMES = 6
BLOCKS_S = 0.2


def problem_of(seed: int, *, stages: bool) -> Problem:
    """Rows for even seeds, spans for odd ones; with up to three limits."""
    problem = _with_one_limit(seed)
    if not stages:
        return problem
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 4))
    assert problem.limit is not None
    return replace(
        problem, limit=None,
        limits=tuple(problem.limit + n for n in rng.integers(-2, 9, count).tolist()),
        rows=tuple(replace(row, stage=int(rng.integers(count))) for row in problem.rows),
        stages=rng.integers(0, count, len(problem.nodes)),
    ).verify()  # fmt: skip


def _with_one_limit(seed: int) -> Problem:
    if seed % 2 == 0:
        return random_problem(seed, forbidden=(0.0, 0.1, 0.3)[seed // 2 % 3])
    bare = random_problem(seed, rows=False, forbidden=(0.0, 0.1, 0.3)[seed // 2 % 3])
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(0, MOST_TIMES, (len(bare.nodes), 2)), axis=1)
    spans = np.concatenate([np.arange(len(bare.nodes))[:, None], times], axis=1)
    kept = spans[spans[:, 1] < spans[:, 2]]
    return replace(bare, spans=kept, limit=int(rng.integers(3, 30))).verify()


def answer_of(problem: Problem, *, blocks: bool) -> Solution | Infeasible:
    """By the exact search, or by blocks where the problem has spans."""
    if not blocks:
        return solve(problem, workers=1)
    one = OneLimit.find(problem)
    answer = solve_spans(
        one.apply(problem), time_limit_s=BLOCKS_S, workers=1, seed=0, report=lambda *_: None
    )
    choices = None if answer.choices is None else one.invert(answer.choices)
    return replace(answer, choices=choices)


def is_right(problem: Problem, answer: Solution | Infeasible) -> bool:
    """Whether brute force says the same."""
    best, peak = brute_force(problem)
    if isinstance(answer, Infeasible):
        return best is None and answer.smallest_limit == peak
    objective = check(problem, answer.choices)
    return answer.bound <= objective == answer.objective == best


def text(answer: Solution | Infeasible) -> bytes:
    """All of an answer but the seconds."""
    fields = {k: v for k, v in asdict(answer).items() if k != "wall_s"}
    return json.dumps(fields, sort_keys=True).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=1000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--blocks", action="store_true", help="spans only, by blocks")
    parser.add_argument("--stages", action="store_true", help="up to three memory limits")
    args = parser.parse_args()
    wrong, unlike, infeasible, began = list[int](), list[int](), 0, time.process_time()
    step = 2 if args.blocks else 1
    seeds = [args.first_seed + step * k + args.blocks for k in range(args.instances)]
    for seed in seeds:
        problem = problem_of(seed, stages=args.stages)
        answer = answer_of(problem, blocks=args.blocks)
        infeasible += isinstance(answer, Infeasible)
        wrong += [] if is_right(problem, answer) else [seed]
        again = answer_of(problem, blocks=args.blocks)
        unlike += [] if text(again) == text(answer) else [seed]
    print(
        f"{len(seeds)} instances, {infeasible} of them infeasible: {len(wrong)} differ from brute "
        f"force {wrong[:9]}, {len(unlike)} from their second answer {unlike[:9]}; "
        f"{time.process_time() - began:.0f} s of processor time"
    )


if __name__ == "__main__":
    main()
