"""Random bits. A key array has the shape that the user sees, without the dimensions of its bits."""

from __future__ import annotations

from xshard.ir.graph import Op
from xshard.rules.build import Ins, Outs, block, build, letters, rank
from xshard.rules.elementwise import aligned
from xshard.rules.rule import Rule


def over_keys(_op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a, a -> a"`: an op on each key by itself."""
    return aligned(ins, outs, "gather")


def bits(_op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"k -> k a b"`: a counter-based generator makes any part of the bits in place.

    XLA's own generators (`rbg`) do not: theirs stay whole.
    """
    dims = letters(len(outs[0].shape))
    if ins[0] is not None and "rbg" in ins[0].dtype:
        dims = block(dims, range(len(dims)))
    return build(ins, outs, [dims[: rank(ins[0])]], [dims], kind="gather")


def rejection(_op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a!, a! -> a!"`: a loop until every element is accepted, whose end all devices share."""
    dims = letters(len(outs[0].shape))
    whole = block(dims, range(len(dims)))
    return build(ins, outs, [whole[: rank(v)] for v in ins], [whole], kind="gather")


def wrap(_op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"k w! -> k"`, and back: the words of a key stay together."""
    keys = min(rank(ins[0]), len(outs[0].shape))
    dims = letters(max(rank(ins[0]), len(outs[0].shape)))
    dims = block(dims, range(keys, len(dims)))
    return build(ins, outs, [dims[: rank(ins[0])]], [dims[: len(outs[0].shape)]], kind="view")


def generator(_op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"? -> ?, ?"`: a state, and bits in an order of XLA's choice."""
    return build(ins, outs, [None] * len(ins), [None] * len(outs), kind="gather")


TABLE = {
    "random_seed": over_keys,
    "random_fold_in": over_keys,
    "random_clone": over_keys,
    "random_gamma": rejection,
    "random_bits": bits,
    "random_split": bits,
    "random_wrap": wrap,
    "random_unwrap": wrap,
    "rng_bit_generator": generator,
    "rng_uniform": generator,
}
