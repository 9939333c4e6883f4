"""scan, while and cond as port ops around their bodies; barriers as ports.

A port's address tells the variable that it makes; `~k` is `-1 - k`:

  (*equation, sub, ~k)   the k-th input of the equation's sub-jaxpr `sub` (a body-side variable)
  (*equation, ~k)        the k-th result of the equation

Each port has one result, so `(op.address, 0)` is the key of that value, as `(op.address, r)` is
for every other op. Sub-jaxprs: a scan's body is 0; a while's condition is 0 and its body 1 (both
read one carry, whose address is the body's); a cond's branches are 0, 1, ...

An optimization_barrier is a port for each of its results, which need not be split alike.

A while and a cond also leave a "predicate" op (one operand, no result, the equation's own
address): the scalar that decides what runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from xshard._jax import JaxprEqn, opened, scan_counts
from xshard.ir.flatten import Frame, GraphBuilder
from xshard.ir.graph import Address

Ids = list[int | None]


def _scan(b: GraphBuilder, eqn: JaxprEqn, ins: Ids, frame: Frame, at: Address) -> Ids:
    consts, carries = scan_counts(eqn.params)
    body = eqn.params["jaxpr"]
    kinds = ["scan_const"] * consts + ["carry_in"] * carries
    kinds += ["scan_x"] * (len(ins) - len(kinds))
    inner = b.below(eqn, frame, at, 0, repeat=eqn.params["length"])
    ports = _in_ports(b, eqn, kinds, ins, opened(body).invars, frame, inner)
    outs = b.inline(body, ports, inner)
    _close_loop(b, ports[consts : consts + carries], outs)
    ends = ["carry_out"] * carries + ["scan_y"] * (len(outs) - carries)
    return _out_ports(b, eqn, ends, [[v] for v in outs], frame, at, ())


def _while(b: GraphBuilder, eqn: JaxprEqn, ins: Ids, frame: Frame, at: Address) -> Ids:
    p = eqn.params
    n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
    cond, body = b.below(eqn, frame, at, 0), b.below(eqn, frame, at, 1)
    carried = len(ins) - n_cond - n_body
    cond_vars, body_vars = opened(p["cond_jaxpr"]).invars, opened(p["body_jaxpr"]).invars
    cond_consts = _in_ports(b, eqn, ["scan_const"] * n_cond, ins[:n_cond], cond_vars, frame, cond)
    kinds = ["scan_const"] * n_body + ["carry_in"] * carried
    ports = _in_ports(b, eqn, kinds, ins[n_cond:], body_vars, frame, body)
    test = b.inline(p["cond_jaxpr"], cond_consts + ports[n_body:], cond)
    needs = _predicate(b, eqn, test, frame, at)
    outs = b.inline(p["body_jaxpr"], ports, b.below(eqn, frame, at, 1, needs=needs))
    _close_loop(b, ports[n_body:], outs)
    return _out_ports(b, eqn, ["carry_out"] * carried, [[v] for v in outs], frame, at, needs)


def _cond(b: GraphBuilder, eqn: JaxprEqn, ins: Ids, frame: Frame, at: Address) -> Ids:
    needs = _predicate(b, eqn, ins[:1], frame, at)
    results: list[Ids] = []
    for sub, branch in enumerate(eqn.params["branches"]):
        inner = b.below(eqn, frame, at, sub, needs=needs)
        kinds = ["branch_in"] * (len(ins) - 1)
        ports = _in_ports(b, eqn, kinds, ins[1:], opened(branch).invars, frame, inner)
        results.append(b.inline(branch, ports, inner))
    merged = [list(outs) for outs in zip(*results, strict=True)]
    return _out_ports(b, eqn, ["branch_out"] * len(merged), merged, frame, at, needs)


def _barrier(b: GraphBuilder, eqn: JaxprEqn, ins: Ids, frame: Frame, at: Address) -> Ids:
    kinds = ["optimization_barrier"] * len(ins)
    return _out_ports(b, eqn, kinds, [[v] for v in ins], frame, at, ())


def _in_ports(
    b: GraphBuilder, eqn: JaxprEqn, kinds: list[str], ins: Ids, variables: list[Any],
    outer: Frame, inner: Frame,
) -> Ids:  # fmt: skip
    """One port for each input of a body; a carry's back edge is filled in by `_close_loop`."""
    frame = dataclasses.replace(outer, repeat=inner.repeat)
    ports: Ids = []
    for k, (kind, v) in enumerate(zip(kinds, ins, strict=True)):
        ports += b.emit(kind, eqn, [v], [variables[k]], frame, (*inner.address, ~k), {})
    return ports


def _out_ports(
    b: GraphBuilder, eqn: JaxprEqn, kinds: list[str], ins: list[Ids], frame: Frame, at: Address,
    needs: tuple[int, ...],
) -> Ids:  # fmt: skip
    outs: Ids = []
    for k, (kind, values) in enumerate(zip(kinds, ins, strict=True)):
        outs += b.emit(kind, eqn, values, [eqn.outvars[k]], frame, (*at, ~k), {}, needs)
    return outs


def _predicate(
    b: GraphBuilder, eqn: JaxprEqn, test: Ids, frame: Frame, at: Address
) -> tuple[int, ...]:
    b.emit("predicate", eqn, test, [], frame, at, {})
    return (len(b.ops) - 1,)


def _close_loop(b: GraphBuilder, carries: Ids, outs: Ids) -> None:
    """Gives each carry_in its second operand: what the body makes of it."""
    for port, out in zip(carries, outs, strict=False):
        assert port is not None
        i = b.made_by[port]
        b.ops[i] = b.ops[i]._replace(inputs=(*b.ops[i].inputs, out))


CONTROL_FLOW: dict[str, Callable[..., Ids]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "optimization_barrier": _barrier,
}
"""Handlers by primitive name."""
