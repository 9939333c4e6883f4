"""What a group of devices holds while it goes through a tape, in bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from xshard.mpmd.tape import Action, Held, Run, Tape

Size = Callable[[Held], int]
"""Bytes of a value on its group."""


def live_bytes(tape: Tape, size: Size) -> list[dict[int, int]]:
    """After each action, the bytes that each group holds."""
    return [after for _, _, after in _walk(tape, size)]


class Peak(NamedTuple):
    """The most that a group holds at once.

    Attributes:
      program: the one that runs then, by its place among the staged ones; None: a value arrives.
    """

    bytes: int
    program: int | None = None


def peaks(tape: Tape, size: Size, more: Mapping[int, int]) -> dict[int, Peak]:
    """By group, its peak.

    Args:
      more: by program, what it needs while it runs beside all that is held before: its results
        that take no operand's place, and its temporaries.
    """
    found: dict[int, Peak] = {}

    def see(group: int, peak: Peak) -> None:
        if group not in found or peak.bytes > found[group].bytes:
            found[group] = peak

    for action, before, after in _walk(tape, size):
        if isinstance(action, Run):
            held = before.get(action.group, 0)
            see(action.group, Peak(held + more[action.program], action.program))
        else:
            see(action.target, Peak(after[action.target]))
    return found


def _walk(tape: Tape, size: Size) -> Iterator[tuple[Action, dict[int, int], dict[int, int]]]:
    """Each action with what the groups hold before it, what it adds to included, and after it."""
    now: Counter[int] = Counter()
    held: set[Held] = set()
    known: dict[tuple[int, int], int] = {}  # all microbatches' values are of one size

    def bytes_of(h: Held) -> int:
        key = h.value, h.group
        if key not in known:
            known[key] = size(h)
        return known[key]

    def hold(some: Iterable[Held]) -> None:
        for h in set(some) - held:
            now[h.group] += bytes_of(h)
            held.add(h)

    hold(tape.first)
    for action in tape.actions:
        hold(action.carries)
        before = dict(now)
        hold(action.makes)
        for h in action.drops:
            now[h.group] -= bytes_of(h)
            held.remove(h)
        yield action, before, dict(now)
