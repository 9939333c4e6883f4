"""Measures what virtual CPU devices do on this machine, for `xshard/cost/devices/cpu.json`.

    python -m benchmarks.measure_cpu --devices 8 --write

Every figure is taken as programs run: one SPMD program on all the virtual devices at once, which
share the machine's cores, so contention is in the number. Rates are totals over the devices
divided by the cores. The clock is the processor time of the process over the cores, so that other
work on the machine does not count; but where waiting is what is measured, it is the wall's.

A matmul or collective is timed by a loop of it inside one jitted program; an `optimization_barrier`
ties each turn to the last, so that nothing is hoisted or folded. The figure is the difference of a
long and a short loop, which leaves out the dispatch of the call. Memory-bound ops are timed over
many arrays one after the other, more than the caches hold, since that is how a training step finds
its arrays; random bits and transcendental functions, which are bound by arithmetic, by the element.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cpu_table import merged, table

if TYPE_CHECKING:
    from collections.abc import Callable

OUT = Path(__file__).parents[1] / "xshard" / "cost" / "devices" / "cpu.json"
MATMULS = [(8, 256, 256), (256, 8, 256), (256, 256, 8), (64, 64, 64), (128, 128, 128),
           (256, 256, 256), (1024, 512, 256)]  # fmt: skip
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "permute")
SHORT, LONG, SAMPLES = 2, 10, 5
MEETINGS = 12


def looped(body: Callable[..., Any], mesh: Any, spec: Any, turns: int, feed: bool) -> Any:
    """A jitted SPMD program that runs `body` on the local shards `turns` times in sequence.

    `feed`: each turn's result is the next one's operand, for ops that XLA would fold away.
    """
    import jax
    from jax import lax

    def local(*args: Any) -> Any:
        if feed:
            return lax.fori_loop(0, turns, lambda _, x: body(x), args[0])

        def turn(_: int, seen: Any) -> Any:
            held, seen = lax.optimization_barrier((args, seen))
            out, seen = lax.optimization_barrier((body(*held), seen))
            return seen + out.ravel()[0].astype(seen.dtype)

        start = args[0].ravel()[0].astype("float32")
        return lax.fori_loop(0, turns, turn, start)[None]

    mapped = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return jax.jit(mapped)


def op_seconds(
    body: Callable[..., Any], mesh: Any, args: tuple[Any, ...], feed: bool = False
) -> float:
    """The time of one `body` on all devices at once: least of the samples, dispatch left out."""
    import jax
    from jax.sharding import PartitionSpec

    spec = PartitionSpec(mesh.axis_names)
    short, long = (looped(body, mesh, spec, n, feed).lower(*args).compile() for n in (SHORT, LONG))

    def once(program: Any) -> float:
        begin = processor_s()
        jax.block_until_ready(program(*args))
        return processor_s() - begin

    for program in (short, long):
        once(program)
    repeats = max(SAMPLES, min(40, int(0.2 / max(once(long), 1e-6))))
    pairs = [(once(short), once(long)) for _ in range(repeats)]
    least_short, least_long = (min(column) for column in zip(*pairs, strict=True))
    return max(least_long - least_short, 1e-9) / (LONG - SHORT)


def processor_s() -> float:
    """Processor time of the process, shared out over the cores."""
    return time.process_time() / (os.cpu_count() or 1)


def filled(mesh: Any, shape: tuple[int, ...], dtype: str) -> Any:
    """An array whose local shard on each device has `shape`."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    total = (shape[0] * mesh.size, *shape[1:])
    return jax.device_put(
        jnp.full(total, 0.5, dtype), NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    )


def matmul_rows(mesh: Any) -> list[dict[str, Any]]:
    """Total matmul rate over the devices, by size and dtype."""
    rows = []
    for dtype in ("float32", "bfloat16", "float16"):
        for m, n, k in MATMULS:
            args = (filled(mesh, (m, k), dtype), filled(mesh, (k, n), dtype))
            seconds = op_seconds(lambda x, w: x @ w, mesh, args)
            rate = 2 * m * n * k * mesh.size / seconds
            narrow = {m: "m", n: "n", k: "k"}.get(8, "none")
            rows.append({"dtype": dtype, "mnk": [m, n, k], "narrow": narrow, "s": seconds,
                         "flops_per_s": rate})  # fmt: skip
    return rows


