"""Runs the steps of a divided program, so that tracing it again gives the program with a loop."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from xshard._jax import Literal, equation_context, free_of_mesh, retraced_at, scan_counts
from xshard.ir.flatten import CALLS, pins
from xshard.microbatch.accumulate import Accumulator
from xshard.microbatch.factor import Use
from xshard.microbatch.lanes import before, behind, each_lane, has_lanes, spread
from xshard.microbatch.positions import made_by_position, rows_of
from xshard.microbatch.program import Loop, Program
from xshard.microbatch.region import Atom, Node, Region, Step, Version
from xshard.microbatch.resize import a_turns, cut, local_shape, merge, resized
from xshard.microbatch.status import FULL, Const, Partial, Rows, Status, version
from xshard.microbatch.transfer import Body
from xshard.run.rebind import REMAT, without_shardings

Values = dict[Version, Any]


@dataclass(frozen=True, slots=True)
class Turns:
    """How the batch is divided: `count` turns of a loop over `batch` rows.

    Attributes:
      lanes: blocks of a turn's rows whose sums are kept apart; see `lanes.py`.
    """

    batch: int
    count: int
    lanes: int = 1
    calls: dict[int, tuple[Body, Callable[..., Any]]] = field(default_factory=dict)


def run(program: Program, count: int, args: Sequence[Any], lanes: int = 1) -> list[Any]:
    """The step's results for these arguments, with `count` microbatches."""
    region, turns = program.region, Turns(program.batch, count, lanes)
    values: Values = {(n, FULL): x for n, x in zip(region.ins, args, strict=True)}
    values |= {(n, FULL): x for n, x in region.consts.items()}
    with free_of_mesh():
        for stage, nodes in enumerate(program.once):
            for node in nodes:
                _store(values, node, node.use, _whole(region, values, node))
            if stage < len(program.loops):
                _loop(program, program.loops[stage], turns, values)
        return [_literal_or(values, atom, FULL) for atom in region.outs]


def _whole(region: Region, values: Values, node: Node) -> list[Any]:
    ins = [_literal_or(values, atom, FULL) for atom in node.ins]
    where, settings = equation_context(node.eqn)
    with where, settings:
        return _bind(node, ins, node.eqn.params)


def _loop(program: Program, loop: Loop, turns: Turns, values: Values) -> None:
    """One loop over the microbatches; adds its targets, complete, to `values`."""
    region, m = program.region, turns.count
    cuts = [(n, s) for n, s in loop.needs.given if isinstance(s, Rows)]
    numbers = jnp.arange(turns.batch, dtype=jnp.int32).reshape(-1, m).T
    sums = [t for t in loop.targets if not isinstance(region.status[t], Rows)]
    rows = [t for t in loop.targets if isinstance(region.status[t], Rows)]
    makers = {t: region.nodes[region.maker[t]].eqn for t in loop.targets}
    totals = [_total(region.avals[t], region.status[t], turns) for t in sums]
    outside = {v: values[v] for v in loop.needs.given if v[1] == FULL}

    def turn(carry: list[Any], at: Any) -> tuple[list[Any], list[Any]]:
        parts = {(n, s): cut(values[n, FULL], s, turns.batch, m, at[0]) for n, s in cuts}
        inside = {**outside, **parts}
        run_steps(region, loop.needs.steps, inside, at, turns)
        new = list[Any]()
        for t, total, old in zip(sums, totals, carry, strict=True):
            where, settings = equation_context(makers[t])
            with where, settings:
                new.append(total.add(old, inside[t, version(region.status[t])]))
        return new, [inside[t, region.status[t]] for t in rows]

    start = [total.start() for total in totals]
    ends, stacks = jax.lax.scan(turn, start, numbers, length=m)
    for t, total, end in zip(sums, totals, ends, strict=True):
        where, settings = equation_context(makers[t])
        with where, settings:
            values[t, FULL] = total.end(end)
    for t, stack in zip(rows, stacks, strict=True):
        values[t, FULL] = merge(stack, region.status[t], turns.batch)  # type: ignore[arg-type]


