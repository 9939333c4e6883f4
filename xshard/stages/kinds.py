"""What kind of work a node is, by the rule of its op."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from xshard._jax import JaxprEqn, is_array_aval, opened, scopes_and_transforms, sub_jaxprs
from xshard.cost.fusion import EXPENSIVE
from xshard.microbatch.factor import rule_for
from xshard.stages.flat import Flat, Node

BYTE_FLOPS = 50.0
"""Operations that a device makes in the time in which it moves a byte, about: for balance only."""


@dataclass(slots=True)
class Kinds:
    """The kinds of equations; each signature is looked at once."""

    _kinds: dict[Hashable, tuple[str, float]] = field(default_factory=dict)
    _stacks: dict[int, tuple[Any, bool]] = field(default_factory=dict)

    def kind(self, node: Node) -> str:
        """The rule's kind: "heavy", "elementwise", "view", "opaque", ..."""
        return self._of(node.eqn)[0]

    def work(self, node: Node) -> float:
        """Operations, and what moving its operands and results takes, about."""
        return self._work(node.eqn)

    def is_cheap(self, node: Node) -> bool:
        """Whether it is computed in passing, while something reads its result."""
        name = node.eqn.primitive.name
        return self.kind(node) in ("elementwise", "view") and name not in EXPENSIVE

    def is_view(self, node: Node) -> bool:
        """Whether it only looks at its one array in another way, or at a part of it."""
        if node.eqn.primitive.name == "dynamic_slice":
            return True
        return self.kind(node) == "view" and len(node.ins) <= 1

    def is_backward(self, node: Node) -> bool:
        """Whether autodiff made it for the backward pass."""
        stack = node.eqn.source_info.name_stack
        if id(stack) not in self._stacks:
            self._stacks[id(stack)] = stack, "transpose" in scopes_and_transforms(stack)[1]
        return self._stacks[id(stack)][1]

    def _work(self, eqn: JaxprEqn) -> float:
        kind, flops = self._of(eqn)
        inner = [sum(map(self._work, opened(j).eqns)) for j in sub_jaxprs(eqn)]
        if inner:
            return max(inner) * eqn.params.get("length", 1)
        moved = sum(nbytes(v.aval) for v in (*eqn.invars, *eqn.outvars))
        return flops + (0.0 if kind == "view" else BYTE_FLOPS * moved)

    def signature(self, node: Node) -> Hashable:
        """Equal for nodes that compute the same, as far as work goes."""
        return _signature(node.eqn)

    def _of(self, eqn: JaxprEqn) -> tuple[str, float]:
        key = _signature(eqn)
        if key not in self._kinds:
            rule = rule_for(eqn)
            self._kinds[key] = rule.kind, rule.flops
        return self._kinds[key]


def _signature(eqn: JaxprEqn) -> Hashable:
    return (
        eqn.primitive.name, tuple(map(_type, eqn.invars)), tuple(map(_type, eqn.outvars)),
        str(eqn.params.get("dimension_numbers", "")),
    )  # fmt: skip


def _type(v: Any) -> Hashable:
    aval = v.aval
    return (aval.shape, aval.dtype) if is_array_aval(aval) else str(aval)


def free_values(flat: Flat, kinds: Kinds) -> frozenset[int]:
    """Values that may be made again wherever they are read, rather than be kept or sent.

    Constants, what depends on the microbatch's number alone, and views of what is there once (the
    rows of the batch, say). Results, and what totals and stacks are made of, are made by a program.
    """
    fixed = {t.share for t in flat.totals} | {s.row for s in flat.stacks}
    fixed |= set(flat.wanted)
    body = set(flat.body)
    once = {*flat.arguments, *flat.consts, *(t.total for t in flat.totals)}
    once |= {s.stacked for s in flat.stacks}
    constant, free = {flat.number}, set[int]()
    for node in (*flat.before, *flat.body, *flat.after):
        if not node.eqn.effects and fixed.isdisjoint(node.outs) and node.outs:
            fixed_value = kinds.is_cheap(node) and constant.issuperset(node.reads)
            if fixed_value:
                constant.update(node.outs)
            if fixed_value or (
                kinds.is_view(node) and (once | free | constant).issuperset(node.reads)
            ):
                free.update(node.outs)
        if node not in body:
            once.update(node.outs)
    return frozenset(free)


def nbytes(aval: Any) -> int:
    """Bytes of an array of this type."""
    if not is_array_aval(aval):
        return 0
    return math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 4)
