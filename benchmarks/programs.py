"""Steps of many libraries and kinds: planned, run three times, held against one device.

    python -m benchmarks.programs [--only haiku] [--mesh 2x4] [--markdown docs/programs.md]

The steps are those of `benchmarks/steps`. They are small, so each is planned for slow devices with
fast links (`benchmarks/attractive.py`): whatever may be split is split. Printed for each: the
classes of operations of its plan and the share that has a rule, the share that is split, seconds of
tracing and planning, memory of a device as predicted and as XLA allocates it, and the largest
difference of any array of the last state and metrics, in units of that array's largest element.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.attractive import attractive_plan
from benchmarks.common import markdown, virtual_devices

STEPS, ALLOWED, NOISE = 3, 1e-2, 1e-5
COLUMNS = (
    "program",
    "library",
    "op classes",
    "with a rule",
    "split",
    "planning",
    "predicted",
    "compiled",
    "off by",
)
HEAD = """# Programs of many libraries

Written by `python -m benchmarks.programs --markdown docs/programs.md`, which says what the columns
mean: three steps over a mesh of {mesh} virtual CPU devices, JAX {jax}.

"""


def measured(program: Any, mesh: Any) -> tuple[tuple[object, ...], float]:
    """The row of a program, and its largest difference."""
    import jax

    import xshard
    from xshard.run.fit import compiled_bytes

    keys = jax.random.split(jax.random.key(1), STEPS + 1)
    state = expected = jax.tree.map(_strong, jax.jit(program.init)(keys[0]))
    batches = [program.batch(key) for key in keys[1:]]
    began = time.perf_counter()
    plan = attractive_plan(program.step, (state, batches[0]), mesh)
    planned = time.perf_counter() - began
    step, plain = xshard.auto_shard(program.step, mesh, plan=plan), jax.jit(program.step)
    metrics = others = None
    for batch in batches:
        state, metrics = step(state, batch)
        expected, others = plain(expected, batch)
    compiled = compiled_bytes(step.lower(state, batches[0]).compile())
    off = difference((state, metrics), (expected, others))
    ruled = sum(op.known for op in plan.ops) / len(plan.ops)
    split = sum(any(map(any, (*op.operands, *op.results))) for op in plan.ops) / len(plan.ops)
    row = (
        program.name, program.library, len(plan.ops), f"{ruled:.0%}", f"{split:.0%}",
        f"{planned:.1f} s", f"{plan.peak_bytes / 1e3:.1f} kB", f"{compiled / 1e3:.1f} kB",
        f"{off:.0e}",
    )  # fmt: skip
    return row, off


def _strong(x: Any) -> Any:
    """Of the same dtype, but not weakly: as each step returns it, so that one plan serves all."""
    import jax

    extended = jax.numpy.issubdtype(x.dtype, jax.dtypes.extended)
    return x if extended else jax.numpy.asarray(x, x.dtype)


def difference(actual: Any, expected: Any) -> float:
    """The largest of any leaf, in units of its largest element; noise beside the tree's is none."""
    import jax
    import numpy as np

    def wide(x: Any) -> Any:
        keys = jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(x) if keys else x).astype(np.float64)

    pairs = list(zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True))
    floats = [wide(y) for _, y in pairs if jax.numpy.issubdtype(y.dtype, jax.numpy.inexact)]
    floor = NOISE * max(np.abs(y).max(initial=0) for y in floats)
    differences = [
        np.abs(wide(x) - wide(y)).max(initial=0) / max(np.abs(wide(y)).max(initial=0), floor)
        for x, y in pairs
    ]
    return float(max(differences))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="programs with this in their name or library")
    parser.add_argument("--mesh", default="2x4")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    options = parser.parse_args()
    shape = tuple(map(int, options.mesh.split("x")))
    virtual_devices(shape[0] * (shape[1] if len(shape) > 1 else 1))
    import jax

    from benchmarks.steps.zoo import PROGRAMS

    types = (jax.sharding.AxisType.Auto,) * len(shape)
    mesh = jax.make_mesh(shape, ("data", "model")[: len(shape)], types)
    wanted = [p for p in PROGRAMS if options.only in f"{p.library}: {p.name}"]
    rows, worst = [], 0.0
    for program in wanted:
        row, off = measured(program, mesh)
        rows.append(row)
        worst = max(worst, off)
        print(*row, sep=" | ", flush=True)
    if options.markdown:
        head = HEAD.format(mesh="×".join(map(str, shape)), jax=jax.__version__)
        options.markdown.write_text(f"{head}{markdown(COLUMNS, rows)}\n")
    sys.exit(not worst <= ALLOWED)


if __name__ == "__main__":
    main()
