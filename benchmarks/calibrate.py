"""Fits the V100 table to published times of GPT-3 training, and says how far predictions are off.

    python -m benchmarks.calibrate [--terms FILE] [--write] [--markdown] [--held-back]

The rows are in `models/gpt3/published.json`. For each, GPT-3 is planned as Megatron shards
it (`benchmarks/gpt3_terms.py`), two short models for the time of a long one; a pipeline of S stages
with M microbatches takes, from what one microbatch takes (t) and what a step does once (o),

    Σ t_s + (M − 1) · max t_s + max o_s

with layers given to stages as evenly as they go, the head counted as the layers that it is worth.
Where a microbatch does not fit, as many layers are recomputed as must be (`recomputed`).

Fitted are a few physical figures of the table, with `START` as prior (a factor `PRIOR` one standard
deviation), by the least squares of relative errors. For the error of prediction a model is
left out, the others are fitted, and its rows are predicted. `--write` puts the figures of all rows
into the table. Terms are kept in `--terms`, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import markdown, table, virtual_devices
from benchmarks.gpt3_terms import Case, Terms, Times, cluster_of, terms_of
from xshard.cost.device import MatmulCurve

KIND = "v100-sxm2-32gb"
LAYERS = (2, 3)
MICROBATCHES = (1, 2, 4, 8, 16, 32)
ENDS = (1, 32)
LIMIT_GB = 30
HELD_BACK = ("2.6B", "6.7B")
PRIOR = 1.5
ROW_ERROR = 0.03
"""What a row is off by, as one standard deviation."""
SOURCE = "fitted by python -m benchmarks.calibrate to published times of GPT-3 training"
COLUMNS = ("model", "mode", "microbatch", "run", "fitted", "error", "left out", "error", "as")


@dataclass(frozen=True, slots=True)
class Row:
    """One published run; `seconds` is 0 where it is to be predicted."""

    model: str
    pipeline: bool
    microbatch: int
    limit_gb: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Figures:
    """What is fitted. Sides of a matmul have one figure, twice as much for the summed one."""

    max_efficiency: float
    half_side: float
    half_output: float
    memory_efficiency: float
    launch_overhead_s: float
    bandwidth_bytes_per_s: float
    latency_s: float

    def of(self, cluster: Any) -> Any:
        """The cluster with these figures."""
        side, output = self.half_side, self.half_output
        curve = MatmulCurve(self.max_efficiency, side, side, 2 * side, output)
        device = replace(
            cluster.device, matmul=curve, memory_efficiency=self.memory_efficiency,
            launch_overhead_s=self.launch_overhead_s,
        )  # fmt: skip
        link = replace(
            cluster.intra_host, bandwidth_bytes_per_s=self.bandwidth_bytes_per_s,
            latency_s=self.latency_s,
        )  # fmt: skip
        return replace(cluster, device=device, intra_host=link)


START = Figures(0.8, 32, 400_000, 0.85, 4e-6, 130e9, 7e-6)
"""Before any row is looked at: tiles of 128×128×32; STREAM's part of the bandwidth; back-to-back
launches; 87% of six links of 25 GB/s; a hop of NCCL's simple protocol."""
LOW = Figures(0.4, 3, 40_000, 0.4, 1e-6, 40e9, 1e-6)
HIGH = Figures(0.95, 300, 4_000_000, 0.935, 4e-5, 143e9, 7e-5)
"""What is physically possible; 95% of a matmul's peak, 93.5% of the memory's and 95% of the links'
bandwidth are about the most that was ever seen."""


