"""Runs a staged step on one device, a program after the other: what a pipeline must equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from xshard._jax import evaluate
from xshard.microbatch.accumulate import COMBINE
from xshard.stages.staged import PER_MICROBATCH, Piece, Staged, StageProgram


def run_in_sequence(staged: Staged, args: Sequence[Any]) -> list[Any]:
    """The flat results for flat arguments."""
    values: dict[int, Any] = dict(staged.consts)
    for pieces, arg in zip(staged.inputs, args, strict=True):
        values |= {p.value: _cut(arg, p) for p in pieces}
    _run(staged, "before", values)
    _accumulate(staged, values)
    _run(staged, "after", values)
    return [_joined([values[p.value] for p in pieces]) for pieces in staged.results]


def _run(staged: Staged, part: str, values: dict[int, Any]) -> None:
    for program in staged.programs:
        if program.part == part:
            values |= results_of(program, values)


def results_of(program: StageProgram, values: dict[int, Any]) -> dict[int, Any]:
    """What a program makes of these values."""
    jaxpr = program.closed_jaxpr
    outs = evaluate(jaxpr, [values[v] for v in program.reads], jaxpr.consts)
    return dict(zip(program.makes, outs, strict=True))


def _accumulate(staged: Staged, values: dict[int, Any]) -> None:
    """Runs all microbatches; adds totals and stacks to `values`."""
    totals: dict[int, Any] = {}
    rows: dict[int, list[Any]] = {s.stacked: [] for s in staged.stacks}
    for t in staged.totals:
        aval = staged.avals[t.total]
        totals[t.total] = jnp.full(aval.shape, t.initial, aval.dtype)
    for number in range(staged.microbatches):
        inside = {**values, staged.number: jnp.int32(number)}
        for program in staged.programs:
            if program.part in PER_MICROBATCH:
                inside |= results_of(program, inside)
        for t in staged.totals:
            share = jax.lax.convert_element_type(inside[t.share], staged.avals[t.total].dtype)
            totals[t.total] = COMBINE[t.how](totals[t.total], share)
        for s in staged.stacks:
            rows[s.stacked].append(inside[s.row])
    values |= totals
    values |= {stacked: jnp.stack(row) for stacked, row in rows.items()}


def _cut(array: Any, piece: Piece) -> Any:
    return array if piece.start is None else array[piece.start : piece.stop]


def _joined(pieces: Sequence[Any]) -> Any:
    return pieces[0] if len(pieces) == 1 else jnp.concatenate(pieces)
