"""Planning time against the number of layers and of devices, and of two very large models.

    python -m benchmarks.planning_scale layers devices large --plot docs/planning_scale.svg

The plot needs matplotlib (`pip install xshard[bench]`).

`layers`: GPT-3 blocks of hidden size 2048, unrolled, 12 to 192 of them on 64 GPUs. `devices`: 24 of
them on 8 to 4096 GPUs. `large`: GPT-3 175B (96 layers, unrolled) and a mixture of experts with a
trillion parameters (`benchmarks/moe.py`), on 1024 GPUs. Meshes are data × model, 8 wide in model.
Seconds are of the process, not of the wall, on however many cores it used.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.common import machine, table, virtual_devices

LAYERS = (12, 24, 48, 96, 192)
DEVICES = (8, 64, 512, 4096)
WIDTH = 8
COLUMNS = ("case", "layers", "GPUs", "trace", "plan", "total", "wall", "gap", "parameters")


@dataclass(frozen=True, slots=True)
class Point:
    """One plan; `trace_s` and `plan_s` are processor seconds, `wall_s` of both."""

    case: str
    layers: int
    devices: int
    trace_s: float
    plan_s: float
    wall_s: float
    gap: float
    parameters: int

    def row(self) -> tuple[object, ...]:
        """For a table."""
        times = (self.trace_s, self.plan_s, self.trace_s + self.plan_s, self.wall_s)
        shown = [f"{s:.2f} s" for s in times]
        size = f"{self.parameters / 1e9:.4g}B"
        return self.case, self.layers, self.devices, *shown, f"{self.gap:.1%}", size


def measure(
    case: str, fun: Callable[..., Any], avals: Sequence[Any], layers: int, devices: int,
    options: argparse.Namespace,
) -> Point:  # fmt: skip
    """Traces and plans once."""
    import jax

    import xshard
    from xshard.ir.trace import trace

    jax.clear_caches()
    cpu = time.process_time()
    trace(fun, tuple(avals))
    traced = time.process_time() - cpu
    jax.clear_caches()
    began, cpu = time.perf_counter(), time.process_time()
    plan = xshard.plan(
        fun, *avals, cluster=f"{options.device}:{devices // 8}x8", mesh=(devices // WIDTH, WIDTH),
        memory_limit=options.memory_limit, time_limit=options.time_limit,
        microbatches=options.microbatches, plan_cache=False,
    )  # fmt: skip
    spent, wall = time.process_time() - cpu, time.perf_counter() - began
    state = avals[0]["params"]
    count = sum(x.size for x in jax.tree.leaves(state))
    return Point(case, layers, devices, traced, spent - traced, wall, plan.gap, count)


def gpt3(layers: int, **sizes: int) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A step and what it takes."""
    from models.gpt3.config import CONFIGS
    from models.gpt3.step import batch_avals, make_train_step, state_avals

    config = CONFIGS["1.3B"].replace(num_layers=layers, **sizes)
    return make_train_step(config).train, (state_avals(config), batch_avals(config))


def moe() -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A trillion parameters."""
    import jax

    from benchmarks.moe import MoEConfig, init, train

    config = MoEConfig()
    tokens = jax.ShapeDtypeStruct((config.groups, config.tokens), "int32")
    state = jax.eval_shape(partial(init, config))
    return partial(train, config=config), (state, {"inputs": tokens, "targets": tokens})


def points(options: argparse.Namespace) -> list[Point]:
    """All that is asked for, shown as it comes."""
    cases: list[tuple[str, Callable[[], Any], int, int]] = []
    if "layers" in options.what:
        cases += [("layers", partial(gpt3, n), n, 64) for n in LAYERS]
    if "devices" in options.what:
        cases += [("devices", partial(gpt3, 24), 24, n) for n in DEVICES]
    if "large" in options.what:
        big = partial(gpt3, 96, hidden=12288, num_heads=96)
        cases += [("GPT-3 175B", big, 96, 1024), ("MoE", moe, 32, 1024)]
    found: list[Point] = []
    for case, make, layers, devices in cases:
        fun, avals = make()
        found.append(measure(case, fun, avals, layers, devices, options))
        print(*found[-1].row(), sep="  ", flush=True)
    return found


def plot(found: Sequence[Point], path: Path) -> None:
    """Two panels, logarithmic; a dashed line shows what is proportional."""
    matplotlib: Any = import_module("matplotlib")  # an extra
    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "xshard", "svg.fonttype": "none"}
    pyplot: Any = import_module("matplotlib.pyplot")
    figure, panels = pyplot.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for panel, case in zip(panels, ("layers", "devices"), strict=True):
        here = [p for p in found if p.case == case]
        if not here:
            continue
        sizes = [p.layers if case == "layers" else p.devices for p in here]
        panel.loglog(sizes, [p.plan_s for p in here], "o-", label="planned, once traced")
        panel.loglog(sizes, [p.trace_s for p in here], "s-", label="traced")
        panel.loglog(sizes, [here[0].plan_s * s / sizes[0] for s in sizes], "k--", lw=0.8,
                     label="proportional")  # fmt: skip
        panel.set_xticks(sizes, [str(s) for s in sizes])
        panel.xaxis.minorticks_off()
        panel.set_xlabel(case)
        panel.set_ylabel("processor seconds")
        panel.legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="*", default=["layers", "devices", "large"])
    parser.add_argument("--device", default="h100-80gb", help="kind; 8 a host")
    parser.add_argument("--time-limit", type=float, default=30.0, help="of one solve, in seconds")
    parser.add_argument(
        "--memory-limit", default="1000TB", help="a device's; the default binds not"
    )
    parser.add_argument("--microbatches", type=int, default=1)
    parser.add_argument("--plot", type=Path, help="an SVG file")
    parser.add_argument("--json", type=Path, help="write every figure there")
    options = parser.parse_args()
    virtual_devices(1)
    found = points(options)
    table(f"Planning for {options.device}", COLUMNS, [p.row() for p in found])
    print(machine())
    if options.plot:
        plot(found, options.plot)
    if options.json:
        options.json.write_text(json.dumps([asdict(p) for p in found], indent=1))


if __name__ == "__main__":
    main()
