"""What the user fixed of a step's arguments and results, as pins on the values of its stages."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xshard.asked import asked_pins
from xshard.errors import PinError
from xshard.ir.trace import Traced
from xshard.pins import Pin
from xshard.run.call import Call
from xshard.spec import MeshShape
from xshard.stages.staged import Piece, Staged


@dataclass(frozen=True, slots=True)
class Pinned:
    """Pins by position among the flat arguments and results, on one mesh of a group.

    A pin holds on every stage that the array is on: where an argument lives, and where it is read.
    """

    arguments: Mapping[int, Pin] = field(default_factory=dict[int, Pin])
    results: Mapping[int, Pin] = field(default_factory=dict[int, Pin])
    names: Sequence[str] = ()

    def values(self, staged: Staged) -> dict[int, Pin]:
        """Pins of a staged step's values.

        Raises:
          PinError: a result has one row for each microbatch, and these are not planned.
        """
        stacks = {s.stacked for s in staged.stacks}
        for i in self.results:
            if any(p.value in stacks for p in staged.results[i]):
                raise PinError(
                    f"{self.names[i]} has one row for each microbatch; a pipeline cannot keep its "
                    "spec, so leave it out of out_specs"
                )
        return {**_of(self.results, staged.results), **_of(self.arguments, staged.inputs)}

    def kept_ties(self, ties: Mapping[int, int], pins: Mapping[int, Pin]) -> dict[int, int]:
        """Ties, but for results that are wanted otherwise than their arguments."""
        return {v: a for v, a in ties.items() if v not in pins or pins[v] == pins.get(a)}

    def told_apart(self, contents: Sequence[Hashable], staged: Staged) -> list[Hashable]:
        """The contents of units, one on each stage, which differ where their pins do."""
        pins = self.values(staged)
        if not pins:
            return list(contents)
        fixed: dict[int, list[Pin | None]] = {k: [] for k in range(len(contents))}
        for program in staged.programs:
            fixed[program.stage] += [pins.get(v) for v in (*program.reads, *program.makes)]
        return [(content, tuple(fixed[k])) for k, content in enumerate(contents)]


def pinned(traced: Traced, call: Call, mesh: MeshShape, in_specs: Any, out_specs: Any) -> Pinned:
    """The pins of `in_specs` and `out_specs` on a mesh.

    Raises:
      PinError: a spec names an unknown axis, has too many dimensions or does not divide.
    """
    if in_specs is None and out_specs is None:
        return Pinned()
    pins, inputs = asked_pins(traced, call, mesh, in_specs, out_specs), traced.graph.inputs
    arguments = {i: pins.values[v] for i, v in enumerate(inputs) if v in pins.values}
    return Pinned(arguments, pins.results, [f"result{path}" for path in traced.out_paths])


def _of(pins: Mapping[int, Pin], pieces: Sequence[Sequence[Piece]]) -> dict[int, Pin]:
    return {p.value: pin for i, pin in pins.items() for p in pieces[i]}
