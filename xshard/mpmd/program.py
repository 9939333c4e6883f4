"""One stage program as a `jax.jit` on its group's devices, with its totals carried through it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from xshard._jax import evaluate
from xshard.microbatch.accumulate import COMBINE
from xshard.mpmd.layout import Body, Layout
from xshard.stages.staged import Staged, StageProgram


@dataclass(frozen=True, slots=True)
class Linked:
    """A program that can run.

    Attributes:
      carried: totals and stacks that it adds to: it takes and returns them, in place.
      numbered: whether it takes the microbatch's number.
      reads, makes: the other values that it takes and returns, in order. Shares that only a total
        reads are not among them.
      jitted: the `jax.jit` of (carried, number if numbered, reads) -> (carried, makes), in a row.
    """

    name: str
    carried: tuple[int, ...]
    numbered: bool
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    jitted: Any


@dataclass(frozen=True, slots=True)
class Linker:
    """Makes the programs of a staged step ready to run.

    Attributes:
      wanted: values that something reads, or that are results.
      options: compiler options, as of `jax.jit`.
    """

    staged: Staged
    layout: Layout
    wanted: frozenset[int]
    options: dict[str, Any] | None = None

    def link(self, at: int, group: int, dropped: frozenset[int]) -> Linked:
        """The program at this place, for its group.

        Args:
          dropped: values that nothing reads after any run of the program.
        """
        program = self.staged.programs[at]
        carried = self.staged.carried(program)
        makes = tuple(v for v in program.makes if v in self.wanted)
        reads = tuple(v for v in program.reads if v != self.staged.number)
        stacks = any(s.row in program.makes for s in self.staged.stacks)
        numbered = stacks or self.staged.number in program.reads
        held = [self.layout.sharding(v, group) for v in carried]
        number = [self.layout.sharding(self.staged.number, group)] * numbered
        ins, outs = ([self.layout.sharding(v, group) for v in vs] for vs in (reads, makes))
        run = self._accumulating(program, self.layout.bodies.get(at), carried, makes, numbered)
        reused = self._reused(reads, ins, dropped, makes, outs)
        before = len(held) + len(number)
        jitted = jax.jit(
            run,
            in_shardings=(*held, *number, *ins),
            out_shardings=(*held, *outs),
            donate_argnums=(*range(len(held)), *(before + k for k in reused)),
            compiler_options=self.options,
        )
        return Linked(program.name, carried, numbered, reads, makes, jitted)

    def starts(self, values: Sequence[int], group: int) -> Callable[[], tuple[Any, ...]]:
        """Makes totals and stacks as they are before the first share."""
        initial = {t.total: t.initial for t in self.staged.totals}
        avals = [self.staged.avals[v] for v in values]

        def start() -> tuple[Any, ...]:
            pairs = zip(values, avals, strict=True)
            return tuple(jnp.full(a.shape, initial.get(v, 0), a.dtype) for v, a in pairs)

        return jax.jit(start, out_shardings=tuple(self.layout.sharding(v, group) for v in values))

    def _accumulating(
        self, program: StageProgram, body: Body | None, carried: Sequence[int],
        makes: Sequence[int], numbered: bool,
    ) -> Callable[..., tuple[Any, ...]]:  # fmt: skip
        jaxpr, number = program.closed_jaxpr, self.staged.number
        body = body or (lambda *args: evaluate(jaxpr, args, jaxpr.consts))
        add = {t.total: (t.share, COMBINE[t.how]) for t in self.staged.totals}
        rows = {s.stacked: s.row for s in self.staged.stacks}

        def run(*args: Any) -> tuple[Any, ...]:
            held, rest = args[: len(carried)], iter(args[len(carried) :])
            at = next(rest) if numbered else None
            made = dict(
                zip(
                    program.makes,
                    body(*(at if v == number else next(rest) for v in program.reads)),
                    strict=True,
                )
            )

            def carry(value: int, total: Any) -> Any:
                if value in rows:
                    return jax.lax.dynamic_update_index_in_dim(total, made[rows[value]], at, 0)
                share, combine = add[value]
                return combine(total, jax.lax.convert_element_type(made[share], total.dtype))

            return (*map(carry, carried, held), *(made[v] for v in makes))

        run.__name__ = program.name.replace(",", "").replace(" ", "_")
        return run

    def _reused(
        self, reads: Sequence[int], ins: Sequence[Any], dropped: frozenset[int],
        makes: Sequence[int], outs: Sequence[Any],
    ) -> list[int]:  # fmt: skip
        """Operands whose memory a result can take: XLA warns of others."""

        def kind(value: int, sharding: Any) -> tuple[Any, ...]:
            aval = self.staged.avals[value]
            return aval.shape, aval.dtype, sharding

        free = Counter(map(kind, makes, outs))
        found: list[int] = []
        for k, (v, sharding) in enumerate(zip(reads, ins, strict=True)):
            if v in dropped and free[kind(v, sharding)]:
                free[kind(v, sharding)] -= 1
                found.append(k)
        return found
