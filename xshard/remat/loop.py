"""Layers in a scan: its residuals are not stacked but made again in the backward scan.

Of `length` layers the first `count` are: then both scans are run in two parts. What the recomputed
part stacks instead is the carry with which each layer began.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

from xshard._jax import ClosedJaxpr, needed_for, opened, scan_counts
from xshard.remat.bind import after, evaluate
from xshard.remat.chain import nbytes
from xshard.remat.program import Node, Program
from xshard.run.rebind import REMAT


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A forward scan and the backward scan that reads its residuals.

    Attributes:
      again: of the results that `forward` stacks, those that are made again, by position.
      body: makes these.
      consts, carries, xs: which constants, carried values and stacked operands of `forward` it
        takes, by position.
      shared: results that `forward` stacks and something else than `backward` reads.
    """

    forward: Node
    backward: Node
    again: tuple[int, ...]
    body: ClosedJaxpr
    consts: tuple[int, ...]
    carries: tuple[int, ...]
    xs: tuple[int, ...]
    shared: frozenset[int]

    @property
    def length(self) -> int:
        """The number of layers."""
        return self.forward.eqn.params["length"]

    def nbytes(self) -> int:
        """Bytes that are not kept if all layers are recomputed."""
        consts, carries = scan_counts(self.forward.eqn.params)
        outs = [self.forward.eqn.outvars[carries + j].aval for j in self.again]
        starts = [self.forward.eqn.invars[consts + j].aval for j in self.carries]
        return sum(map(nbytes, outs)) - self.length * sum(map(nbytes, starts))


def pair_of(program: Program, forward: Node, backward: Node) -> Pair | None:
    """The pair, if anything can be made again."""
    if forward.eqn.effects:
        return None
    readers, last = program.readers(), program.nodes.index(backward)
    consts, carries = scan_counts(forward.eqn.params)
    stacked = forward.outs[carries:]
    only = [j for j, v in enumerate(stacked) if set(readers[v]) == {last}]
    given = _checkpointed(backward)
    again = tuple(j for j in only if stacked[j] not in given)
    if not again:
        return None
    wanted = [False] * len(forward.outs)
    for j in again:
        wanted[carries + j] = True
    body, used = needed_for(forward.eqn.params["jaxpr"], wanted)
    return Pair(
        forward, backward, again, body,
        _where(used[:consts]), _where(used[consts : consts + carries]),
        _where(used[consts + carries :]),
        frozenset(j for j in range(len(stacked)) if j not in only),
    )  # fmt: skip


def _where(flags: Sequence[bool]) -> tuple[int, ...]:
    return tuple(j for j, flag in enumerate(flags) if flag)


def _checkpointed(backward: Node) -> set[Any]:
    """Operands that the backward scan reads otherwise than as a slice, or a `jax.checkpoint` in it
    reads: what that keeps the user has stated."""
    first = sum(scan_counts(backward.eqn.params))
    inner = opened(backward.eqn.params["jaxpr"])
    read = {v for eqn in inner.eqns if eqn.primitive.name in REMAT for v in eqn.invars
            if v in set(inner.invars)}  # fmt: skip
    names = zip(backward.ins, inner.invars, strict=True)
    return {a for k, (a, var) in enumerate(names) if k < first or var in read}


@dataclass(frozen=True, slots=True)
class _Part:
    """Layers [start, stop) of the stack."""

    start: int
    stop: int
    recomputed: bool

    def of(self, x: Any) -> Any:
        """The slice of a stack."""
        whole = self.stop - self.start == x.shape[0]
        return x if whole else jax.lax.slice_in_dim(x, self.start, self.stop)


def _joined(parts: Sequence[_Part], stacks: Sequence[Any]) -> Any:
    """A stack of all layers from those of the parts."""
    pairs = sorted(zip(parts, stacks, strict=True), key=lambda pair: pair[0].start)
    return stacks[0] if len(parts) == 1 else jax.lax.concatenate([x for _, x in pairs], 0)


def _parts(count: int, length: int, reverse: bool) -> list[_Part]:
    """In the order in which the forward pass runs them."""
    if count == length:
        return [_Part(0, length, recomputed=True)]
    if reverse:
        return [
            _Part(length - count, length, recomputed=True),
            _Part(0, length - count, recomputed=False),
        ]
    return [_Part(0, count, recomputed=True), _Part(count, length, recomputed=False)]