def _total(aval: Any, status: Status, turns: Turns) -> Accumulator:
    if isinstance(status, Partial):
        return Accumulator(aval, status.how, turns.lanes)
    return Accumulator(aval, "last")


def run_steps(
    region: Region, steps: Sequence[Step], values: Values, numbers: Any, turns: Turns
) -> None:
    """Runs steps on the rows `numbers`; adds what they make to `values`."""
    for step in steps:
        if step.cut is not None:
            number, rows = step.cut
            assert isinstance(rows, Rows)
            whole = values[number, FULL]
            values[step.cut] = cut(whole, rows, turns.batch, turns.count, numbers[0])
        elif step.node is not None and step.use is not None:
            outs = _step(region, step.node, step.use, values, numbers, turns)
            _store(values, step.node, step.use, outs)


def _step(
    region: Region, node: Node, use: Use, values: Values, numbers: Any, turns: Turns
) -> list[Any]:
    eqn = node.eqn
    where, settings = equation_context(eqn)
    with where, settings:
        pairs = zip(node.ins, use.ins, strict=True)
        ins = [_read(region, values, a, s, turns) for a, s in pairs]
        if node.bodies and use == node.use:
            return list(_BODIES[eqn.primitive.name](node, ins, numbers, turns))
        if isinstance(use.outs[0], Rows) and made_by_position(eqn, use.outs[0]):
            return [rows_of(eqn, ins, use.outs[0], numbers, turns.batch)]
        outs = _run(node, ins, use, turns)
    for var, out, status in zip(eqn.outvars, outs, use.outs, strict=True):
        aval: Any = var.aval
        apart = (turns.lanes,) * (isinstance(status, Partial) and turns.lanes > 1)
        expected = (*apart, *local_shape(aval.shape, status, turns.count))
        assert jnp.shape(out) == expected, f"{eqn.primitive}: {jnp.shape(out)}, not {expected}"
    return outs


def _run(node: Node, ins: Sequence[Any], use: Use, turns: Turns) -> list[Any]:
    """An op without bodies on a turn's rows, or on those of each lane."""
    if turns.lanes == 1 or not has_lanes(use):
        return _bind(node, ins, resized(node.eqn, use, a_turns(turns.count)))
    params = resized(node.eqn, use, a_turns(turns.count * turns.lanes))
    return each_lane(lambda *xs: _bind(node, xs, params), ins, use, turns.lanes)


def _read(region: Region, values: Values, atom: Atom, status: Status, turns: Turns) -> Any:
    """A value as it is read there; a constant may stand for a share."""
    if not isinstance(status, Partial) or not isinstance(region.status_of(atom), Const):
        return _literal_or(values, atom, status)
    constant = _literal_or(values, atom, FULL)
    return spread(constant, turns.lanes) if turns.lanes > 1 else constant


def _literal_or(values: Values, atom: Atom, status: Status) -> Any:
    return atom.val if isinstance(atom, Literal) else values[atom, status]


def _store(values: Values, node: Node, use: Use, outs: Sequence[Any]) -> None:
    values.update(zip(zip(node.outs, use.outs, strict=True), outs, strict=True))


