"""Linear algebra and transforms: a problem stays whole, a batch of them may be split."""

from __future__ import annotations

from collections.abc import Iterator

from xshard.ir.graph import Op, Value
from xshard.rules.build import Ins, Outs, build, letters, names, rank, take
from xshard.rules.registry import RuleFn
from xshard.rules.rule import Rule


def batched(core: int) -> RuleFn:
    """`"b m! n! -> b m! r!"`: all but the last `core` dimensions of the first operand."""

    def rule(_op: Op, ins: Ins, outs: Outs) -> Rule:
        return over_batch(ins, outs, rank(ins[0]) - core)

    return rule


def over_batch(ins: Ins, outs: Outs, n: int) -> Rule:
    """The first `n` dimensions line up everywhere; all others are blocked."""
    fresh = names()
    batch = take(fresh, n)
    left, right = [_dims(v, batch, fresh) for v in ins], [_dims(v, batch, fresh) for v in outs]
    return build(ins, outs, left, right, kind="gather")


def _dims(value: Value | None, batch: list[str], fresh: Iterator[str]) -> list[str]:
    if rank(value) < len(batch):
        return []
    return [*batch, *(f"{d}!" for d in take(fresh, rank(value) - len(batch)))]


def fft(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"b m! -> b n!"`: the transformed dimensions are the last ones."""
    return over_batch(ins, outs, rank(ins[0]) - len(op.params["fft_lengths"]))


def triangular_solve(op: Op, ins: Ins, outs: Outs) -> Rule:
    """`"b m! n!, b n! j! -> b n! j!"`: XLA gathers the right-hand sides, though independent."""
    *batch, m, n, j = letters(rank(ins[0]) + 1)
    side = [f"{n}!", f"{j}!"] if op.params["left_side"] else [f"{j}!", f"{n}!"]
    left = [[*batch, f"{m}!", f"{n}!"], [*batch, *side]]
    return build(ins, outs, left, [left[1]], kind="gather")


_MATRIX = """
    cholesky cholesky_update eig eigh geqp3 geqrf hessenberg householder_product lu ormqr qr schur
    svd symmetric_product tridiagonal
"""

TABLE = {
    **dict.fromkeys(_MATRIX.split(), batched(2)),
    "lu_pivots_to_permutation": batched(1),
    "tridiagonal_solve": batched(1),
    "triangular_solve": triangular_solve,
    "fft": fft,
}
