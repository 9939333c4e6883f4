"""Is xshard's plan as fast as the best that an expert writes by hand?

    python -m benchmarks.plan_quality [--models tiny,tiny-scanned,wide] [--meshes 8,2x4] [--json F]

On virtual CPU devices, in one process, alternating: a GPT-3 training step as xshard plans it,
against data parallel, ZeRO-1, FSDP and Megatron-style tensor parallel (`benchmarks/baselines.py`),
each a `jax.jit` with PartitionSpecs, state donated. Beside each measured time stands the time that
xshard predicts; a baseline's is that of the best plan with its shardings pinned.

xshard is called slower only if the 95% interval of its ratio to the fastest baseline, taken round
by round, lies above 1. The fastest is picked by the even rounds and compared by the odd ones.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import (
    Ratio,
    Timing,
    alternate,
    machine,
    ms,
    rank_correlation,
    ratio,
    table,
    to_json,
    virtual_devices,
)

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from models.gpt3.config import GPT3Config

NAMES = ("tiny", "tiny-scanned", "wide", "wide-scanned")


@dataclass(frozen=True, slots=True)
class Entry:
    """One way to run the step: the time predicted, and a call that runs it once."""

    name: str
    predicted_s: float
    run: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Result:
    """One model on one mesh."""

    model: str
    mesh: str
    predicted_s: dict[str, float]
    timing: dict[str, Timing]

    @property
    def best(self) -> str:
        """The fastest baseline, by the even rounds."""
        names = [n for n in self.timing if n != "xshard"]
        return min(names, key=lambda n: float(np.median(self.timing[n].wall_s[::2])))

    @property
    def against_best(self) -> Ratio:
        """xshard to the fastest baseline, by the odd rounds: the even ones favour their pick."""
        return ratio(self.timing["xshard"].wall_s[1::2], self.timing[self.best].wall_s[1::2])

    @property
    def correlation(self) -> float:
        """Between the order predicted and the order measured."""
        names = list(self.timing)
        quiet = [self.timing[n].quiet_s for n in names]
        return rank_correlation([self.predicted_s[n] for n in names], quiet)

    @property
    def pairs(self) -> tuple[int, int]:
        """(pairs whose order was foreseen, pairs that processor time tells apart)."""
        told = right = 0
        for a, b in itertools.combinations(self.timing, 2):
            r = ratio(self.timing[a].cpu_s, self.timing[b].cpu_s)
            if r.low > 1 or r.high < 1:
                told += 1
                right += (r.median > 1) == (self.predicted_s[a] > self.predicted_s[b])
        return right, told

    def record(self) -> dict[str, object]:
        """For JSON."""
        return {"model": self.model, "mesh": self.mesh, "predicted_s": self.predicted_s,
                "against_best": asdict(self.against_best), "best": self.best,
                "rank_correlation": self.correlation, "pairs": self.pairs,
                "timing": {n: t.record() for n, t in self.timing.items()}}  # fmt: skip


def config_of(name: str) -> GPT3Config:
    """A model of the benchmark.

    "wide" has few tokens and many parameters: there replicated parameters do not pay.
    """
    from models.gpt3.config import TINY

    base, _, layers = name.partition("-")
    config = TINY
    if base == "wide":
        config = TINY.replace(
            name="wide", hidden=512, num_layers=2, num_heads=8, batch=8, seq_len=32, vocab=1024
        )
    return config.replace(layers=layers or "unrolled")


def some_batch(config: GPT3Config) -> Any:
    """Random tokens."""
    from models.gpt3.step import batch_avals

    rng = np.random.default_rng(0)
    return {k: rng.integers(0, config.vocab, a.shape).astype(a.dtype)
            for k, a in batch_avals(config).items()}  # fmt: skip


class Loop:
    """Calls a step on its own donated state, again and again."""

    def __init__(self, step: Callable[..., Any], state: Any, batch: Any) -> None:
        self.step, self.state, self.batch = step, state, batch

    def __call__(self) -> None:
        import jax

        self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))


def entries(config: GPT3Config, mesh: Mesh, time_limit: float) -> list[Entry]:
    """xshard's plan, then the baselines."""
    import jax
    from jax.sharding import NamedSharding

    import xshard
    from benchmarks.baselines import baselines
    from models.gpt3.step import make_train_step

    fns, batch = make_train_step(config), some_batch(config)
    step = xshard.auto_shard(fns.train, mesh, donate_argnums=0, time_limit=time_limit)
    state = step.init(fns.init, jax.random.key(0), batch)
    placed = jax.device_put(batch, step.in_shardings[1])
    found = [Entry("xshard", step.plan.predicted_time_s, Loop(step, state, placed))]
    for b in baselines(config, mesh):
        placed = jax.device_put(batch, NamedSharding(mesh, b.batch))
        loop = Loop(b.jit(config, mesh), b.state_of(config, mesh), placed)
        found.append(Entry(b.name, predicted(b, config, mesh, time_limit), loop))
    return found


