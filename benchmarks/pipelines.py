"""Whether pipelines compute what the step on one device computes: all of them, the largest error.

    python -m benchmarks.pipelines [--models "GPT-3 scanned,skips"] [--schedules 1f1b]
        [--stages 2,4] [--microbatches 8] [--plan] [--json F]

Each model of `benchmarks/steps/layered.py` (no dropout) on 1, 2 and 4 devices, each with one stage
(two under "interleaved"), with 1, 2, 4 and 8 microbatches under each schedule, against `jax.jit` of
the same step on the whole batch, on one device: two steps are taken. An error is the largest
difference in an array over its largest number (of arrays that are next to nothing beside the
others: over a thousandth of the others'). Looked at are the metrics of both steps, and of the state
after the first step all that is no parameter: the moments are the gradients; Adam makes of a
gradient that is nothing but rounding a whole step.

Stages have equal work and, on one device each, no specs to choose; with --plan everything is
planned as `auto_shard` does it, which takes ten times as long.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import table, to_json, virtual_devices

SCHEDULES = ("gpipe", "1f1b", "interleaved", "zero_bubble")
STAGES, MICROBATCHES = (1, 2, 4), (1, 2, 4, 8)
TOLERANCE = 1e-4
"""Of float32 sums in another order, through two steps and a norm."""
NOTHING = 1e-3


def errors(step: Any, state: Any, batch: Any, expected: Any) -> float:
    """The largest error of two steps."""
    state, first = step(state, batch)
    found = {"moments": moments(state), "first": first, "second": step(state, batch)[1]}
    return largest_error(found, expected)


def moments(state: Any) -> Any:
    """What a state has beside the parameters."""
    import jax

    if isinstance(state, dict):
        state = None, {k: v for k, v in state.items() if k != "params"}
    return jax.tree.map(np.asarray, state[1])


def largest_error(found: Any, expected: Any) -> float:
    """Over the leaves of two trees."""
    import jax

    leaves = [list(map(np.asarray, jax.tree.leaves(tree))) for tree in (found, expected)]
    pairs = list(zip(*leaves, strict=True))
    floor = NOTHING * max(float(np.abs(b).max()) for _, b in pairs if b.dtype.kind == "f")
    return max(
        float(np.abs(a.astype(np.float64) - b).max() / max(float(np.abs(b).max()), floor))
        for a, b in pairs
    )


def cases(
    models: Sequence[str], wanted: Sequence[tuple[int, str, int]], plan: bool
) -> Iterator[dict[str, Any]]:
    """One record a case."""
    import jax

    from benchmarks.steps.layered import CASES

    for name in models:
        step, state, batch = CASES[name]()
        plain = jax.jit(step)
        after, first = plain(state, batch)
        expected = {"moments": moments(after), "first": first, "second": plain(after, batch)[1]}
        runs = planned(step) if plan else Unplanned(step, state, batch)
        for stages, schedule, microbatches in wanted:
            error = errors(runs(stages, schedule, microbatches), state, batch, expected)
            yield {
                "model": name, "stages": stages, "schedule": schedule if stages > 1 else "none",
                "microbatches": microbatches, "error": error,
            }  # fmt: skip
        jax.clear_caches()


Run = Callable[[int, str, int], Any]
"""(stages, schedule, microbatches) -> the step."""


def planned(step: Any) -> Run:
    """By `auto_shard`."""
    import xshard

    def run(stages: int, schedule: str, microbatches: int) -> Any:
        return xshard.auto_shard(
            step, stages, pipeline=stages, schedule=schedule if stages > 1 else "auto",
            microbatches=microbatches,
        )  # fmt: skip

    return run


class Unplanned:
    """Stages of equal work on one device each."""

    def __init__(self, step: Any, state: Any, batch: Any) -> None:
        from xshard.ir.trace import trace
        from xshard.pipeline.search import divided_step

        self.traced = trace(step, (state, batch))
        self.divided = divided_step(self.traced, None)

    @functools.cache  # noqa: B019
    def cut(self, microbatches: int, least: int) -> Any:
        """The step in microbatches."""
        from xshard.stages.cut import cuttable

        looped = self.divided.looped(microbatches)
        return cuttable(looped.closed_jaxpr, microbatches, least)

    def __call__(self, stages: int, schedule: str, microbatches: int) -> Any:
        """The step as a pipeline."""
        import jax

        from xshard.mpmd.layout import Layout, submeshes
        from xshard.mpmd.step import Pipeline
        from xshard.schedules import build

        chunks = 2 if schedule == "interleaved" and stages > 1 else 1
        found = self.cut(microbatches, stages * chunks)
        table = build(schedule, stages, microbatches, chunks)
        staged = found.into(found.balanced(stages * chunks), split_backward=table.split_backward)
        meshes = submeshes(np.array(jax.devices()[:stages]), ("data",), stages)
        count = self.traced.in_tree.children()[0].num_leaves
        pipeline = Pipeline(staged, table, Layout(meshes), {i: i for i in range(count)})

        def run(*args: Any) -> Any:
            flat = pipeline(*pipeline.placed(jax.tree.leaves(args)))
            return jax.tree.unflatten(self.traced.out_tree, flat)

        return run


def main() -> int:
    """Runs all cases; 1 if one is further off than the tolerance."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipelines", description=__doc__)
    parser.add_argument("--models", help="some of the models, with commas between")
    parser.add_argument("--schedules", help="some of the schedules, with commas between")
    parser.add_argument("--stages", help="some of 1,2,4")
    parser.add_argument("--microbatches", help="some of 1,2,4,8")
    parser.add_argument("--plan", action="store_true", help="plan each case as auto_shard does")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    virtual_devices(max(STAGES))
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"  # compiles in half the time
    from benchmarks.steps.layered import CASES

    models = args.models.split(",") if args.models else list(CASES)
    schedules = args.schedules.split(",") if args.schedules else list(SCHEDULES)
    stages, microbatches = (
        tuple(map(int, text.split(","))) if text else every
        for text, every in ((args.stages, STAGES), (args.microbatches, MICROBATCHES))
    )
    every = itertools.product(stages, schedules, microbatches)
    wanted = [case for case in every if case[0] > 1 or case[1] == schedules[0]]
    records = []
    for record in cases(models, wanted, args.plan):
        records.append(record)
        print(*record.values(), file=sys.stderr)
    _print(records)
    if args.json:
        args.json.write_text(to_json(records))
    return int(max(r["error"] for r in records) > TOLERANCE)


def _print(records: list[dict[str, Any]]) -> None:
    by = {(r["model"], r["stages"], r["schedule"], r["microbatches"]): r["error"] for r in records}
    lines = dict.fromkeys(key[:3] for key in by)
    columns = sorted({key[3] for key in by})
    rows = [[*line, *(f"{by[*line, m]:.1e}" for m in columns)] for line in lines]
    worst = max(by.values())
    title = f"{len(by)} cases, largest error {worst:.1e}; by microbatches:"
    table(title, ["model", "stages", "schedule", *columns], rows)


if __name__ == "__main__":
    sys.exit(main())
