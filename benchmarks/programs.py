"""Steps of many libraries and kinds: planned, run three times, held against one device.

    python -m benchmarks.programs [--zoo] [--only haiku,equinox] [--mesh 2x4] [--time]
                                  [--records records.jsonl] [--markdown docs/programs.md]

The steps are those of `benchmarks/steps`; with `--zoo`, models from other people's packages
(`benchmarks/zoo`, whose `requirements.txt` says how to install them). They are small, so each is
planned for slow devices with fast links (`benchmarks/attractive.py`): what may be split is split.
Printed for each: the equations of its step, the classes of operations of its plan and the share
that has a rule, the share that is split, processor seconds of tracing and planning, memory of a
device as predicted and as XLA allocates it, and the largest difference of any array of the last
state and metrics, in units of that array's largest element; where that is much, whether it is
rounding, by `step.check` (a gradient that is zero but for rounding may have either sign). With
`--time` also the step under the plan that `auto_shard` makes for these devices, over data
parallelism and over FSDP by hand (`benchmarks/by_hand.py`), as ratios of processor time in
alternation.

A record is written for each program as it ends; `--markdown` writes the table of all records.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.attractive import attractive_plan
from benchmarks.common import alternate, markdown, ratio, virtual_devices

STEPS, ALLOWED, NOISE = 3, 1e-2, 1e-5
COLUMNS = (
    "program",
    "library",
    "equations",
    "op classes",
    "with a rule",
    "split",
    "planning",
    "predicted",
    "compiled",
    "off by",
    "÷ data parallel",
    "÷ FSDP",
)
HEAD = """# Programs of many libraries

Written by `python -m benchmarks.programs --zoo --markdown docs/programs.md`, which says what the
columns mean: three steps over a mesh of {mesh} virtual CPU devices, JAX {jax}, compiled with
`XLA_FLAGS=--xla_backend_optimization_level=0`. The last two columns are of `--time`, which wants a
quiet machine and no such flag.

"""
ROUNDS = 7


def measured(program: Any, mesh: Any, timed: bool = False) -> tuple[tuple[object, ...], float]:
    """The row of a program, and its largest difference that is no rounding."""
    import jax

    import xshard
    from xshard.run.fit import compiled_bytes

    keys = jax.random.split(jax.random.key(1), STEPS + 1)
    state = expected = first = jax.tree.map(_strong, jax.jit(program.init)(keys[0]))
    batches = [program.batch(key) for key in keys[1:]]
    began = time.process_time()
    plan = attractive_plan(program.step, (state, batches[0]), mesh)
    planned = time.process_time() - began
    step, plain = xshard.auto_shard(program.step, mesh, plan=plan), jax.jit(program.step)
    metrics = others = None
    for batch in batches:
        state, metrics = step(state, batch)
        expected, others = plain(expected, batch)
    compiled = compiled_bytes(step.lower(state, batches[0]).compile())
    off = difference((state, metrics), (expected, others))
    rounding = off > ALLOWED and step.check(first, batches[0]).ok
    ruled = sum(op.known for op in plan.ops) / len(plan.ops)
    split = sum(any(map(any, (*op.operands, *op.results))) for op in plan.ops) / len(plan.ops)
    row = (
        program.name, program.library, equations(program.step, state, batches[0]), len(plan.ops),
        f"{ruled:.0%}", f"{split:.0%}",
        f"{planned:.1f} s", f"{plan.peak_bytes / 1e3:.1f} kB", f"{compiled / 1e3:.1f} kB",
        f"{off:.0e}{', rounding' * rounding}",
        *(against_hand(program, mesh, state, batches[0]) if timed else ("", "")),
    )  # fmt: skip
    return row, 0.0 if rounding else off


def against_hand(program: Any, mesh: Any, state: Any, batch: Any) -> tuple[str, ...]:
    """Processor time of a step over that of data parallelism and of FSDP."""
    import jax

    import xshard
    from benchmarks.by_hand import data_parallel, fsdp

    step = xshard.auto_shard(program.step, mesh)
    step(state, batch)
    placed = jax.tree.map(jax.device_put, (state, batch), step.in_shardings)
    runs = {
        "xshard": lambda: jax.block_until_ready(step(*placed)),
        "data parallel": data_parallel(program.step, state, batch, mesh),
        "FSDP": fsdp(program.step, state, batch, mesh),
    }
    times = alternate(runs, ROUNDS)
    return tuple(
        str(ratio(times["xshard"].cpu_s, times[name].cpu_s)) for name in ("data parallel", "FSDP")
    )


def equations(step: Any, *args: Any) -> int:
    """How many equations the step has, those of bodies and calls included."""
    import jax

    def count(jaxpr: Any) -> int:
        found = 0
        for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
            inner = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda x: hasattr(x, "eqns"))
            found += 1 + sum(count(x) for x in inner if hasattr(x, "eqns"))
        return found

    return count(jax.make_jaxpr(step)(*args))


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
    parser.add_argument(
        "--only", default="", help="programs with one of these in their library or name"
    )
    parser.add_argument("--zoo", action="store_true", help="models of other people's packages")
    parser.add_argument("--mesh", default="2x4")
    parser.add_argument("--time", action="store_true", help="against shardings by hand")
    parser.add_argument("--records", type=Path, help="add a line for each program there")
    parser.add_argument("--markdown", type=Path, help="write the table there")
    options = parser.parse_args()
    shape = tuple(map(int, options.mesh.split("x")))
    virtual_devices(shape[0] * (shape[1] if len(shape) > 1 else 1))
    import jax

    types = (jax.sharding.AxisType.Auto,) * len(shape)
    mesh = jax.make_mesh(shape, ("data", "model")[: len(shape)], types)
    rows, worst = _recorded(options.records), 0.0
    done = {tuple(row[:2]) for row in rows}
    for program in _programs(options.zoo):
        name = f"{program.library}: {program.name}"
        wanted = any(part in name for part in options.only.split(","))
        if not wanted or (program.name, program.library) in done:
            continue
        row, off = measured(program, mesh, options.time)
        rows.append(row)
        worst = max(worst, off)
        print(*row, sep=" | ", flush=True)
        if options.records:
            with options.records.open("a") as file:
                file.write(json.dumps(row) + "\n")
    if options.markdown:
        head = HEAD.format(mesh="×".join(map(str, shape)), jax=jax.__version__)
        options.markdown.write_text(f"{head}{markdown(COLUMNS, rows)}\n")
    sys.exit(not worst <= ALLOWED)


def _programs(zoo: bool) -> Iterator[Any]:
    if not zoo:
        from benchmarks.steps.zoo import PROGRAMS

        yield from PROGRAMS
        return
    from benchmarks.zoo import experts, hugging_face, rl, science, vision

    for kind in (hugging_face, experts, vision, rl, science):
        for make in kind.PROGRAMS:
            yield make()


def _recorded(file: Path | None) -> list[Any]:
    """The rows of earlier runs, which are not run again."""
    if file is None or not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines()]


if __name__ == "__main__":
    main()
