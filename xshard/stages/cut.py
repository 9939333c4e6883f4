"""A step in microbatches -> programs for the stages of a pipeline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax.numpy as jnp

from xshard._jax import ClosedJaxpr, Literal
from xshard.errors import PipelineError
from xshard.stages.assign import Body, assign, body_of
from xshard.stages.backward import weight_nodes
from xshard.stages.flat import Flat, Node, flatten
from xshard.stages.kinds import Kinds, free_values
from xshard.stages.once import place_once
from xshard.stages.programs import Slot, programs_of
from xshard.stages.recompute import recompute
from xshard.stages.rescan import rescan
from xshard.stages.slices import slices_of
from xshard.stages.spread import split_totals, spread
from xshard.stages.staged import Part, Piece, Staged
from xshard.stages.units import Unit, balanced, contents_of, units_of
from xshard.stages.unstack import stacks_of, unstack


@dataclass(frozen=True)
class Cuttable:
    """A step whose loop over microbatches can be cut into stages.

    Attributes:
      units: what a stage has whole numbers of, in the order of the forward pass.
    """

    flat: Flat
    kinds: Kinds
    body: Body
    units: tuple[Unit, ...]

    @cached_property
    def contents(self) -> tuple[Hashable, ...]:
        """Of each unit something that is equal for units of equal ops and equal neighbours."""
        return contents_of(self.body, self.kinds, self.units)

    @cached_property
    def stacks(self) -> frozenset[Node]:
        """The loop's scans over layers."""
        return frozenset(stacks_of(self.flat))

    def into(
        self, counts: Sequence[int], *, split_backward: bool = False, recomputed: Sequence[int] = ()
    ) -> Staged:
        """Stages of so many units each.

        Args:
          split_backward: what only totals wait for, the gradients of weights, is a part of its own.
          recomputed: of each stage, how many of its first units are run again in the backward pass.

        Raises:
          PipelineError: these are not all units, or a stage has none.
        """
        if sum(counts) != len(self.units) or min(counts, default=0) < 1:
            raise PipelineError(
                f"stages of {', '.join(map(str, counts))} layers were asked for, but the step has "
                f"{len(self.units)}; give each stage one or more of them"
            )
        first = [self.units[sum(counts[:s])] for s in range(1, len(counts))]
        cuts: dict[Node, list[int]] = {}
        for unit in first:
            if unit.layer:
                cuts.setdefault(self.body.forward[unit.start], []).append(unit.layer)
        chosen = list(_chosen(counts, recomputed))
        sliced = slices_of(self.flat, self.body.forward, [u.start for u in first])
        if not cuts and not sliced:
            alone = {n: [n] for n in self.body.forward}
            again = [self._made(k, alone) for k in chosen]
            scans = self._scans(counts, recomputed, alone)
            starts = [u.start for u in first]
            return _staged(self.flat, self.body, starts, split_backward, again, scans)
        bounds = {n: (0, *layers, n.eqn.params["length"]) for n, layers in cuts.items()}
        flat, stand_for = unstack(self.flat, bounds, sliced)
        body = body_of(flat, self.kinds, free_values(flat, self.kinds))
        starts = [self._begins(u, cuts, stand_for, body) for u in first]
        again = [self._made(k, stand_for) for k in chosen]
        scans = self._scans(counts, recomputed, stand_for)
        return _staged(flat, body, starts, split_backward, again, scans)

    def _made(self, k: int, stand_for: Mapping[Node, list[Node]]) -> frozenset[int]:
        """The values that the forward nodes of a unit make, scans over layers apart."""
        starts = [u.start for u in self.units] + [len(self.body.forward)]
        nodes = self.body.forward[starts[k] : starts[k + 1]]
        return frozenset(
            v for n in nodes if n not in self.stacks for m in stand_for[n] for v in m.outs
        )

    def _scans(
        self, counts: Sequence[int], recomputed: Sequence[int],
        stand_for: Mapping[Node, list[Node]],
    ) -> dict[int, int]:  # fmt: skip
        """By the first value of each stage's part of a scan, how many layers are run again."""
        stacks = self.stacks if any(recomputed) else frozenset[Node]()
        starts = [u.start for u in self.units] + [len(self.body.forward)]
        found: dict[int, int] = {}
        seen: Counter[Node] = Counter()
        first = 0
        for count, again in zip(counts, recomputed, strict=False):
            layers: Counter[Node] = Counter()
            for k in range(first, first + count):
                nodes = self.body.forward[starts[k] : max(starts[k + 1], starts[k] + 1)]
                layers.update({n: int(k < first + again) for n in nodes if n in stacks})
            for node, number in layers.items():
                scans = [n for n in stand_for[node] if n.eqn.primitive.name == "scan"]
                found[scans[seen[node]].outs[0]] = number
                seen[node] += 1
            first += count
        return {v: number for v, number in found.items() if number}

    def _begins(
        self, unit: Unit, cuts: Mapping[Node, list[int]], stand_for: Mapping[Node, list[Node]],
        body: Body,
    ) -> int:  # fmt: skip
        """The number of a unit's first node among those of the step with scans split."""
        place = {n: i for i, n in enumerate(body.forward)}
        node = self.body.forward[unit.start]
        if unit.layer:
            pieces = [n for n in stand_for[node] if n.eqn.primitive.name == "scan"]
            return place[pieces[1 + cuts[node].index(unit.layer)]]
        later = (n for old in self.body.forward[unit.start :] for n in stand_for[old])
        return next(place[n] for n in later if n in place)

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


