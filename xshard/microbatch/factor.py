"""Where the batch goes through one op, read off the op's rule.

A rule says along which factor an op works on independent slices. If the batch lies in that factor
(whole, or as its outer, middle or inner part), a turn's rows of the results need a turn's rows of
the operands and nothing else; if the factor is reduced, a turn's rows of the operands give a share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from xshard._jax import JaxprEqn, Literal, source_line
from xshard.ir.flatten import plain_params
from xshard.ir.graph import Graph, Op, Value
from xshard.microbatch.status import FULL, CoupledError, Partial, Rows, Status, may_be
from xshard.rules import Rule, rule_of
from xshard.rules.rule import Dim

_SCATTER = "scatter"
_SAME_FOR_ALL = ("broadcast_in_dim", "empty")
"""Primitives that make rows of nothing without looking at the rows' numbers."""
_COMBINED = ("sum", "max", "min", "prod", "and", "or", "xor")


@dataclass(frozen=True, slots=True)
class Use:
    """One way to run an op: how each operand is read, and what each result then is."""

    ins: tuple[Status, ...]
    outs: tuple[Status, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """The batch within a factor, whose size is `outer` × batch × `inner`."""

    factor: str
    outer: int
    inner: int


def rule_for(eqn: JaxprEqn) -> Rule:
    """The rule of an equation of the jaxpr."""
    variables = [v for v in eqn.invars if not isinstance(v, Literal)]
    ids = iter(range(len(variables)))
    ins = tuple(None if isinstance(v, Literal) else next(ids) for v in eqn.invars)
    outs = tuple(range(len(variables), len(variables) + len(eqn.outvars)))
    values = tuple(_value(i, v.aval) for i, v in enumerate([*variables, *eqn.outvars]))
    op = Op(0, eqn.primitive.name, ins, outs, plain_params(eqn))
    return rule_of(Graph(values, (op,), tuple(range(len(variables))), (), outs), op)


def _value(i: int, aval: object) -> Value:
    shape, dtype = getattr(aval, "shape", ()), str(getattr(aval, "dtype", "token"))
    return Value(i, tuple(shape), dtype, 1.0)


def forward(eqn: JaxprEqn, statuses: Sequence[Status], batch: int) -> Use:
    """The use of an op that reads some operand as rows.

    Raises:
      CoupledError: it is not independent of row to row.
    """
    rule = rule_for(eqn)
    places = {
        _place(eqn, dims, status, rule, batch)
        for dims, status in zip(rule.operands, statuses, strict=True)
        if isinstance(status, Rows)
    }
    if len(places) > 1:
        raise coupled(eqn, "combines each row of the batch with others")
    use = _with_base(eqn, _spread(eqn, rule, places.pop()))
    if not all(map(may_be, statuses, use.ins)):
        raise coupled(eqn, "combines rows of the batch with what depends on all of them")
    return use


def backward(eqn: JaxprEqn, result: int, rows: Rows, batch: int) -> Use | None:
    """The use that makes a turn's rows of a result of constants; None if only the whole has them.

    Ops that make what depends on the position (iota, random bits) are left to `emit`.
    """
    try:
        rule = rule_for(eqn)
        place = _place(eqn, rule.results[result], rows, rule, batch)
        use = _spread(eqn, rule, place)
    except CoupledError:
        return None
    if use.outs[result] != rows:
        return None
    same = eqn.primitive.name in _SAME_FOR_ALL or any(isinstance(s, Rows) for s in use.ins)
    return use if same else None


def coupled(eqn: JaxprEqn, what: str) -> CoupledError:
    """The error that names an equation."""
    source = source_line(eqn.source_info.traceback)
    return CoupledError(f"{eqn.primitive.name} {what}", source)


def _place(
    eqn: JaxprEqn, dims: tuple[Dim, ...] | None, rows: Rows, rule: Rule, batch: int
) -> Place:
    """The factor that the batch of an operand or result lies in."""
    if dims is None or rows.dim >= len(dims):
        raise coupled(eqn, _why_not(rule))
    before = 1
    dim = dims[rows.dim]
    for k, factor in enumerate(dim):
        size, rest = rule.sizes[factor], math.prod(rule.sizes[f] for f in dim[k + 1 :])
        if rows.outer % before == 0 and size % (rows.outer // before * batch) == 0:
            outer = rows.outer // before
            inner = size // (outer * batch)
            if inner * rest == rows.inner:
                if factor in rule.blocked:
                    raise coupled(eqn, "works along the batch")
                return Place(factor, outer, inner)
        before *= size
    raise coupled(eqn, "rearranges the batch")


def _why_not(rule: Rule) -> str:
    return "has no rule, so its rows may depend on each other" if not rule.known else (
        "reads a whole batch"
    )  # fmt: skip


def _spread(eqn: JaxprEqn, rule: Rule, place: Place) -> Use:
    """How every operand is read and what every result is if the batch lies there."""
    ins = tuple(_status(dims, rule, place) for dims in rule.operands)
    outs = tuple(_status(dims, rule, place) for dims in rule.results)
    if any(isinstance(status, Rows) for status in outs):
        if not all(isinstance(status, Rows) for status in outs):
            raise coupled(eqn, "gives results with and without the batch")
    elif place.factor in rule.reduced and rule.reduce in _COMBINED:
        outs = (Partial(rule.reduce),) * len(outs)
    else:
        raise coupled(eqn, "reads a whole batch")
    if _by_position(eqn, rule, place, ins):
        raise coupled(eqn, "picks rows of the batch by their number")
    return Use(ins, outs)


def _status(dims: tuple[Dim, ...] | None, rule: Rule, place: Place) -> Status:
    for i, dim in enumerate(dims or ()):
        if place.factor in dim:
            k = dim.index(place.factor)
            before = math.prod(rule.sizes[f] for f in dim[:k])
            after = math.prod(rule.sizes[f] for f in dim[k + 1 :])
            return Rows(i, before * place.outer, place.inner * after)
    return FULL


def _by_position(eqn: JaxprEqn, rule: Rule, place: Place, ins: tuple[Status, ...]) -> bool:
    """Whether the op finds its rows by index: a look-up in the batch, a write into it."""
    prim = eqn.primitive.name
    if prim == "gather":
        return place.factor in rule.reduced
    if prim.startswith(_SCATTER):
        return isinstance(ins[0], Rows) and not isinstance(ins[2], Rows)
    if prim == "dynamic_update_slice":
        return not isinstance(ins[1], Rows)
    if prim == "conv_general_dilated":
        groups = eqn.params["feature_group_count"] * eqn.params["batch_group_count"]
        return groups > 1 and place.factor == "g"
    return False


def _with_base(eqn: JaxprEqn, use: Use) -> Use:
    """A scatter's shares are combined with what it writes into: that must count once only."""
    if not eqn.primitive.name.startswith(_SCATTER) or not isinstance(use.outs[0], Partial):
        return use
    return Use((use.outs[0], *use.ins[1:]), use.outs)
