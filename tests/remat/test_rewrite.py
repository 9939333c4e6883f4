"""Recomputed layers: equal results, less memory, and what is never run twice."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import numpy as np
import pytest

from tests.remat import programs as P
from xshard._jax import evaluate
from xshard.ir.graph import Op
from xshard.ir.trace import Traced, trace
from xshard.microbatch.split import divided
from xshard.remat.rewrite import layered

FORWARDS = {
    "unrolled": P.unrolled(P.mlp),
    "dropout": P.unrolled(P.dropped),
    "own derivative": P.unrolled(P.own_derivative),
    "bfloat16": P.unrolled(P.half),
    "scanned": P.scanned(P.mlp),
    "scanned backwards": P.scanned(P.mlp, reverse=True),
    "scanned, dropout": P.scanned(P.dropped),
}
ARGS = P.weights(), P.rows()
KEEP_BARRIERS: dict[str, str | bool] = {"xla_disable_hlo_passes": "cse_barrier_expander"}


def compiled(traced: Traced) -> Any:
    def run(*args: Any) -> Any:
        return evaluate(traced.closed_jaxpr, args, list(traced.consts))

    return jax.jit(run).lower(*jax.tree.leaves(ARGS)).compile(KEEP_BARRIERS)


def assert_same(a: Traced, b: Traced) -> None:
    for x, y in zip(compiled(a)(*jax.tree.leaves(ARGS)), compiled(b)(*jax.tree.leaves(ARGS)),
                    strict=True):  # fmt: skip
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FORWARDS)
@pytest.mark.parametrize("count", [2, P.LAYERS])
def test_results_are_equal(name: str, count: int) -> None:
    traced = trace(P.step(FORWARDS[name]), ARGS)
    found = layered(traced)
    assert [part.length for part in found.parts] == [P.LAYERS]
    assert_same(traced, found.recomputing([count]))


@pytest.mark.parametrize("name", ["dropout", "scanned"])
def test_memory_falls_with_each_layer(name: str) -> None:
    found = layered(trace(P.step(FORWARDS[name]), ARGS))
    needs = [
        compiled(found.recomputing([k])).memory_analysis().temp_size_in_bytes for k in (0, 3, 6)
    ]
    residual = P.ROWS * P.HIDDEN * 4
    assert needs[0] - needs[1] > 3 * residual
    assert needs[1] - needs[2] > residual


@pytest.mark.parametrize("name", ["unrolled", "scanned"])
def test_microbatches_are_recomputed_in_their_loop(name: str) -> None:
    traced = trace(P.step(FORWARDS[name]), ARGS)
    split = divided(traced, [None, None, 0]).into(4)
    found = layered(split)
    assert [len(part.region) for part in found.parts] == [2]
    assert_same(traced, found.recomputing([4]))


def test_clones_are_backward_ops_with_their_lines() -> None:
    traced = trace(P.step(FORWARDS["unrolled"]), ARGS)
    again = layered(traced).recomputing([P.LAYERS])
    kinds = [Counter((op.prim, op.phase, op.source) for op in t.graph.ops) for t in (traced, again)]
    more, gone = kinds[1] - kinds[0], kinds[0] - kinds[1]
    assert {(prim, phase) for prim, phase, _ in more} >= {("tanh", "bwd"), ("dot_general", "bwd")}
    assert all(source.startswith("programs.py") for prim, _, source in more
               if prim in ("tanh", "cos"))  # fmt: skip
    assert {phase for _, phase, _ in gone} <= {"fwd"}
    assert sum(n for (prim, _, _), n in more.items() if prim == "dot_general") == P.LAYERS


@pytest.mark.parametrize("count", [0, 1, P.LAYERS])
def test_a_layer_waits_for_the_cotangent_and_the_gradients_of_the_layers_behind_it(
    count: int,
) -> None:
    """Whether it is recomputed or not."""
    found = layered(trace(P.step(FORWARDS["dropout"]), ARGS))
    graph = found.recomputing([count]).graph
    barriers: dict[Any, list[Op]] = {}
    for op in graph.ops:
        if op.prim == "optimization_barrier":
            barriers.setdefault(op.address[:-1], []).append(op)
    made = {v for op in graph.ops if op.phase == "bwd" for v in op.outputs}
    left = [sum(v in made for op in held for v in op.inputs) for held in barriers.values()]
    assert sum(n >= 2 for n in left) == P.LAYERS - 1


@pytest.mark.parametrize("wrap", [P.unrolled, P.scanned])
def test_what_the_user_checkpoints_stays_as_it_is(wrap: Any) -> None:
    assert layered(trace(P.step(wrap(jax.checkpoint(P.mlp))), ARGS)).parts == ()
    some = jax.checkpoint(P.mlp, policy=jax.checkpoint_policies.dots_saveable)
    assert layered(trace(P.step(wrap(some)), ARGS)).parts == ()


def test_effects_happen_once() -> None:
    assert layered(trace(P.step(P.scanned(P.printing)), ARGS)).parts == ()
    found = layered(trace(P.step(P.unrolled(P.printing)), ARGS))
    again = found.recomputing([P.LAYERS] * len(found.parts))
    assert [op.prim for op in again.graph.ops].count("debug_callback") == P.LAYERS


def test_two_chains_of_which_one_is_recomputed() -> None:
    def forward(p: Any, x: Any) -> Any:
        return P.scanned(P.dropped)(p, P.unrolled(P.mlp)(p, x))

    traced = trace(P.step(forward), ARGS)
    found = layered(traced)
    assert [part.length for part in found.parts] == [P.LAYERS] * 2
    assert_same(traced, found.recomputing([P.LAYERS, 0]))
    assert_same(traced, found.recomputing([0, 2]))


def test_no_layers_no_parts() -> None:
    assert layered(trace(P.unrolled(P.mlp), ARGS)).parts == ()
    found = layered(trace(P.step(P.unrolled(P.mlp)), (P.weights(1), P.rows())))
    assert found.parts == () and found.recomputing(()) is found.traced
