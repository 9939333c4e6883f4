"""What holds of any plan: determinism, bounds, meshes, memory limits, alternatives, unknown ops."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import jax
import pytest
from jax.extend.core import Primitive  # noqa: TID251  (a user's own)

import xshard
from models.gpt3.config import CONFIGS
from models.gpt3.step import batch_avals, make_train_step, state_avals
from tests.steps import array, mix, mix_params, mlp, mlp_params, state, train
from xshard.place import mesh_shapes

NO_LIMIT = "1000TB"


V100S, TPUS = "v100-sxm2-32gb:4", "tpu-v5e:4"


def plan(
    layers: int = 2, width: int = 512, batch: int = 1024, cluster: str = V100S, **options: Any
) -> xshard.Plan:
    """Of a few residual blocks on four devices."""
    args = state([mlp_params(width, 4 * width)] * layers), array(batch, width)
    return xshard.plan(train([mlp] * layers), *args, cluster=cluster, **options)


def smallest_limit(**options: Any) -> int:
    with pytest.raises(xshard.InfeasibleError, match="the smallest limit that works") as caught:
        plan(memory_limit=1000, **options)
    assert caught.value.smallest_limit_bytes is not None
    assert ("about" in str(caught.value)) == ("cluster" not in options)
    return caught.value.smallest_limit_bytes


AGAIN = """
from tests.test_planning import both
print(both(), end="")
"""


def both() -> str:
    """A plan that is proven at once, one that takes all of the search, one with sets of names."""
    plans = plan(mesh=(2, 2)), plan(mesh=(4,), memory_limit=27_000_000), named_sets()
    return "".join(p.to_json() for p in plans)


def named_sets() -> xshard.Plan:
    """Of an op with a set of axis names among its parameters."""
    mesh = jax.sharding.AbstractMesh((2, 2, 2), ("red", "green", "blue"))
    step = jax.shard_map(lambda x: x + 1, mesh=mesh, in_specs=jax.P(), out_specs=jax.P())
    return xshard.plan(step, array(8, 8), cluster="v100-sxm2-32gb:4", mesh=(4,))


def test_same_inputs_same_bytes_in_any_process() -> None:
    here = both()
    assert here == both()
    env = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", AGAIN], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout == here


@pytest.mark.parametrize("memory_limit", [None, 27_000_000])
def test_a_time_limit_of_almost_nothing(memory_limit: int | None) -> None:
    short = plan(mesh=(2, 2), memory_limit=memory_limit, time_limit=1e-6)
    long = plan(mesh=(2, 2), memory_limit=memory_limit)
    assert short.bound_ns <= long.objective_ns <= short.objective_ns
    assert long.bound_ns <= long.objective_ns and 0 <= short.gap < 1
    assert memory_limit is None or short.peak_bytes <= memory_limit


@pytest.mark.parametrize("options", [{}, {"microbatches": 4}])
def test_the_memory_curve_is_the_plans(options: Any) -> None:
    found = plan(mesh=(2, 2), **options)
    [curve] = found.memory
    assert max(curve.totals()) == found.peak_bytes and curve.end_ns == found.objective_ns
    assert [name for name, _ in curve.phases][:2] == ["fwd", "bwd"]
    kept = next(p.nbytes for p in curve.parts if p.kind == "kept for the backward pass")
    assert kept[0] < max(kept) and kept[-1] == 0  # grows in the forward pass, goes in the backward


@pytest.mark.parametrize("options", [{}, {"batch": 64}, {"batch": 6, "width": 96}])
def test_no_mesh_is_better_than_the_chosen_one(options: Any) -> None:
    best = plan(**options)
    times = {shape: plan(mesh=shape, **options).objective_ns for shape in mesh_shapes(4)}
    assert best.objective_ns == min(times.values()) == times[best.mesh]
    assert best.gap == 0


def test_exactly_the_smallest_limit_works() -> None:
    limit = smallest_limit(mesh=(4,), cluster=TPUS)
    assert plan(mesh=(4,), cluster=TPUS, memory_limit=limit).peak_bytes <= limit
    with pytest.raises(xshard.InfeasibleError) as caught:
        plan(mesh=(4,), cluster=TPUS, memory_limit=limit - 1)
    assert caught.value.smallest_limit_bytes == limit


def test_where_the_order_of_ops_is_the_compilers_the_smallest_limit_works() -> None:
    limit = smallest_limit(mesh=(4,))
    assert plan(mesh=(4,), memory_limit=limit).peak_bytes <= limit
    with pytest.raises(xshard.InfeasibleError):
        plan(mesh=(4,), memory_limit=int(0.9 * limit))


def test_less_memory_takes_no_less_time() -> None:
    free = plan(mesh=(4,))
    limits = [int(free.peak_bytes * share) for share in (1.0, 0.92, 0.85)]
    plans = [plan(mesh=(4,), memory_limit=limit) for limit in limits]
    assert plans[0].objective_ns == free.objective_ns
    for limit, tighter, looser in zip(limits, plans, [free, *plans], strict=False):
        assert tighter.peak_bytes <= limit
        assert tighter.objective_ns >= looser.bound_ns
        assert tighter.gap < 0.01


WHAT = ["args[0][0][1]['up']", "args[1]", "result[0][0][1]['down']", "result[1]", "ops[0]"]


@pytest.fixture(scope="module")
def proven() -> xshard.Plan:
    found = plan(mesh=(2, 2))
    assert found.gap == 0
    return found


@pytest.mark.parametrize("what", WHAT)
def test_no_alternative_beats_a_proven_plan(proven: xshard.Plan, what: str) -> None:
    alternatives = proven.explain(what).alternatives
    chosen = [a for a in alternatives if a.chosen]
    assert [a.time_ns for a in chosen] == [proven.objective_ns]
    assert all(a.time_ns is None or a.time_ns >= proven.objective_ns for a in alternatives)
    entries = {e.path: e.spec for e in (*proven.arguments, *proven.results)}
    assert what.startswith("ops") or chosen[0].spec == entries[what]


def test_an_alternative_costs_what_its_pin_costs(proven: xshard.Plan) -> None:
    """The plan with the batch pinned to an alternative is as fast as `explain` says."""
    names = proven.mesh.names
    for a in proven.explain("args[1]").alternatives[:4]:
        spec = jax.P(*(tuple(names[axis] for axis in axes) or None for axes in a.spec))
        assert plan(mesh=(2, 2), in_specs=(None, spec)).objective_ns == a.time_ns


KINDS = {"mlp": (mlp, mlp_params(512, 2048)), "mix": (mix, mix_params(512))}


@pytest.mark.parametrize("kinds", [["mlp"] * 3, ["mlp", "mix"] * 2, ["mix"] * 3])
@pytest.mark.parametrize("spec", [None, jax.P("model", "data"), jax.P(None, "model")])
def test_the_parts_add_up_to_the_objective(kinds: list[str], spec: Any) -> None:
    blocks, params = zip(*(KINDS[k] for k in kinds), strict=True)
    found = xshard.plan(
        train(blocks), state(list(params)), array(64, 512), cluster="v100-sxm2-32gb:4",
        mesh=(2, 2), in_specs=(None, spec),
    )  # fmt: skip
    assert sum(op.time_ns for op in found.ops) == found.compute_ns
    assert sum(c.time_ns for c in found.collectives) == found.communication_ns
    assert found.compute_ns + found.communication_ns == found.objective_ns


@pytest.mark.parametrize(
    ("name", "layers", "mesh"),
    [("350M", 2, (2, 4)), ("350M", 3, (2, 8)), ("6.7B", 2, (2, 8)), ("6.7B", 4, (2, 4))],
)
def test_gpt3_layers_are_planned_to_optimality(name: str, layers: int, mesh: Any) -> None:
    config = replace(CONFIGS[name], num_layers=layers)
    found = xshard.plan(
        make_train_step(config).train, state_avals(config), batch_avals(config),
        cluster=f"v100-sxm2-32gb:{mesh[1] // 4}x8", mesh=mesh, memory_limit=NO_LIMIT,
    )  # fmt: skip
    assert found.gap == 0 and found.bound_ns == found.objective_ns
    assert found.notes == ()


def test_an_op_without_a_rule_runs_whole_and_is_reported() -> None:
    unheard_of = Primitive("unheard_of")
    unheard_of.def_abstract_eval(lambda x: x)

    def step(x: Any) -> Any:
        y = unheard_of.bind(x @ x)
        return y @ x

    found = xshard.plan(step, array(256, 256), cluster="v100-sxm2-32gb:4", mesh=(4,))
    [op] = [op for op in found.ops if not op.known]
    assert op.prim == "unheard_of" and op.operands == op.results == (((), ()),)
    [note] = found.notes
    line = step.__code__.co_firstlineno + 1
    assert note.startswith("unheard_of at ") and f"test_planning.py:{line} (" in note
    assert "has no rule: it runs whole on every device" in note
