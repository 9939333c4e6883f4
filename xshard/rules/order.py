"""Sorting and selecting along a dimension."""

from __future__ import annotations

from xshard.ir.graph import Op
from xshard.rules.build import Ins, Outs, block, build, letters, names, rank, take
from xshard.rules.rule import Rule


def sort(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a b!, a b! -> a b!, a b!"`."""
    dims = block(letters(rank(ins[0])), [op.params["dimension"]])
    return build(ins, outs, [dims] * len(ins), [dims] * len(outs), kind="gather")


def top_k(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a b! -> a c!, a c!"`."""
    fresh = names()
    dims = take(fresh, rank(ins[0]))
    axis = op.params.get("axis", op.params.get("reduction_dimension", -1)) % len(dims)
    right = [*dims[:axis], f"{next(fresh)}!", *dims[axis + 1 :]]
    return build(ins, outs, [block(dims, [axis])], [right] * len(outs), kind="gather")


TABLE = {
    "sort": sort,
    "top_k": top_k,
    "approx_top_k": top_k,
}
