"""What plans do when memory gets tight, and whether XLA keeps to the limit.

    python -m benchmarks.memory_limit [--models tiny,wide] [--steps 5] [--json F]

The limit falls from what the fastest plan needs to what the smallest one needs when compiled. For
each limit: the peak that xshard predicts, what XLA's `memory_analysis` says of the compiled step
(arguments + results − aliased + temporaries, on one device), the share of the parameters' and
moments' bytes that a device does not hold, and the step's time, predicted and measured. A limit
that no compiled plan keeps is named. "wide" has few tokens and many parameters.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import Timing, alternate, machine, mb, ms, table, to_json, virtual_devices
from benchmarks.plan_quality import Loop, config_of, some_batch

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from models.gpt3.config import GPT3Config
    from xshard.plan.plan import Plan

COLUMNS = (
    "limit",
    "predicted",
    "compiled",
    "of limit",
    "error",
    "sharded",
    "step",
    "measured",
)


@dataclass(frozen=True, slots=True)
class Point:
    """One limit; bytes are of one device."""

    model: str
    mesh: str
    limit_bytes: int
    predicted_bytes: int
    compiled_bytes: int
    sharded: float
    predicted_s: float
    gap: float
    measured_s: float

    def row(self) -> tuple[object, ...]:
        """For a table."""
        return (mb(self.limit_bytes), mb(self.predicted_bytes), mb(self.compiled_bytes),
                f"{self.compiled_bytes / self.limit_bytes:.0%}",
                f"{self.predicted_bytes / self.compiled_bytes - 1:+.0%}", f"{self.sharded:.0%}",
                ms(self.predicted_s), ms(self.measured_s))  # fmt: skip


def sharded_share(plan: Plan) -> float:
    """The part of the parameters' and moments' bytes that a device does not hold."""
    state = [a for a in plan.arguments if "params" in a.path or "adam" in a.path]
    whole = sum(_nbytes(a.shape) for a in state)
    return 1 - sum(a.local_bytes for a in state) / whole


def _nbytes(shape: tuple[int, ...]) -> int:
    count = 4
    for n in shape:
        count *= n
    return count


def least_limit(config: GPT3Config, mesh: Mesh, time_limit: float) -> int:
    """A limit that the smallest plan keeps when compiled, from the error for one that none does."""
    import xshard

    try:
        planned(config, mesh, 1000, time_limit)
    except xshard.InfeasibleError as error:
        return error.smallest_limit_bytes or sys.exit(str(error))
    sys.exit("1000 bytes were enough?")


def planned(config: GPT3Config, mesh: Mesh, limit: int | None, time_limit: float) -> Any:
    """The step under a limit, lowered and compiled, and its loop."""
    import jax

    import xshard
    from models.gpt3.step import make_train_step
    from xshard.run.fit import compiled_bytes

    fns, batch = make_train_step(config), some_batch(config)
    step = xshard.auto_shard(
        fns.train, mesh, donate_argnums=0, memory_limit=limit, time_limit=time_limit
    )
    state = step.init(fns.init, jax.random.key(0), batch)
    batch = jax.device_put(batch, step.in_shardings[1])
    compiled = step.lower(state, batch).compile()
    return step.plan, compiled_bytes(compiled), Loop(compiled, state, batch)


def sweep(model: str, shape: tuple[int, ...], count: int, rounds: int, seconds: float) -> Any:
    """Points from the ample to the least limit, evenly in the logarithm."""
    import jax

    import xshard

    config = config_of(model)
    axes = ("data", "model")[: len(shape)]
    mesh = jax.make_mesh(shape, axes, (jax.sharding.AxisType.Auto,) * len(shape))
    ample = planned(config, mesh, None, seconds)
    most = max(ample[0].peak_bytes, ample[1])
    least = min(least_limit(config, mesh, seconds), most)
    limits = [int(most * (least / most) ** (i / (count - 1))) for i in range(1, count)]
    found = [(most, *ample)]
    for limit in limits:
        try:
            found.append((limit, *planned(config, mesh, limit, seconds)))
        except xshard.InfeasibleError as error:
            print(f"{mb(limit)}: {str(error).splitlines()[0]}", file=sys.stderr)
    timing = alternate({str(f[0]): f[3] for f in found}, rounds)
    name = "×".join(map(str, shape))
    return [_point(model, name, f, timing[str(f[0])]) for f in found]


def _point(model: str, mesh: str, found: Any, timing: Timing) -> Point:
    limit, plan, nbytes, _ = found
    return Point(model, mesh, limit, plan.peak_bytes, nbytes, sharded_share(plan),
                 plan.predicted_time_s, plan.gap, timing.quiet_s)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default="tiny,wide")
    parser.add_argument("--mesh", default="2x4")
    parser.add_argument("--steps", type=int, default=4, help="limits a model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--time-limit", type=float, default=15.0, help="of the solver, in seconds")
    parser.add_argument("--json", type=Path, help="write every figure there")
    options = parser.parse_args()
    virtual_devices(options.devices)
    shape = tuple(map(int, options.mesh.split("x")))
    points: list[Point] = []
    for model in options.models.split(","):
        here = sweep(model, shape, options.steps, options.rounds, options.time_limit)
        points += here
        table(f"{model} on {here[0].mesh}", COLUMNS, [p.row() for p in here])
    print(f"measured: processor time over the cores; {machine()}")
    if options.json:
        options.json.write_text(to_json([asdict(p) for p in points]))
    sys.exit(any(p.compiled_bytes > p.limit_bytes for p in points))


if __name__ == "__main__":
    main()
