"""What a sharded step is held against: the same step without xshard, on one device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import xshard
from xshard.cost.cluster import Cluster
from xshard.describe import describe
from xshard.ir.trace import trace
from xshard.pins import pins_of
from xshard.plan.plan import Plan
from xshard.prepare import Request, model, prepare
from xshard.solve.problem import FORBIDDEN, Edge, Node, Solution
from xshard.spec import MeshShape
from xshard.ties import ties_of

TOLERANCES = {
    # dtype: (relative, absolute in units of the array's largest element)
    "float32": (1e-5, 1e-5),
    "complex64": (1e-5, 1e-5),
    "bfloat16": (2**-8, 2**-7),
    "float16": (2**-11, 2**-9),
}
"""Sums in another order: a few units in the last place of the largest term."""

NOISE = 1e-5
"""Arrays this much smaller than the largest of their tree may be nothing but rounding."""

TIME_LIMIT_S = 2.0
FAST_COMPILE: dict[str, Any] = {"xla_backend_optimization_level": 0}
"""What `tests/fast_compile.py` sets for all tests, where options are passed on."""


def assert_close(actual: Any, expected: Any, factor: float = 1.0) -> None:
    """Equal trees, types, and numbers within the dtype's tolerance times `factor`."""
    paths, tree = jax.tree.flatten_with_path(actual)
    others, other_tree = jax.tree.flatten(expected)
    assert tree == other_tree
    floor = NOISE * max((_largest(y) for y in others), default=0.0)
    for (path, x), y in zip(paths, others, strict=True):
        name = jax.tree_util.keystr(path)
        a, b = jax.typeof(x), jax.typeof(y)
        kinds = [(t.shape, t.dtype, t.weak_type) for t in (a, b)]
        assert kinds[0] == kinds[1], f"{name}: {kinds}"
        _assert_leaf_close(x, y, name, factor, floor)


def _largest(x: Any) -> float:
    """The largest magnitude in an array of a dtype that has a tolerance."""
    known = getattr(x, "dtype", None) is not None and x.dtype.name in TOLERANCES
    return float(np.max(np.abs(np.asarray(x, np.complex128)), initial=0)) if known else 0.0


def _assert_leaf_close(x: Any, y: Any, name: str, factor: float, floor: float) -> None:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x, y = jax.random.key_data(x), jax.random.key_data(y)
    if x.dtype.name not in TOLERANCES:
        np.testing.assert_array_equal(x, y, err_msg=name)
        return
    rtol, share = TOLERANCES[x.dtype.name]
    wide = [np.asarray(a, np.complex128) for a in (x, y)]
    atol = share * factor * max(_largest(y), floor)
    np.testing.assert_allclose(*wide, rtol=rtol * factor, atol=atol, err_msg=name)


def placed(args: Any, shardings: Any) -> Any:
    """What a compiled step needs, as it moves nothing."""
    return jax.tree.map(jax.device_put, args, shardings)


def assert_same(
    fun: Callable[..., Any], args: tuple[Any, ...], mesh: Mesh | int, factor: float = 1.0,
    **options: Any,
) -> xshard.ShardedStep:  # fmt: skip
    """`auto_shard(fun, mesh)(*args)` is what `jax.jit(fun)(*args)` is; returns the step."""
    names = ("static_argnums", "donate_argnums")
    plain = jax.jit(fun, **{n: options[n] for n in names[:1] if n in options})
    step = xshard.auto_shard(fun, mesh, **{"time_limit": TIME_LIMIT_S, **options})
    expected = plain(*args)
    assert_close(step(*args), expected, factor)
    return step


def random_plan(fun: Callable[..., Any], args: tuple[Any, ...], mesh: Mesh, seed: int) -> Plan:
    """A plan that no solver would choose: each node's strategy by chance, among what is allowed."""
    traced = trace(fun, args)
    shape = MeshShape(tuple(map(str, mesh.axis_names)), mesh.devices.shape)
    kind = mesh.devices.flat[0].device_kind
    prepared = prepare(
        Request(
            traced, shape, Cluster.for_devices(kind, mesh.devices.size, 1),
            pins_of(traced, shape, None, None).values, ties=ties_of(traced),
        )
    )  # fmt: skip
    modelled = model(prepared)
    draft = modelled.draft
    choices = _random_choices(draft.nodes, draft.edges, np.random.default_rng(seed))
    answer = Solution(choices, _cost(draft.nodes, draft.edges, choices), 0)
    return describe(
        draft, modelled.timeline, answer, prepared.prices, traced,
        fingerprint=prepared.fingerprint, limit=None,
    )  # fmt: skip


def _random_choices(
    nodes: list[Node], edges: list[Edge], rng: np.random.Generator
) -> tuple[int, ...]:
    """Node by node; what a chosen neighbour forbids is left out."""
    choices = [-1] * len(nodes)
    around: list[list[Edge]] = [[] for _ in nodes]
    for edge in edges:
        around[edge.a].append(edge)
        around[edge.b].append(edge)
    for i, node in enumerate(nodes):
        free = np.asarray(node.costs) < FORBIDDEN
        for e in around[i]:
            other = choices[e.b if e.a == i else e.a]
            if other >= 0:
                free &= (e.costs[:, other] if e.a == i else e.costs[other]) < FORBIDDEN
        choices[i] = int(rng.choice(np.flatnonzero(free)))
    return tuple(choices)


def _cost(nodes: list[Node], edges: list[Edge], choices: tuple[int, ...]) -> int:
    own = sum(int(n.costs[c]) for n, c in zip(nodes, choices, strict=True))
    return own + sum(int(e.costs[choices[e.a], choices[e.b]]) for e in edges)
