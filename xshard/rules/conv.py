"""Convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from xshard.ir.graph import Op
from xshard.rules.build import Ins, Outs, Token, build, letters, shape_of
from xshard.rules.rule import Rule


def conv(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"n i s!, o i t! -> n o u!"`: image, input and output features; windows stay whole.

    With feature groups the features are `(g i)` and `(g o)`, with batch groups the batch is
    `(g n)` and the output features `(g o)`. What XLA partitions only by moving data is blocked:
    everything where a group has several input features, and `n` within batch groups. So is `o`
    within groups, which XLA computes wrongly, or aborts at, when `g` is split too; and sums over
    `i` in batch groups come out as often as a device's part has copies: see docs/xla_errors.md.
    """
    numbers, lhs, rhs = op.params["dimension_numbers"], shape_of(ins[0]), shape_of(ins[1])
    image, kernel, result = _spatial(op, rhs)
    batch, inputs, outputs = _features(op, rhs[numbers.rhs_spec[1]])
    left = [
        _place(numbers.lhs_spec, [batch, inputs, *image]),
        _place(numbers.rhs_spec, [outputs, inputs[-1], *kernel]),
    ]
    right = [_place(numbers.out_spec, [batch[-1:], outputs, *result])]
    sizes = _sizes(op, lhs, rhs)
    flops = 2.0 * outs[0].size * math.prod(rhs[d] for d in numbers.rhs_spec[1:])
    rule = build(ins, outs, left, right, kind="heavy", sizes=sizes, flops=flops)
    grouped = op.params["batch_group_count"] > 1
    return replace(rule, crowded=rule.reduced) if grouped else rule


def _features(op: Op, per_group: int) -> tuple[tuple[str, ...], ...]:
    """Tokens of batch, input features and output features."""
    if op.params["batch_group_count"] > 1:
        return ("g", "n!"), ("i",), ("g", "o!")
    if op.params["feature_group_count"] == 1:
        return ("n",), ("i",), ("o",)
    if per_group > 1:
        return ("n!",), ("g!", "i!"), ("g!", "o!")
    g = "g" if _groups_line_up(op) else "g!"
    return ("n",), (g, "i"), (g, "o!")


def _groups_line_up(op: Op) -> bool:
    """Whether XLA partitions over feature groups rightly.

    Where the dimension order of the result is a permutation of the image's that is not its own
    inverse on the features, it exchanges the shards of the wrong dimension and the numbers are
    wrong (seen with jax 0.10.2 and 0.12.0.1 on CPU: `vmap(grad)` of a kernel in NHWC).
    """
    numbers = op.params["dimension_numbers"]
    to = dict(zip(numbers.lhs_spec, numbers.out_spec, strict=True))
    return to[to[numbers.lhs_spec[1]]] == numbers.lhs_spec[1]


def _sizes(op: Op, lhs: tuple[int, ...], rhs: tuple[int, ...]) -> dict[str, int]:
    numbers, batches = op.params["dimension_numbers"], op.params["batch_group_count"]
    groups = batches * op.params["feature_group_count"]
    return {
        "g": groups,
        "n": lhs[numbers.lhs_spec[0]] // batches,
        "i": rhs[numbers.rhs_spec[1]],
        "o": rhs[numbers.rhs_spec[0]] // groups,
    }


def _place(spec: Sequence[int], tokens: Sequence[Token]) -> list[Token]:
    """Tokens in the array's own order: batch (or output) and feature come first in `spec`."""
    placed: list[Token] = [""] * len(spec)
    for axis, token in zip(spec, tokens, strict=True):
        placed[axis] = token
    return placed


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
