"""What a template leaves of a problem's choices: each mesh axis has a role.

  data    the state is whole along the axis, and what reads a weight reads it whole
  shard   the same, but the state is kept in as many shards as its dimensions allow (ZeRO-3)
  model   an op that reads a weight splits a factor of it: a column, a row, a head
  expert  an op that reads weights of experts splits the experts; all else is as with `data`

Sources: Rajbhandari et al. 2020, "ZeRO" (arXiv:1910.02054); Shoeybi et al. 2019, "Megatron-LM"
(arXiv:1909.08053); Lepikhin et al. 2020, "GShard" (arXiv:2006.16668).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from xshard.solve.draft import Draft
from xshard.solve.problem import FORBIDDEN, Ints
from xshard.spec import MeshShape, Spec
from xshard.templates.weights import Weights

Role = Literal["data", "shard", "model", "expert"]
Roles = tuple[Role, ...]
"""One for each mesh axis."""
Mask = NDArray[np.bool_]


def families(mesh: MeshShape, *, experts: bool) -> Iterator[tuple[str, Roles]]:
    """Names and roles; those of one name differ in which axis has which role."""
    real = [a for a, size in enumerate(mesh.sizes) if size > 1]

    def roles(others: Role, at: int = -1, role: Role = "data") -> Roles:
        given: dict[int, Role] = {a: role if a == at else others for a in real}
        return tuple(given.get(a, "data") for a in range(len(mesh.sizes)))

    if real:
        yield "data parallel", roles("data")
        yield "FSDP", roles("shard")
    for a in real:
        yield "Megatron", roles("data", a, "model")
    for a in real if experts else ():
        yield "expert parallel", roles("data", a, "expert")


def kept(d: Draft, roles: Roles, weights: Weights) -> Iterator[Ints]:
    """The choices of each node that the roles leave; a demand that would leave none is dropped."""
    left = [node.costs < FORBIDDEN for node in d.nodes]

    def demand(node: int, mask: Mask) -> None:
        if (left[node] & mask).any():
            left[node] &= mask

    for v in sorted(weights.state):
        node, index = d.stored[int(d.classes.value_class[v])]
        shape = d.graph.values[v].shape
        specs = [d.specs(shape)[i] for i in index.tolist()]
        for mask in _of_state(specs, roles, shape in weights.expert_shapes, d.mesh):
            demand(node, mask)
    for c, strategies in enumerate(d.strategies):
        for axis, role in enumerate(roles):
            may_split = _of_op(d, c, role, weights)
            if may_split is not None and d.mesh.sizes[axis] > 1:
                mask = [may_split(s.factors[axis]) for s in strategies]
                demand(d.op_node[c], np.array(mask))
    for mask in left:
        yield np.flatnonzero(mask) if mask.any() else np.arange(len(mask))


def _of_state(
    specs: Sequence[Spec], roles: Roles, is_expert: bool, mesh: MeshShape
) -> Iterator[Mask]:
    """Which specs of an argument of the state are wanted, the greatest demand first."""
    whole = {a for a, r in enumerate(roles) if r == "data" or (r == "expert" and not is_expert)}
    used = [{a for dim in spec for a in dim} for spec in specs]
    yield np.array([whole.isdisjoint(u) for u in used], bool)
    shards = [math.prod(mesh.sizes[a] for a in u if roles[a] == "shard") for u in used]
    yield np.array(shards) == max(shards, default=1)


def _of_op(d: Draft, c: int, role: Role, w: Weights) -> Callable[[str | None], bool] | None:
    """Which factor of a class of ops an axis of that role may split; None for any."""
    factors, experts, op = w.factors[c], w.experts[c], d.op(c)
    if factors is not None:
        if role == "model":
            return lambda f: f in factors
        if role == "expert" and experts:
            return lambda f: f in experts
        return lambda f: f not in factors
    if op.phase != "update" or role in ("shard", "model"):
        return None
    made = {d.graph.values[v].shape for v in op.outputs}
    return None if role == "expert" and made & w.expert_shapes else (lambda f: f is None)
