"""One table: primitive name -> the function that states its rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from xshard.ir.graph import Graph, Op, Value
from xshard.rules.rule import Dim, Rule


class RuleFn(Protocol):
    """States the rule of one op: its operands (None for a literal) and results are given."""

    def __call__(self, op: Op, ins: list[Value | None], outs: list[Value], /) -> Rule: ...


_TABLE: dict[str, RuleFn] = {}

_NEVER_SPLIT = frozenset({"int2", "uint2"})
"""Dtypes that XLA gathers wrongly (docs/xla_errors.md)."""


def register(table: dict[str, RuleFn]) -> None:
    """Adds rules.

    Raises:
      ValueError: if a primitive already has one.
    """
    twice = table.keys() & _TABLE.keys()
    if twice:
        raise ValueError(f"primitives with two rules: {sorted(twice)}")
    _TABLE.update(table)


def registered() -> dict[str, RuleFn]:
    """The table, by primitive name."""
    return dict(sorted(_TABLE.items()))


def rule_of(graph: Graph, op: Op) -> Rule:
    """The rule of an op; an op without one must be whole on every device (`known=False`)."""
    ins = [None if v is None else graph.values[v] for v in op.inputs]
    outs = [graph.values[v] for v in op.outputs]
    fn: Callable[..., Rule] | None = _TABLE.get(op.prim)
    if any(v is not None and v.dtype in _NEVER_SPLIT for v in (*ins, *outs)):
        return replace(unknown(op, ins, outs), known=fn is not None)
    return unknown(op, ins, outs) if fn is None else _without_empty(fn(op, ins, outs), ins, outs)


def _without_empty(rule: Rule, ins: list[Value | None], outs: list[Value]) -> Rule:
    """Arrays without elements are whole: JAX 0.10 returns shards of them that are too large."""

    def kept(dims: Iterable[tuple[Dim, ...] | None], of: Sequence[Value | None]) -> Any:
        pairs = zip(dims, of, strict=True)
        return tuple(None if v is not None and 0 in v.shape else d for d, v in pairs)

    return replace(rule, operands=kept(rule.operands, ins), results=kept(rule.results, outs))


def unknown(op: Op, ins: list[Value | None], outs: list[Value]) -> Rule:
    """Whole on every device, reported in the plan, and paid for as replicated work."""
    return Rule(
        operands=(None,) * len(ins), results=(None,) * len(outs), sizes={}, kind="opaque",
        known=False,
    )  # fmt: skip
