"""Indexed reads: gather and the dynamic slices."""

from __future__ import annotations

from xshard.ir.graph import Op
from xshard.rules.build import Ins, Outs, Tokens, build, names, shape_of, take
from xshard.rules.rule import Rule
from xshard.rules.view import resized, same_sizes


def gather(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"v d, b s 1 -> b s d"`: rows `v` of a table, looked up.

    Where single rows are read, `v` may be split: each device reads the rows that it has, and the
    sum of all is the result. Windows that are narrower than the operand stay whole.
    """
    numbers, sizes = op.params["dimension_numbers"], op.params["slice_sizes"]
    shape, fresh = shape_of(ins[0]), names()
    right = take(fresh, len(outs[0].shape))
    batch = [d for i, d in enumerate(right) if i not in numbers.offset_dims]
    indices = [*batch, f"{next(fresh)}!"]
    offset = iter(numbers.offset_dims)
    operand = list[str]()
    for axis, n in enumerate(shape):
        if axis in numbers.operand_batching_dims:
            k = numbers.operand_batching_dims.index(axis)
            operand.append(indices[numbers.start_indices_batching_dims[k]])
        elif axis in numbers.collapsed_slice_dims:
            operand.append(next(fresh))
        else:
            at = next(offset)
            operand.append(right[at] if sizes[axis] == n else f"{next(fresh)}!")
            right[at] += "" if sizes[axis] == n else "!"
    return build(ins, outs, [operand, indices], [right], kind="gather")


def dynamic_slice(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a b!, ., . -> a c!"`: dimensions that are read whole may be split."""
    left, right = resized(ins, outs, same_sizes(ins, outs))
    scalars: list[Tokens] = [()] * (len(ins) - 1)
    return build(ins, outs, [left, *scalars], [right], kind="gather")


def dynamic_update_slice(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a b! c, a d! 1, ., . -> a b! c"`: written whole, in part, or one element wide.

    In the last case a device writes what falls in its part, as in a scatter.
    """
    fresh = names()
    dims, update = take(fresh, len(outs[0].shape)), list[str]()
    for axis, (n, whole) in enumerate(zip(shape_of(ins[1]), outs[0].shape, strict=True)):
        update.append(dims[axis] if n == whole else f"{next(fresh)}!")
        dims[axis] += "" if n in (1, whole) else "!"
    scalars: list[Tokens] = [()] * (len(ins) - 2)
    return build(ins, outs, [dims, update, *scalars], [dims], kind="gather")


TABLE = {
    "gather": gather,
    "dynamic_slice": dynamic_slice,
    "dynamic_update_slice": dynamic_update_slice,
}
