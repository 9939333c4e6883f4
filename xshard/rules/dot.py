"""Matrix multiplication."""

from __future__ import annotations

import math

from xshard.ir.graph import Op
from xshard.rules.build import Ins, Outs, build, rank
from xshard.rules.rule import Rule


def dot_general(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"b i k, b k j -> b i j"`: batch, free and contracted dimensions, any number of each."""
    (lhs_sum, rhs_sum), (lhs_batch, rhs_batch) = op.params["dimension_numbers"]
    lhs, free = _side(rank(ins[0]), lhs_batch, lhs_sum, "i")
    rhs, other = _side(rank(ins[1]), rhs_batch, rhs_sum, "j")
    result = [*_numbered("b", len(lhs_batch)), *free, *other]
    rule = build(ins, outs, [lhs, rhs], [result], kind="heavy")
    return build(ins, outs, [lhs, rhs], [result], kind="heavy", flops=_flops(rule))


def _side(
    n: int, batch: tuple[int, ...], sums: tuple[int, ...], name: str
) -> tuple[list[str], ...]:
    """Tokens of one operand, and those of its free dimensions."""
    role = dict(zip(batch, _numbered("b", len(batch)), strict=True))
    role |= dict(zip(sums, _numbered("k", len(sums)), strict=True))
    axes = [i for i in range(n) if i not in role]
    free = _numbered(name, len(axes))
    role |= dict(zip(axes, free, strict=True))
    return [role[i] for i in range(n)], free


def _numbered(name: str, n: int) -> list[str]:
    return [f"{name}{i or ''}" for i in range(n)]


def _flops(rule: Rule) -> float:
    """One multiplication and one addition for each point of the iteration space."""
    return 2.0 * math.prod(rule.sizes.values())


def ragged_dot(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"m! k, g! k n, g! -> m! n"`: rows are grouped at run time, so they stay together."""
    numbers = op.params["ragged_dot_dimension_numbers"]
    plain = numbers.dot_dimension_numbers == (((1,), (1,)), ((), ())) and rank(ins[2]) == 1
    if not (plain and tuple(numbers.lhs_ragged_dimensions) == (0,)):
        return build(ins, outs, [None] * len(ins), [None], kind="heavy")
    m, k = ins[0].shape if ins[0] else (0, 0)
    left = [["m!", "k"], ["g!", "k", "n"], ["g!"]]
    flops = 2.0 * m * k * outs[0].shape[-1]
    return build(ins, outs, left, [["m!", "n"]], kind="heavy", flops=flops)


TABLE = {
    "dot_general": dot_general,
    "ragged_dot_general": ragged_dot,
}
