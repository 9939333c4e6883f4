"""Fits the figures of `xshard/cost/devices/cpu.json` to the rows that `measure_cpu` took."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

Row = dict[str, Any]


def table(rows: dict[str, Any]) -> dict[str, Any]:
    """The device table, every rate per core."""
    source = (
        f"measured by benchmarks/measure_cpu.py: {rows['devices']} virtual devices on "
        f"{rows['cores']} cores of {rows['machine']}, jax {rows['jax']}, "
        f"median of {rows['runs']} run(s)"
    )
    cores, memory = rows["cores"], rows["memory"]
    best = stream(memory, "elementwise", "float32") / cores
    kinds = sorted({r["kind"] for r in memory} - {"elementwise"})
    efficiency = {kind: round(stream(memory, kind, "float32") / cores / best, 3) for kind in kinds}
    return {
        "name": "cpu",
        "aliases": ["host"],
        "device_kinds": ["cpu"],
        "measured": True,
        "per_core": True,
        "memory_bytes": {"value": rows["memory_bytes"], "source": f"whole machine; {source}"},
        "peak_flops": matmul_peaks(rows["matmul"], cores)
        | {"source": f"{source}; float64 as half of float32 (assumed)"},
        "memory_bandwidth_bytes_per_s": {"value": round(best), "source": source},
        "memory_efficiency": 1.0,
        "kind_efficiency": efficiency | {"source": source},
        "dtype_efficiency": {
            dtype: round(stream(memory, "elementwise", dtype) / cores / best, 3)
            for dtype in ("bfloat16", "float16")
        }
        | {"source": source},
        "seconds_per_element": {
            kind: seconds_per_element(rows["elements"], kind) * cores
            for kind in ("random", "transcendental")
        }
        | {"source": source},
        "launch_overhead_s": {"value": rows["overhead_s"], "source": source},
        "matmul": matmul_curve(rows["matmul"]) | {"source": source},
        "collectives": "shared-memory",
        "fused_reduce_scatter": False,
        "random_words": 2,
        "combined_bytes": {"value": 1e12, "source": "XLA:CPU joins all of them: seen in compiled "
                                                    "programs of up to 1 GB of gradients"},
        "copies_operands": True,
        "loops_apart": True,
        "collective_costs": {k: collective(rows, k) for k in sorted(kinds_of(rows))}
        | {"source": source},
        "intra_host": {"name": "shared memory", "bandwidth_bytes_per_s": round(best),
                       "latency_s": 2e-5,
                       "source": f"{source}; latency assumed, a collective's own is used"},
        "inter_host": {"name": "gloo over TCP", "bandwidth_bytes_per_s": 1.0e9,
                       "latency_s": 1e-4, "source": "assumed: 10 Gb/s Ethernet"},
        "compile_for": {"platform": "cpu", "source": "JAX's own virtual devices"},
    }  # fmt: skip


def stream(rows: list[Row], kind: str, dtype: str) -> float:
    """Total bytes per second of that kind: geometric mean over sizes within and beyond the caches.

    One figure for both, since a step's arrays on virtual devices are of both kinds.
    """
    rates = [math.log(r["bytes_per_s"]) for r in rows_of(rows, kind=kind, dtype=dtype)]
    return math.exp(sum(rates) / len(rates))


def seconds_per_element(rows: list[Row], kind: str) -> float:
    """Median over sizes and functions, of all devices together."""
    return float(f"{1 / median(r['elements_per_s'] for r in rows_of(rows, kind=kind)):.3g}")


def merged(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each row the run in the middle by its time; of two, the faster one."""
    last = runs[-1]
    found = dict(last, runs=len(runs), overhead_s=middle(r["overhead_s"] for r in runs))
    for part in ("meetings", "collectives", "matmul", "memory", "elements"):
        taken: dict[str, list[Row]] = {}
        for row in (row for run in runs for row in run[part]):
            taken.setdefault(key_of(row), []).append(row)
        found[part] = [middle(taken[key_of(row)], lambda r: r["s"]) for row in last[part]]
    return found


def key_of(row: Row) -> str:
    """What was measured."""
    return str({k: v for k, v in row.items() if k != "s" and not k.endswith("_per_s")})


