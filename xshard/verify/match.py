"""Which compiled collective stands for which planned one, when only bytes can tell.

`settle` moves bytes between all-reduce rows: a sum over (a, b) of one tensor is a sum over (a) and
one over (b), so XLA may write either. `leftovers` names the single collectives behind a difference.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from xshard.verify.audit import AuditRow

_Axes = tuple[str, ...]


class _Item(Protocol):
    @property
    def bytes(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def total_bytes(self) -> int: ...
    @property
    def source(self) -> str: ...


T = TypeVar("T", bound=_Item)


def settle(rows: Sequence[AuditRow]) -> list[AuditRow]:
    """Let all-reduces over (a) and (b) pay for those over (a, b), and the other way round.

    Conserves work, not bytes: m bytes over (a, b) equal m over (a) and m over (b).
    """
    sums = {row.axes: row.delta_bytes for row in rows if row.kind == "all-reduce" and row.axes}
    before = dict(sums)
    for joint in sorted(sums, key=len, reverse=True):
        for parts in _partitions(joint, sums):
            _move(sums, joint, parts)
    return [
        dataclasses.replace(row, settled_bytes=sums[row.axes] - before[row.axes])
        if row.kind == "all-reduce" and row.axes in sums
        else row
        for row in rows
    ]


def _move(
    sums: dict[tuple[str, ...], int], joint: tuple[str, ...], parts: list[tuple[str, ...]]
) -> None:
    """Cancel a surplus of `joint` against deficits of all `parts`, or the reverse."""
    sign = 1 if sums[joint] > 0 else -1
    amount = min(sign * sums[joint], *(-sign * sums[part] for part in parts))
    if amount > 0:
        sums[joint] -= sign * amount
        for part in parts:
            sums[part] += sign * amount


def _partitions(joint: _Axes, known: dict[_Axes, int]) -> Iterator[list[_Axes]]:
    """The ways to write `joint` as two or more disjoint keys of `known`."""

    def split(rest: frozenset[str]) -> Iterator[list[_Axes]]:
        if not rest:
            yield []
            return
        first = min(rest, key=joint.index)
        for key in known:
            if first in key and rest.issuperset(key) and key != joint:
                yield from ([key, *others] for others in split(rest.difference(key)))

    yield from split(frozenset(joint))


def leftovers(items: Sequence[T], others: Sequence[_Item], surplus_bytes: int) -> list[T]:
    """Those of `items` that make up a surplus over `others`: what fits in it, largest first.

    Asked in this order: items without a partner of the same bytes or source line in `others`,
    those without one of the same bytes, and the rest. Of the rest only one that is at least half
    of what is still unexplained, lest a rounding difference accuse a small planned collective.
    """
    found: list[T] = []
    for rank, item in _by_suspicion(items, others):
        fits = 0 < item.total_bytes <= surplus_bytes
        if fits and (rank < 2 or 2 * item.total_bytes >= surplus_bytes):
            surplus_bytes -= item.total_bytes
            found.append(item)
    return found


def _by_suspicion(items: Sequence[T], others: Sequence[_Item]) -> list[tuple[int, T]]:
    """Items with their rank: 0 has no partner, 1 one by source line, 2 one by bytes."""
    partners: Counter[int] = Counter()
    for other in others:
        partners[other.bytes] += other.count
    sources = {other.source for other in others if other.source}
    ranked: list[tuple[int, T]] = []
    for item in items:
        has_partner = partners[item.bytes] >= item.count
        partners[item.bytes] -= item.count if has_partner else 0
        ranked.append((2 if has_partner else int(item.source in sources), item))
    return sorted(ranked, key=lambda pair: (pair[0], -pair[1].total_bytes))
