"""Step times, predicted against measured: plans good and bad on virtual CPU devices.

    python -m benchmarks.accuracy_time --out accuracy_time.jsonl [--models mlp,gpt3,conv,attention]
        [--meshes 8,2x4] [--plans 7] [--rounds 9] [--markdown]

For each model and mesh, xshard's own plan, and plans that it makes of it when arguments are pinned
to shardings drawn at random (a fixed seed): some are nearly as good, some many times slower. Each
is planned with its pins, run as planned, and its measured time (processor time of the process over
the cores, median of the rounds; beside it the wall) held against the predicted one. All plans of a
model and mesh run alternately in one process.

Results are appended as JSON lines, by model and mesh; those that stand there already are skipped,
so an interrupted run goes on. The summary is over all of the file: the rank correlation over all
plans and within each model and mesh, the median error, and how far the plan that is predicted
fastest is from the fastest that was measured.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import (
    alternate,
    machine,
    markdown,
    ms,
    rank_correlation,
    table,
    virtual_devices,
)

COLUMNS = ("model", "mesh", "plans", "fastest", "slowest", "rank correlation", "median error",
           "predicted best ÷ fastest")  # fmt: skip
TIME_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Program:
    """A training step, and what makes its first state and batch."""

    step: Callable[..., Any]
    init: Callable[[Any], Any]
    batch: Any


def mlp() -> Program:
    """Three wide layers and Adam."""
    import jax
    import jax.numpy as jnp
    import optax

    sizes, adam = (512, 2048, 2048, 512), optax.adam(1e-3)

    def init(key: Any) -> Any:
        keys = jax.random.split(key, len(sizes) - 1)
        w = [jax.random.normal(k, (m, n)) / m**0.5
             for k, m, n in zip(keys, sizes, sizes[1:], strict=False)]  # fmt: skip
        return w, adam.init(w)

    def step(state: Any, batch: Any) -> Any:
        def loss(w: Any) -> Any:
            x = batch["x"]
            for layer in w[:-1]:
                x = jax.nn.gelu(x @ layer)
            return jnp.mean((x @ w[-1] - batch["y"]) ** 2)

        value, grads = jax.value_and_grad(loss)(state[0])
        updates, opt = adam.update(grads, state[1])
        return (optax.apply_updates(state[0], updates), opt), value

    rows = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    return Program(step, init, {"x": rows, "y": rows})


def conv() -> Program:
    """Four convolutions over images, a mean and a classifier; momentum."""
    import jax
    import jax.numpy as jnp

    widths = (8, 64, 64, 64, 64)

    def init(key: Any) -> Any:
        keys = jax.random.split(key, len(widths))
        kernels = [jax.random.normal(k, (3, 3, m, n)) / (9 * m) ** 0.5
                   for k, m, n in zip(keys, widths, widths[1:], strict=False)]  # fmt: skip
        w = {"kernels": kernels, "head": jax.random.normal(keys[-1], (widths[-1], 16)) / 8}
        return w, jax.tree.map(jnp.zeros_like, w)

    def step(state: Any, batch: Any) -> Any:
        def loss(w: Any) -> Any:
            x = batch["x"]
            for kernel in w["kernels"]:
                x = jax.lax.conv_general_dilated(
                    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
                x = jax.nn.relu(x)
            return jnp.mean((x.mean((1, 2)) @ w["head"] - batch["y"]) ** 2)

        value, grads = jax.value_and_grad(loss)(state[0])
        speed = jax.tree.map(lambda v, g: 0.9 * v + g, state[1], grads)
        return (jax.tree.map(lambda w, v: w - 0.01 * v, state[0], speed), speed), value

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((32, 16, 16, 8)), rng.standard_normal((32, 16))
    return Program(step, init, {"x": x.astype(np.float32), "y": y.astype(np.float32)})


def attention() -> Program:
    """Four heads of self-attention over long rows, twice, without an optimizer's state."""
    import jax
    import jax.numpy as jnp

    width, heads = 256, 8

    def init(key: Any) -> Any:
        keys = jax.random.split(key, 8)
        return [[jax.random.normal(k, (width, width)) / 16 for k in keys[i : i + 4]]
                for i in (0, 4)]  # fmt: skip

    def step(state: Any, batch: Any) -> Any:
        def layer(x: Any, w: Any) -> Any:
            q, k, v = ((x @ m).reshape(*x.shape[:2], heads, -1) for m in w[:3])
            scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / (width // heads) ** 0.5
            mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
            return x + mixed.reshape(x.shape) @ w[3]

        def loss(w: Any) -> Any:
            x = batch["x"]
            for m in w:
                x = layer(x, m)
            return jnp.mean(x**2)

        value, grads = jax.value_and_grad(loss)(state)
        return jax.tree.map(lambda w, g: w - 0.01 * g, state, grads), value

    x = np.random.default_rng(0).standard_normal((8, 256, width)).astype(np.float32)
    return Program(step, init, {"x": x})


def gpt3() -> Program:
    """The tiny GPT-3, two of its layers."""
    from benchmarks.plan_quality import some_batch
    from models.gpt3.config import TINY
    from models.gpt3.step import make_train_step

    config = TINY.replace(num_layers=2)
    steps = make_train_step(config)
    return Program(steps.train, steps.init, some_batch(config))


MODELS = {"mlp": mlp, "gpt3": gpt3, "conv": conv, "attention": attention}


def pins(program: Program, mesh: Any, count: int) -> list[Any]:
    """No pins, then `in_specs` that shard some arguments in ways drawn at random."""
    import jax

    avals = jax.eval_shape(program.init, jax.random.key(0)), program.batch
    draw = random.Random(0)
    found: list[Any] = [None]
    for k in range(1, count):
        share = k / count  # from a few pinned arguments to nearly all
        found.append(jax.tree.map(lambda x, p=share: _spec(draw, x.shape, mesh, p), avals))
    return found


def _spec(draw: random.Random, shape: tuple[int, ...], mesh: Any, share: float) -> Any:
    """A PartitionSpec of some axes, each on a dimension that it divides; None leaves it open."""
    from jax.sharding import PartitionSpec

    if not shape or draw.random() > share:
        return None
    dims: list[list[str]] = [[] for _ in shape]
    for axis, size in mesh.shape.items():
        d = draw.randrange(len(shape) + 1)
        if d < len(shape):
            split = math.prod(mesh.shape[a] for a in dims[d])
            if shape[d] % (split * size) == 0:
                dims[d].append(axis)
    return PartitionSpec(*(tuple(d) or None for d in dims))


def measure(model: str, shape: tuple[int, ...], plans: int, rounds: int) -> dict[str, Any]:
    """Plans and runs all of one model on one mesh."""
    import jax
    from jax.sharding import AxisType

    import xshard

    program = MODELS[model]()
    mesh = jax.make_mesh(shape, ("a", "b")[: len(shape)], (AxisType.Auto,) * len(shape))
    runs: dict[str, Callable[[], Any]] = {}
    predicted: dict[str, float] = {}
    for k, pin in enumerate(pins(program, mesh, plans)):
        step = xshard.auto_shard(
            program.step, mesh, donate_argnums=0, in_specs=pin, time_limit=TIME_LIMIT_S,
            profile=False, cost_db=False,
        )  # fmt: skip
        state = step.init(program.init, jax.random.key(0), program.batch)
        batch = jax.device_put(program.batch, step.in_shardings[1])
        runs[str(k)], predicted[str(k)] = _loop(step, state, batch), step.plan.predicted_time_s
    timing = alternate(runs, rounds)
    return {
        "model": model, "mesh": "×".join(map(str, shape)), "jax": jax.__version__,
        "predicted_s": [predicted[k] for k in runs],
        "quiet_s": [timing[k].quiet_s for k in runs],
        "wall_s": [timing[k].median_s for k in runs],
    }  # fmt: skip


def _loop(step: Any, state: Any, batch: Any) -> Callable[[], Any]:
    from benchmarks.plan_quality import Loop

    return Loop(step, state, batch)


def shown(row: dict[str, Any]) -> tuple[object, ...]:
    """A row of the table."""
    p, m = row["predicted_s"], row["quiet_s"]
    return (row["model"], row["mesh"], len(p), ms(min(m)), ms(max(m)),
            f"{rank_correlation(p, m):.2f}", f"{np.median(errors(row)):.0%}",
            f"{m[int(np.argmin(p))] / min(m):.2f}")  # fmt: skip


def errors(row: dict[str, Any]) -> list[float]:
    """Of each plan."""
    pairs = zip(row["predicted_s"], row["quiet_s"], strict=True)
    return [abs(p / m - 1) for p, m in pairs]


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Over all plans."""
    p = [x for r in rows for x in r["predicted_s"]]
    m = [x for r in rows for x in r["quiet_s"]]
    picks = [r["quiet_s"][int(np.argmin(r["predicted_s"]))] / min(r["quiet_s"]) for r in rows]
    return (
        f"{len(p)} plans; rank correlation {rank_correlation(p, m):.3f}, within a model and mesh "
        f"{np.mean([rank_correlation(r['predicted_s'], r['quiet_s']) for r in rows]):.3f} on "
        f"average; median error {np.median([e for r in rows for e in errors(r)]):.1%}; the plan "
        f"predicted best takes {np.mean(picks):.3f} of the fastest on average, {max(picks):.3f} at "
        "most"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("accuracy_time.jsonl"))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--meshes", default="8,2x4", help="sizes, such as 8,2x4")
    parser.add_argument("--plans", type=int, default=7, help="of each model on each mesh")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--markdown", action="store_true", help="print a table for the docs")
    options = parser.parse_args()
    virtual_devices(8)
    text = options.out.read_text() if options.out.exists() else ""
    rows = [json.loads(line) for line in text.splitlines()]
    done = {(r["model"], r["mesh"]) for r in rows}
    for model in options.models.split(","):
        for sizes in options.meshes.split(","):
            shape = tuple(map(int, sizes.split("x")))
            if (model, "×".join(map(str, shape))) in done:
                continue
            rows.append(measure(model, shape, options.plans, options.rounds))
            with options.out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(*shown(rows[-1]), sep="  ", flush=True)
    if not rows:
        sys.exit("no model was asked for")
    lines = [shown(r) for r in rows]
    if options.markdown:
        print(markdown(COLUMNS, lines))
    else:
        table("Step time, predicted against measured", COLUMNS, lines)
    print(summary(rows), machine(), sep="\n")


if __name__ == "__main__":
    main()