@dataclass(slots=True)
class Known:
    """Terms of all cases that were planned, and where they are kept."""

    path: Path
    found: dict[tuple[Any, ...], Terms]

    @classmethod
    def read(cls, path: Path) -> Known:
        """What the file holds."""
        known = cls(path, {})
        for line in path.read_text().splitlines() if path.exists() else ():
            r = json.loads(line)
            model, microbatch, mesh, remat, layers = r["case"]
            case = Case(model, microbatch, tuple(mesh), remat, layers)
            known.found[astuple(case)] = Terms(case.mesh, r["turns"], r["ops"], r["moves"])
        return known

    def of(self, case: Case) -> Terms:
        """The terms of a case, planned now if they are not known."""
        key = astuple(case)
        if key not in self.found:
            terms = self.found[key] = terms_of(case, KIND)
            record = {"case": key, "turns": terms.turns, "ops": terms.ops, "moves": terms.moves}
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        return self.found[key]

    def times(self, case: Case, cluster: Any) -> Times:
        """Its times; one GPU's are affine in the microbatch (to 0.2%), so two sizes tell all."""
        if case.mesh != (1,) or case.microbatch in ENDS:
            return self.of(case).times(cluster)
        few, many = (self.of(replace(case, microbatch=n)).times(cluster) for n in ENDS)
        share = (case.microbatch - ENDS[0]) / (ENDS[1] - ENDS[0])
        return _add(_add(few, many, share), few, -share)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run a row: stages × data × model, and the share of layers that is recomputed."""

    stages: int
    mesh: tuple[int, ...]
    recomputed: float

    def __str__(self) -> str:
        mesh = "×".join(map(str, self.mesh))
        remat = f", {self.recomputed:.0%} recomputed" if self.recomputed else ""
        return (f"{self.stages} stages of {mesh}" if self.stages > 1 else mesh) + remat


def rows() -> list[Row]:
    """The published ones."""
    from models.gpt3.published import published

    return [
        Row(r.model, r.mode == "pipeline", r.microbatch_size, r.memory_limit_gb, r.measured_s)
        for r in published()
        if r.measured_s is not None and r.model not in HELD_BACK
    ]


def held_back() -> list[Row]:
    """Those that are predicted and not fitted to."""
    return [Row(model, pipeline, microbatch, LIMIT_GB, 0.0)
            for model in HELD_BACK for pipeline in (False, True)
            for microbatch in MICROBATCHES]  # fmt: skip


def ways(row: Row) -> Iterator[Way]:
    """Tensor parallelism within a host and data parallelism over hosts (tensor parallelism over all
    where there are fewer sequences), or one or two GPUs a stage."""
    from models.gpt3.config import CONFIGS

    devices = CONFIGS[row.model].num_devices
    hosts = devices // 8
    apart = devices > 8 and row.microbatch % hosts == 0
    found: list[tuple[int, tuple[int, ...]]] = [(1, (hosts, 8) if apart else (devices,))]
    if row.pipeline:
        found += [(devices // n, (n,)) for n in (1, 2) if devices // n > 1]
    for stages, mesh in found:
        share = recomputed(row, stages, math.prod(mesh))
        if share <= 1:
            yield Way(stages, mesh, share)


def recomputed(row: Row, stages: int, width: int) -> float:
    """The share of layers that must be recomputed for the limit; above 1 if it cannot be kept.

    A layer keeps (34 + 5 a s/h) s h bytes a sequence, or 2 s h if it is recomputed (Korthikanti et
    al. 2022, arXiv:2205.05198, equation 2 and section 5), split over the model axis; the first of
    S stages holds S microbatches of its S-th of the layers; the state takes 16 bytes a parameter.
    """
    from models.gpt3.config import CONFIGS

    c = CONFIGS[row.model]
    unit = c.seq_len * c.hidden * c.num_layers * row.microbatch / width
    whole = (34 + 5 * c.num_heads * c.seq_len / c.hidden) * unit
    state = 16 * c.num_params / (stages * width)
    over = state + whole - row.limit_gb * 1e9
    return 0.0 if over <= 0 else over / (whole - 2 * unit)


def seconds(row: Row, way: Way, known: Known, figures: Figures) -> float:
    """The predicted step time."""
    from models.gpt3.config import CONFIGS

    c = CONFIGS[row.model]
    cluster = figures.of(cluster_of(KIND, way.mesh))
    turns = c.batch // row.microbatch
    shares = [(False, 1 - way.recomputed), (True, way.recomputed)]
    layer, rest = Times(0, 0), Times(0, 0)
    for remat, share in shares:
        if share:
            few, more = (
                known.times(Case(row.model, row.microbatch, way.mesh, remat, n), cluster)
                for n in LAYERS
            )
            one = Times(more.microbatch_s - few.microbatch_s, more.once_s - few.once_s)
            layer = _add(layer, one, share)
            rest = _add(rest, _add(few, one, -LAYERS[0]), share)
    if way.stages == 1:
        return _add(rest, layer, c.num_layers).step_s(turns)
    slowest, once = _stages(layer, rest, c.num_layers, way.stages)
    total = rest.microbatch_s + layer.microbatch_s * c.num_layers
    return total + (turns - 1) * slowest + once


def _add(a: Times, b: Times, times: float) -> Times:
    return Times(a.microbatch_s + times * b.microbatch_s, a.once_s + times * b.once_s)


def _stages(layer: Times, rest: Times, layers: int, stages: int) -> tuple[float, float]:
    """The slowest stage, and the most that one does once; the last stage has the head."""
    best = math.inf, math.inf
    for last in range(layers + 1):
        most = -(-(layers - last) // (stages - 1))
        slowest = max(most * layer.microbatch_s, rest.microbatch_s + last * layer.microbatch_s)
        once = max(most * layer.once_s, rest.once_s + last * layer.once_s)
        best = min(best, (slowest, once))
    return best


def predicted(row: Row, known: Known, figures: Figures) -> tuple[float, Way]:
    """The fastest way."""
    return min(((seconds(row, w, known, figures), w) for w in ways(row)), key=lambda x: x[0])


def fit(some: Sequence[Row], known: Known) -> Figures:
    """The figures that predict these rows best."""
    from scipy.optimize import least_squares

    start, low, high = (np.log(astuple(f)) for f in (START, LOW, HIGH))

    def residuals(x: np.ndarray) -> np.ndarray:
        figures = Figures(*np.exp(x))
        off = [math.log(predicted(r, known, figures)[0] / r.seconds) / ROW_ERROR for r in some]
        return np.array([*off, *((x - start) / math.log(PRIOR))])

    found = least_squares(residuals, start, bounds=(low, high), diff_step=1e-3)
    return Figures(*np.exp(found.x).tolist())


def left_out(some: Sequence[Row], known: Known) -> dict[Row, float]:
    """Each row as figures predict it that were fitted to the other models."""
    found: dict[Row, float] = {}
    for model in dict.fromkeys(r.model for r in some):
        figures = fit([r for r in some if r.model != model], known)
        found |= {r: predicted(r, known, figures)[0] for r in some if r.model == model}
    return found


def write(figures: Figures, errors: Mapping[str, float]) -> None:
    """Puts the fitted figures into the table of the package, with what they are from."""
    from xshard.cost import device

    path = Path(device.__file__).parent / "devices" / f"{KIND}.json"
    data = json.loads(path.read_text("utf-8"))
    source = f"{SOURCE} (a model left out: mean error {errors['mean']:.1%})"
    fitted = figures.of(cluster_of(KIND, (1,)))

    def sourced(value: float) -> dict[str, object]:
        return {"value": float(f"{value:.3g}"), "source": source}

    curve = {name: float(f"{value:.3g}") for name, value in asdict(fitted.device.matmul).items()}
    data["matmul"] = {**curve, "source": source}
    for name in ("memory_efficiency", "launch_overhead_s"):
        data[name] = sourced(getattr(fitted.device, name))
    for name in ("bandwidth_bytes_per_s", "latency_s"):
        data["intra_host"][name] = sourced(getattr(fitted.intra_host, name))
    path.write_text(json.dumps(data, indent=2) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--terms", type=Path, default=Path("gpt3_terms.jsonl"))
    parser.add_argument("--write", action="store_true", help="put the figures into the table")
    parser.add_argument("--markdown", action="store_true", help="print tables for the docs")
    parser.add_argument("--held-back", action="store_true", help="predict 2.6B and 6.7B, too")
    options = parser.parse_args()
    virtual_devices(16)
    known, some = Known.read(options.terms), rows()
    figures, apart = fit(some, known), left_out(some, known)
    shown = list[tuple[object, ...]]()
    for r in some:
        (s, way), out = predicted(r, known, figures), apart[r]
        mode = "pipeline" if r.pipeline else "tensor"
        shown.append((r.model, mode, r.microbatch, f"{r.seconds:.1f} s", f"{s:.1f} s",
                      f"{s / r.seconds - 1:+.1%}", f"{out:.1f} s", f"{out / r.seconds - 1:+.1%}",
                      way))  # fmt: skip
    _print("V100 rows", COLUMNS, shown, options.markdown)
    off = [abs(apart[r] / r.seconds - 1) for r in some]
    errors = {"mean": sum(off) / len(off), "max": max(off)}
    print(f"left out: mean error {errors['mean']:.1%}, max {errors['max']:.1%}")
    print(figures)
    if options.write:
        write(figures, errors)
    if options.held_back:
        more = [(r.model, "pipeline" if r.pipeline else "tensor", r.microbatch, f"{s:.1f} s", way)
                for r in held_back() for s, way in [predicted(r, known, figures)]]  # fmt: skip
        _print("Predictions", ("model", "mode", "microbatch", "predicted", "as"), more,
               options.markdown)  # fmt: skip


def _print(title: str, columns: Sequence[object], shown: Any, as_markdown: bool) -> None:
    if as_markdown:
        print(markdown(columns, shown))
    else:
        table(title, columns, shown)


if __name__ == "__main__":
    main()