@dataclass(slots=True)
class Split:
    """A pair of which the first `count` layers are recomputed, while it is run.

    Attributes:
      stacks: what the forward part stacked, by part and position; None if it is made again.
      starts: the carries that recomputation begins with, by part.
    """

    pair: Pair
    count: int
    ins: Sequence[Any] = ()
    stacks: list[list[Any]] | None = None
    starts: list[list[Any]] | None = None

    def forward(self, ins: Sequence[Any]) -> list[Any]:
        """The results of the forward scan; None for those that only the backward scan reads."""
        pair, eqn = self.pair, self.pair.forward.eqn
        consts, carries = scan_counts(eqn.params)
        carry, self.ins = list(ins[consts : consts + carries]), ins
        self.stacks, self.starts = [], []
        parts = self.parts()
        for part in parts:
            xs = [part.of(x) for x in ins[consts + carries :]]
            carry, stacks, starts = self._forward_part(part, ins[:consts], carry, xs)
            self.stacks.append(stacks)
            self.starts.append(starts)
        whole = [
            _joined(parts, [stacks[j] for stacks in self.stacks]) if j in pair.shared else None
            for j in range(len(eqn.outvars) - carries)
        ]
        return [*carry, *whole]

    def parts(self) -> list[_Part]:
        """In the order of the forward pass."""
        return _parts(self.count, self.pair.length, self.pair.forward.eqn.params["reverse"])

    def _forward_part(
        self, part: _Part, consts: Sequence[Any], carry: list[Any], xs: list[Any]
    ) -> tuple[list[Any], list[Any], list[Any]]:
        pair, params = self.pair, self.pair.forward.eqn.params
        dropped = set(pair.again) if part.recomputed else set[int]()

        def turn(carry: list[Any], xs: list[Any]) -> Any:
            outs = evaluate(params["jaxpr"], [*consts, *carry, *xs])
            ys = outs[len(carry) :]
            kept = [None if j in dropped else y for j, y in enumerate(ys)]
            starts = [carry[j] for j in pair.carries] if part.recomputed else []
            return outs[: len(carry)], (kept, starts)

        length = part.stop - part.start
        carry, (stacks, starts) = jax.lax.scan(
            turn, carry, xs, length, params["reverse"], params["unroll"]
        )
        return carry, stacks, starts

    def backward(self, ins: Sequence[Any]) -> list[Any]:
        """The results of the backward scan; of `ins`, what the forward scan stacked is not read."""
        eqn, parts = self.pair.backward.eqn, self.parts()
        consts, carries = scan_counts(eqn.params)
        carry, found = list(ins[consts : consts + carries]), list[list[Any]]()
        for p in reversed(range(len(parts))):
            carry, ys = self._backward_part(p, parts[p], ins[:consts], carry, ins)
            found.append(ys)
        stacks = [_joined(parts[::-1], list(ys)) for ys in zip(*found, strict=True)]
        return [*carry, *stacks]

    def _backward_part(
        self, p: int, part: _Part, consts: Sequence[Any], carry: list[Any], ins: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        pair, params = self.pair, self.pair.backward.eqn.params
        assert self.stacks is not None and self.starts is not None
        first = len(consts) + len(carry)
        forward_first, forward_carries = scan_counts(pair.forward.eqn.params)
        stacked = pair.forward.outs[forward_carries:]
        place = [stacked.index(a) if a in stacked else None for a in pair.backward.ins[first:]]
        xs = [
            part.of(x) if j is None else self.stacks[p][j]
            for x, j in zip(ins[first:], place, strict=True)
        ]
        operands = self.ins[forward_first + forward_carries :]
        again_xs = [part.of(operands[j]) for j in pair.xs] if part.recomputed else []

        def turn(carry: list[Any], at: Any) -> Any:
            xs, starts, again_xs = at
            if part.recomputed:
                made = self._made_again(carry, starts, again_xs)
                xs = [x if j is None or j not in made else made[j]
                      for x, j in zip(xs, place, strict=True)]  # fmt: skip
            outs = evaluate(params["jaxpr"], [*consts, *carry, *xs])
            return outs[: len(carry)], outs[len(carry) :]

        length = part.stop - part.start
        return jax.lax.scan(
            turn, carry, (xs, self.starts[p], again_xs), length, params["reverse"], params["unroll"]
        )

    def _made_again(
        self, cotangents: Sequence[Any], starts: list[Any], xs: list[Any]
    ) -> dict[int, Any]:
        """The residuals of one layer by position, after the cotangent has come to it."""
        pair = self.pair
        largest = max(cotangents, key=lambda x: x.size, default=None)
        starts, _ = after(starts, largest)
        outs = evaluate(pair.body, [*(self.ins[j] for j in pair.consts), *starts, *xs])
        return dict(zip(pair.again, outs, strict=True))
