"""What a measurement is of: a `Signature`, equal for programs that the device runs alike.

It has a kind, a family (all that does not change with sizes, as text) and local sizes:

    kind                   family                                   sizes
    dot_general            "a b, b c -> a c float32 float32 float32" of the factors a, b, c
    conv_general_dilated   rule, parameters and dtypes as JSON      of both operands' dimensions
    loop                   "reduce float32": what is fused, dtype   bytes moved, or elements
    all-reduce ...         "4 within a host"                        bytes, as in `CollectiveModel`

A matmul's factors that stand side by side wherever they stand are one: memory holds them as one,
so `"b s d, d h e -> b s h e"` runs as `"a b, b c -> a c"`, and is measured as that.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from xshard.cost.collectives import Group
from xshard.ir.graph import Op, Value
from xshard.rules.rule import Rule
from xshard.spec import MeshShape, local_shape
from xshard.strategies import Strategy

DOT, CONV, LOOP = "dot_general", "conv_general_dilated", "loop"
BY_ELEMENT = ("random", "transcendental")
"""Kinds of loops that arithmetic bounds: their size is in elements, that of others in bytes."""
_SAME_TRAFFIC = {"int32": "float32", "uint32": "float32", "view": "elementwise"}
"""What moves the same bytes in the same way is measured once."""
_CONV_PARAMS = (
    "window_strides", "padding", "lhs_dilation", "rhs_dilation", "feature_group_count",
    "batch_group_count",
)  # fmt: skip

Einsum = tuple[tuple[str, ...], ...]
"""The factors of the left operand, of the right one and of the result."""


@dataclass(frozen=True, slots=True, order=True)
class Signature:
    """See the module's docstring."""

    kind: str
    family: str
    sizes: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.kind} {self.family} [{'×'.join(map(str, self.sizes))}]"


def of_op(
    op: Op, rule: Rule, strategy: Strategy, mesh: MeshShape,
    ins: list[Value | None], outs: list[Value],
) -> Signature | None:  # fmt: skip
    """The signature of a matmul or convolution on one device; None for any other op."""
    operands = [v for v in ins if v is not None]
    if len(operands) != 2 or len(ins) != 2 or op.prim not in (DOT, CONV):
        return None
    precision = precision_text(op.params.get("precision"))
    if precision is None:
        return None
    dtypes = " ".join([*(v.dtype for v in (*operands, *outs[:1])), *precision.split()])
    if op.prim == DOT:
        return of_dot(rule, local_sizes(rule, strategy, mesh), dtypes)
    return _of_conv(op, rule, strategy, mesh, operands, dtypes)


def precision_text(precision: Any) -> str | None:
    """ "" for the default, a name such as "HIGHEST", or None for what has no one name."""
    both = precision if isinstance(precision, tuple) else (precision, precision)
    names = {"" if p is None else str(getattr(p, "name", "?")) for p in both}
    name = names.pop() if len(names) == 1 else "?"
    known = {"": "", "DEFAULT": "", "HIGH": "HIGH", "HIGHEST": "HIGHEST"}
    return known.get(name)


def local_sizes(rule: Rule, strategy: Strategy, mesh: MeshShape) -> dict[str, int]:
    """The sizes of the factors on one device."""
    sizes = dict(rule.sizes)
    for axis, factor in enumerate(strategy.factors):
        if factor is not None:
            sizes[factor] //= mesh.sizes[axis]
    return sizes


def of_dot(rule: Rule, sizes: dict[str, int], dtypes: str) -> Signature | None:
    """A matmul's signature; `sizes` are the factors' local ones."""
    groups = [*rule.operands, *rule.results]
    if len(groups) != 3 or any(g is None for g in groups):
        return None
    merged = _merge([[f for dim in g or () for f in dim] for g in groups])
    order = list(dict.fromkeys(run for group in merged for run in group))
    letters = {run: chr(ord("a") + i) for i, run in enumerate(order)}
    left, right, out = (" ".join(letters[run] for run in group) for group in merged)
    local = tuple(math.prod(sizes[f] for f in run) for run in order)
    return Signature(DOT, f"{left}, {right} -> {out} {dtypes}", local)


def _merge(groups: list[list[str]]) -> list[list[tuple[str, ...]]]:
    """The groups with factors joined that are neighbours, in that order, wherever they stand."""
    after: dict[str, set[str]] = {}
    before: dict[str, set[str]] = {}
    for group in groups:
        for a, b in zip(["", *group], [*group, ""], strict=True):
            after.setdefault(a, set()).add(b)
            before.setdefault(b, set()).add(a)
    merged: list[list[tuple[str, ...]]] = []
    for group in groups:
        runs: list[tuple[str, ...]] = []
        for f in group:
            previous = runs[-1][-1] if runs else ""
            if previous and after[previous] == {f} and before[f] == {previous}:
                runs[-1] += (f,)
            else:
                runs.append((f,))
        merged.append(runs)
    return merged


def einsum_of(family: str) -> tuple[Einsum, list[str]]:
    """The factors and the words (dtypes, precision) of a matmul's family."""
    text, _, right = family.partition(" -> ")
    left, _, middle = text.partition(", ")
    words = right.split()
    out = tuple(w for w in words if len(w) == 1)
    return (tuple(left.split()), tuple(middle.split()), out), words[len(out) :]


def _of_conv(
    op: Op, rule: Rule, strategy: Strategy, mesh: MeshShape, ins: list[Value], dtypes: str
) -> Signature | None:
    """A convolution's; groups that are split would need other parameters, so they have none."""
    groups = op.params["feature_group_count"] * op.params["batch_group_count"]
    if groups > 1 and any(f == "g" for f in strategy.factors):
        return None
    params: dict[str, Any] = {name: op.params[name] for name in _CONV_PARAMS}
    numbers = op.params["dimension_numbers"]
    params["specs"] = [numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec]
    params |= {"rule": rule.text(), "dtypes": dtypes}
    shapes = [
        local_shape(v.shape, spec, mesh)
        for v, spec in zip(ins, strategy.operands, strict=True)
    ]  # fmt: skip
    return Signature(CONV, json.dumps(params, sort_keys=True), (*shapes[0], *shapes[1]))


def loop(kind: str, dtype: str, size: float) -> Signature:
    """Of a memory-bound op or of one that arithmetic bounds, as XLA runs it: one fused loop."""
    kind, dtype = _SAME_TRAFFIC.get(kind, kind), _SAME_TRAFFIC.get(dtype, dtype)
    return Signature(LOOP, f"{kind} {dtype}", (round(size),))


def collective(kind: str, group: Group, nbytes: float) -> Signature:
    """Of a collective in groups that lie so on the hosts."""
    if group.hosts == 1:
        return Signature(kind, f"{group.size} within a host", (round(nbytes),))
    place = f"{group.size} over {group.hosts} hosts, {group.sharing} sharing a link"
    return Signature(kind, place, (round(nbytes),))