def cuttable(jaxpr: ClosedJaxpr, microbatches: int, least: int = 1) -> Cuttable:
    """Finds the units of a step that is a loop over microbatches (`Divided.looped`).

    Args:
      least: units that are wanted; with less, cuts need not be cheap.

    Raises:
      PipelineError: the step has no loop over microbatches, or it carries more than sums.
    """
    flat, kinds = flatten(jaxpr, microbatches), Kinds()
    body = body_of(flat, kinds, free_values(flat, kinds))
    units = units_of(flat, kinds, body, fine=False)
    if len(units) < least:
        units = units_of(flat, kinds, body, fine=True)
    return Cuttable(flat, kinds, body, units)


def _chosen(counts: Sequence[int], recomputed: Sequence[int]) -> Iterator[int]:
    """The units that are run again."""
    for s, (number, again) in enumerate(zip(counts, recomputed, strict=False)):
        yield from range(sum(counts[:s]), sum(counts[:s]) + min(number, again))


def _staged(
    flat: Flat, body: Body, starts: Sequence[int], split_backward: bool,
    again: Sequence[frozenset[int]], scans: Mapping[int, int],
) -> Staged:  # fmt: skip
    flat, stages = spread(flat, assign(flat, body, starts))
    flat = split_totals(flat, stages)
    flat, stages = recompute(*rescan(flat, stages, scans), again, body.free)
    once = place_once(flat, stages, body.free)
    slots: dict[Node, Slot] = {n: (once.of[n], "before", once.wave[n]) for n in once.before}
    apart = weight_nodes(flat, stages) if split_backward else set[Node]()
    for node in flat.body:
        if node in stages.of:
            late: Part = "bwd_weight" if node in apart else "bwd"
            slots[node] = stages.of[node], late if node in stages.backward else "fwd", 0
    slots |= {n: (once.of[n], "after", once.wave[n]) for n in once.after}
    consts = dict(flat.consts)
    results = [_result(flat, consts, atom) for atom in flat.results]
    kept = {p.value for r in results for p in r}
    kept |= {t.share for t in flat.totals} | {s.row for s in flat.stacks}
    return Staged(
        programs_of(flat, slots, body.free, kept), stages.count, flat.microbatches,
        tuple(flat.avals), tuple(map(flat.pieces_of, flat.inputs)), tuple(results),
        once.homes, consts, flat.number, tuple(flat.totals), tuple(flat.stacks),
    ).verify()  # fmt: skip


def _result(flat: Flat, consts: dict[int, Any], atom: int | Literal) -> tuple[Piece, ...]:
    """The pieces of a result; a literal becomes a constant."""
    if not isinstance(atom, Literal):
        return flat.pieces_of(atom)
    number = flat.value(atom.aval)
    consts[number] = jnp.asarray(atom.val, atom.aval.dtype)  # type: ignore[attr-defined]
    return (Piece(number),)
