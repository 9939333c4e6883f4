"""Step times of stage, data and tensor parallel plans, and 1F1B's bubble: predicted and measured.

    python -m benchmarks.pipeline_time [--rounds 11] [--width 512] [--tokens 2048] [--json F]

Two virtual devices whose programs run on one thread each, on two cores: the steps of eight equal
layers with momentum as two stages, with the batch split, and with the weights split as Megatron
does, in one process and in turns; the median of each against its plan's prediction.

The bubble is what `step.profile` sees: the share of the two groups' time, from the first task's
start to the last one's end, in which they run no task. Beside it stand the formula for equal stages
(p−1)/(m+p−1), Huang et al. 2019, https://arxiv.org/abs/1811.06965, section 2.2, and the plan's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import alternate, ms, table, to_json, virtual_devices

DEVICES, LAYERS = 2, 8
MICROBATCHES = 8
BUBBLES_AT = (2, 4, 8, 16)


def program(width: int, tokens: int) -> tuple[Callable[..., Any], Callable[[], Any], Any]:
    """A step of momentum on residual layers, what makes its first state, and a batch."""
    import jax
    import jax.numpy as jnp
    import optax

    sgd = optax.sgd(1e-3, momentum=0.9)

    def loss(params: Any, batch: Any) -> Any:
        x = batch["x"]
        for up, down in params:
            x = x + jax.nn.relu(x @ up) @ down
        return ((x - batch["y"]) ** 2).mean()

    def step(state: Any, batch: Any) -> Any:
        params, momentum = state
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, momentum = sgd.update(grads, momentum, params)
        return (optax.apply_updates(params, updates), momentum), value

    def init() -> Any:
        keys = jax.random.split(jax.random.key(0), 2 * LAYERS)
        pairs = [((width, 4 * width), (4 * width, width))] * LAYERS
        params = [
            tuple(jax.random.normal(keys[2 * i + k], shape) / shape[0] ** 0.5 / LAYERS
                  for k, shape in enumerate(pair))
            for i, pair in enumerate(pairs)
        ]  # fmt: skip
        return params, sgd.init(params)

    rng = np.random.default_rng(0)
    batch = {k: jnp.asarray(rng.standard_normal((tokens, width)), jnp.float32) for k in "xy"}
    return step, init, batch


def plans(step: Callable[..., Any], init: Callable[[], Any]) -> dict[str, Any]:
    """The step in stages, with the batch split, and with the weights split."""
    import jax
    from jax.sharding import PartitionSpec as P

    import xshard

    mesh = jax.make_mesh((DEVICES,), ("d",), (jax.sharding.AxisType.Auto,))
    split = [(P(None, "d"), P("d", None))] * LAYERS
    momentum = jax.tree.unflatten(jax.tree.structure(jax.eval_shape(init)[1]),
                                  [spec for pair in split for spec in pair])  # fmt: skip
    return {
        "stages": xshard.auto_shard(step, mesh, donate_argnums=0, pipeline=DEVICES,
                                    microbatches=MICROBATCHES, schedule="1f1b"),
        "data": xshard.auto_shard(step, mesh, donate_argnums=0, in_specs=(P(), P("d"))),
        "tensor": xshard.auto_shard(step, mesh, donate_argnums=0,
                                    in_specs=((split, momentum), P())),
    }  # fmt: skip


class Loop:
    """Calls a step on its own donated state, again and again."""

    def __init__(self, step: Any, init: Callable[[], Any], batch: Any) -> None:
        import jax

        self.step, self.state = step, step.init(init, batch)
        self.batch = jax.device_put(batch, step.in_shardings[1])

    def __call__(self) -> None:
        import jax

        self.state, loss = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, loss))


def times(step: Any, init: Any, batch: Any, rounds: int) -> list[dict[str, Any]]:
    """One record a plan."""
    steps = plans(step, init)
    found = alternate({n: Loop(s, init, batch) for n, s in steps.items()}, rounds, warmup=3)
    return [
        {"plan": name, "predicted_s": steps[name].plan.predicted_time_s,
         "measured_s": timing.median_s, "quiet_s": timing.quiet_s, "spread": timing.spread}
        for name, timing in found.items()
    ]  # fmt: skip


def bubble(step: Any, init: Any, batch: Any, microbatches: int, rounds: int) -> dict[str, Any]:
    """Of 1F1B with so many microbatches: the median of the rounds."""
    import xshard

    run: Any = xshard.auto_shard(
        step, DEVICES, donate_argnums=0, pipeline=DEVICES, microbatches=microbatches,
        schedule="1f1b",
    )  # fmt: skip
    state, seen = run.init(init, batch), []
    state, _ = run(state, batch)
    for _ in range(rounds):
        profile = run.profile(state, batch)
        state, _ = profile.result
        seen.append(share_idle(profile))
    return {
        "microbatches": microbatches, "measured": statistics.median(seen),
        "formula": (DEVICES - 1) / (microbatches + DEVICES - 1),
        "predicted": run.plan.timeline.bubble, "layers": run.plan.layers,
    }  # fmt: skip


def share_idle(profile: Any) -> float:
    """The share of the groups' time in which they run no task."""
    tasks = [s for s in profile.spans if "stage" in s.facts and s.track.count(" ") == 1]
    long = max(s.end_ns for s in tasks) - min(s.start_ns for s in tasks)
    busy = sum(s.end_ns - s.start_ns for s in tasks)
    return 1 - busy / (DEVICES * long)


def main() -> int:
    """Runs both; prints two tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline_time", description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:DEVICES])
    virtual_devices(DEVICES)
    os.environ["XLA_FLAGS"] += " --xla_cpu_multi_thread_eigen=false"
    step, init, batch = program(args.width, args.tokens)
    timed = times(step, init, batch, args.rounds)
    rows = [
        [r["plan"], ms(r["predicted_s"]), ms(r["measured_s"]), f"{r['spread']:.1%}",
         f"{r['predicted_s'] / r['measured_s'] - 1:+.1%}"] for r in timed
    ]  # fmt: skip
    table("a step", ["plan", "predicted", "measured", "spread", "error"], rows)
    bubbles = [bubble(step, init, batch, m, args.rounds) for m in BUBBLES_AT]
    rows = [
        [b["microbatches"], f"{b['measured']:.1%}", f"{b['formula']:.1%}", f"{b['predicted']:.1%}",
         f"{b['measured'] / b['formula'] - 1:+.1%}"] for b in bubbles
    ]  # fmt: skip
    columns = ["microbatches", "measured", "formula", "the plan's", "measured to formula"]
    table("1F1B's bubble on two groups", columns, rows)
    if args.json:
        args.json.write_text(to_json({"times": timed, "bubbles": bubbles}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
