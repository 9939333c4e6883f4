"""Builds a `Rule` for ops of any rank, where the text form cannot be written down beforehand.

A *token* states one dimension as the text form does: `"a"`, `"a!"` (may not be split), `""` (tied
to nothing), or a tuple of tokens (one dimension of several factors, outermost first). Dimensions
of zero or one element never get a factor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count, islice
from string import ascii_lowercase

from xshard.errors import RuleError
from xshard.ir.graph import Value
from xshard.rules.rule import Dim, Kind, Rule

Token = str | tuple[str, ...]
Tokens = Sequence[Token] | None
"""The tokens of one operand or result; None if it must be whole."""
Ins = list[Value | None]
Outs = list[Value]


def names() -> Iterator[str]:
    """a, b, ... z, a1, b1, ..."""
    for n in count():
        yield from (f"{letter}{n or ''}" for letter in ascii_lowercase)


def letters(n: int) -> list[str]:
    """The first `n` names."""
    return list(islice(names(), n))


def block(dims: Sequence[str], axes: Sequence[int]) -> list[str]:
    """The tokens with `!` on those of `axes`."""
    return [f"{d}!" if i in axes else d for i, d in enumerate(dims)]


def take(source: Iterator[str], n: int) -> list[str]:
    """The next `n` names."""
    return list(islice(source, n))


def rank(value: Value | None) -> int:
    """Dimensions of an operand; a literal has none."""
    return 0 if value is None else len(value.shape)


def shape_of(value: Value | None) -> tuple[int, ...]:
    """Shape of an operand; a literal is a scalar."""
    return () if value is None else value.shape


def build(
    ins: Ins,
    outs: Outs,
    left: Sequence[Tokens],
    right: Sequence[Tokens],
    *,
    kind: Kind,
    sizes: Mapping[str, int] | None = None,
    reduce: str = "sum",
    flops: float = 0.0,
) -> Rule:
    """The rule of one op from the tokens of each operand and result.

    `sizes` gives the sizes of factors that only stand in compound dimensions.

    Raises:
      RuleError: if a factor would have two sizes, or an operand has more dimensions than tokens.
    """
    known, blocked = dict(sizes or {}), set[str]()
    operands = [_dims(t, shape_of(v), known, blocked) for t, v in zip(left, ins, strict=True)]
    results = [_dims(t, v.shape, known, blocked) for t, v in zip(right, outs, strict=True)]
    in_operands, in_results = _factors(operands), _factors(results)
    used = in_operands | in_results
    return Rule(
        operands=tuple(operands),
        results=tuple(results),
        sizes={f: n for f, n in known.items() if f in used},
        blocked=frozenset(blocked & used),
        reduced=frozenset(in_operands - in_results),
        reduce=reduce,
        kind=kind,
        flops=flops,
    )


def _dims(
    tokens: Tokens, shape: tuple[int, ...], sizes: dict[str, int], blocked: set[str]
) -> tuple[Dim, ...] | None:
    if tokens is None:
        return None
    if len(tokens) != len(shape):
        raise RuleError(f"{len(tokens)} tokens {tokens} for shape {shape}")
    return tuple(_dim(t, n, sizes, blocked) for t, n in zip(tokens, shape, strict=True))


def _dim(token: Token, n: int, sizes: dict[str, int], blocked: set[str]) -> Dim:
    parts = (token,) if isinstance(token, str) else token
    if n <= 1 or parts == ("",):
        return ()
    blocked.update(p[:-1] for p in parts if p.endswith("!"))
    dim = tuple(p.removesuffix("!") for p in parts)
    if len(dim) == 1 and sizes.setdefault(dim[0], n) != n:
        raise RuleError(f"factor {dim[0]!r} has {sizes[dim[0]]} and {n} elements")
    return tuple(f for f in dim if sizes[f] > 1)


def _factors(groups: Sequence[tuple[Dim, ...] | None]) -> set[str]:
    return {f for dims in groups for dim in dims or () for f in dim}
