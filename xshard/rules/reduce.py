"""Reductions and scans along a dimension."""

from __future__ import annotations

from xshard.ir.graph import Op
from xshard.rules.build import Ins, Outs, block, build, letters, rank
from xshard.rules.registry import RuleFn
from xshard.rules.rule import Rule


def reduction(how: str) -> RuleFn:
    """`"a b -> a"`, where partial results combine by `how`.

    XLA has no collective for the order of complex numbers: `"a b! -> a"`.
    """

    def reduce(op: Op, ins: Ins, outs: Outs) -> Rule:
        dims = letters(rank(ins[0]))
        right = [d for i, d in enumerate(dims) if i not in op.params["axes"]]
        if how in ("max", "min") and outs[0].dtype.startswith("complex"):
            dims = block(dims, op.params["axes"])
        return build(ins, outs, [dims], [right], kind="reduce", reduce=how)

    return reduce


def arg_reduction(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a b! -> a"`: a position is no partial result."""
    dims = letters(rank(ins[0]))
    right = [d for i, d in enumerate(dims) if i not in op.params["axes"]]
    return build(ins, outs, [block(dims, op.params["axes"])], [right], kind="reduce")


def variadic(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a b!, a b!, ., . -> a, a"`: any function of several arrays, with their initial values."""
    axes = op.params["dimensions"]
    dims = letters(max(rank(v) for v in ins))
    right = [d for i, d in enumerate(dims) if i not in axes]
    left = [block(dims, axes) if rank(v) else () for v in ins]
    return build(ins, outs, left, [right] * len(outs), kind="reduce")


def cumulative(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a b! -> a b!"`."""
    dims = block(letters(rank(ins[0])), [op.params["axis"]])
    return build(ins, outs, [dims], [dims], kind="gather")


TABLE = {
    "reduce_sum": reduction("sum"),
    "reduce_prod": reduction("prod"),
    "reduce_max": reduction("max"),
    "reduce_min": reduction("min"),
    "reduce_and": reduction("and"),
    "reduce_or": reduction("or"),
    "reduce_xor": reduction("xor"),
    "argmax": arg_reduction,
    "argmin": arg_reduction,
    "reduce": variadic,
    "cumsum": cumulative,
    "cumprod": cumulative,
    "cummax": cumulative,
    "cummin": cumulative,
    "cumlogsumexp": cumulative,
}
