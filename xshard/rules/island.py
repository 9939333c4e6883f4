"""Parts that say themselves how they are split, and parts that no device may run alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from xshard.ir.graph import Op
from xshard.rules.build import Ins, Outs, Token, Tokens, build, names, rank, shape_of, take
from xshard.rules.registry import RuleFn, unknown
from xshard.rules.rule import Rule


def shard_map(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"(x a!) b!, (y b!) -> (x c!)"`: the user's specs, whose mesh axes `x` and `y` are kept.

    What is summed over an axis inside is whole when it leaves: nothing is partial.
    """
    sizes, fresh = {str(n): int(k) for n, k in op.params["mesh"].shape.items()}, names()
    axes = [f"axis {name}" for name in sizes]
    known = dict(zip(axes, sizes.values(), strict=True))
    left = [_of_spec(s, shape_of(v), known, fresh) for s, v in _both(op.params["in_specs"], ins)]
    right = [_of_spec(s, v.shape, known, fresh) for s, v in _both(op.params["out_specs"], outs)]
    rule = build(ins, outs, left, right, kind="gather", sizes=known)
    return replace(rule, reduced=frozenset(), bound=dict(zip(axes, sizes, strict=True)))


def _both(specs: Sequence[Any], values: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(specs, values, strict=True)


def _of_spec(
    spec: Any, shape: tuple[int, ...], sizes: dict[str, int], fresh: Iterator[str]
) -> list[Token]:
    """A factor for each axis of a dimension, and one for what is left of it on a device."""
    tokens: list[Token] = []
    for n, entry in zip(shape, [*spec, *[None] * (len(shape) - len(spec))], strict=True):
        parts = () if entry is None else entry if isinstance(entry, tuple) else (entry,)
        axes, rest = [f"axis {name}" for name in parts], f"{next(fresh)}!"
        shards = 1
        for axis in axes:
            shards *= sizes[axis]
        sizes[rest[:-1]] = n // shards
        tokens.append((*axes, rest))
    return tokens


def custom_partitioning(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"a b, b c -> a c"`: the factors of the user's own sharding rule; without one, all whole.

    What the rule sums over, the user's partitioned function sums.
    """
    stated: Any = op.params.get("sharding_rule")
    if not hasattr(stated, "operand_mappings"):
        return unknown(op, ins, outs)
    fixed = {*stated.need_replication_factors, *stated.permutation_factors}
    left, right = (_mapped(m, fixed) for m in (stated.operand_mappings, stated.result_mappings))
    ranks = [*map(rank, ins), *map(rank, outs)]
    if [-1 if tokens is None else len(tokens) for tokens in (*left, *right)] != ranks:
        return unknown(op, ins, outs)
    rule = build(ins, outs, left, right, kind="gather", sizes=stated.factor_sizes)
    return replace(rule, reduced=frozenset())


def _mapped(mappings: Sequence[Any], fixed: set[str]) -> list[Tokens]:
    """Tokens of each array; None where leading dimensions are not spelt out."""

    def token(dim: Any) -> Token:
        parts = (dim,) if isinstance(dim, str) else tuple(dim)
        return tuple(f"{f}!" if f in fixed else f for f in parts)

    spelt = [all(str(d).isidentifier() or not isinstance(d, str) for d in m) for m in mappings]
    return [[token(d) for d in m] if ok else None for m, ok in zip(mappings, spelt, strict=True)]


def positional(how: str) -> RuleFn:
    """`"a b -> b"`: a collective over dimensions that `vmap` made, on each operand."""

    def rule(op: Op, ins: Ins, outs: Outs) -> Rule:
        axes, fresh = op.params["axes"], names()
        if not all(isinstance(axis, int) for axis in axes) or op.params.get("axis_index_groups"):
            return unknown(op, ins, outs)
        dims = [take(fresh, rank(v)) for v in ins]
        right = [[d for i, d in enumerate(own) if i not in axes] for own in dims]
        return build(ins, outs, dims, right, kind="reduce", reduce=how)

    return rule


def once(_op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"? -> ?"`: the user's Python function sees whole arrays, once."""
    return build(ins, outs, [None] * len(ins), [None] * len(outs), kind="gather")


def constant(_op: Op, _ins: Ins, outs: Outs) -> Rule:
    """`"-> ."`: a number that is known when the program is compiled."""
    return build([], outs, [], [()] * len(outs), kind="view")


TABLE = {
    "shard_map": shard_map,
    "custom_partitioning": custom_partitioning,
    "psum": positional("sum"),
    "pmax": positional("max"),
    "pmin": positional("min"),
    **dict.fromkeys(("pure_callback", "io_callback", "debug_callback", "debug_print"), once),
    "platform_index": constant,
}
