"""`Rule`: an op as an einsum over named factors.

The text form is the specification: `"b i k, b k j -> b i j"` is a batched matmul whose `k` is
summed; `"(a b) c -> a b c"` a reshape; `"b 1 -> b n"` a broadcast. One group of dimensions an
operand, groups separated by commas, results behind the arrow:

  x        a factor; the same letter is the same factor, so its shards line up
  (x y)    one dimension made of two factors, x outermost
  x!       a factor that may not be split (a window, a scanned or sorted dimension)
  1        a dimension of one element, or one that the op does not tie to any other; never split
  .        an operand without dimensions (a scalar)
  ?        an operand of any rank that must be whole on every device

A factor that stands in operands only is reduced; `reduce=` says how ("sum", "max", "min", "prod",
"and", "or" ...) and splitting it costs an all-reduce of the results. A factor that stands in
results only is broadcast; splitting it is free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from xshard.errors import RuleError

Dim = tuple[str, ...]
Kind = Literal["elementwise", "view", "reduce", "heavy", "gather", "port", "opaque", "pin"]
"""How an op is run, for the cost model:

  elementwise  fused into its neighbours; memory traffic only where a result is materialised
  view         moves no arithmetic: reshape, transpose, broadcast, slice, convert
  reduce       reads its operands once; operands may be fused into it
  heavy        a matmul or convolution: reads materialised operands, costs FLOPs
  gather       indexed reads or writes, sorts, RNG bits: memory-bound, not fused
  port         a control-flow tie: costs nothing itself
  opaque       unknown: runs whole on every device, reported
  pin          a sharding that the user stated
"""


@dataclass(frozen=True, slots=True)
class Rule:
    """Factors of one op instance.

    Attributes:
      operands, results: for each operand and result, for each dimension, its factors (outermost
        first; () for a dimension that is never split); None for "must be whole".
      sizes: elements along each factor.
      blocked: factors that may not be split.
      reduced: factors that stand in operands only (splitting them leaves partial results).
      reduce: how partial results combine.
      kind: see `Kind`.
      flops: arithmetic of the whole (unsharded) op.
      known: False for the fall-back of a primitive without a rule.
      bound: factor -> the name of the mesh axis that splits it, and nothing else, where the mesh
        has an axis of that name and size.
      crowded: factors that may be split only where each device has a part of its own: XLA counts
        copies of a part several times.
      shared, sharers: factors of the first may be split only where a device keeps more than one
        element along those of the second, all together: XLA goes wrong at a single one.
      unpadded: factors that may be split only where they divide: XLA takes padding for elements.
    """

    operands: tuple[tuple[Dim, ...] | None, ...]
    results: tuple[tuple[Dim, ...] | None, ...]
    sizes: dict[str, int]
    blocked: frozenset[str] = frozenset()
    reduced: frozenset[str] = frozenset()
    reduce: str = "sum"
    kind: Kind = "heavy"
    flops: float = 0.0
    known: bool = True
    bound: Mapping[str, str] = field(default_factory=dict[str, str])
    crowded: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()
    sharers: frozenset[str] = frozenset()
    unpadded: frozenset[str] = frozenset()

    @property
    def even(self) -> frozenset[str]:
        """Factors that must divide: crowded, unpadded, or with others in one dimension."""
        dims = [d for group in (*self.operands, *self.results) for d in group or ()]
        shared = frozenset(f for dim in dims if len(dim) > 1 for f in dim)
        return shared | self.crowded | self.unpadded

    def text(self) -> str:
        """The rule in its text form."""
        return f"{_side(self.operands, self.blocked)} -> {_side(self.results, self.blocked)}"


def parse(
    text: str,
    operand_shapes: tuple[tuple[int, ...], ...],
    result_shapes: tuple[tuple[int, ...], ...],
    *,
    factor_sizes: dict[str, int] | None = None,
    reduce: str = "sum",
    kind: Kind = "heavy",
    flops: float = 0.0,
) -> Rule:
    """Reads the text form against the shapes of one op.

    `factor_sizes` gives sizes that shapes alone do not tell (factors of compound dimensions).

    Raises:
      RuleError: if the text does not fit the shapes.
    """
    left, _, right = text.partition("->")
    sizes, blocked = dict(factor_sizes or {}), set[str]()
    operands = _parse_side(left, operand_shapes, sizes, blocked, text)
    results = _parse_side(right, result_shapes, sizes, blocked, text)
    _check_sizes(text, operands + results, operand_shapes + result_shapes, sizes)
    in_results = {f for dims in results if dims for dim in dims for f in dim}
    in_operands = {f for dims in operands if dims for dim in dims for f in dim}
    return Rule(
        operands, results, sizes, frozenset(blocked), frozenset(in_operands - in_results),
        reduce, kind, flops,
    )  # fmt: skip


def _parse_side(
    text: str,
    shapes: tuple[tuple[int, ...], ...],
    sizes: dict[str, int],
    blocked: set[str],
    whole: str,
) -> tuple[tuple[Dim, ...] | None, ...]:
    groups = [g.strip() for g in text.split(",")] if shapes else []
    if len(groups) != len(shapes):
        raise RuleError(f"rule {whole!r} has {len(groups)} groups for shapes {shapes}")
    return tuple(
        _parse_group(g, shape, sizes, blocked, whole)
        for g, shape in zip(groups, shapes, strict=True)
    )


def _parse_group(
    group: str, shape: tuple[int, ...], sizes: dict[str, int], blocked: set[str], whole: str
) -> tuple[Dim, ...] | None:
    if group == "?":
        return None
    tokens = [] if group in (".", "") else _dims(group)
    if len(tokens) != len(shape):
        raise RuleError(f"rule {whole!r}: {group!r} has {len(tokens)} dimensions, shape is {shape}")
    dims: list[Dim] = []
    for token, n in zip(tokens, shape, strict=True):
        blocked.update(f[:-1] for f in token if f.endswith("!"))
        dim = tuple(f.removesuffix("!") for f in token if f != "1")
        if len(dim) == 1:
            sizes.setdefault(dim[0], n)
        dims.append(dim)
    return tuple(dims)


def _dims(group: str) -> list[Dim]:
    """`"(a b!) c 1"` -> `[("a", "b!"), ("c",), ("1",)]`."""
    dims: list[Dim] = []
    inside: list[str] | None = None
    for token in group.replace("(", " ( ").replace(")", " ) ").split():
        if token == "(":
            inside = []
        elif token == ")":
            dims.append(tuple(inside or ()))
            inside = None
        elif inside is not None:
            inside.append(token)
        else:
            dims.append((token,))
    return dims


def _check_sizes(
    text: str,
    groups: tuple[tuple[Dim, ...] | None, ...],
    shapes: tuple[tuple[int, ...], ...],
    sizes: dict[str, int],
) -> None:
    for dims, shape in zip(groups, shapes, strict=True):
        for dim, n in zip(dims or (), shape, strict=dims is not None):
            product = 1
            for factor in dim:
                if factor not in sizes:
                    raise RuleError(f"rule {text!r}: size of factor {factor!r} is unknown")
                product *= sizes[factor]
            if dim and product != n:
                raise RuleError(
                    f"rule {text!r}: {dim} has {product} elements, shape {shape} has {n}"
                )


def _side(groups: tuple[tuple[Dim, ...] | None, ...], blocked: frozenset[str]) -> str:
    def one(dim: Dim) -> str:
        names = [f + "!" if f in blocked else f for f in dim]
        return "1" if not names else names[0] if len(names) == 1 else f"({' '.join(names)})"

    return ", ".join("?" if g is None else " ".join(map(one, g)) or "." for g in groups)
