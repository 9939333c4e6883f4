"""How much of the communication XLA's schedule runs beside matmuls, on GPUs that are not here.

    python -m benchmarks.overlap [--kind v100] [--model 1.3B] [--layers 2] [--batch 4]

Each way to shard (`benchmarks/accuracy_memory.py`) is compiled twice ahead of time with the extra
`aot-cuda`: as XLA schedules by itself, and with its latency-hiding scheduler. What runs beside a
collective is read from the schedule: whether a matmul stands between its start and its end, not how
long that takes.
"""

from __future__ import annotations

import argparse

from benchmarks.accuracy_memory import KEY, WAYS, compiled, planned
from benchmarks.common import machine, markdown, virtual_devices

SCHEDULERS = (False, True)
HIDING = "xla_gpu_enable_latency_hiding_scheduler"
CASES = (("dp", False), ("fsdp", False), ("megatron", False), ("xshard", True))
"""Ways, and whether layers are recomputed."""


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kind", default="v100")
    parser.add_argument("--model", default="1.3B")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4, help="sequences of a replica")
    options = parser.parse_args()
    virtual_devices(64)
    import jax

    print(machine())
    rows: list[tuple[object, ...]] = []
    for way, remat in CASES:
        values = (jax.__version__, options.kind, options.model, options.layers, way,
                  options.batch, remat)  # fmt: skip
        plan, cluster = planned(dict(zip(KEY, values, strict=True)))
        shares = [compiled(plan, cluster, {HIDING: on}).audit.beside for on in SCHEDULERS]
        rows.append((WAYS[way], *("" if share is None else f"{share:.0%}" for share in shares)))
    print(markdown(("", "by itself", HIDING), rows))


if __name__ == "__main__":
    main()
