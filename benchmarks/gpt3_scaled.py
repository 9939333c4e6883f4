"""The plans of the GPT-3 study, scaled down to 8 virtual devices, run and compared.

    python -m benchmarks.gpt3_scaled PLANS [--configs 350M,39B] [--modes tensor,pipeline]
        [--microbatch-sizes 1,2,4,8,16,32] [--schedules 1f1b,interleaved,zero_bubble]
        [--stages 4] [--time-limit 20] [--json F]

For each case of `python -m models.gpt3.tables` the plan is taken from the folder PLANS, or made and
left there: in stages if that is faster, or in so many `--stages`, under each of the schedules. What
is kept of it: its mesh and groups of devices, halved until there are at most 8 devices; its stages
with their shares of the layers and of what is recomputed; its schedule; whether there are more
microbatches than one; sequences in a microbatch, up to 8; and the specs of all parameters, moments
and tokens, which are pinned. The model has 4 layers (8 where there are as many stages), a hidden
size of 64, no dropout, and float32. Two steps are compared with `jax.jit` of the step on one
device, as `benchmarks.pipelines` does it.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.common import table, to_json, virtual_devices

DEVICES, LAYERS, MOST_ROWS = 8, 4, 8
TOLERANCE = 1e-4
"""Of float32 sums in another order."""
_LAYER = re.compile(r"layer_(\d+)")


@dataclass(frozen=True, slots=True)
class Shape:
    """What is kept of a plan.

    Attributes:
      sizes: of the mesh, or of each group's.
      stages: by stage, the one of the plan that it is like.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    groups: int
    stages: tuple[int, ...]
    schedule: str
    microbatches: int
    rows: int

    @property
    def devices(self) -> int:
        """All of them."""
        return self.groups * math.prod(self.sizes)

    @property
    def layers(self) -> int:
        """Of the model."""
        return max(LAYERS, len(self.stages))


def shape_of(plan: Any, rows: int) -> Shape:
    """What is kept of a plan of one program or of a pipeline.

    Args:
      rows: sequences in a microbatch.
    """
    schedule = getattr(plan, "schedule", None)
    groups = schedule.num_groups if schedule else 1
    sizes, fewer = list(plan.mesh.sizes), groups
    while fewer * math.prod(sizes) > DEVICES:
        if fewer > 2 and fewer >= max(sizes):
            fewer //= 2
        else:
            sizes[sizes.index(max(sizes))] //= 2
    chunks = schedule.num_stages // groups if schedule else 1
    like = [round(g * (groups - 1) / max(fewer - 1, 1)) for g in range(fewer)]
    stages = tuple(chunk * groups + g for chunk in range(chunks) for g in like)
    name = schedule.name if schedule else ""
    most = min(plan.microbatches, 2 * fewer if schedule else 4)
    return Shape(
        plan.mesh.names, tuple(sizes), fewer, stages, name, most, min(rows, MOST_ROWS)
    )  # fmt: skip


def shared_out(units: int, weights: Sequence[int]) -> tuple[int, ...]:
    """So many units by weights, at least one each, the largest remainders rounded up."""
    free, total = units - len(weights), sum(weights)
    parts = [w * free / total for w in weights]
    found = [1 + int(p) for p in parts]
    order = sorted(range(len(parts)), key=lambda k: int(parts[k]) - parts[k])
    for k in order[: units - sum(found)]:
        found[k] += 1
    return tuple(found)


def part_of(count: int, again: int, of: int) -> int:
    """`again` of `of` layers, of fewer: none, all, or some as it was."""
    if again in (0, of):
        return count if again else 0
    return max(1, min(count - 1, round(again / of * count)))


