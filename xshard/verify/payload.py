"""Bytes of a collective, from the type that XLA prints for its result.

Operands are printed without types, but every collective's result determines them. An asynchronous
`-start` returns (operands, results, ...) instead, with differences by kind and XLA version:

    f32[8] all-reduce-start(%x)                      ((f32[8]), f32[8]) all-reduce-start(%x)
    (f32[8], f32[64]) all-gather-start(%x)           ((f32[8], f32[4]), (f32[64], f32[32]))
    (f32[8], f32[8], u32[], u32[]) collective-permute-start(%x)
"""

from __future__ import annotations

import math
import re
from itertools import pairwise

_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\]")
_BITS = re.compile(r"[a-z]+(\d+)")


def payload(kind: str, is_start: bool, type_text: str, group_size: int) -> tuple[int, str]:
    """(bytes, dtype) of a collective by the convention of `Collective.bytes`."""
    part = _part(kind, type_text) if is_start else type_text
    arrays: list[tuple[str, str]] = _ARRAY.findall(part)
    total = sum(_array_bytes(dtype, dims) for dtype, dims in arrays)
    if kind == "reduce-scatter" and not is_start:  # the result is one of group_size shards
        total *= group_size
    return total, "+".join(dict.fromkeys(dtype for dtype, _ in arrays))


def _part(kind: str, type_text: str) -> str:
    """The operands in the type of a `-start`; of all-gather the results."""
    elements = top_level(type_text)
    if kind == "all-gather":
        return elements[1]
    if kind == "all-reduce" and not elements[0].startswith("("):
        return type_text  # the older form: results only
    return elements[0]


def top_level(type_text: str) -> list[str]:
    """The elements of a tuple type; the type itself when it is an array.

    "((f32[2]), u32[])" → ["(f32[2])", "u32[]"].
    """
    if not type_text.startswith("("):
        return [type_text]
    depth, cuts = 0, [0]
    for i, char in enumerate(type_text):
        depth += (char in "([{") - (char in ")]}")
        if (char == "," and depth == 1) or depth == 0:
            cuts.append(i)
    return [type_text[a + 1 : b].strip() for a, b in pairwise(cuts)]


def _array_bytes(dtype: str, dims: str) -> int:
    elements = math.prod(int(n) for n in dims.replace("<=", "").split(",") if n)
    return -(-elements * dtype_bits(dtype) // 8)


def dtype_bits(dtype: str) -> int:
    """Bits of one element: 16 for bf16, 8 for pred and f8e4m3fn, 0 for tokens."""
    if dtype == "pred":
        return 8
    match = _BITS.match(dtype)
    return int(match[1]) if match else 0
