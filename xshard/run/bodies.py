"""scan, while, cond and checkpoint with annotated bodies: the same primitive, another jaxpr.

A body in which nothing is told and where the user constrains nothing is bound as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from xshard._jax import JaxprEqn, opened, retraced_at, scan_counts
from xshard.ir.graph import Address
from xshard.run.rebind import REMAT, must_be_rebound, rebind

if TYPE_CHECKING:
    from xshard.run.annotate import Frame


def _remat(frame: Frame, eqn: JaxprEqn, ins: list[Any], at: Address) -> Sequence[Any]:
    body = eqn.params["jaxpr"]
    if not _changes(frame, body, (*at, 0)):
        return eqn.primitive.bind(*ins, **eqn.params)
    avals = [frame.numbers.aval(var.aval) for var in opened(body).invars]
    new, consts = retraced_at(
        lambda *args: frame.body().evaluate(body, args, (*at, 0)), body, avals
    )
    params = dict(eqn.params, jaxpr=new)
    if isinstance(params["prevent_cse"], tuple):
        params["prevent_cse"] = (True,) * len(consts) + params["prevent_cse"]
    return eqn.primitive.bind(*consts, *ins, **params)


def _scan(frame: Frame, eqn: JaxprEqn, ins: list[Any], at: Address) -> Sequence[Any]:
    n_consts, n_carry = scan_counts(eqn.params)
    carries = range(n_consts, n_consts + n_carry)
    ins = _feed(frame, ins, (*at, 0), carries)
    body = _loop_body(frame, eqn.params["jaxpr"], at, 0, carries)
    outs = eqn.primitive.bind(*ins, **dict(eqn.params, jaxpr=body))
    return _outs(frame, at, _carried(frame, outs, at, 0, carries))


def _while(frame: Frame, eqn: JaxprEqn, ins: list[Any], at: Address) -> Sequence[Any]:
    p = eqn.params
    n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
    carries = range(n_body, len(ins) - n_cond)
    ins = [
        *_feed(frame, ins[:n_cond], (*at, 0), range(0)),
        *_feed(frame, ins[n_cond:], (*at, 1), carries),
    ]
    params = dict(
        p,
        cond_jaxpr=_condition(frame, p["cond_jaxpr"], at, n_cond, n_body),
        body_jaxpr=_loop_body(frame, p["body_jaxpr"], at, 1, carries),
    )
    outs = eqn.primitive.bind(*ins, **params)
    return _outs(frame, at, _carried(frame, outs, at, 1, carries))


def _cond(frame: Frame, eqn: JaxprEqn, ins: list[Any], at: Address) -> Sequence[Any]:
    branches = tuple(
        _branch(frame, branch, at, sub) for sub, branch in enumerate(eqn.params["branches"])
    )
    index = frame.operand((at, 0), ins[0], ins)
    outs = eqn.primitive.bind(index, *ins[1:], **dict(eqn.params, branches=branches))
    return _outs(frame, at, outs)


def _barrier(frame: Frame, eqn: JaxprEqn, ins: list[Any], at: Address) -> Sequence[Any]:
    fed = [frame.operand(((*at, ~k), 0), x, ins) for k, x in enumerate(ins)]
    return _outs(frame, at, eqn.primitive.bind(*fed, **eqn.params))


def _feed(frame: Frame, ins: list[Any], at: Address, carries: range) -> list[Any]:
    """What goes into a body, outside of it."""
    fed = [frame.operand(((*at, ~k), 0), x, ins) for k, x in enumerate(ins)]
    return [frame.result(((*at, ~k), 0), x) if k in carries else x for k, x in enumerate(fed)]


def _loop_body(frame: Frame, body: Any, at: Address, sub: int, carries: range) -> Any:
    def run(*args: Any) -> list[Any]:
        inner = frame.body()
        outs = inner.evaluate(body, entered(inner, args, (*at, sub)), (*at, sub))
        for r, k in enumerate(carries):
            port = (*at, sub, ~k)
            outs[r] = inner.result((port, 0), inner.operand((port, 1), outs[r], outs))
        carried, stacked = outs[: len(carries)], outs[len(carries) :]
        return [*carried, *_left(inner, stacked, at, 0, len(carries))]

    return frame.retraced(run, body) if _changes(frame, body, (*at, sub), at) else body


def _carried(frame: Frame, outs: Sequence[Any], at: Address, sub: int, carries: range) -> list[Any]:
    """What a loop ends with: what it carried as it was carried, then as what reads it wants it.

    Were this asked for within the body alone, XLA would let the loop carry what is wanted behind
    it, and move it to and fro in each turn.
    """
    ends = list(outs)
    for r, k in enumerate(carries):
        carried = frame.result(((*at, sub, ~k), 0), ends[r])
        ends[r] = frame.operand(((*at, ~r), 0), carried, outs)
    return ends


def _condition(frame: Frame, cond: Any, at: Address, n_cond: int, n_body: int) -> Any:
    """A while's condition: its carry's ports are those of the body."""

    def run(*args: Any) -> list[Any]:
        inner = frame.body()
        consts = entered(inner, args[:n_cond], (*at, 0))
        carry = [inner.result(((*at, 1, ~(n_body + k)), 0), x) for k, x in enumerate(args[n_cond:])]
        return inner.evaluate(cond, [*consts, *carry], (*at, 0))

    return frame.retraced(run, cond) if _changes(frame, cond, (*at, 0), (*at, 1)) else cond


def _branch(frame: Frame, branch: Any, at: Address, sub: int) -> Any:
    def run(*args: Any) -> list[Any]:
        inner = frame.body()
        fed = [inner.operand(((*at, sub, ~k), 0), x, args) for k, x in enumerate(args)]
        outs = inner.evaluate(branch, entered(inner, fed, (*at, sub)), (*at, sub))
        return _left(inner, outs, at, sub)

    return frame.retraced(run, branch) if _changes(frame, branch, (*at, sub), at) else branch


def entered(inner: Frame, args: Sequence[Any], at: Address) -> list[Any]:
    """The inputs of a body, inside of it."""
    return [inner.result(((*at, ~k), 0), x) for k, x in enumerate(args)]


def _left(inner: Frame, outs: list[Any], at: Address, branch: int, start: int = 0) -> list[Any]:
    return [inner.operand(((*at, ~k), branch), x, outs) for k, x in enumerate(outs, start)]


def _outs(frame: Frame, at: Address, outs: Sequence[Any]) -> list[Any]:
    return [frame.result(((*at, ~k), 0), x) for k, x in enumerate(outs)]


def _changes(frame: Frame, body: Any, *addresses: Address) -> bool:
    return (
        not frame.touched.isdisjoint(addresses)
        or frame.numbers.bind is not rebind
        or must_be_rebound(body)
    )


BODIES: dict[str, Callable[[Frame, JaxprEqn, list[Any], Address], Sequence[Any]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "optimization_barrier": _barrier,
    **dict.fromkeys(REMAT, _remat),
}
"""Handlers by primitive name."""
