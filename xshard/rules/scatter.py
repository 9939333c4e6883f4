"""Indexed writes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod

from xshard.ir.graph import Op
from xshard.rules.build import Ins, Outs, build, names, rank, shape_of, take
from xshard.rules.registry import RuleFn
from xshard.rules.rule import Dim, Rule


def scatter(how: str | None) -> RuleFn:
    """`"v d, b s 1, b s d -> v d"`: updates that are written to rows `v`, combined by `how`.

    Updates over `b` and `s` may be split if they combine: the result is then partial. Rows `v` may
    be split with the updates whole: each device writes what falls in its rows. Not so where a
    device has a single update, `"v! d, 1, d -> v! d"`, or `"b v, b 1, b -> b v"` with all of `b`
    split: XLA (jax 0.10) writes to wrong rows then. Nor are updates split that do not divide: XLA
    combines what they are padded with (docs/xla_errors.md).
    """

    def rule(op: Op, ins: Ins, outs: Outs) -> Rule:
        operand, indices, updates = tokens(op, ins, how is not None)
        left = [operand, indices, updates]
        made = build(ins, outs, left, [operand], kind="gather", reduce=how or "sum")
        rows = op.params["dimension_numbers"].inserted_window_dims
        into, where, _ = made.operands
        written = [into[i] for i in rows] if into else []
        given = _factors(where)
        return replace(made, shared=_factors(written), sharers=given, unpadded=given)

    return rule


def tokens(op: Op, ins: Ins, combines: bool) -> tuple[list[str], list[str], list[str]]:
    """Tokens of operand, indices and updates."""
    numbers, fresh = op.params["dimension_numbers"], names()
    operand = take(fresh, rank(ins[0]))
    indices = [d if combines else f"{d}!" for d in take(fresh, rank(ins[1]) - 1)]
    pairs = zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True)
    for to, at in pairs:
        indices[at] = operand[to]
    outside, batch = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}, iter(indices)
    window = iter(i for i in range(rank(ins[0])) if i not in outside)
    updates = list[str]()
    for axis, n in enumerate(shape_of(ins[2])):
        if axis not in numbers.update_window_dims:
            updates.append(next(batch))
            continue
        to = next(window)
        whole = n == shape_of(ins[0])[to]
        updates.append(operand[to] if whole else f"{next(fresh)}!")
        operand[to] += "" if whole else "!"
    if prod(shape_of(ins[1])[:-1]) == 1:
        for axis in numbers.inserted_window_dims:
            operand[axis] += "!"
    return operand, [*indices, f"{next(fresh)}!"], updates


def _factors(dims: Iterable[Dim] | None) -> frozenset[str]:
    return frozenset(f for dim in dims or () for f in dim)


TABLE = {
    "scatter": scatter(None),
    "scatter-add": scatter("sum"),
    "scatter_add": scatter("sum"),
    "scatter-sub": scatter(None),
    "scatter-mul": scatter("prod"),
    "scatter_mul": scatter("prod"),
    "scatter-min": scatter("min"),
    "scatter_min": scatter("min"),
    "scatter-max": scatter("max"),
    "scatter_max": scatter("max"),
}
