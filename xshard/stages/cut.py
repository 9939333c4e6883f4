"""A step in microbatches -> programs for the stages of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from xshard._jax import ClosedJaxpr, Literal
from xshard.errors import PipelineError
from xshard.stages.assign import Body, assign, body_of
from xshard.stages.flat import Flat, Node, flatten
from xshard.stages.kinds import Kinds, free_values
from xshard.stages.once import place_once
from xshard.stages.programs import Slot, programs_of
from xshard.stages.spread import split_totals, spread
from xshard.stages.staged import Piece, Staged
from xshard.stages.units import Unit, balanced, units_of


@dataclass(frozen=True, slots=True)
class Cuttable:
    """A step whose loop over microbatches can be cut into stages.

    Attributes:
      units: what a stage has whole numbers of, in the order of the forward pass.
    """

    flat: Flat
    kinds: Kinds
    body: Body
    units: tuple[Unit, ...]

    def into(self, counts: Sequence[int]) -> Staged:
        """Stages of so many units each.

        Raises:
          PipelineError: these are not all units, or a stage has none.
        """
        if sum(counts) != len(self.units) or min(counts, default=0) < 1:
            raise PipelineError(
                f"stages of {', '.join(map(str, counts))} layers were asked for, but the step has "
                f"{len(self.units)}; give each stage one or more of them"
            )
        starts = [self.units[sum(counts[:s])].start for s in range(1, len(counts))]
        return _staged(self.flat, self.body, starts)

    def balanced(self, num_stages: int) -> tuple[int, ...]:
        """Units for each stage, so that the stages have about equal work.

        Raises:
          PipelineError: there are more stages than units.
        """
        if not 1 <= num_stages <= len(self.units):
            raise PipelineError(
                f"{num_stages} pipeline stages were asked for, but the step has {len(self.units)} "
                f"layers; use at most so many stages"
            )
        return balanced([u.work for u in self.units], num_stages)


def cuttable(jaxpr: ClosedJaxpr, microbatches: int) -> Cuttable:
    """Finds the units of a step that is a loop over microbatches (`Divided.looped`).

    Raises:
      PipelineError: the step has no loop over microbatches, or it carries more than sums.
    """
    flat, kinds = flatten(jaxpr, microbatches), Kinds()
    body = body_of(flat, kinds, free_values(flat, kinds))
    return Cuttable(flat, kinds, body, units_of(flat, kinds, body))


def _staged(flat: Flat, body: Body, starts: Sequence[int]) -> Staged:
    flat, stages = spread(flat, assign(flat, body, starts))
    flat = split_totals(flat, stages)
    once = place_once(flat, stages, body.free)
    slots: dict[Node, Slot] = {n: (once.of[n], "before", once.wave[n]) for n in once.before}
    for node in flat.body:
        if node in stages.of:
            part = "bwd" if node in stages.backward else "fwd"
            slots[node] = stages.of[node], part, 0
    slots |= {n: (once.of[n], "after", once.wave[n]) for n in once.after}
    consts = dict(flat.consts)
    results = [_result(flat, consts, atom) for atom in flat.results]
    kept = [*results, *(t.share for t in flat.totals), *(s.row for s in flat.stacks)]
    return Staged(
        programs_of(flat, slots, body.free, kept), stages.count, flat.microbatches,
        tuple(flat.avals),
        tuple((Piece(v),) for v in flat.inputs), tuple((Piece(v),) for v in results),
        once.homes, consts, flat.number, tuple(flat.totals), tuple(flat.stacks),
    ).verify()  # fmt: skip


def _result(flat: Flat, consts: dict[int, Any], atom: int | Literal) -> int:
    """The value of a result; a literal becomes a constant."""
    if not isinstance(atom, Literal):
        return atom
    number = flat.value(atom.aval)
    consts[number] = jnp.asarray(atom.val, atom.aval.dtype)  # type: ignore[attr-defined]
    return number
