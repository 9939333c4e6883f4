"""Why no plan exists, in the user's terms: which memory at which moment, and which pins.

Pins are looked at as the user stated them: those of one argument (or of the results) with the same
spec are one statement. `conflict` is QuickXplain (Junker, AAAI 2004): of statements that cannot all
hold, a part of which none can be left out, with few questions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from xshard.describe import peak_tensors
from xshard.ir.trace import Traced
from xshard.plan.units import size, spec_text
from xshard.solve.draft import Draft, Pin
from xshard.solve.memory import Timeline

MOST_TENSORS = 5
MOST_STATEMENTS = 5
_TOP = re.compile(r"\w+(\[\d+\]|\['[^']*'\])?")


class OutOfTime(Exception):
    """A question that there is no time to answer."""


@dataclass(frozen=True, slots=True)
class Statement:
    """Pins that are kept or dropped together: values by id, results by position."""

    text: str
    values: tuple[int, ...]
    results: tuple[int, ...]


def conflict(
    statements: Sequence[Statement], can_hold: Callable[[Sequence[Statement]], bool]
) -> list[Statement]:
    """Of statements that cannot hold together, some that cannot, while any fewer of them can.

    None at all if even without a statement nothing holds.

    Raises:
      OutOfTime: from `can_hold`.
    """

    def part(kept: list[Statement], is_new: bool, rest: list[Statement]) -> list[Statement]:
        if is_new and not can_hold(kept):
            return []
        if len(rest) == 1:
            return rest
        half = len(rest) // 2
        second = part(kept + rest[:half], True, rest[half:])
        return part(kept + second, bool(second), rest[:half]) + second

    if not statements or not can_hold([]):
        return []
    return part([], False, list(statements))


def statements_of(
    traced: Traced, pins: dict[int, Pin], results: dict[int, Pin], axes: tuple[str, ...]
) -> list[Statement]:
    """What the user fixed, as he stated it."""
    groups: dict[tuple[str, Pin], tuple[list[int], list[int], list[str]]] = {}
    for where, name, pin, v, i in _pinned(traced, pins, results):
        values, positions, names = groups.setdefault((where, pin), ([], [], []))
        names.append(name)
        values += [] if v is None else [v]
        positions += [] if i is None else [i]
    found: list[Statement] = []
    for (where, pin), (values, positions, names) in groups.items():
        label = names[0] if len(names) == 1 else f"{where} ({len(names)} arrays)"
        found.append(Statement(f"{label}: {_text(pin, axes)}", tuple(values), tuple(positions)))
    return found


def _pinned(
    traced: Traced, pins: dict[int, Pin], results: dict[int, Pin]
) -> Iterator[tuple[str, str, Pin, int | None, int | None]]:
    """(where it was stated, name, pin, value, position among the results)."""
    graph = traced.graph
    path = dict(zip(graph.inputs, traced.in_paths, strict=True))
    for v, pin in pins.items():
        if v in path:
            yield _top(path[v]), path[v], pin, v, None
        else:
            op = graph.ops[graph.values[v].producer]
            where = f"the constraint at {op.source or op.scope or op.prim}"
            yield where, where, pin, v, None
    for i, pin in results.items():
        name = f"result{traced.out_paths[i]}"
        yield _top(name), name, pin, None, i


def _top(path: str) -> str:
    found = _TOP.match(path)
    return found[0] if found else path


def _text(pin: Pin, axes: tuple[str, ...]) -> str:
    if None not in pin:
        return spec_text(tuple(p for p in pin if p is not None), axes)
    parts = ["?" if p is None else "+".join(axes[a] for a in p) or "None" for p in pin]
    return f"({', '.join(parts)}), ? is open"


def blame(culprits: Sequence[Statement], what: str) -> str:
    """A sentence about the pins at fault; `what` is what they leave no plan for."""
    if not culprits:
        return ""
    shown = "".join(f"\n  {s.text}" for s in culprits[:MOST_STATEMENTS])
    more = len(culprits) - MOST_STATEMENTS
    shown += f"\n  and {more} more" if more > 0 else ""
    if len(culprits) == 1:
        return f"\nThis alone leaves no plan {what}; drop or change it:{shown}"
    return (
        f"\nThese together leave no plan {what}, any fewer of them do; drop or change one:{shown}"
    )


def at_peak(d: Draft, timeline: Timeline, choices: tuple[int, ...]) -> str:
    """The largest tensors at the fullest moment, and what runs then."""
    lines = [
        f"  {t.members} × {t.name or 'a temporary'} {t.dtype}{list(t.shape)}: {size(t.nbytes)}"
        + (f"  ({t.source})" if t.source else "")
        for t in peak_tensors(d, timeline, choices)[:MOST_TENSORS]
    ]
    t = int(np.argmax(timeline.curve(d, choices)))
    when = "at the end of the step"
    if t < len(timeline.ops):
        op = d.graph.ops[timeline.op_at(t)]
        when = f"when {op.prim} runs" + (f" ({op.phase}, {op.source})" if op.source else "")
    return f"Largest live tensors at its peak, {when}:\n" + "\n".join(lines)
