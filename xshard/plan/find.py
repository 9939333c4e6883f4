"""Which argument, result or op a user means: names, unique endings, scopes, source lines."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from xshard.errors import XshardError
from xshard.plan.names import words
from xshard.plan.plan import Plan, PlannedArray, PlannedOp
from xshard.plan.text import MATMULS, array_groups, where

Words = tuple[str, ...]
_SHOWN = 6
"""Names that an error lists."""
_OP = re.compile(r"ops\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Found:
    """What a name stands for.

    Attributes:
      key: what the planner calls it: the path of an argument or result; "ops[7]" for the first
        result of the plan's op class 7.
      label: how to show it.
    """

    key: str
    label: str


def find(plan: Plan, what: str) -> Found:
    """The argument, result or op that `what` names.

    Raises:
      XshardError: it names none or several; the message lists close or all matches.
    """
    steps = (
        lambda: _arrays(plan, what, _equal),
        lambda: _arrays(plan, what, _ends),
        lambda: _ops(plan, what.strip()),
        lambda: _arrays(plan, what, _contains),
    )
    matches = next((hits for step in steps if (hits := step())), list[Found]())
    if len(matches) == 1:
        return matches[0]
    raise XshardError(_ambiguous(what, matches) if matches else _unknown(plan, what))


def _arrays(plan: Plan, what: str, fits: Callable[[Words, Words], bool]) -> list[Found]:
    """Arguments whose path fits, or else results, which often are the arguments' next values.

    A group's label (`layer_*`) stands for its first member.
    """
    wanted = words(what)
    for arrays in (plan.arguments, plan.results):
        hits: dict[str, Found] = {}
        for path, found in _labelled(arrays):
            if wanted and fits(path, wanted):
                hits.setdefault(found.key, found)
        if hits:
            return list(hits.values())
    return []


def _labelled(arrays: Sequence[PlannedArray]) -> Iterable[tuple[Words, Found]]:
    """Each array by its path, and the first of each group by the group's label."""
    for array in arrays:
        yield words(array.path), Found(array.path, array.path)
    for group in array_groups(arrays):
        first = arrays[group.members[0]].path
        yield words(group.label), Found(first, group.label)


def _equal(path: Words, wanted: Words) -> bool:
    return path == wanted


def _ends(path: Words, wanted: Words) -> bool:
    return path[-len(wanted) :] == wanted


def _contains(path: Words, wanted: Words) -> bool:
    n = len(wanted)
    return any(path[i : i + n] == wanted for i in range(len(path) - n + 1))


def _ops(plan: Plan, what: str) -> list[Found]:
    """Ops by number, scope or line; the forward pass and matmuls go before others."""
    by_number = _OP.fullmatch(what)
    if by_number and int(by_number[1]) < len(plan.ops):
        return [_op(int(by_number[1]), plan)]
    hits = [i for i, op in enumerate(plan.ops) if _is_named(op, what)]
    hits = [i for i in hits if plan.ops[i].phase == "fwd"] or hits
    hits = [i for i in hits if plan.ops[i].prim in MATMULS] or hits
    return [_op(i, plan) for i in hits]


def _is_named(op: PlannedOp, what: str) -> bool:
    """Whether `what` is the op's scope (or its end), or its line with or without folders."""
    line = op.source.partition(" ")[0]
    scoped = f"{op.scope}/{op.prim}" if op.scope else op.prim
    return bool(what) and any(
        name == what or name.endswith(f"/{what}") or what.endswith(f"/{name}")
        for name in (line, op.source, op.scope, scoped)
        if name
    )


def _op(i: int, plan: Plan) -> Found:
    op = plan.ops[i]
    return Found(f"ops[{i}]", f"ops[{i}], {op.prim} {op.phase} {where(op)}".rstrip())


def _ambiguous(what: str, matches: Sequence[Found]) -> str:
    shown = "; ".join(found.label for found in matches[:_SHOWN])
    more = f"; and {len(matches) - _SHOWN} more" if len(matches) > _SHOWN else ""
    return f"{what!r} names {len(matches)} things in the plan, say which one: {shown}{more}"


def _unknown(plan: Plan, what: str) -> str:
    texts = dict.fromkeys(_names(plan))
    folded = {"/".join(words(text)).lower(): text for text in texts}
    wanted = "/".join(words(what)).lower()
    near = difflib.get_close_matches(wanted, list(folded), n=_SHOWN, cutoff=0.5)
    parts = [key for key in folded if wanted and wanted in key]
    close = list(dict.fromkeys([*near, *parts]))[:_SHOWN]
    if close:
        return f"the plan has no {what!r}; close are {'; '.join(folded[key] for key in close)}"
    return f"the plan has no {what!r}; print(plan) lists the names of its arguments and main ops"


def _names(plan: Plan) -> Iterable[str]:
    for array in (*plan.arguments, *plan.results):
        yield array.path
    for op in plan.ops:
        yield from (name for name in (op.scope, op.source.partition(" ")[0]) if name)
