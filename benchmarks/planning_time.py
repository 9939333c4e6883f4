"""How long planning takes: the seven published GPT-3 sizes on their published numbers of GPUs.

    python -m benchmarks.planning_time [--configs 350M,39B] [--mesh fixed] [--json F] [--markdown]
    python -m benchmarks.planning_time --configs 6.7B,39B --mesh chosen --memory-limit 30GB --auto

Tracing, building the problem and solving it are shown apart, with the gap that is left to the
solver's bound, and the time and memory that the plan is expected to take. No GPU is needed. With
`--mesh fixed` every plan is for one mesh, data × model, as wide in model as a host has devices up
to 4; with `--mesh chosen` xshard tries all meshes of one and two axes.

The global batch of 1024 sequences goes through in one piece, so that by default there is no memory
limit; the peak shows what it would need. With `--auto`, xshard chooses microbatches and recomputed
layers under the limit, and only the total is shown.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import machine, markdown, table, to_json, virtual_devices

if TYPE_CHECKING:
    from xshard.plan.plan import Plan

COLUMNS = (
    "model",
    "GPUs",
    "mesh",
    "parts",
    "trace",
    "build",
    "solve",
    "total",
    "gap",
    "step",
    "peak",
)


@dataclass(frozen=True, slots=True)
class Planned:
    """One configuration; seconds are of the wall."""

    model: str
    cluster: str
    devices: int
    mesh: str
    parts: str
    trace_s: float
    build_s: float
    solve_s: float
    total_s: float
    gap: float
    predicted_s: float
    peak_bytes: int

    def row(self) -> tuple[object, ...]:
        """For a table."""
        times = [f"{s:.2f} s" for s in (self.trace_s, self.build_s, self.solve_s, self.total_s)]
        step, peak = f"{self.predicted_s:.1f} s", f"{self.peak_bytes / 1e9:.0f} GB"
        shape = self.model, self.devices, self.mesh, self.parts
        return *shape, *times, f"{self.gap:.1%}", step, peak


def plan_one(name: str, options: argparse.Namespace) -> Planned:
    """Plans a configuration on its published number of devices."""
    import jax

    import xshard
    from models.gpt3.config import CONFIGS
    from models.gpt3.step import batch_avals, make_train_step, state_avals

    config = CONFIGS[name]
    devices = config.num_devices
    cluster = f"{options.device}:{-(-devices // 8)}x{min(devices, 8)}"
    mesh = _fixed_mesh(devices) if options.mesh == "fixed" else None
    ways: dict[str, Any] = {"microbatches": "auto", "remat": "auto"} if options.auto else {}
    avals = state_avals(config), batch_avals(config)
    jax.clear_caches()
    began = time.perf_counter()
    plan = xshard.plan(
        make_train_step(config).train, *avals, cluster=cluster, mesh=mesh,
        memory_limit=options.memory_limit, time_limit=options.time_limit, plan_cache=False, **ways,
    )  # fmt: skip
    total = time.perf_counter() - began
    s = plan.seconds
    return Planned(
        name, cluster, devices, "×".join(map(str, plan.mesh.sizes)), _parts(plan), s["trace"],
        s.get("build", 0.0), s.get("solve", 0.0), total, plan.gap, plan.predicted_time_s,
        plan.peak_bytes,
    )  # fmt: skip


def _parts(plan: Plan) -> str:
    """Microbatches, and layers that are recomputed of how many."""
    chains = "".join(f", {c.recomputed}/{c.layers}" for c in plan.remat)
    return f"{plan.microbatches}{chains}"


def _fixed_mesh(devices: int) -> tuple[int, ...]:
    width = min(4, max(1, devices // 2))
    return (devices // width, width) if width > 1 else (devices,)


def main() -> None:
    names = "350M,760M,1.3B,2.6B,6.7B,15B,39B"
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--configs", default=names)
    parser.add_argument("--mesh", choices=("fixed", "chosen"), default="fixed")
    parser.add_argument("--device", default="v100-sxm2-32gb", help="kind; 8 a host")
    parser.add_argument("--memory-limit", default="1000TB", help="of a device, such as 30GB")
    parser.add_argument("--auto", action="store_true", help="microbatches and remat are chosen")
    parser.add_argument("--time-limit", type=float, default=20.0, help="of one solve, in seconds")
    parser.add_argument("--json", type=Path, help="write every figure there")
    parser.add_argument("--markdown", action="store_true", help="print a table for a README")
    options = parser.parse_args()
    virtual_devices(1)
    rows: list[Planned] = []
    for name in options.configs.split(","):
        rows.append(plan_one(name, options))
        print(*rows[-1].row(), sep="  ", flush=True)
    shown = [r.row() for r in rows]
    if options.markdown:
        print(markdown(COLUMNS, shown))
    else:
        table(f"Planning GPT-3 on {options.device}, mesh {options.mesh}", COLUMNS, shown)
    print(f"mesh {options.mesh}: seconds are for all meshes tried; {machine()}")
    if options.json:
        options.json.write_text(to_json([asdict(r) for r in rows]))


if __name__ == "__main__":
    main()
