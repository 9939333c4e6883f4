"""How much a step does, and whether dividing it is worth it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from xshard._jax import JaxprEqn, opened, sub_jaxprs
from xshard.errors import MicrobatchError
from xshard.microbatch.factor import rule_for
from xshard.microbatch.program import Program
from xshard.microbatch.status import Rows

SMALL = 0.02
"""Share of the loop's work that may be repeated in another loop, or left to the whole batch."""


@dataclass(slots=True)
class _Work:
    """Counts operations, or written elements where there are more; by jaxpr, once for each."""

    known: dict[int, tuple[Any, float]] = field(default_factory=dict)

    def of(self, eqn: JaxprEqn) -> float:
        """Of one equation, with its bodies."""
        bodies = list(sub_jaxprs(eqn))
        if bodies:
            return eqn.params.get("length", 1) * sum(map(self._inside, bodies))
        written = sum(getattr(v.aval, "size", 0) for v in eqn.outvars)
        return max(rule_for(eqn).flops, float(written))

    def _inside(self, jaxpr: Any) -> float:
        if id(jaxpr) not in self.known:
            total = sum(map(self.of, opened(jaxpr).eqns))
            self.known[id(jaxpr)] = jaxpr, total
        return self.known[id(jaxpr)][1]

    def total(self, eqns: Iterable[JaxprEqn]) -> float:
        """Of several."""
        return sum(map(self.of, eqns))


def check(program: Program) -> Program:
    """Returns the program if its last loop does nearly all of the batch's work, and that once.

    Raises:
      MicrobatchError: names the op that needs the whole batch.
    """
    if not program.loops:
        raise MicrobatchError(
            "the step cannot be split into microbatches: nothing in it is a sum over the batch or "
            f"has one row for each of its rows{_first_reason(program, program.reasons)}"
        )
    work = _Work()
    *first, last = [work.total(s.node.eqn for s in loop.needs.steps if s.node is not None)
                    for loop in program.loops]  # fmt: skip
    if sum(first) > SMALL * last:
        targets = [t for loop in program.loops[:-1] for t in loop.targets]
        raise MicrobatchError(_not_a_sum(program, targets))
    collected = [t for t in program.reasons if isinstance(program.region.status[t], Rows)]
    whole = work.total(_behind_rows(program, collected))
    if whole > SMALL * last:
        raise MicrobatchError(_not_a_sum(program, collected))
    return program


def _behind_rows(program: Program, collected: Iterable[int]) -> list[JaxprEqn]:
    """What runs once and depends on rows that were put together, not only on sums."""
    tainted, found = set(collected), list[JaxprEqn]()
    for node in (node for stage in program.once for node in stage):
        if not tainted.isdisjoint(a for a in node.ins if isinstance(a, int)):
            tainted.update(node.outs)
            found.append(node.eqn)
    return found


def _not_a_sum(program: Program, targets: Iterable[int]) -> str:
    return (
        "the step cannot be split into microbatches: it is no sum over the batch"
        + _first_reason(program, targets)
        + "; use microbatches=1, or change the step so that rows are independent up to a sum"
    )


def _first_reason(program: Program, targets: Iterable[int]) -> str:
    """What the first of these values had to be complete for."""
    for target in sorted(targets):
        if target in program.reasons:
            what, source = program.reasons[target]
            return f": {what} at {source}" if source else f": {what}"
    return ""
