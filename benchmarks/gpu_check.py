"""Predictions against a machine's own devices: GPT-3 350M, or what of it fits, planned and run.

    python -m benchmarks.gpu_check [--config 350M] [--batch 32] [--steps 10] [--json F]
        [--no-profile] [--cpu-devices 8]

What the step needs is measured first (half a minute at most, kept in the cost database), then the
step is planned under the devices' own memory, compiled and run on random tokens. Printed are the
predicted and the measured time of a step, and the memory that was predicted, that XLA allocates for
the program, and that was in use at most, where devices report it. A batch that does not fit is
halved. On a machine without accelerators, `--config tiny --cpu-devices 8` shows that it works.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import machine, table, to_json, virtual_devices


@dataclass(frozen=True, slots=True)
class Checked:
    """One configuration on these devices; bytes are of one device.

    Attributes:
      measured_share: of the predicted time, from measurements of these devices.
      step_s: each run's seconds, without the first two.
      allocated_bytes: what XLA's own analysis of the compiled program says.
      in_use_bytes: most that the allocator had in use; None where devices do not report it.
    """

    devices: str
    config: str
    batch: int
    plan: str
    measured_share: float
    predicted_s: float
    step_s: tuple[float, ...]
    predicted_bytes: int
    allocated_bytes: int
    in_use_bytes: int | None

    def rows(self) -> list[tuple[str, str, str, str]]:
        """For a table: what, predicted, measured, error."""
        time_s = statistics.median(self.step_s)
        found = [("time of a step", f"{self.predicted_s:.4g} s", f"{time_s:.4g} s",
                  f"{self.predicted_s / time_s - 1:+.1%}")]  # fmt: skip
        memory = {"memory, as XLA allocates it": self.allocated_bytes,
                  "memory in use at most": self.in_use_bytes}  # fmt: skip
        for name, nbytes in memory.items():
            if nbytes:
                error = f"{self.predicted_bytes / nbytes - 1:+.1%}"
                figures = [f"{n / 1e9:.4g} GB" for n in (self.predicted_bytes, nbytes)]
                found.append((name, figures[0], figures[1], error))
        return found


def check(name: str, batch: int, steps: int, *, profile: bool) -> Checked:
    """Plans, compiles and runs one configuration, in as large a batch as fits."""
    import jax

    import xshard
    from models.gpt3.config import CONFIGS
    from models.gpt3.step import batch_avals, make_train_step, state_avals

    while True:
        config = CONFIGS[name].replace(batch=batch)
        functions = make_train_step(config)
        step = xshard.auto_shard(
            functions.train, donate_argnums=0, profile=profile or None, microbatches="auto",
            remat="auto",
        )  # fmt: skip
        try:
            lowered = step.lower(state_avals(config), batch_avals(config))
            break
        except xshard.InfeasibleError:
            if batch == 1:
                raise
            batch //= 2
    plan = step.plan
    assert plan is not None
    memory: Any = lowered.compile().memory_analysis()
    tokens = jax.random.randint(
        jax.random.key(1), (config.batch, config.seq_len), 0, config.vocab, "int32"
    )
    state = step.init(functions.init, jax.random.key(0), batch_avals(config))
    times = _times(step, state, {"inputs": tokens, "targets": tokens}, steps)
    s = plan.sources
    total = max(s.measured_ns + s.interpolated_ns + s.analytic_ns, 1)
    allocated = (memory.argument_size_in_bytes + memory.output_size_in_bytes
                 - memory.alias_size_in_bytes + memory.temp_size_in_bytes)  # fmt: skip
    return Checked(
        f"{jax.device_count()} × {jax.devices()[0].device_kind}", name, batch, repr(plan),
        (s.measured_ns + s.interpolated_ns) / total, plan.predicted_time_s, times,
        plan.predicted_peak_bytes, allocated, _in_use(),
    )  # fmt: skip


def _times(step: Any, state: Any, batch: Any, steps: int) -> tuple[float, ...]:
    import jax

    times: list[float] = []
    for _ in range(steps + 2):
        began = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - began)
    return tuple(times[2:])


def _in_use() -> int | None:
    import jax

    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max((s.get("peak_bytes_in_use", 0) for s in stats), default=0) or None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="350M")
    parser.add_argument("--batch", type=int, default=32, help="sequences; halved until it fits")
    parser.add_argument("--steps", type=int, default=10, help="that are timed")
    parser.add_argument("--no-profile", action="store_true", help="measure nothing first")
    parser.add_argument("--cpu-devices", type=int, help="so many virtual devices of this CPU")
    parser.add_argument("--json", type=Path, help="write every figure there")
    options = parser.parse_args()
    if options.cpu_devices:
        virtual_devices(options.cpu_devices)
    found = check(options.config, options.batch, options.steps, profile=not options.no_profile)
    print(found.plan)
    print(f"{found.measured_share:.0%} of the predicted time is from measurements")
    title = f"GPT-3 {found.config}, batch {found.batch}, {found.devices}"
    table(title, ("", "predicted", "measured", "error"), found.rows())
    print(machine())
    if options.json:
        options.json.write_text(to_json(asdict(found)))


if __name__ == "__main__":
    main()
