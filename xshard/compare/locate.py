"""The first equation where a sharded program parts from the unsharded one, inside bodies too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from xshard._jax import JaxprEqn, scan_counts, source_line
from xshard.compare.difference import Difference
from xshard.compare.section import Section
from xshard.ir.graph import Address
from xshard.run.rebind import REMAT

MOST_TURNS = 64
"""How many turns of a loop are looked at."""


@dataclass(frozen=True, slots=True)
class Parting:
    """An equation whose operands are equal and whose result is not.

    Attributes:
      primitive: its name.
      source: the user's line, "file.py:12 (function)".
      scope: the name stack at the equation, "layers_0/attn".
      kept: the spec that the plan keeps the result in; "" where the plan leaves it open.
      within: the control flow around it, outermost first: "turn 3 of the scan at file.py:9 (f)".
      result: the result that is apart first.
    """

    primitive: str
    source: str
    scope: str
    kept: str
    within: tuple[str, ...]
    result: Difference


@dataclass(frozen=True, slots=True)
class Turn:
    """A body as it runs once: its section, what it reads, and what to call it."""

    section: Section
    args: Sequence[Any]
    name: str


def locate(section: Section, args: Sequence[Any], within: tuple[str, ...] = ()) -> Parting | None:
    """Where a section parts; None if each value is right when all are returned."""
    wrong = section.first_wrong(args)
    if wrong is None:
        return None
    (at, r), result = wrong
    eqn, reads = section.reads(at, args)
    for turn in _turns(section, eqn, reads, at):
        inner = locate(turn.section, turn.args, (*within, f"{turn.name} {_where(eqn)}"))
        if inner is not None:
            return inner
    kept = section.sharded.results.get((at, r), ())
    return Parting(
        eqn.primitive.name, source_line(eqn.source_info.traceback),
        str(eqn.source_info.name_stack), str(kept[-1]) if kept else "", within, result,
    )  # fmt: skip


def _turns(section: Section, eqn: JaxprEqn, reads: list[Any], at: Address) -> Iterator[Turn]:
    """The bodies of an equation as they run, on the unsharded values."""
    name = eqn.primitive.name
    kind = _BODIES.get("remat" if name in REMAT else name)
    if kind is not None:
        yield from kind(section, eqn, reads, at)


def _remat(section: Section, eqn: JaxprEqn, reads: list[Any], at: Address) -> Iterator[Turn]:
    yield Turn(section.below(eqn.params["jaxpr"], (*at, 0)), reads, "checkpoint")


def _scan(section: Section, eqn: JaxprEqn, reads: list[Any], at: Address) -> Iterator[Turn]:
    n_consts, n_carry = scan_counts(eqn.params)
    body = section.below(eqn.params["jaxpr"], (*at, 0))
    consts, rest = reads[:n_consts], reads[n_consts:]
    carry, stacked = rest[:n_carry], rest[n_carry:]
    turns = range(eqn.params["length"])
    for i in list(turns[::-1] if eqn.params["reverse"] else turns)[:MOST_TURNS]:
        args = [*consts, *carry, *(x[i] for x in stacked)]
        yield Turn(body, args, f"turn {i} of the scan")
        carry = body.results(args)[:n_carry]


def _while(section: Section, eqn: JaxprEqn, reads: list[Any], at: Address) -> Iterator[Turn]:
    p = eqn.params
    n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
    test = section.below(p["cond_jaxpr"], (*at, 0))
    body = section.below(p["body_jaxpr"], (*at, 1))
    consts, carry = reads[n_cond : n_cond + n_body], reads[n_cond + n_body :]
    for i in range(MOST_TURNS):
        asked = [*reads[:n_cond], *carry]
        yield Turn(test, asked, f"test {i} of the while")
        if not jax.numpy.any(test.results(asked)[0]):
            return
        yield Turn(body, [*consts, *carry], f"turn {i} of the while")
        carry = body.results([*consts, *carry])


def _cond(section: Section, eqn: JaxprEqn, reads: list[Any], at: Address) -> Iterator[Turn]:
    branches = eqn.params["branches"]
    k = min(max(int(reads[0]), 0), len(branches) - 1)
    yield Turn(section.below(branches[k], (*at, k)), reads[1:], f"branch {k} of the cond")


def _where(eqn: JaxprEqn) -> str:
    line = source_line(eqn.source_info.traceback)
    return f"at {line}" if line else "(without a line)"


_BODIES = {"scan": _scan, "while": _while, "cond": _cond, "remat": _remat}