class Scaled:
    """The step of one shape, planned as a plan has it."""

    def __init__(self, plan: Any, shape: Shape) -> None:
        from models.gpt3.config import CONFIGS
        from models.gpt3.step import batch_avals, make_train_step, state_avals

        self.plan, self.shape = plan, shape
        self.config = CONFIGS["tiny"].replace(
            hidden=64, num_heads=8, seq_len=16, vocab=128, dropout=0.0, num_layers=shape.layers,
            batch=shape.microbatches * shape.rows,
        )  # fmt: skip
        self.fun = make_train_step(self.config).train
        self.avals = state_avals(self.config), batch_avals(self.config)

    def step(self) -> Any:
        """By `auto_shard`, from a plan of this shape."""
        import xshard

        made, pins = self._pipeline() if self.shape.schedule else self._program()
        return xshard.auto_shard(self.fun, self.shape.devices, plan=made, in_specs=pins)

    def _program(self) -> tuple[Any, Any]:
        from xshard.asked import Asked
        from xshard.cost.cluster import Cluster
        from xshard.making import candidates_of
        from xshard.microbatching import Way
        from xshard.planning import make_plan

        s, call, traced, pins = self.shape, *self._traced()
        asked = Asked(Cluster.parse(f"cpu:{s.devices}"), [self._mesh()], pins, time_limit_s=5.0)
        found = candidates_of(traced, call, asked, s.microbatches, None, "auto")
        again = sum(c.recomputed for c in self.plan.remat), sum(c.layers for c in self.plan.remat)
        [length] = found.all_layers(s.microbatches)
        recomputed = (part_of(length, *again),) if again[0] else ()
        return make_plan(found.prepared(Way(s.microbatches, recomputed))), pins

    def _pipeline(self) -> tuple[Any, Any]:
        from xshard.cost.cluster import Cluster
        from xshard.pipeline.assemble import pipeline_plan
        from xshard.pipeline.pinned import pinned
        from xshard.pipeline.search import cuts_of, divided_step
        from xshard.pipeline.solver import StagePlans, StageSolver
        from xshard.schedules import build, in_flight

        s, call, traced, pins = self.shape, *self._traced()
        n = len(s.stages)
        cuts = cuts_of(traced, divided_step(traced, None), s.microbatches, n, frozenset())
        like = [self.plan.layers[k] for k in s.stages]
        counts = shared_out(len(cuts.cut.units), like)
        again = [self.plan.recomputed[k] for k in s.stages]
        recomputed = tuple(map(part_of, counts, again, like))
        schedule = build(s.schedule, s.groups, s.microbatches, n // s.groups)
        cut = cuts.into(counts, recomputed, split_backward=schedule.split_backward)
        solver = StageSolver(
            self._mesh(), Cluster.parse(f"cpu:{math.prod(s.sizes)}"), time_limit_s=5.0,
            pinned=pinned(traced, call, self._mesh(), pins, None),
        )  # fmt: skip
        held = [in_flight(schedule)[g].residuals for g in schedule.placement]
        plans = StagePlans(cut, schedule.placement, held, solver).make()
        return pipeline_plan(plans, schedule, counts, recomputed), pins

    def _mesh(self) -> Any:
        from xshard.spec import MeshShape

        return MeshShape(self.shape.names, self.shape.sizes)

    def _traced(self) -> tuple[Any, Any, Any]:
        """The call, the traced step, and the specs of its arguments that the plan has."""
        import jax

        from xshard.ir.trace import trace
        from xshard.run.call import Arguments

        call = Arguments(self.fun, (), ()).call(self.avals, {})
        traced = trace(self.fun, self.avals, call.static)
        known = _specs(self.plan)
        layers = [int(m[1]) for path in known if (m := _LAYER.search(path))]
        pins = [
            self._pin(known.get(_longer(path, max(layers) + 1, self.shape.layers)), aval.shape)
            for path, aval in zip(traced.in_paths, traced.in_avals, strict=True)
        ]
        return call, traced, jax.tree.unflatten(traced.in_tree, pins)

    def _pin(self, spec: Any, shape: tuple[int, ...]) -> Any:
        """A spec of the plan, if it divides here."""
        from jax.sharding import PartitionSpec

        if spec is None or len(spec) != len(shape):
            return None
        sizes = [math.prod(self.shape.sizes[a] for a in axes) for axes in spec]
        if any(n % k for n, k in zip(shape, sizes, strict=True)):
            return None
        return PartitionSpec(*(tuple(self.shape.names[a] for a in axes) or None for axes in spec))


def _specs(plan: Any) -> dict[str, Any]:
    programs = getattr(plan, "programs", {"": plan})
    return {a.path: a.spec for one in programs.values() for a in one.arguments}


def _longer(path: str, layers: int, here: int) -> str:
    """The path of the layer at the same place among more."""
    return _LAYER.sub(lambda m: f"layer_{round(int(m[1]) * (layers - 1) / (here - 1))}", path)


@cache
def _expected(config: Any) -> tuple[Any, Any, Any]:
    """(state, batch, what `jax.jit` makes of two steps)."""
    import jax
    import numpy as np

    from benchmarks.pipelines import moments
    from models.gpt3.step import make_train_step

    steps, rng = make_train_step(config), np.random.default_rng(0)
    state = jax.tree.map(np.asarray, jax.jit(steps.init)(jax.random.key(0)))
    tokens = rng.integers(0, config.vocab, (2, config.batch, config.seq_len)).astype(np.int32)
    batch, plain = {"inputs": tokens[0], "targets": tokens[1]}, jax.jit(steps.train)
    after, first = plain(state, batch)
    return state, batch, {"moments": moments(after), "first": first,
                          "second": plain(after, batch)[1]}  # fmt: skip


def run(plan: Any, rows: int) -> dict[str, Any]:
    """The record of one plan: how it was scaled, and its largest error."""
    from benchmarks.pipelines import errors

    shape, began = shape_of(plan, rows), time.perf_counter()
    scaled = Scaled(plan, shape)
    step, (state, batch, expected) = scaled.step(), _expected(scaled.config)
    error = errors(step, state, batch, expected)
    made = step.plan
    again = getattr(made, "recomputed", None) or [c.recomputed for c in getattr(made, "remat", ())]
    return {
        "groups": shape.groups, "mesh": "×".join(map(str, shape.sizes)),
        "schedule": shape.schedule or "none", "microbatches": shape.microbatches,
        "rows": shape.rows, "layers": list(getattr(made, "layers", [shape.layers])),
        "recomputed": list(again), "error": error, "seconds": time.perf_counter() - began,
    }  # fmt: skip


def cases(args: argparse.Namespace) -> Iterator[tuple[Mapping[str, Any], Any]]:
    """(case, its plan; None where there is none)."""
    from models.gpt3.config import CONFIGS
    from models.gpt3.study import Case, planned
    from models.gpt3.tables import LIMITS
    from xshard import InfeasibleError
    from xshard.mpmd.plan_file import load_any

    args.plans.mkdir(parents=True, exist_ok=True)
    for model, mode, rows in itertools.product(args.configs, args.modes, args.sizes):
        if CONFIGS[model].batch % rows:
            continue
        case = Case(model, mode, rows, "v100-sxm2-32gb", LIMITS.get(rows, "30GB"))
        for schedule in args.schedules if mode == "pipeline" else ("1f1b",):
            if mode == "pipeline":
                case = replace(case, schedule=schedule, stages=args.stages)
            path, about = (
                args.plans / case.file_name,
                {"model": model, "mode": mode, "sequences": rows},
            )
            if not path.exists():
                try:
                    planned(case, args.time_limit).save(path)
                except InfeasibleError:
                    yield about, None
                    continue
            yield about, load_any(path)


def main() -> int:
    """Runs all cases; 1 if one is further off than the tolerance."""
    args = _parser().parse_args()
    virtual_devices(DEVICES)
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"  # compiles in half the time
    import jax

    records: list[dict[str, Any]] = []
    for case, plan in cases(args):
        record = {**case, **(run(plan, case["sequences"]) if plan else {"error": None})}
        records.append(record)
        print(*record.values(), file=sys.stderr, flush=True)
        jax.clear_caches()
        if args.json:
            args.json.write_text(to_json(records))
    _print(records)
    return int(any((r["error"] or 0) > TOLERANCE for r in records))


def _print(records: Sequence[Mapping[str, Any]]) -> None:
    ran = [r for r in records if r["error"] is not None]
    columns = ["model", "mode", "sequences", "groups", "mesh", "schedule", "microbatches", "rows",
               "layers", "recomputed", "error"]  # fmt: skip
    rows = [[*(str(r[c]) for c in columns[:-1]), f"{r['error']:.1e}"] for r in ran]
    worst = max((r["error"] for r in ran), default=0)
    without = len(records) - len(ran)
    title = f"{len(ran)} plans, largest error {worst:.1e}; {without} cases have no plan"
    table(title, columns, rows)


def _parser() -> argparse.ArgumentParser:
    from models.gpt3.config import CONFIGS
    from models.gpt3.tables import MODES, SIZES

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpt3_scaled", description=(__doc__ or "").partition("\n")[0]
    )
    split = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("plans", type=Path, help="folder of plans")
    parser.add_argument("--configs", type=split, default=[n for n in CONFIGS if n != "tiny"])
    parser.add_argument("--modes", type=split, default=list(MODES))
    sizes = lambda text: list(map(int, split(text)))  # noqa: E731
    parser.add_argument("--microbatch-sizes", type=sizes, default=sizes(SIZES), dest="sizes")
    parser.add_argument("--schedules", type=split, default=["1f1b"], help="of the mode pipeline")
    stages = lambda text: int(text) if text.isdecimal() else text  # noqa: E731
    parser.add_argument("--stages", type=stages, default="auto", help="of the mode pipeline")
    parser.add_argument("--time-limit", type=float, default=20.0, help="of one solve, in seconds")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
