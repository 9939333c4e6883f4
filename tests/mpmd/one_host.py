"""One of several processes of a pipeline: `python -m tests.mpmd.one_host index count port case`.

Prints one JSON object a line: the losses after each step.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import jax
import numpy as np

import xshard
from tests.mpmd.programs import args, tied, train

STEPS = 4


def main(index: int, count: int, port: int, case: str) -> None:
    """Joins the others and trains."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    state, batch = jax.tree.map(np.asarray, args())
    step: Any = xshard.auto_shard(
        train(tied), len(jax.devices()), pipeline=2, microbatches=4, schedule="1f1b",
        donate_argnums=0,
    )  # fmt: skip
    state = step.init(lambda: state, batch)
    losses = []
    for i in range(STEPS):
        if case == "raise" and index == 1 and i == 2:
            raise ValueError("no more data")
        if case == "kill" and index == 1 and i == 2:
            time.sleep(1000)  # the test kills this process
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        print("\n" + json.dumps({"losses": losses}), flush=True)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
