"""Ops that move dimensions and no arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from xshard.ir.graph import Op
from xshard.rules.build import Ins, Outs, Token, block, build, letters, names, rank, shape_of, take
from xshard.rules.rule import Rule


def transpose(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a b c -> c a b"`."""
    dims = letters(rank(ins[0]))
    right = [dims[i] for i in op.params["permutation"]]
    return build(ins, outs, [dims], [right], kind="view")


def broadcast_in_dim(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a 1 -> a b c"`: new dimensions are free."""
    dims = letters(len(outs[0].shape))
    left = [[dims[i] for i in op.params["broadcast_dimensions"]] if rank(ins[0]) else ()]
    return build(ins, outs, left + [()] * (len(ins) - 1), [dims], kind="view")


def iota(_op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"-> a b"`: made in place."""
    dims = letters(len(outs[0].shape))
    return build(ins, outs, [()] * len(ins), [dims] * len(outs), kind="view")


def squeeze(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a 1 b -> a b"`."""
    dims = letters(rank(ins[0]))
    gone = {d % len(dims) for d in op.params["dimensions"]}
    right = [d for i, d in enumerate(dims) if i not in gone]
    return build(ins, outs, [dims], [right], kind="view")


def rev(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a b! -> a b!"`: a reversed dimension would move to another shard."""
    dims = block(letters(rank(ins[0])), op.params["dimensions"])
    return build(ins, outs, [dims], [dims], kind="view")


def resized(ins: Ins, outs: Outs, keep: Sequence[bool]) -> tuple[list[str], list[Token]]:
    """Tokens of an operand and a result of its rank: tied where `keep`, else apart and blocked."""
    fresh = names()
    left = take(fresh, rank(ins[0]))
    right: list[Token] = [d if k else f"{next(fresh)}!" for d, k in zip(left, keep, strict=True)]
    return block(left, [i for i, k in enumerate(keep) if not k]), right


def same_sizes(ins: Ins, outs: Outs) -> list[bool]:
    """For each dimension, whether operand and result have one size."""
    return [a == b for a, b in zip(shape_of(ins[0]), outs[0].shape, strict=True)]


def slice_(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a b! -> a c!"`: only dimensions that are kept whole may be split."""
    left, right = resized(ins, outs, same_sizes(ins, outs))
    return build(ins, outs, [left], [right], kind="view")


def pad(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a b!, . -> a c!"`: only dimensions without padding may be split."""
    keep = [tuple(config) == (0, 0, 0) for config in op.params["padding_config"]]
    left, right = resized(ins, outs, keep)
    return build(ins, outs, [left, ()], [right], kind="view")


def concatenate(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a b!, a c! -> a d!"`."""
    return _along(ins, outs, op.params["dimension"])


def split(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a b! -> a c!, a d!"`."""
    return _along(ins, outs, op.params["axis"])


def _along(ins: Ins, outs: Outs, axis: int) -> Rule:
    """Every operand and result has its own, blocked size along `axis`."""
    fresh = names()
    dims = take(fresh, len(outs[0].shape))

    def own() -> list[str]:
        return [f"{next(fresh)}!" if i == axis else d for i, d in enumerate(dims)]

    return build(ins, outs, [own() for _ in ins], [own() for _ in outs], kind="view")


def tile(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a b -> (r a) b"`: copies `r` of a dimension, one after the other."""
    fresh, reps = names(), op.params["reps"]
    dims, copies = take(fresh, len(reps)), take(fresh, len(reps))
    sizes = dict(zip([*dims, *copies], [*shape_of(ins[0]), *reps], strict=True))
    right: list[Token] = [(r, d) for r, d in zip(copies, dims, strict=True)]
    return build(ins, outs, [dims], [right], kind="view", sizes=sizes)


def stack(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a b, a b -> s! a b"`."""
    dims = letters(len(outs[0].shape))
    left = [d for i, d in enumerate(dims) if i != op.params["axis"]]
    return build(ins, outs, [left] * len(ins), [block(dims, [op.params["axis"]])], kind="view")


def unstack(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"s! a b -> a b, a b"`."""
    dims = letters(rank(ins[0]))
    right = [d for i, d in enumerate(dims) if i != op.params["axis"]]
    left = [block(dims, [op.params["axis"]])]
    return build(ins, outs, left, [right] * len(outs), kind="view")


TABLE = {
    "transpose": transpose,
    "broadcast_in_dim": broadcast_in_dim,
    "iota": iota,
    "iota_2x32_shape": iota,
    "empty": iota,
    "empty2": iota,
    "squeeze": squeeze,
    "rev": rev,
    "slice": slice_,
    "pad": pad,
    "concatenate": concatenate,
    "split": split,
    "tile": tile,
    "stack": stack,
    "unstack": unstack,
}
