"""What a call of a planned step costs over `jax.jit` with the same shardings.

    python -m benchmarks.overhead [--rounds 40] [--json F]

Alternating, in one process: the GPT-3 tiny step as `auto_shard` runs it, against a hand-written
`jax.jit` of the same function, both data parallel, so that both run the same program; the median of
the differences, round by round. Then, since a step's own noise is larger than what is looked for,
only the dispatch: a function that does next to nothing with as many leaves as the step has.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Timing, alternate, machine, ratio, table, to_json, virtual_devices


class Loop:
    """Calls a step on its own donated state, again and again, and waits for the end."""

    def __init__(self, step: Callable[..., Any], state: Any, batch: Any, calls: int = 1) -> None:
        self.step, self.state, self.batch, self.calls = step, state, batch, calls

    def __call__(self) -> None:
        import jax

        for _ in range(self.calls):
            self.state, metrics = self.step(self.state, self.batch)
            if self.calls == 1:
                jax.block_until_ready(metrics)
        jax.block_until_ready(self.state)


def pair(train: Callable[..., Any], init: Callable[..., Any], batch: Any, calls: int) -> Any:
    """The planned step and the hand-written jit of it, as loops."""
    import jax
    from jax.sharding import PartitionSpec as P

    import xshard

    mesh = jax.make_mesh((len(jax.devices()),), ("data",), (jax.sharding.AxisType.Auto,))
    rows = P() if calls > 1 else P("data")
    step = xshard.auto_shard(
        train, mesh, donate_argnums=0, in_specs=(P(), rows), out_specs=(P(), P())
    )
    state = step.init(init, jax.random.key(0), batch)
    inside, outside = step.in_shardings, step.out_shardings
    hand = jax.jit(train, in_shardings=inside, out_shardings=outside, donate_argnums=0)
    other = jax.jit(init, out_shardings=inside[0])(jax.random.key(0))
    batch = jax.device_put(batch, inside[1])
    return {
        "auto_shard": Loop(step, state, batch, calls),
        "jax.jit": Loop(hand, other, batch, calls),
    }


def gpt3() -> dict[str, Loop]:
    """The step of GPT-3 tiny."""
    from benchmarks.plan_quality import some_batch
    from models.gpt3.config import TINY
    from models.gpt3.step import make_train_step

    fns = make_train_step(TINY)
    return pair(fns.train, fns.init, some_batch(TINY), calls=1)


def dispatch(calls: int) -> dict[str, Loop]:
    """A state of as many leaves as GPT-3 tiny's, each of a few numbers, that is only counted on."""
    import jax
    import jax.numpy as jnp

    from models.gpt3.config import TINY
    from models.gpt3.step import state_avals

    count = len(jax.tree.leaves(state_avals(TINY)))

    def init(key: Any) -> Any:
        return [jnp.zeros(8) for _ in range(count)]

    def train(state: Any, batch: Any) -> Any:
        return [x + batch["rate"] for x in state], {"loss": batch["rate"]}

    return pair(train, init, {"rate": np.float32(1)}, calls)


def record(name: str, timing: dict[str, Timing], calls: int) -> dict[str, object]:
    """The difference of a call, in µs and in percent."""
    ours, theirs = (np.array(timing[n].wall_s) / calls for n in ("auto_shard", "jax.jit"))
    against = ratio(list(ours), list(theirs))
    return {
        "what": name,
        "auto_shard_us": float(np.median(ours)) * 1e6,
        "jit_us": float(np.median(theirs)) * 1e6,
        "overhead_us": float(np.median(ours - theirs)) * 1e6,
        "overhead_percent": (against.median - 1) * 100,
        "low_percent": (against.low - 1) * 100,
        "high_percent": (against.high - 1) * 100,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--calls", type=int, default=50, help="of the dispatch-only step a round")
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--json", type=Path, help="write every figure there")
    options = parser.parse_args()
    virtual_devices(options.devices)
    records = [
        record("GPT-3 tiny step", alternate(gpt3(), options.rounds), 1),
        record("dispatch only", alternate(dispatch(options.calls), options.rounds), options.calls),
    ]
    rows = [
        (r["what"], *(f"{r[k]:.0f} µs" for k in ("auto_shard_us", "jit_us", "overhead_us")),
         f"{r['overhead_percent']:+.1f}% [{r['low_percent']:+.1f}, {r['high_percent']:+.1f}]")
        for r in records
    ]  # fmt: skip
    table(
        "A call of auto_shard against jax.jit", ("", "auto_shard", "jax.jit", "more", "[95%]"), rows
    )
    print(machine())
    if options.json:
        options.json.write_text(to_json(records))


if __name__ == "__main__":
    main()
