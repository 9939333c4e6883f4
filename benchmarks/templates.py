"""Templates (data parallel, FSDP, Megatron, experts) against the solver's answer, and as its start.

    python -m benchmarks.templates [--steps 2.6B,6.7B,moe,conv] [--share 0.9]

For each step, on one mesh and in the way that is stated there: what each template takes against the
best plan, without a memory limit; then, under limits between the least peak of any template and the
peak of that plan, the search from what it knows anyway (its answer without a limit), and from the
fastest template that fits beside that: the first answer of each against the last one, and the
processor's time, without and with that of the templates. No GPU is needed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.common import machine, table, virtual_devices

if TYPE_CHECKING:
    from xshard.prepare import Modelled
    from xshard.solve.problem import Start

COLUMNS = ("step", "limit", "template that fits", "first", "first with", "last", "time", "with")


@dataclass(frozen=True, slots=True)
class Step:
    """A step on a cluster, and how it is run."""

    fun: Callable[..., Any]
    avals: tuple[Any, ...]
    cluster: str
    mesh: tuple[int, ...]
    microbatches: int = 1
    remat: str = "none"


def steps() -> dict[str, Callable[[], Step]]:
    """By name."""
    return {
        "2.6B": lambda: _gpt3("2.6B", (4, 2), 8),
        "6.7B": lambda: _gpt3("6.7B", (2, 8), 16),
        "moe": _moe,
        "conv": _conv,
    }


def _gpt3(name: str, mesh: tuple[int, int], microbatches: int) -> Step:
    from models.gpt3.config import CONFIGS
    from models.gpt3.step import batch_avals, make_train_step, state_avals

    config = CONFIGS[name]
    hosts = -(-config.num_devices // 8)
    cluster = f"v100-sxm2-32gb:{hosts}x{config.num_devices // hosts}"
    avals = state_avals(config), batch_avals(config)
    return Step(make_train_step(config).train, avals, cluster, mesh, microbatches, "all")


def _moe() -> Step:
    """Sixteen experts in each of four layers."""
    import jax

    from benchmarks import moe

    c = moe.MoEConfig(layers=4, hidden=1024, inner=4096, experts=16, heads=16, groups=64)
    batch = jax.ShapeDtypeStruct((c.groups, c.tokens), "int32")
    avals = jax.eval_shape(lambda: moe.init(c)), {"inputs": batch, "targets": batch}
    return Step(lambda s, b: moe.train(s, b, c), avals, "h100-sxm-80gb:2x8", (4, 4))


def _conv() -> Step:
    """Residual blocks of convolutions over images, and a classifier."""
    import jax
    import jax.numpy as jnp

    widths = (64, 128, 256, 512)

    def forward(params: Any, images: Any) -> Any:
        x = jax.lax.conv(images, params["stem"], (2, 2), "SAME")
        for down, blocks in zip(params["down"], params["blocks"], strict=True):
            x = jax.nn.relu(jax.lax.conv(x, down, (2, 2), "SAME"))
            for block in blocks:
                x = x + jax.nn.relu(jax.lax.conv(x, block, (1, 1), "SAME"))
        return x.mean((2, 3)) @ params["head"]

    def train(state: Any, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            scores = jax.nn.log_softmax(forward(params, batch["images"]))
            return -jnp.take_along_axis(scores, batch["labels"][:, None], 1).mean()

        value, grads = jax.value_and_grad(loss)(state["params"])
        momentum = jax.tree.map(lambda m, g: 0.9 * m + g, state["momentum"], grads)
        params = jax.tree.map(lambda p, m: p - 0.1 * m, state["params"], momentum)
        return {"params": params, "momentum": momentum}, value

    def array(*shape: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    params = {
        "stem": array(64, 3, 7, 7),
        "down": [array(w, max(64, w // 2), 3, 3) for w in widths],
        "blocks": [[array(w, w, 3, 3)] * 3 for w in widths],
        "head": array(512, 1000),
    }
    batch = {"images": array(1024, 3, 224, 224), "labels": array(1024, dtype="int32")}
    return Step(
        train, ({"params": params, "momentum": params}, batch), "v100-sxm2-32gb:1x8", (2, 4)
    )


def modelled(step: Step) -> Modelled:
    """The problem of a step on its mesh."""
    from xshard.asked import Asked
    from xshard.cost.cluster import Cluster
    from xshard.ir.trace import trace
    from xshard.making import candidates_of
    from xshard.microbatching import Way
    from xshard.place import mesh_shapes
    from xshard.prepare import model
    from xshard.run.call import Arguments

    cluster = Cluster.parse(step.cluster)
    call = Arguments(step.fun, (), (0,)).call(step.avals, {})
    [mesh] = [s for s in mesh_shapes(cluster.num_devices) if s.sizes == step.mesh]
    asked, traced = Asked(cluster, [mesh]), trace(step.fun, step.avals, call.static)
    found = candidates_of(traced, call, asked, step.microbatches, None, step.remat)
    lengths = () if step.remat == "none" else found.all_layers(step.microbatches)
    [prepared] = found.prepared(Way(step.microbatches, lengths))
    return model(prepared)


@dataclass(frozen=True, slots=True)
class Searched:
    """One search: its first objective and its last, in ns, and the processor's seconds."""

    first_ns: int
    last_ns: int
    seconds: float


