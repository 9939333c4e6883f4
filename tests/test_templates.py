"""Templates: what each makes of a step, by its structure alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import xshard
from tests.steps import array, mlp, mlp_params, state, train
from xshard import refusal
from xshard.asked import Asked
from xshard.cost.cluster import Cluster
from xshard.errors import InfeasibleError
from xshard.ir.trace import trace
from xshard.making import candidates_of
from xshard.plan.records import Template
from xshard.prepare import Modelled, model
from xshard.run.call import Arguments
from xshard.solve.check import objective_of
from xshard.solve.draft import Assignment, decode
from xshard.solve.problem import Infeasible, Problem
from xshard.spec import MeshShape, Spec
from xshard.templates.complete import Completed, completed

MESH = MeshShape(("one", "two"), (2, 4))


def modelled(fun: Callable[..., Any], *avals: Any, donated: tuple[int, ...] = (0,)) -> Modelled:
    call = Arguments(fun, (), donated).call(avals, {})
    asked = Asked(Cluster.parse("v100-sxm2-32gb:8"), [MESH])
    [prepared] = candidates_of(trace(fun, avals, call.static), call, asked, 1).first()
    return model(prepared)


@cache
def layers() -> Modelled:
    return modelled(train([mlp] * 2), state([mlp_params(512, 2048)] * 2), array(4096, 512))


def experts(weights: dict[str, Any], x: Any) -> Any:
    hidden = jax.nn.relu(jnp.einsum("ech,ehf->ecf", x @ weights["mix"], weights["in"]))
    return jnp.einsum("ecf,efh->ech", hidden, weights["out"])


@cache
def expert_layer() -> Modelled:
    weights = {"mix": array(512, 512), "in": array(8, 512, 2048), "out": array(8, 2048, 512)}
    return modelled(train([experts]), state([weights]), array(8, 512, 512))


def convolutions(weights: dict[str, Any], x: Any) -> Any:
    for name in sorted(weights):
        x = jax.nn.relu(jax.lax.conv(x, weights[name], (1, 1), "SAME"))
    return x


@cache
def conv_net() -> Modelled:
    weights = {str(i): array(64, 64, 3, 3) for i in range(2)}
    return modelled(train([convolutions]), state([weights]), array(64, 64, 32, 32))


def by_name(m: Modelled) -> dict[str, tuple[Completed, Assignment]]:
    found = completed(m)
    assert [c.objective_ns for c in found] == sorted(c.objective_ns for c in found)
    return {c.name: (c, decode(m.draft, c.choices)) for c in found}


def specs_of_state(m: Modelled, a: Assignment) -> list[Spec]:
    return [a.specs[int(m.draft.classes.value_class[v])] for v in m.draft.graph.inputs[:-1]]


def rows(m: Modelled, a: Assignment) -> tuple[int, ...]:
    """The axes that split the first dimension of what the first op with a weight makes."""
    first = next(c for c, rule in enumerate(m.draft.rules) if rule.kind == "heavy")
    return a.strategies[first].results[0][0]


@pytest.mark.parametrize("make", [layers, expert_layer, conv_net])
def test_a_template_is_an_allowed_answer_at_its_price(make: Callable[[], Modelled]) -> None:
    m = make()
    for c, _ in by_name(m).values():
        bare = Problem(tuple(m.draft.nodes), tuple(m.draft.edges))
        assert objective_of(bare, c.choices) == c.objective_ns
        assert c.peak_bytes == m.peak_bytes(c.choices)


@pytest.mark.parametrize("make", [layers, conv_net])
def test_data_parallel(make: Callable[[], Modelled]) -> None:
    m = make()
    _, a = by_name(m)["data parallel"]
    assert all(not any(spec) for spec in specs_of_state(m, a))
    assert rows(m, a) == (0, 1)
    for strategy, op in zip(a.strategies, map(m.draft.op, range(len(a.strategies))), strict=True):
        assert op.phase != "update" or strategy.factors == (None, None)


@pytest.mark.parametrize("make", [layers, conv_net])
def test_fsdp(make: Callable[[], Modelled]) -> None:
    m = make()
    _, a = by_name(m)["FSDP"]
    assert all(sorted(x for dim in s for x in dim) == [0, 1] for s in specs_of_state(m, a))
    _, whole = by_name(m)["data parallel"]
    matmuls = [c for c, rule in enumerate(m.draft.rules) if rule.kind == "heavy"]
    assert [a.strategies[c].factors for c in matmuls] == [
        whole.strategies[c].factors for c in matmuls
    ]


def test_megatron() -> None:
    m = layers()
    c, a = by_name(m)["Megatron"]
    model_axis = c.roles.index("model")
    up, down = (
        next(s for s, shape in zip(specs_of_state(m, a), shapes(m), strict=True) if shape == wanted)
        for wanted in ((512, 2048), (2048, 512))
    )
    assert (up, down) == (((), (model_axis,)), ((model_axis,), ()))
    assert rows(m, a) == (1 - model_axis,)


def shapes(m: Modelled) -> list[tuple[int, ...]]:
    return [m.draft.graph.values[v].shape for v in m.draft.graph.inputs[:-1]]


def test_experts() -> None:
    m = expert_layer()
    c, a = by_name(m)["expert parallel"]
    expert_axis = c.roles.index("expert")
    for spec, shape in zip(specs_of_state(m, a), shapes(m), strict=True):
        assert spec == (((expert_axis,), (), ()) if len(shape) == 3 else ((), ()))


@pytest.mark.parametrize(("make", "has_experts"), [(layers, False), (expert_layer, True)])
def test_experts_are_seen_where_there_are_some(
    make: Callable[[], Modelled], has_experts: bool
) -> None:
    assert ("expert parallel" in by_name(make())) == has_experts


def test_a_step_without_a_state_has_none() -> None:
    assert completed(modelled(jnp.sum, array(64, 64), donated=())) == []


def test_no_template_beats_the_plan_and_its_report_says_by_how_much() -> None:
    fun, args = train([mlp] * 2), (state([mlp_params(512, 2048)] * 2), array(4096, 512))
    plan = xshard.plan(fun, *args, cluster="v100-sxm2-32gb:8", mesh=(2, 4), plan_cache=False)
    found = plan.templates
    assert {t.name for t in found} == {"data parallel", "FSDP", "Megatron"}
    assert all(isinstance(t, Template) and t.time_ns >= plan.bound_ns for t in found)
    table = str(plan)[str(plan).index("Against templates") :]
    assert all(t.name in table for t in found)
    assert f"{found[0].time_ns / plan.objective_ns:.2f}×" in table
    assert xshard.Plan.from_json(plan.to_json()).templates == ()


def test_one_that_does_not_fit_says_so() -> None:
    fun, args = train([mlp] * 2), (state([mlp_params(512, 2048)] * 2), array(4096, 512))
    options: dict[str, Any] = {"cluster": "v100-sxm2-32gb:8", "mesh": (2, 4), "plan_cache": False}
    whole = next(
        t for t in xshard.plan(fun, *args, **options).templates if t.name == "data parallel"
    )
    tight = xshard.plan(fun, *args, memory_limit=whole.peak_bytes - 1, **options)
    [line] = [line for line in str(tight).splitlines() if line.startswith("data parallel")]
    assert line.endswith("does not fit")


def test_one_that_fits_is_the_answer_where_the_search_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, m = completed(layers()), layers()
    least = min(found, key=lambda c: c.peak_bytes)
    nothing = Infeasible(None, proven=False)
    monkeypatch.setattr(refusal, "search", lambda *_, **__: nothing)
    request = replace(m.prepared.request, memory_limit=least.peak_bytes)
    m = replace(m, prepared=replace(m.prepared, request=request), answers=[])
    assert m.peak_bytes(refusal.limited(m).choices) <= least.peak_bytes
    monkeypatch.setattr(refusal, "search", lambda *_, **__: replace(nothing, proven=True))
    with pytest.raises(InfeasibleError, match="contradict"):
        refusal.limited(replace(m, answers=[]))