def middle(values: Iterable[Any], key: Callable[[Any], float] | None = None) -> Any:
    """The lower median."""
    ordered = sorted(values, key=key)
    return ordered[(len(ordered) - 1) // 2]


def rows_of(rows: list[Row], **wanted: Any) -> list[Row]:
    """The rows with those entries."""
    return [r for r in rows if all(r[k] == v for k, v in wanted.items())]


def matmul_peaks(rows: list[Row], cores: int) -> dict[str, int]:
    """FLOP/s a core by dtype: the median over sizes of 128 and more, where the rate is flat."""
    peaks = {}
    for dtype in ("float32", "bfloat16", "float16"):
        large = [r["flops_per_s"] for r in rows_of(rows, dtype=dtype) if min(r["mnk"]) >= 64]
        peaks[dtype] = round(median(large) / cores)
    return peaks | {"float64": peaks["float32"] // 2}


def matmul_curve(rows: list[Row]) -> dict[str, float]:
    """The saturating curve: on a CPU, whose tiles are small, each side is half full early."""
    halves = {}
    for letter, place in (("m", 0), ("n", 1), ("k", 2)):
        narrow = [r for r in rows_of(rows, dtype="float32") if r.get("narrow") == letter]
        wide = [r for r in rows_of(rows, dtype="float32") if r.get("narrow") == "none"]
        halves[f"half_{letter}"] = half_size(narrow, wide, place)
    return {"max_efficiency": 1.0, **halves, "half_output": 0.0}


def half_size(narrow: list[Row], wide: list[Row], place: int) -> float:
    """The side at which the rate is half of that with all sides wide: median over the rows."""
    if not narrow or not wide:
        return 0.0
    full = median(r["flops_per_s"] for r in wide)
    found = [r["mnk"][place] * max(full / r["flops_per_s"] - 1, 0.0) for r in narrow]
    return round(median(found), 1)


def kinds_of(rows: dict[str, Any]) -> set[str]:
    """The collectives that were measured."""
    return {r["kind"] for r in rows["collectives"]}


def collective(rows: dict[str, Any], kind: str) -> dict[str, float]:
    """Latency of all devices and a member, core-seconds per byte in and beyond the caches, and what
    waiting costs where all devices meet: with fewer, others have the cores meanwhile."""
    mine = rows_of(rows["collectives"], kind=kind)
    devices, cores = rows["devices"], rows["cores"]
    meeting = {r["group"]: devices if kind == "permute" else r["group"] for r in mine}
    small, medium, large = (rows_of(mine, bytes=b) for b in (1 << 12, 1 << 19, 1 << 23))
    fixed, member = line([(meeting[r["group"]], r["s"]) for r in small])
    starts = {g: fixed + member * size for g, size in meeting.items()}
    per_byte = {
        name: math.exp(median(math.log(slope(r, starts[r["group"]])) for r in picked))
        for name, picked in (("cached", medium), ("beyond", large))
    }
    waiting = rows_of(rows["meetings"], kind=kind, group=devices)
    return {
        "idle_s": float(f"{median(r['s'] for r in waiting):.3g}"),
        "latency_s": float(f"{fixed * cores / devices:.3g}"),
        "latency_per_member_s": float(f"{member:.3g}"),
        "s_per_byte_cached": float(f"{per_byte['cached'] * cores / devices:.3g}"),
        "s_per_byte": float(f"{max(per_byte.values()) * cores / devices:.3g}"),
        "cached_bytes": (1 << 20) * devices,
    }


def line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Least squares of y = a + b·x with neither below zero."""
    n, x, y = len(points), [p[0] for p in points], [p[1] for p in points]
    mean_x, mean_y = sum(x) / n, sum(y) / n
    spread = sum((v - mean_x) ** 2 for v in x)
    found = sum((v - mean_x) * (w - mean_y) for v, w in points) / spread if spread else 0.0
    b = min(max(found, 0.0), mean_y / mean_x)
    return mean_y - b * mean_x, b


def slope(row: Row, latency: float) -> float:
    """Seconds per byte beyond the latency; at least an eighth of the whole time counts."""
    return max(row["s"] - latency, row["s"] / 8) / row["bytes"]