def searched(m: Modelled, limit: int, start: Start) -> Searched:
    """From a start, with all rows that answers violate added on the way, as planning does it."""
    from xshard.one_model import ENOUGH_GAP
    from xshard.solve.check import evaluate
    from xshard.solve.memory import first_rows, violated
    from xshard.solve.problem import Solution
    from xshard.solve.search import solve

    rows, seen, began = first_rows(m.draft, m.timeline), list[int](), time.process_time()
    if start.choices is not None:
        objective, peak, _ = evaluate(m.problem(limit, rows), start.choices)
        seen += [objective] if peak <= limit else []
    while True:
        answer = solve(
            m.problem(limit, rows), start=start, enough_gap=ENOUGH_GAP,
            on_progress=lambda p: seen.append(p.objective) if p.objective is not None else None,
        )  # fmt: skip
        assert isinstance(answer, Solution)
        more = violated(m.draft, m.timeline, answer.choices, limit)
        if not more:
            return Searched(seen[0], answer.objective, time.process_time() - began)
        rows = (*rows, *more)


def compare(name: str, share: float) -> tuple[object, ...]:
    """A row of the table; prints what each template takes."""
    from xshard.one_model import unlimited
    from xshard.solve.problem import Start
    from xshard.templates.complete import NEAR, completed

    m = modelled(steps()[name]())
    free = unlimited(m)
    assert free is not None
    peak = m.peak_bytes(free.choices)
    for c in completed(m):
        time_ratio = f"{c.objective_ns / free.objective:.3f}"
        print(
            f"{name:8} {c.name:16} {time_ratio} of the time, {c.peak_bytes / peak:.2f} of the peak"
        )
    began = time.process_time()
    found = completed(m, NEAR)
    seconds = time.process_time() - began
    least = min(c.peak_bytes for c in found)
    limit = int(least + share * (max(peak, least) - least)) if peak > least else int(1.02 * least)
    known = Start(free.choices, free.bound, {})
    plain = searched(m, limit, known)
    best = next((c for c in found if c.peak_bytes <= limit), None)
    begun = Start(best.choices, free.bound, {}) if best else known
    aided = searched(m, limit, begun)
    return (
        name, f"{limit / 1e9:.1f} GB", best.name if best else "none",
        f"{plain.first_ns / plain.last_ns:.3f}", f"{aided.first_ns / plain.last_ns:.3f}",
        f"{aided.last_ns / plain.last_ns:.4f}", f"{plain.seconds:.1f} s",
        f"{aided.seconds:.1f} + {seconds:.1f} s",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", default=",".join(steps()))
    parser.add_argument("--share", type=float, default=0.3, help="where between the peaks")
    options = parser.parse_args()
    virtual_devices(1)
    rows = [compare(name, options.share) for name in options.steps.split(",")]
    table("The search under a limit, without and with templates", COLUMNS, rows)
    print(f"first, last: against the last answer without templates; {machine()}")


if __name__ == "__main__":
    main()
