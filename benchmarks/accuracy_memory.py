"""Memory and collectives, predicted against XLA's compiler for GPUs: GPT-3 on V100s and H100s.

    python -m benchmarks.accuracy_memory --out accuracy.jsonl [--kinds v100,h100]
        [--configs 350M,39B] [--ways dp,fsdp,megatron,xshard] [--batches 1,4,16] [--remat 0,1]
        [--layers N] [--markdown]

Each case is a configuration on its published number of GPUs, a number of sequences for each
replica of the data axis, and a way to shard: by hand (`benchmarks/baselines.py`, pinned) or by
xshard. It is planned and compiled ahead of time with the extra `aot-cuda`; no GPU is needed.
Results are appended as JSON lines; cases that stand there already are skipped, so an interrupted
run goes on, and the summary is over all of the file. `--layers` takes so many of the model's
layers: compiling all takes minutes, and they are alike.

XLA is told of 10 TB of memory, or it would change programs that do not fit, which many of these do
not: DP of 39B is here to be predicted, not to be run. One device has one way only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.common import machine, markdown, table, virtual_devices
from benchmarks.planning_time import _fixed_mesh

WAYS = {"dp": "data parallel", "fsdp": "FSDP", "megatron": "Megatron", "xshard": "xshard"}
KEY = ("jax", "kind", "model", "layers", "way", "batch", "remat")
COLUMNS = ("GPU", "model", "layers", "way", "batch", "remat", "predicted", "compiled", "error",
           "temporaries", "collectives", "unplanned")  # fmt: skip
PLENTY_BYTES = 10**13


def cases(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The fields of `KEY` of every case that is asked for."""
    import jax

    from models.gpt3.config import CONFIGS

    lists = (options.kinds, options.configs, options.batches, options.remat, options.ways)
    for kind, model, batch, remat, way in itertools.product(*(x.split(",") for x in lists)):
        config = CONFIGS[model]
        layers = min(options.layers or config.num_layers, config.num_layers)
        if config.num_devices > 1 or way == "xshard":
            yield dict(zip(KEY, (jax.__version__, kind, model, layers, way, int(batch),
                                 bool(int(remat))), strict=True))  # fmt: skip


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Plans and compiles one case."""
    began = time.perf_counter()
    plan, cluster = planned(case)
    planned_at = time.perf_counter()
    found = compiled(plan, cluster)
    return {
        **case, "mesh": found.mesh, **_figures(found), "plan_s": planned_at - began,
        "verify_s": time.perf_counter() - planned_at,
    }  # fmt: skip


def compiled(plan: Any, cluster: Any, compiler_options: dict[str, Any] | None = None) -> Any:
    """The verification of a plan, on devices whose memory is no reason to change the program."""
    import xshard

    return xshard.verify(plan, cluster=_plenty(cluster), compiler_options=compiler_options)


def planned(case: dict[str, Any]) -> tuple[Any, Any]:
    """The plan of one case, and its cluster."""
    import xshard
    from models.gpt3.config import CONFIGS
    from models.gpt3.step import batch_avals, state_avals

    base = CONFIGS[case["model"]]
    shape, devices = _fixed_mesh(base.num_devices), base.num_devices
    replicas = devices if case["way"] in ("dp", "fsdp") else shape[0]
    config = base.replace(
        batch=case["batch"] * replicas, remat=case["remat"], num_layers=case["layers"]
    )
    hosts = -(-devices // 8)
    cluster = xshard.Cluster.parse(f"{case['kind']}:{hosts}x{devices // hosts}")
    fun, pins = _way(config, case["way"], shape)
    avals = state_avals(config), batch_avals(config)
    plan = xshard.plan(
        fun, *avals, cluster=cluster, mesh=shape, memory_limit=PLENTY_BYTES, time_limit=20, **pins
    )
    return plan, cluster


def _way(config: Any, way: str, shape: tuple[int, ...]) -> tuple[Any, dict[str, Any]]:
    """The step, and what is pinned of its arguments and results."""
    import jax

    from benchmarks.baselines import baselines
    from models.gpt3.step import make_train_step

    if way == "xshard":
        return make_train_step(config).train, {}
    axes = ("data", "model")[: len(shape)]
    mesh = jax.make_mesh(shape, axes, (jax.sharding.AxisType.Auto,) * len(shape),
                         devices=jax.devices()[: math.prod(shape)])  # fmt: skip
    [one] = [b for b in baselines(config, mesh) if b.name == WAYS[way]]
    pins = {"in_specs": (one.state, one.batch), "out_specs": one.out_specs}
    return one.step(config, mesh), pins


def _plenty(cluster: Any) -> Any:
    """The cluster with so much memory that XLA leaves programs as they are."""
    told = cluster.device.compile_for
    info = {**told["target"]["gpu_device_info"], "device_memory_size": PLENTY_BYTES}
    target = {**told["target"], "gpu_device_info": info}
    return replace(cluster, device=replace(cluster.device, compile_for={**told, "target": target}))


def _figures(found: Any) -> dict[str, Any]:
    """What is stored of a `Verification`."""
    record, rows = found.record(), found.audit.rows
    planned = sum(r.planned_bytes for r in rows)
    return {
        "predicted": record["predicted"], "compiled": record["compiled"],
        "planned_collective_bytes": planned,
        "differing_collective_bytes": sum(abs(r.delta_bytes) for r in rows),
        "unplanned_bytes": sum(c.total_bytes for c in found.surprises),
    }  # fmt: skip


def _errors(row: dict[str, Any]) -> tuple[float, float, float]:
    """Relative errors of the peak, of the temporaries, and of all collectives' bytes."""
    p, c = row["predicted"], row["compiled"]
    off = row["differing_collective_bytes"] / max(row["planned_collective_bytes"], 1_000_000)
    return p["total"] / c["total"] - 1, p["temporaries"] / max(c["temporaries"], 1) - 1, off


