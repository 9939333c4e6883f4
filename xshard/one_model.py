"""The best choices of one model: without a memory limit, and within one."""

from __future__ import annotations

import time
from dataclasses import replace
from math import ceil

import numpy as np

from xshard.prepare import Modelled
from xshard.recall import answer_from, keep, start_of
from xshard.solve.memory import first_rows, violated
from xshard.solve.problem import Infeasible, Row, Solution, Start
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
    modelled: Modelled, most_s: float = np.inf, hints: Hints | None = None, below: int | None = None
) -> Solution | None:
    """The best choices without a memory limit; None if pins contradict each other.

    Args:
      below: answers of so many ns or more are not wanted: None also where it is proven that all
        are.
    """
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
        below=None if below is None else ceil(below / (1 - ENOUGH_GAP)),
    )
    keep(modelled, None, answer, effort_s if hints is None else 0.0)
    if isinstance(answer, Infeasible):
        return None
    if hints is not None:
        hints[alike] = answer.choices
    return answer


def search(
    modelled: Modelled, limit: int | None, *, diagnose: bool, enough_gap: float = ENOUGH_GAP,
    end: float = np.inf, below: int | None = None,
) -> Solution | Infeasible:  # fmt: skip
    """Solves, and again with more rows where the answer exceeds its limit at another moment.

    The limit of an answer that nothing fits is the smallest one that it found.
    """
    rounds = Rounds(modelled, limit, diagnose=diagnose, enough_gap=enough_gap, end=end)
    while not rounds.done:
        rounds.go_on(below)
    return rounds.answer


class Rounds:
    """A search within a limit, a round at a time.

    Attributes:
      answer: of the latest round; the search's if `done`.
    """

    def __init__(
        self, modelled: Modelled, limit: int | None, *, diagnose: bool = False,
        enough_gap: float = ENOUGH_GAP, end: float = np.inf,
    ) -> None:  # fmt: skip
        self.modelled, self.limit = modelled, limit
        self._diagnose, self._enough_gap = diagnose, enough_gap
        self._effort_s = modelled.prepared.request.time_limit_s
        known = answer_from(modelled, limit, enough_gap, self._effort_s)
        self.done = known is not None
        self.answer: Solution | Infeasible = known or Infeasible(None)
        if self.done:
            return
        self._limit_s = max(min(self._effort_s, end - time.monotonic()), _LEAST_S)
        self._spent_s, self._left = 0.0, MOST_ROUNDS
        first = () if limit is None else first_rows(modelled.draft, modelled.timeline)
        self._rows: tuple[Row, ...] = (*first, *(modelled.crowded if limit is not None else ()))
        self._start = start_of(modelled, limit)

    @property
    def bound(self) -> int:
        """What all answers take at least, as far as is known, in ns."""
        return self.answer.bound or 0

    def go_on(self, below: int | None = None) -> None:
        """A round more; answers of `below` ns or more are not wanted."""
        if below is not None:
            self._effort_s = 0.0
        began = time.monotonic() - self._spent_s
        self.answer = answer = solve(
            self.modelled.problem(self.limit, self._rows), start=self._start,
            time_limit_s=self._limit_s, enough_gap=self._enough_gap, diagnose=self._diagnose,
            began_s=began, below=below,
        )  # fmt: skip
        self._left -= 1
        more = self._exceeded(answer)
        self._spent_s = time.monotonic() - began
        if not more:
            keep(self.modelled, self.limit, answer, self._effort_s)
            self.done = True
        elif self._left:
            self.modelled.crowded.extend(more)
            self._rows = (*self._rows, *more)
            self._start = _further(self._start, answer)
        else:
            self.done = True
            if isinstance(answer, Solution):
                answer = Infeasible(self.modelled.peak_bytes(answer.choices), answer.choices)
            self.answer = replace(answer, proven=False)

    def _exceeded(self, answer: Solution | Infeasible) -> tuple[Row, ...]:
        """Moments at which an answer exceeds its limit; none if it is the search's."""
        most = self.limit if isinstance(answer, Solution) else answer.smallest_limit
        told = isinstance(answer, Infeasible) and not self._diagnose
        if told or most is None or answer.choices is None or self.limit is None:
            return ()
        timeline = self.modelled.timeline_of(answer.choices)
        return violated(self.modelled.draft, timeline, answer.choices, most)


def _further(start: Start | None, answer: Solution | Infeasible) -> Start:
    """Where the search goes on after an answer to the problem with fewer rows."""
    low = 0 if start is None else start.bound
    if isinstance(answer, Infeasible):
        return Start(answer.choices, low)
    return Start(answer.choices, max(low, answer.bound), answer.prices)
