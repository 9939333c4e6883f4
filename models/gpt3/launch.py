"""From the command line to a mesh: virtual CPU devices, many hosts, and data on the devices."""

import math
import os
from typing import TYPE_CHECKING, Any

from models.gpt3.cli import Arguments, InputError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from models.gpt3.data import Corpus

AXIS_NAMES = ("data", "model", "seq")


def set_up_devices(args: Arguments) -> None:
    """Makes virtual CPU devices and joins the other processes; nothing may have used JAX yet."""
    if args.devices:
        flag = f"--xla_force_host_platform_device_count={args.devices}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    if not (args.distributed or args.coordinator):
        return
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(args.coordinator, args.num_processes, args.process_id)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"Cannot join the other processes: {error}") from error


def make_mesh(sizes: tuple[int, ...] | None) -> "Mesh | int":
    """A mesh of the given sizes with axes "data", "model" and "seq".

    Without sizes the number of devices, which leaves the mesh's shape to xshard.

    Raises:
        InputError: there are too few devices, or a process would have none in the mesh.
    """
    import jax
    from jax.sharding import AxisType

    found = len(jax.devices())
    if sizes is None:
        return found
    wanted, text = math.prod(sizes), "x".join(map(str, sizes))
    if wanted > found:
        raise InputError(
            f"Mesh {text} needs {wanted} devices and there are {found};"
            f" on CPU, --devices makes as many as you ask for."
        )
    if wanted < found and jax.process_count() > 1:
        raise InputError(f"Mesh {text} leaves out some of the {found} devices of all processes.")
    axes = AXIS_NAMES[: len(sizes)]
    return jax.make_mesh(
        sizes, axes, axis_types=(AxisType.Auto,) * len(axes), devices=jax.devices()[:wanted]
    )


def put_batch(corpus: "Corpus", step: int, avals: Any, shardings: Any) -> Any:
    """The batch of a step as global arrays; each process reads only its own devices' rows.

    Args:
        corpus: what to draw from.
        step: which batch.
        avals: "inputs" and "targets", each [batch, seq_len].
        shardings: theirs.
    """
    import jax

    def put(name: str) -> jax.Array:
        batch, seq_len = avals[name].shape
        read = lambda at: corpus.batch(step, batch, seq_len, at[0])[name][:, at[1]]  # noqa: E731
        aval = avals[name]
        return jax.make_array_from_callback(aval.shape, shardings[name], read, dtype=aval.dtype)

    return {name: put(name) for name in avals}