def predicted(baseline: Any, config: GPT3Config, mesh: Mesh, time_limit: float) -> float:
    """Seconds that xshard expects of the baseline's shardings."""
    import xshard
    from models.gpt3.step import batch_avals, state_avals

    plan = xshard.plan(
        baseline.step(config, mesh), state_avals(config), batch_avals(config),
        cluster=f"cpu:{mesh.size}", mesh=tuple(mesh.devices.shape),
        in_specs=(baseline.state, baseline.batch), out_specs=baseline.out_specs,
        time_limit=time_limit,
    )  # fmt: skip
    return plan.predicted_time_s


def measure(model: str, shape: tuple[int, ...], rounds: int, time_limit: float) -> Result:
    """One model on one mesh."""
    import jax
    from jax.sharding import AxisType

    axes = ("data", "model")[: len(shape)]
    mesh = jax.make_mesh(shape, axes, (AxisType.Auto,) * len(shape))
    found = entries(config_of(model), mesh, time_limit)
    timing = alternate({e.name: e.run for e in found}, rounds)
    return Result(model, "×".join(map(str, shape)), {e.name: e.predicted_s for e in found}, timing)


def show(result: Result) -> None:
    """The table of one model on one mesh, and the verdict."""
    rows = []
    for name, t in result.timing.items():
        against = ratio(result.timing["xshard"].wall_s, t.wall_s)
        rows.append((name, ms(result.predicted_s[name]), ms(t.quiet_s), ms(t.median_s),
                     f"±{t.spread:.0%}", "" if name == "xshard" else against))  # fmt: skip
    columns = ("", "predicted", "processor time", "wall", "spread", "xshard takes [95%]")
    table(f"{result.model} on {result.mesh}", columns, rows)
    slower = result.against_best.low > 1
    verdict = "SLOWER than" if slower else "not slower than"
    print(
        f"  {verdict} the best ({result.best}); rank correlation {result.correlation:.2f}; "
        f"of {result.pairs[1]} pairs told apart {result.pairs[0]} foreseen"
    )


def median_error(results: list[Result]) -> float:
    """Of predicted against quiet time, over all ways to run."""
    errors = [abs(r.predicted_s[n] / t.quiet_s - 1) for r in results for n, t in r.timing.items()]
    return float(np.median(errors))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default="tiny,wide", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--meshes", default="8,2x4", help="sizes, such as 8,2x4")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--time-limit", type=float, default=20.0, help="of the solver, in seconds")
    parser.add_argument("--json", type=Path, help="write every figure there")
    options = parser.parse_args()
    virtual_devices(options.devices)
    results = []
    for model in options.models.split(","):
        for mesh in options.meshes.split(","):
            shape = tuple(map(int, mesh.split("x")))
            results.append(measure(model, shape, options.rounds, options.time_limit))
            show(results[-1])
        if options.json:
            options.json.write_text(to_json([r.record() for r in results]))
    print(f"median error of predictions {median_error(results):.0%}; {machine()}")
    sys.exit(any(r.against_best.low > 1 for r in results))


if __name__ == "__main__":
    main()
