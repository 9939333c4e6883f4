"""`Staged`: a train step cut into programs for the stages of a pipeline.

Values have ids in one space over the whole step. A program reads values and makes others:

  "before"      once, before the first microbatch: casts of weights, keys, scalars
  "fwd"         for each microbatch, stage 0 first
  "bwd"         for each microbatch, the last stage first
  "bwd_weight"  for each microbatch, any time after the stage's "bwd": only totals wait for it
  "after"       once, after the last microbatch: clipping, the optimizer

A program may run when all that it reads is there. A value that another stage's program makes, or
an argument whose home is another stage, is a transfer. What fwd, bwd and bwd_weight make is there
once for each microbatch, and is read by programs of the same microbatch only. What outlives a
microbatch is a `Total` (shares that are added up, for gradients and losses) or a `Stack` (one row
for each microbatch), which "after" programs and the results read.

Programs of one stage and part are told apart by `wave`: clipping by a global norm makes the norm of
each stage's gradients in wave 0, their sum on one stage in wave 1, and the update in wave 2. A wave
reads other stages' values of earlier waves only, and its own stage's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from xshard._jax import ClosedJaxpr, opened

Part = Literal["before", "fwd", "bwd", "bwd_weight", "after"]
PARTS: tuple[Part, ...] = ("before", "fwd", "bwd", "bwd_weight", "after")
PER_MICROBATCH = frozenset({"fwd", "bwd", "bwd_weight"})


@dataclass(frozen=True, slots=True)
class StageProgram:
    """What one stage runs at once.

    Attributes:
      stage: from 0.
      wave: number among the programs of its stage and part.
      closed_jaxpr: takes the values `reads`, gives the values `makes`, in these orders.
    """

    stage: int
    part: Part
    wave: int
    closed_jaxpr: ClosedJaxpr
    reads: tuple[int, ...]
    makes: tuple[int, ...]

    @property
    def name(self) -> str:
        """ "fwd of stage 1"."""
        wave = f", wave {self.wave}" if self.wave else ""
        return f"{self.part} of stage {self.stage}{wave}"


@dataclass(frozen=True, slots=True)
class Total:
    """Shares of all microbatches, combined on the stage that makes them.

    Attributes:
      share: made for each microbatch, in the order of their numbers.
      total: what "after" programs and results read; its type is that of the accumulator, to which
        a share is converted before it is combined.
      how: "sum", "max", "min", "prod", "and", "or", "xor", or "last".
      initial: the value at `share` None microbatches, a scalar; of no meaning for "last".
    """

    share: int
    total: int
    how: str
    initial: Any


@dataclass(frozen=True, slots=True)
class Stack:
    """[microbatches, ...]: what each microbatch makes, in the order of their numbers."""

    row: int
    stacked: int


@dataclass(frozen=True, slots=True)
class Piece:
    """The rows start:stop of an array's first dimension are this value; None: the whole array."""

    value: int
    start: int | None = None
    stop: int | None = None


@dataclass(frozen=True, slots=True)
class Staged:
    """A step of `microbatches` microbatches over `num_stages` stages.

    Attributes:
      programs: in an order in which they can run one after the other (those that run for each
        microbatch: as often as there are microbatches, all fwd before all bwd or not).
      avals: types by value id.
      inputs: for each flattened argument, the pieces that it is taken apart into. The stacked
        weights of scanned layers are several; all else is one.
      results: for each flattened result, the pieces that it is put together from.
      homes: the stage where an input or captured array lives: where it is read, the first of
        several. Others that read it get a copy: of a tied weight, or of the batch.
      consts: captured arrays (and results that are constants) by value id.
      number: the id of the microbatch's number, int32[]: programs that run for each microbatch may
        read it.
    """

    programs: tuple[StageProgram, ...]
    num_stages: int
    microbatches: int
    avals: tuple[Any, ...]
    inputs: tuple[tuple[Piece, ...], ...]
    results: tuple[tuple[Piece, ...], ...]
    homes: Mapping[int, int]
    consts: Mapping[int, Any]
    number: int
    totals: tuple[Total, ...]
    stacks: tuple[Stack, ...]

    @property
    def makers(self) -> dict[int, StageProgram]:
        """The program that makes a value."""
        return {v: program for program in self.programs for v in program.makes}

    @property
    def stage_of(self) -> dict[int, int]:
        """The stage where a value is first: inputs, totals and stacks too; not `number`."""
        made = {v: p.stage for v, p in self.makers.items()}
        made |= {t.total: made[t.share] for t in self.totals}
        made |= {s.stacked: made[s.row] for s in self.stacks}
        return {**self.homes, **made}

    def carried(self, program: StageProgram) -> tuple[int, ...]:
        """The totals and stacks that a program adds to."""
        totals = (t.total for t in self.totals if t.share in program.makes)
        return (*totals, *(s.stacked for s in self.stacks if s.row in program.makes))

    def transfers(self) -> dict[tuple[int, int], int]:
        """(value, stage that reads it) -> the stage that it comes from, where that is another."""
        where = self.stage_of
        return {
            (v, p.stage): where[v]
            for p in self.programs
            for v in p.reads
            if v != self.number and where[v] != p.stage
        }

    def verify(self) -> Staged:
        """Returns self if every value is made once and before it is read.

        Raises:
          AssertionError: naming the program that does not fit.
        """
        there = {self.number, *self.consts} | {p.value for i in self.inputs for p in i}
        ends = {t.share: t.total for t in self.totals} | {s.row: s.stacked for s in self.stacks}
        late: set[int] = set()
        once = set(there)
        for program in self.programs:
            inner = opened(program.closed_jaxpr)
            assert len(inner.invars) == len(program.reads), program.name
            assert len(inner.outvars) == len(program.makes), program.name
            if program.part == "after":
                there, late = there - late | set(ends.values()), set()
            missing = set(program.reads) - there
            assert not missing, f"{program.name} reads {sorted(missing)} before they are made"
            again = set(program.makes) & (there | once)
            assert not again, f"{program.name} makes {sorted(again)} again"
            there |= set(program.makes)
            once |= set(program.makes)
            if program.part in PER_MICROBATCH:
                late |= set(program.makes)
        there = there - late | set(ends.values())
        lost = {p.value for r in self.results for p in r} - there
        assert not lost, f"results {sorted(lost)} are not made"
        return self
