"""Solving again after the memory limit or a pin has changed: from the last answer and from nothing.

    python -m benchmarks.solver_again file FOLDER/G.json.gz --time-limit 60 --part 0.2
    python -m benchmarks.solver_again gpt3 --config 6.7B --memory-limit 45GB --microbatches 32

`file`: the problem is solved, then with a lower limit, from nothing within the time limit and from
the answer within a part of it. `gpt3`: a configuration is planned on its published number of GPUs,
all meshes tried; then under a limit that its peak exceeds by a little, and with its largest
argument pinned otherwise, by `Plan.replan` and by `xshard.plan`; with `--read`, by `replan` of the
plan as the cache gives it, of which nothing but its answer is known. Seconds are of the processor.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from benchmarks.common import machine, table, virtual_devices

if TYPE_CHECKING:
    from xshard.plan.plan import Plan

COLUMNS = ("what", "from nothing", "again", "ratio", "objective", "again's", "gap", "again's gap")
Answer = tuple[int, float]
"""Objective and gap."""


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """A result, and seconds of the processor."""
    began = time.process_time()
    return work(), time.process_time() - began


def line(what: str, cold: tuple[Answer, float], warm: tuple[Answer, float]) -> tuple[object, ...]:
    (cold_ns, cold_gap), cold_s = cold
    (warm_ns, warm_gap), warm_s = warm
    return (
        what, f"{cold_s:.1f} s", f"{warm_s:.1f} s", f"{warm_s / cold_s:.2f}", cold_ns, warm_ns,
        f"{cold_gap:.2%}", f"{warm_gap:.2%}",
    )  # fmt: skip


def of_file(options: argparse.Namespace) -> list[tuple[object, ...]]:
    """The limit of a problem lowered."""
    from xshard.solve.problem import Problem, Solution, Start
    from xshard.solve.problem_io import load_problem
    from xshard.solve.search import solve

    def found(p: Problem, seconds: float, start: Start | None = None) -> Solution:
        answer = solve(p, time_limit_s=seconds, workers=options.workers, start=start)
        assert isinstance(answer, Solution), "nothing was found that fits; take a larger --share"
        return answer

    problem = load_problem(options.problem)
    first, seconds = found(problem, options.time_limit), options.time_limit
    changed = replace(problem, limit=int((problem.limit or 0) * options.share))
    cold = timed(lambda: found(changed, seconds))
    warm = timed(lambda: found(changed, seconds * options.part, Start(first.choices)))
    shown = [((a.objective, a.gap), s) for a, s in (cold, warm)]
    return [line(f"limit × {options.share}", *shown)]


def of_gpt3(options: argparse.Namespace) -> list[tuple[object, ...]]:
    """A plan's limit lowered, and its largest argument pinned."""
    import jax

    import xshard
    from models.gpt3.config import CONFIGS
    from models.gpt3.step import batch_avals, make_train_step, state_avals

    config = CONFIGS[options.config]
    devices, avals = config.num_devices, (state_avals(config), batch_avals(config))

    def planned(**changed: Any) -> Plan:
        jax.clear_caches()
        given = {
            "cluster": f"v100-sxm2-32gb:{-(-devices // 8)}x{min(devices, 8)}",
            "memory_limit": options.memory_limit, "microbatches": options.microbatches,
            "plan_cache": False, "time_limit": 20.0,
        }  # fmt: skip
        return xshard.plan(make_train_step(config).train, *avals, **{**given, **changed})

    with tempfile.TemporaryDirectory() as folder:
        kept = folder if options.read else False
        first = planned(plan_cache=kept)
        first = planned(plan_cache=kept) if options.read else first
    lower = {"memory_limit": int(first.peak_bytes * options.share)}
    pinned = {"in_specs": _pinned(first, avals)}
    rows: list[tuple[object, ...]] = []
    for what, changed in ((f"limit × {options.share}", lower), ("one argument pinned", pinned)):
        if what.startswith("limit") and options.no_limit:
            continue
        both = timed(lambda c=changed: planned(**c)), timed(lambda c=changed: first.replan(**c))
        rows.append(line(what, *(((p.objective_ns, p.gap), s) for p, s in both)))
    return rows


def _pinned(plan: Plan, avals: Sequence[Any]) -> Any:
    """Specs that split the largest argument over "data" in another dimension than the plan does."""
    import jax

    largest = max((a for a in plan.arguments if len(a.shape) == 2), key=lambda a: a.local_bytes)
    where = [a.path for a in plan.arguments].index(largest.path)
    data = jax.P(None, "data") if largest.spec[0] else jax.P("data")
    leaves, tree = jax.tree.flatten(tuple(avals))
    return jax.tree.unflatten(tree, [data if i == where else None for i in range(len(leaves))])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("file", "gpt3"))
    parser.add_argument("problem", nargs="?", help="PROBLEM.json[.gz]")
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds, of a file's")
    parser.add_argument("--part", type=float, default=0.2, help="of the limit, from the answer")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--share", type=float, default=0.97, help="of the limit, or of the peak")
    parser.add_argument("--config", default="6.7B")
    parser.add_argument("--memory-limit", default="1000TB")
    parser.add_argument("--microbatches", type=int, default=1)
    parser.add_argument("--read", action="store_true", help="again from a plan out of the cache")
    parser.add_argument("--no-limit", action="store_true", help="the pin alone")
    options = parser.parse_args()
    virtual_devices(1)
    rows = of_file(options) if options.what == "file" else of_gpt3(options)
    table(f"Solved again: {options.problem or options.config}", COLUMNS, rows)
    print(machine())


if __name__ == "__main__":
    main()
