"""Convolution."""

from __future__ import annotations

import math

from xshard.ir.graph import Op
from xshard.rules.build import Ins, Outs, Token, build, letters, shape_of
from xshard.rules.rule import Rule


def conv(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"n i s!, o i t! -> n o u!"`: image, input and output features; windows stay whole.

    With groups the features are `(g i)` and `(g o)`; `g` is not split, since XLA partitions
    grouped convolutions wrongly in some cases.
    """
    p, numbers = op.params, op.params["dimension_numbers"]
    groups, batches = p["feature_group_count"], p["batch_group_count"]
    lhs_shape, rhs_shape = shape_of(ins[0]), shape_of(ins[1])
    image, kernel, result = _spatial(op, rhs_shape)
    out = rhs_shape[numbers.rhs_spec[0]]
    sizes = {
        "g": groups * batches,
        "n": lhs_shape[numbers.lhs_spec[0]] // batches,
        "i": rhs_shape[numbers.rhs_spec[1]],
        "o": out // (groups * batches),
    }
    lhs: list[Token] = [("g!", "n") if batches > 1 else "n", ("g!", "i") if groups > 1 else "i"]
    features: Token = ("g!", "o") if groups * batches > 1 else "o"
    left = [
        _place(numbers.lhs_spec, lhs, image),
        _place(numbers.rhs_spec, [features, "i"], kernel),
    ]
    right = [_place(numbers.out_spec, ["n", features], result)]
    window = math.prod(rhs_shape[d] for d in numbers.rhs_spec[1:])
    flops = 2.0 * outs[0].size * window
    return build(ins, outs, left, right, kind="heavy", sizes=sizes, flops=flops)


def _place(spec: tuple[int, ...], two: list[Token], spatial: list[str]) -> list[Token]:
    """Tokens in the array's own order: batch (or output) and feature first in `spec`."""
    tokens: list[Token] = [""] * len(spec)
    for axis, token in zip(spec, [*two, *spatial], strict=True):
        tokens[axis] = token
    return tokens


def _spatial(op: Op, rhs_shape: tuple[int, ...]) -> tuple[list[str], list[str], list[str]]:
    """Spatial tokens of image, kernel and result; a window of one element ties image and result."""
    p = op.params
    axes = p["dimension_numbers"].rhs_spec[2:]
    image, kernel, result = [], [], []
    for d, (axis, name) in enumerate(zip(axes, letters(len(axes)), strict=True)):
        whole = p["padding"][d] == (0, 0) and p["window_strides"][d] == p["lhs_dilation"][d] == 1
        free = whole and rhs_shape[axis] == 1
        image.append(f"s{name}" if free else f"s{name}!")
        kernel.append(f"t{name}!")
        result.append(f"s{name}" if free else f"u{name}!")
    return image, kernel, result


TABLE = {
    "conv_general_dilated": conv,
}