def _bind(node: Node, ins: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    primitive = node.eqn.primitive
    outs = primitive.bind(*ins, **primitive.get_bind_params(without_shardings(params)))
    return list(outs) if primitive.multiple_results else [outs]


def run_body(body: Body, args: Sequence[Any], numbers: Any, turns: Turns) -> list[Any]:
    """A body's results, as it wants them."""
    region = body.region
    values: Values = {
        (n, version(s)): x for n, s, x in zip(region.ins, body.ins, args, strict=True)
    }
    values |= {(n, FULL): x for n, x in region.consts.items()}
    for number, status in body.needs.given:
        if (number, status) not in values:
            assert isinstance(status, Rows)
            whole = values[number, FULL]
            values[number, status] = cut(whole, status, turns.batch, turns.count, numbers[0])
    run_steps(region, body.needs.steps, values, numbers, turns)
    pairs = zip(region.outs, body.outs, strict=True)
    return [_read(region, values, a, version(s), turns) for a, s in pairs]


def _call(node: Node, ins: Sequence[Any], numbers: Any, turns: Turns) -> Sequence[Any]:
    """A call; one of a `jit` stays one, so that what is called often is traced once."""
    eqn, body = node.eqn, node.bodies[0]
    if eqn.primitive.name not in ("jit", "pjit"):
        return run_body(body, ins, numbers, turns)
    pinned_in, pinned_out = pins(eqn)

    def f(numbers: Any, *args: Any) -> list[Any]:
        given = [_pinned(x, s, pinned_in.get(k), turns)
                 for k, (x, s) in enumerate(zip(args, body.ins, strict=True))]  # fmt: skip
        outs = zip(run_body(body, given, numbers, turns), body.outs, strict=True)
        return [_pinned(x, s, pinned_out.get(k), turns) for k, (x, s) in enumerate(outs)]

    if id(body) not in turns.calls or pinned_in or pinned_out:
        f.__name__ = eqn.params["name"]
        turns.calls[id(body)] = body, jax.jit(f)
    return turns.calls[id(body)][1](numbers, *ins)


def _pinned(x: Any, status: Status, sharding: Any, turns: Turns) -> Any:
    if sharding is None:
        return x
    put = functools.partial(jax.lax.with_sharding_constraint, shardings=sharding)
    return jax.vmap(put)(x) if turns.lanes > 1 and isinstance(status, Partial) else put(x)


def _scan(node: Node, ins: Sequence[Any], numbers: Any, turns: Turns) -> Sequence[Any]:
    p, body = node.eqn.params, node.bodies[0]
    consts, carries = scan_counts(p)
    last = consts + carries
    xs, ys = list(ins[last:]), body.outs[carries:]
    if turns.lanes > 1:
        xs = [behind(x, s) for x, s in zip(xs, body.ins[last:], strict=True)]

    def f(carry: list[Any], xs: list[Any]) -> tuple[list[Any], list[Any]]:
        outs = run_body(body, [*ins[:consts], *carry, *xs], numbers, turns)
        return outs[:carries], outs[carries:]

    carry, stacks = jax.lax.scan(
        f, list(ins[consts:last]), xs, p["length"], p["reverse"], p["unroll"]
    )
    if turns.lanes > 1:
        stacks = [before(x, s) for x, s in zip(stacks, ys, strict=True)]
    return [*carry, *stacks]


def _while(node: Node, ins: Sequence[Any], numbers: Any, turns: Turns) -> Sequence[Any]:
    p, (test, body) = node.eqn.params, node.bodies
    first, second = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]
    return jax.lax.while_loop(
        lambda carry: run_body(test, [*ins[:first], *carry], numbers, turns)[0],
        lambda carry: run_body(body, [*ins[first:second], *carry], numbers, turns),
        list(ins[second:]),
    )


def _cond(node: Node, ins: Sequence[Any], numbers: Any, turns: Turns) -> Sequence[Any]:
    branches = [
        functools.partial(lambda body, *args: run_body(body, args, numbers, turns), body)
        for body in node.bodies
    ]
    return jax.lax.switch(ins[0], branches, *ins[1:])


def _remat(node: Node, ins: Sequence[Any], numbers: Any, turns: Turns) -> Sequence[Any]:
    eqn, body = node.eqn, node.bodies[0]
    jaxpr, consts = retraced_at(
        lambda numbers, *args: run_body(body, args, numbers, turns),
        eqn.params["jaxpr"], [jax.typeof(x) for x in (numbers, *ins)],
    )  # fmt: skip
    params = dict(eqn.params, jaxpr=jaxpr)
    if isinstance(params["prevent_cse"], tuple):
        params["prevent_cse"] = (True,) * (len(consts) + 1) + params["prevent_cse"]
    return eqn.primitive.bind(*consts, numbers, *ins, **params)


_BODIES: dict[str, Callable[[Node, Sequence[Any], Any, Turns], Sequence[Any]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    **dict.fromkeys(CALLS, _call),
    **dict.fromkeys(REMAT, _remat),
}
"""How an op with bodies is made again; by primitive."""
