"""One of several processes of a pipeline: `python -m tests.mpmd.one_host index count port case`.

Prints one JSON object a line: the losses after each step, by its number. With a folder as the last
argument it saves a checkpoint after each step, and goes on from the latest one there is.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

import xshard
from tests.mpmd.programs import CASES, args, train

STEPS = 4


def main(index: int, count: int, port: int, case: str, folder: str = "") -> None:
    """Joins the others and trains."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", count, index)
    name, _, what = case.partition("-")
    state, batch = jax.tree.map(np.asarray, args(*CASES[name]))
    step: Any = xshard.auto_shard(
        train(CASES[name][0]), len(jax.devices()), pipeline=2, microbatches=4, schedule="1f1b",
        donate_argnums=0,
    )  # fmt: skip
    avals = jax.eval_shape(lambda: state)
    state = step.init(lambda: state, batch)
    manager = ocp.CheckpointManager(folder) if folder else None
    first = 0
    if manager and manager.latest_step() is not None:
        first = manager.latest_step() or 0
        wanted = ocp.args.StandardRestore(step.portable(avals))
        state = manager.restore(first, args=wanted)
    losses = {}
    for i in range(first, STEPS):
        if what == "raise" and index == 1 and i == 2:
            raise ValueError("no more data")
        if what == "kill" and index == 1 and i == 2:
            time.sleep(1000)  # the test kills this process
        state, metrics = step(state, batch)
        losses[i] = float(metrics["loss"])
        if manager:
            manager.save(i + 1, args=ocp.args.StandardSave(step.portable(state)))
            manager.wait_until_finished()
        print("\n" + json.dumps({"losses": losses}), flush=True)
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