def _shown(row: dict[str, Any]) -> tuple[object, ...]:
    total, temporaries, moved = _errors(row)
    gb = [f"{row[x]['total'] / 1e9:.2f} GB" for x in ("predicted", "compiled")]
    return (row["kind"], row["model"], row["layers"], row["way"], row["batch"],
            "yes" if row["remat"] else "no", *gb, f"{total:+.1%}", f"{temporaries:+.1%}",
            f"{moved:.1%}", f"{row['unplanned_bytes'] / 1e6:.0f} MB")  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> str:
    """Mean and largest errors, in words."""
    errors = [_errors(row) for row in rows]
    parts = [
        f"{name}: mean {sum(abs(e[i]) for e in errors) / len(errors):.1%}, "
        f"max {max(abs(e[i]) for e in errors):.1%}"
        for i, name in enumerate(("peak", "temporaries", "collectives"))
    ]
    surprised = sum(row["unplanned_bytes"] > 0 for row in rows)
    return f"{len(rows)} cases; {'; '.join(parts)}; {surprised} with unplanned communication"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("accuracy_memory.jsonl"))
    parser.add_argument("--kinds", default="v100,h100")
    parser.add_argument("--configs", default="350M,760M,1.3B,2.6B,6.7B,15B,39B")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--batches", default="1,4,16", help="sequences of a replica")
    parser.add_argument("--remat", default="0,1")
    parser.add_argument("--layers", type=int, help="at most so many of the model's")
    parser.add_argument("--markdown", action="store_true", help="print a table for the docs")
    options = parser.parse_args()
    virtual_devices(64)
    text = options.out.read_text() if options.out.exists() else ""
    rows = [json.loads(line) for line in text.splitlines()]
    done = {tuple(row[k] for k in KEY) for row in rows}
    for case in cases(options):
        if tuple(case[k] for k in KEY) in done:
            continue
        rows.append(measure(case))
        with options.out.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print(*_shown(rows[-1]), sep="  ", flush=True)
    if not rows:
        sys.exit("no case was asked for")
    shown = [_shown(row) for row in rows]
    if options.markdown:
        print(markdown(COLUMNS, shown))
    else:
        table("Memory of one device, predicted against compiled", COLUMNS, shown)
    print(summary(rows), machine(), sep="\n")


if __name__ == "__main__":
    main()
