"""The best choices of one model: without a memory limit, and within one."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from xshard.prepare import Modelled
from xshard.recall import answer_from, keep, start_of
from xshard.solve.memory import first_rows, violated
from xshard.solve.problem import Infeasible, Solution, Start
from xshard.solve.search import solve

ENOUGH_GAP = 0.005
"""Where memory binds or choices are many, the search ends at a plan proven to be this close to the
best: a tenth of what the cost model itself is off by."""
_LEAST_S = 1.0
"""What a search gets even if the time limit has passed, so that it ends with an answer."""

MOST_ROUNDS = 12
"""How often rows of live memory that an answer violates are added before giving up."""

Hints = dict[tuple[int, ...], tuple[int, ...]]
"""By the numbers of choices of a model's nodes, the best choices that were found last."""


def unlimited(
    modelled: Modelled, most_s: float = np.inf, hints: Hints | None = None
) -> Solution | None:
    """The best choices without a memory limit; None if pins contradict each other."""
    request = modelled.prepared.request
    effort_s = min(request.time_limit_s, most_s)
    known = answer_from(modelled, None, ENOUGH_GAP, effort_s)
    if known is not None:
        return known
    start = start_of(modelled, None)
    alike = tuple(len(node.costs) for node in modelled.draft.nodes)
    if start is None and hints is not None and alike in hints:
        start = Start(hints[alike])
    answer = solve(
        modelled.problem(None, ()),
        start=start,
        time_limit_s=effort_s,
        enough_gap=ENOUGH_GAP,
        quick=hints is not None,
    )
    keep(modelled, None, answer, effort_s if hints is None else 0.0)
    if isinstance(answer, Infeasible):
        return None
    if hints is not None:
        hints[alike] = answer.choices
    return answer


def within_limit(m: Modelled, free: Solution, below: int | None = None) -> Solution | Infeasible:
    """The solution without limit if it fits, or else the best that does and is below `below` ns."""
    limit = m.prepared.request.memory_limit
    if limit is None or m.peak_bytes(free.choices) <= limit:
        return free
    return search(m, limit, diagnose=False, below=below)


def search(
    modelled: Modelled, limit: int | None, *, diagnose: bool, enough_gap: float = ENOUGH_GAP,
    end: float = np.inf, below: int | None = None,
) -> Solution | Infeasible:  # fmt: skip
    """Solves, and again with more rows where the answer exceeds its limit at another moment.

    The limit of an answer that nothing fits is the smallest one that it found.
    """
    effort_s = modelled.prepared.request.time_limit_s
    known = answer_from(modelled, limit, enough_gap, effort_s)
    if known is not None:
        return known
    effort_s = effort_s if below is None else 0.0
    d, timeline = modelled.draft, modelled.timeline
    began = time.monotonic()
    limit_s = max(min(modelled.prepared.request.time_limit_s, end - began), _LEAST_S)
    rows = (*first_rows(d, timeline), *modelled.crowded) if limit is not None else ()
    start = start_of(modelled, limit)
    answer: Solution | Infeasible = Infeasible(None)
    for _ in range(MOST_ROUNDS):
        answer = solve(
            modelled.problem(limit, rows), start=start,
            time_limit_s=limit_s, enough_gap=enough_gap, diagnose=diagnose, began_s=began,
            below=below,
        )  # fmt: skip
        most = limit if isinstance(answer, Solution) else answer.smallest_limit
        told = isinstance(answer, Infeasible) and not diagnose
        if told or most is None or answer.choices is None or limit is None:
            keep(modelled, limit, answer, effort_s)
            return answer
        more = violated(d, modelled.timeline_of(answer.choices), answer.choices, most)
        if not more:
            keep(modelled, limit, answer, effort_s)
            return answer
        modelled.crowded.extend(more)
        rows = (*rows, *more)
        start = _further(start, answer)
    if isinstance(answer, Solution):
        answer = Infeasible(modelled.peak_bytes(answer.choices), answer.choices)
    return replace(answer, proven=False)


def _further(start: Start | None, answer: Solution | Infeasible) -> Start:
    """Where the search goes on after an answer to the problem with fewer rows."""
    low = 0 if start is None else start.bound
    if isinstance(answer, Infeasible):
        return Start(answer.choices, low)
    return Start(answer.choices, max(low, answer.bound), answer.prices)
