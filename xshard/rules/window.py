"""Windows that slide over an array: pooling and its gradients."""

from __future__ import annotations

from xshard.ir.graph import Op
from xshard.rules.build import Ins, Outs, build, names, rank, take
from xshard.rules.rule import Rule


def window(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a b! -> a c!"`: a dimension with a window of one element may be split."""
    fresh = names()
    dims = take(fresh, rank(outs[0]))
    free = [_untouched(op, i) for i in range(len(dims))]

    def own() -> list[str]:
        return [d if f else f"{next(fresh)}!" for d, f in zip(dims, free, strict=True)]

    left = [own() if rank(v) else [] for v in ins]
    return build(ins, outs, left, [own() for _ in outs], kind="reduce")


def _untouched(op: Op, axis: int) -> bool:
    p = op.params
    dilations = [p[k][axis] for k in ("base_dilation", "window_dilation") if p.get(k)]
    steps = [p["window_dimensions"][axis], p["window_strides"][axis], *dilations]
    return tuple(p["padding"][axis]) == (0, 0) and all(n == 1 for n in steps)


_WINDOWS = """
    reduce_window reduce_window_sum reduce_window_max reduce_window_min select_and_gather_add
    select_and_scatter select_and_scatter_add
"""

TABLE = dict.fromkeys(_WINDOWS.split(), window)