def memory_rows(mesh: Any) -> list[dict[str, Any]]:
    """Total traffic (read and written) of memory-bound ops, by kind, dtype and size."""
    import jax.numpy as jnp

    def order(x: Any) -> Any:
        return (x[:, 0].astype("float32") * 0 + jnp.arange(len(x)) * 7).astype("int32") % len(x)

    bodies = {
        "elementwise": (lambda x: x * 0.5 + 0.25, 2.0),
        "reduce": (lambda x: x.sum(-1), 1.0),
        "transpose": (lambda x: x.T, 2.0),
        "gather": (lambda x: x[order(x)], 2.0),
        "scatter": (lambda x: (x * 0.5).at[order(x)].add(x), 3.0),
    }
    rows = []
    for kind, (body, passes) in bodies.items():
        for dtype in ("float32", "bfloat16", "float16")[: 3 if kind == "elementwise" else 1]:
            for side in (128, 256, 512, 1024):
                seconds = stream_seconds(body, mesh, (side, side), dtype)
                traffic = passes * side * side * 4 * mesh.size * (1 if dtype == "float32" else 0.5)
                rows.append({"kind": kind, "dtype": dtype, "side": side, "s": seconds,
                             "bytes_per_s": traffic / seconds})  # fmt: skip
    return rows


