"""Whether pipelines compute what the step on one device computes: all of them, the largest error.

    python -m benchmarks.pipelines [--models "GPT-3 scanned,skips"] [--schedules 1f1b] [--json F]

Each model of `benchmarks/steps/layered.py` (no dropout) in 1, 2 and 4 stages with 1, 2, 4 and 8
microbatches under each schedule, against `jax.jit` of the same step on the whole batch, on one
device: two steps are taken. An error is the largest difference in an array over its largest number
(of arrays that are next to nothing beside the others: over a thousandth of the others'). Looked at
are the metrics of both steps, and of the state after the first step all that is no parameter: the
moments are the gradients; Adam makes of a gradient that is nothing but rounding a whole step.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
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


def cases(models: Sequence[str], schedules: Sequence[str]) -> Iterator[dict[str, Any]]:
    """One record a case."""
    import jax

    import xshard
    from benchmarks.steps.layered import CASES

    for name in models:
        step, state, batch = CASES[name]()
        plain = jax.jit(step)
        after, first = plain(state, batch)
        expected = {"moments": moments(after), "first": first, "second": plain(after, batch)[1]}
        for stages in STAGES:
            for schedule in schedules if stages > 1 else ["-"]:
                for microbatches in MICROBATCHES:
                    options = {"pipeline": stages, "schedule": schedule} if stages > 1 else {}
                    run: Any = xshard.auto_shard(step, stages, microbatches=microbatches, **options)
                    yield {
                        "model": name, "stages": stages, "schedule": schedule,
                        "microbatches": microbatches,
                        "error": errors(run, state, batch, expected),
                    }  # fmt: skip


def main() -> int:
    """Runs all cases; 1 if one is further off than the tolerance."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipelines", description=__doc__)
    parser.add_argument("--models", help="some of the models, with commas between")
    parser.add_argument("--schedules", help="some of the schedules, with commas between")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    virtual_devices(max(STAGES))
    from benchmarks.steps.layered import CASES

    models = args.models.split(",") if args.models else list(CASES)
    schedules = args.schedules.split(",") if args.schedules else list(SCHEDULES)
    records = []
    for record in cases(models, schedules):
        records.append(record)
        print(*record.values(), file=sys.stderr)
    _print(records)
    if args.json:
        args.json.write_text(to_json(records))
    return int(max(r["error"] for r in records) > TOLERANCE)


def _print(records: list[dict[str, Any]]) -> None:
    by = {(r["model"], r["stages"], r["schedule"], r["microbatches"]): r["error"] for r in records}
    lines = dict.fromkeys(key[:3] for key in by)
    rows = [[*line, *(f"{by[*line, m]:.1e}" for m in MICROBATCHES)] for line in lines]
    worst = max(by.values())
    title = f"{len(by)} cases, largest error {worst:.1e}; by microbatches:"
    table(title, ["model", "stages", "schedule", *MICROBATCHES], rows)


if __name__ == "__main__":
    sys.exit(main())
