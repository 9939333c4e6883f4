"""Reshape: dimensions merged and split, by their common factors."""

from __future__ import annotations

import math
from collections.abc import Iterator

from xshard.ir.graph import Op
from xshard.rules.build import Ins, Outs, build, names, shape_of
from xshard.rules.rule import Rule

Tokens = list[tuple[str, ...]]


def reshape(_op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"(a b) c -> a b c"`, `"a (b c) -> (a b) c"`; sizes without a common factor are blocked."""
    left, right, sizes = common_factors(shape_of(ins[0]), outs[0].shape)
    return build(ins, outs, [left], [right], kind="view", sizes=sizes)


def common_factors(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[Tokens, Tokens, dict[str, int]]:
    """Tokens of both shapes and the sizes of their factors, outermost first.

    Both arrays list the same elements in row-major order. Walking from the outside, where the
    dimensions at hand have a common divisor, it is a factor of both. Where they have none (3 and
    2), nothing lines up until the products of what follows are equal again.
    """
    left, right, sizes, fresh = [()] * len(a), [()] * len(b), dict[str, int](), names()
    if math.prod(a) == 0:
        return [("",)] * len(a), [("",)] * len(b), sizes
    one, two = _Walk(a, left, sizes, fresh), _Walk(b, right, sizes, fresh)
    while one.rest > 1 or two.rest > 1:
        common = math.gcd(one.rest, two.rest)
        if common > 1:
            name = next(fresh)
            one.take(name, common)
            two.take(name, common)
        else:
            _block_until_equal(one, two)
    return left, right, sizes


def _block_until_equal(one: _Walk, two: _Walk) -> None:
    """Blocks dimensions on both sides, from where they stand to where they meet again."""
    done_one, done_two = one.block(), two.block()
    while done_one != done_two:
        if done_one < done_two:
            done_one *= one.block()
        else:
            done_two *= two.block()


class _Walk:
    """A position in a shape: `rest` elements of dimension `axis` have no factor yet."""

    def __init__(
        self, shape: tuple[int, ...], tokens: Tokens, sizes: dict[str, int], fresh: Iterator[str]
    ) -> None:
        self.shape, self.tokens, self.sizes, self.fresh = shape, tokens, sizes, fresh
        self.axis, self.rest = -1, 1
        self._advance()

    def _advance(self) -> None:
        while self.rest == 1 and self.axis + 1 < len(self.shape):
            self.axis += 1
            self.rest = self.shape[self.axis]

    def take(self, token: str, n: int) -> None:
        """Gives `n` of the rest to a factor."""
        self.tokens[self.axis] += (token,)
        self.sizes[token.removesuffix("!")] = n
        self.rest //= n
        self._advance()

    def block(self) -> int:
        """Blocks the rest of the dimension at hand and says how much that was."""
        n = self.rest
        self.take(f"{next(self.fresh)}!", n)
        return n


TABLE = {
    "reshape": reshape,
}