def stream_seconds(
    body: Callable[..., Any], mesh: Any, shape: tuple[int, ...], dtype: str
) -> float:
    """The time of one `body`, where it goes over many arrays in turn; operands are donated."""
    import jax
    from jax.sharding import PartitionSpec

    count = max(2, (4 << 20) // (math.prod(shape) * 4))
    spec = PartitionSpec(mesh.axis_names)

    def local(*args: Any) -> list[Any]:
        return [body(x) for x in args]

    mapped = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    args = [filled(mesh, shape, dtype) for _ in range(count)]
    same = jax.eval_shape(mapped, *args)[0].shape == args[0].shape
    program = jax.jit(mapped, donate_argnums=range(count) if same else ())
    samples = []
    for _ in range(1 + 2 * SAMPLES):
        begin = processor_s()
        results = jax.block_until_ready(program(*args))
        samples.append(processor_s() - begin)
        args = results if same else args
    return statistics.median(samples[1:]) / count


def element_rows(mesh: Any) -> list[dict[str, Any]]:
    """Total elements per second of what is bound by arithmetic."""
    import jax
    import jax.numpy as jnp

    def bits(x: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(0), x.ravel()[0].astype("int32"))
        return jax.random.bits(key, x.shape, jnp.uint32)

    bodies = {
        "transcendental": [(lambda x: jnp.exp(-x), True), (jnp.tanh, True)],
        "random": [(bits, False)],
    }
    rows = []
    for kind, some in bodies.items():
        for n in (1 << 14, 1 << 17):
            for i, (body, feed) in enumerate(some):
                seconds = op_seconds(body, mesh, (filled(mesh, (n,), "float32"),), feed)
                rows.append({"kind": kind, "body": i, "elements": n, "s": seconds,
                             "elements_per_s": n * mesh.size / seconds})  # fmt: skip
    return rows


def collective_body(kind: str, axis: str, size: int) -> Callable[..., Any]:
    """The `lax` collective of that kind over `axis`."""
    from jax import lax

    ring = [(i, (i + 1) % size) for i in range(size)]
    return {
        "all-reduce": lambda x: lax.psum(x, axis),
        "all-gather": lambda x: lax.all_gather(x, axis, tiled=True),
        "reduce-scatter": lambda x: lax.psum_scatter(x, axis, tiled=True),
        "all-to-all": lambda x: lax.all_to_all(x, axis, 0, 0, tiled=True),
        "permute": lambda x: lax.ppermute(x, axis, ring),
    }[kind]


def collective_rows(devices: int) -> list[dict[str, Any]]:
    """Time of one collective by kind, group size and bytes (conventions of `CollectiveModel`).

    Each comes behind a small matmul, whose own time is taken off: devices that have just met go on
    together, and would meet again for less than they do in a step.
    """
    import jax

    rows = []
    for group in (2, 4, 8):
        mesh = jax.make_mesh((devices // group, group), ("o", "i"), auto(2))
        work = filled(mesh, (192, 192), "float32")
        for nbytes in (1 << 12, 1 << 16, 1 << 19, 1 << 21, 1 << 23):
            for kind in KINDS:
                elements = nbytes // 4 // (group if kind == "all-gather" else 1)
                args = (filled(mesh, (elements,), "float32"), work)
                body = collective_body(kind, "i", group)
                both = op_seconds(lambda x, w, body=body: body(x + (w @ w)[0, 0]), mesh, args)
                alone = op_seconds(lambda x, w: x + (w @ w)[0, 0], mesh, args)
                seconds = max(both - alone, both / 8)
                rows.append({"kind": kind, "group": group, "bytes": nbytes, "s": seconds})
    return rows


def meeting_rows(devices: int) -> list[dict[str, Any]]:
    """Wall-clock time that one small collective adds to a step, by kind and group size.

    Devices that share cores reach a collective at different times, and what waits leaves cores idle
    at the end: that is no processor time, and grows with the work between two meetings. So here the
    meetings stand between matmuls of some milliseconds, and programs with and without them are
    alternated. It needs a quiet machine.
    """
    import jax

    rows = []
    for group in (2, 4, 8):
        mesh = jax.make_mesh((devices // group, group), ("o", "i"), auto(2))
        work = filled(mesh, (128, 128), "float32")
        programs = {k: meetings(k, group, mesh).lower(work).compile() for k in ("", *KINDS)}
        times: dict[str, list[float]] = {kind: [] for kind in programs}
        for turn in range(1 + 4 * len(programs)):
            for kind in turned(tuple(programs), turn):
                begin = time.perf_counter()
                jax.block_until_ready(programs[kind](work))
                times[kind].append(time.perf_counter() - begin)
        for kind in KINDS:
            pairs = zip(times[kind][1:], times[""][1:], strict=True)
            seconds = statistics.median(a - b for a, b in pairs) / MEETINGS
            rows.append({"kind": kind, "group": group, "s": max(seconds, 1e-7)})
    return rows


def turned(names: tuple[str, ...], by: int) -> tuple[str, ...]:
    """The names in an order that starts elsewhere: what runs first pays for what ran before."""
    by %= len(names)
    return names[by:] + names[:by]


def meetings(kind: str, group: int, mesh: Any) -> Any:
    """A jitted chain of matmuls with so many collectives of that kind in it; none for ""."""
    import jax
    from jax.sharding import PartitionSpec

    spec = PartitionSpec(mesh.axis_names)
    meet = collective_body(kind, "i", group) if kind else lambda x: x

    def local(x: Any) -> Any:
        for _ in range(MEETINGS):
            y = x
            for _ in range(8):
                y = jax.numpy.tanh(y @ x)
            x = x + meet(y[0, :64]).ravel()[0] * 1e-9
        return x

    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))


def op_overhead(mesh: Any) -> float:
    """Seconds of an op that does nothing worth while, on all devices at once, times cores/devices.

    That is what one op costs a device that has a core of its own.
    """
    cores = os.cpu_count() or 1
    seconds = op_seconds(lambda x: x @ x, mesh, (filled(mesh, (8, 8), "float32"),), feed=True)
    return float(f"{seconds * min(1.0, cores / mesh.size):.3g}")


def machine() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def auto(n: int) -> Any:
    """`n` axes of type Auto."""
    from jax.sharding import AxisType

    return (AxisType.Auto,) * n


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--write", action="store_true", help=f"write {OUT.name} of the package")
    parser.add_argument(
        "--merge", type=Path, nargs="*", help="earlier --raw files: of each row the median is taken"
    )
    parser.add_argument("--raw", type=Path, help="write every measured row there, as JSON")
    options = parser.parse_args()
    flag = f"--xla_force_host_platform_device_count={options.devices}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    mesh = jax.make_mesh((options.devices,), ("d",), auto(1))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rows: dict[str, Any] = {"cores": os.cpu_count(), "devices": options.devices,
                            "jax": jax.__version__, "machine": machine(),
                            "memory_bytes": memory}  # fmt: skip
    for name, measure in (("meetings", lambda: meeting_rows(options.devices)),
                          ("collectives", lambda: collective_rows(options.devices)),
                          ("matmul", lambda: matmul_rows(mesh)),
                          ("memory", lambda: memory_rows(mesh)),
                          ("elements", lambda: element_rows(mesh))):  # fmt: skip
        begin = time.perf_counter()
        rows[name] = measure()
        print(f"{name}: {len(rows[name])} rows in {time.perf_counter() - begin:.0f} s",
              file=sys.stderr)  # fmt: skip
    rows["overhead_s"] = op_overhead(mesh)
    if options.raw:
        options.raw.write_text(json.dumps(rows, indent=1))
    earlier = [json.loads(path.read_text("utf-8")) for path in options.merge or ()]
    if options.write:
        OUT.write_text(json.dumps(table(merged([*earlier, rows])), indent=2) + "\n")


if __name__ == "__main__":
    main()
