"""All exact reductions in order, until nothing shrinks: `reduce` is the way in.

`Reduced.problem` is what remains (nothing, if all could be eliminated) and `Reduced.invert` maps
its choices back. Nothing here looks at the clock: the same problem gives the same arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from xshard.solve.drop import Drop
from xshard.solve.eliminate import MOST_ENTRIES, Eliminate, has_memory
from xshard.solve.merge import Merge
from xshard.solve.problem import Problem
from xshard.solve.trim import Trim

MOST_ROUNDS = 4
MOST_COMPARISONS = 1 << 23
FEW_ENTRIES = 1 << 13


class Reduction(Protocol):
    """A smaller problem with the same optimum, and the way back."""

    def apply(self, problem: Problem) -> Problem:
        """The smaller problem."""
        ...

    def invert(self, choices: tuple[int, ...]) -> tuple[int, ...]:
        """The smaller problem's choices in terms of the larger."""
        ...


@dataclass(frozen=True, slots=True)
class Reduced:
    """What remains of a problem, and the reductions that led there."""

    problem: Problem
    chain: tuple[Reduction, ...]

    def then(self, reduction: Reduction) -> Reduced:
        """This, reduced once more."""
        return Reduced(reduction.apply(self.problem), (*self.chain, reduction))

    def invert(self, choices: tuple[int, ...]) -> tuple[int, ...]:
        """Choices of what remains, in terms of the original problem."""
        for reduction in reversed(self.chain):
            choices = reduction.invert(choices)
        return choices


def reduce(problem: Problem, *, most_entries: int = MOST_ENTRIES) -> Reduced:
    """Trims, merges, drops and eliminates until a round changes nothing.

    Elimination makes no table of more than `most_entries`. With memory, FEW_ENTRIES is advisable:
    the nodes that must stay would otherwise get large tables between them.
    """
    reduced = Reduced(problem, ())
    size = _size(problem)
    for _ in range(MOST_ROUNDS):
        reduced = reduced.then(Trim()).then(Merge())
        if has_memory(reduced.problem).any() and _is_worth_dropping(reduced.problem):
            reduced = reduced.then(Drop.find(reduced.problem))
        reduced = reduced.then(Eliminate.find(reduced.problem, most_entries=most_entries))
        if reduced.problem.nodes and _is_worth_dropping(reduced.problem):
            reduced = reduced.then(Drop.find(reduced.problem))
        if not reduced.problem.nodes or _size(reduced.problem) == size:
            break
        size = _size(reduced.problem)
    return reduced.then(Trim()).then(Merge())


def _is_worth_dropping(problem: Problem) -> bool:
    """Whether comparing all pairs of choices of all nodes is cheap."""
    return sum(sum(e.costs.shape) * e.costs.size for e in problem.edges) <= MOST_COMPARISONS


def _size(problem: Problem) -> tuple[int, int, int]:
    choices = sum(len(n.costs) for n in problem.nodes)
    return len(problem.nodes), choices, len(problem.edges)
