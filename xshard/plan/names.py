"""Names of arguments: their words, and one label for many that differ in their numbers only.

A model with 48 layers has 48 kernels at `args[0]['layers'][k]['mlp']['kernel']`. `collapse` gives
them one label, with `*` for the numbers that differ; where not all numbers fall into one group the
label names those that do (`[0-23]`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

_WORD = re.compile(r"[^\[\]'\"./\s]+")
_HEAD = re.compile(r"(?:\w+\[\d+\])?")


@dataclass(frozen=True, slots=True)
class Group:
    """Items that share a label; `members` are their indices in the order given."""

    label: str
    members: tuple[int, ...]


def words(path: str) -> tuple[str, ...]:
    """The keys of a path in any spelling: `args[0]['w'].mu`, `args/0/w/mu` and `args.0.w.mu`."""
    return tuple(_WORD.findall(path))


def collapse(items: Sequence[tuple[str, Hashable]]) -> tuple[Group, ...]:
    """Groups (path, key) items whose paths differ in numbers only and whose keys are equal.

    The number of the argument itself (`args[0]`) is never collapsed. Groups stand in the order of
    their first members.
    """
    found: dict[tuple[tuple[str, ...], Hashable], list[int]] = {}
    for i, (path, key) in enumerate(items):
        found.setdefault((skeleton(path), key), []).append(i)
    shared = Counter(skeleton for skeleton, _ in found)
    return tuple(
        Group(_label([items[i][0] for i in members], shared[skeleton] > 1), tuple(members))
        for (skeleton, _), members in found.items()
    )


def times(group: Group) -> str:
    """The label and how many it stands for."""
    return f"{group.label} ×{len(group.members)}" if len(group.members) > 1 else group.label


def pieces(path: str) -> list[str]:
    """The path cut at its numbers, which stand at odd places; `args[0]` counts as no number."""
    head = _HEAD.match(path)
    end = head.end() if head else 0
    rest = re.split(r"(\d+)", path[end:])
    return [path[:end] + rest[0], *rest[1:]]


def skeleton(path: str) -> tuple[str, ...]:
    """The path without its numbers: equal for paths that differ in numbers only."""
    return tuple(pieces(path)[::2])


def _label(paths: list[str], shared: bool) -> str:
    columns = zip(*(pieces(path) for path in paths), strict=True)
    return "".join(_one(set(column), shared) for column in columns)


def _one(pieces: set[str], shared: bool) -> str:
    if len(pieces) == 1:
        return next(iter(pieces))
    return _ranges({int(p) for p in pieces}) if shared else "*"


def _ranges(numbers: Iterable[int]) -> str:
    """`{0, 1, 2, 5}` as `0-2,5`."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
