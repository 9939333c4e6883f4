"""Templates completed to whole plans by the solver: the best plan of each family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from xshard.plan.records import Template
from xshard.prepare import Modelled
from xshard.solve.fix import Fix
from xshard.solve.problem import FORBIDDEN, Problem, Solution
from xshard.solve.search import solve
from xshard.templates.roles import Roles, families, kept
from xshard.templates.weights import Weights, weights_of

CLOSE, NEAR = 0.005, 0.3
"""How close a completion is to the best of its family: to be shown, and to begin a search with,
where one pass of messages does."""
MOST_S = 2.0
"""Time limit of one completion."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A plan of a family, made without a memory limit.

    Attributes:
      roles: of the mesh axes; of those with the same name, the fastest.
    """

    name: str
    roles: Roles
    choices: tuple[int, ...]
    objective_ns: int
    peak_bytes: int


def completed(m: Modelled, gap: float = CLOSE) -> list[Completed]:
    """A plan for each template that makes sense for the step, the fastest first.

    None for a step without a state, on one device, or where pins leave none.

    Args:
      gap: how close each is to the best of its family.
    """
    weights, best = weights_of(m), dict[str, Completed]()
    if not weights.state:
        return []
    for name, roles in families(m.draft.mesh, experts=bool(weights.expert_shapes)):
        made, before = complete(m, name, roles, weights, gap), best.get(name)
        if made and (before is None or made.objective_ns < before.objective_ns):
            best[name] = made
    return sorted(best.values(), key=lambda c: c.objective_ns)


def complete(m: Modelled, name: str, roles: Roles, w: Weights, gap: float) -> Completed | None:
    """The best plan whose axes have these roles; None if pins leave none."""
    d = m.draft
    edges = tuple(replace(e, usage=None) for e in d.edges)
    problem = Problem(tuple(d.nodes), edges)
    fix = Fix.find(problem, tuple(kept(d, roles, w)))
    rest = fix.apply(problem)
    if rest.constant >= FORBIDDEN:
        return None
    answer = solve(rest, time_limit_s=MOST_S, enough_gap=gap, quick=True)
    if not isinstance(answer, Solution):
        return None
    choices = fix.invert(answer.choices)
    return Completed(name, roles, choices, answer.objective, m.peak_bytes(choices))


def shown(found: Sequence[Completed], m: Modelled) -> tuple[Template, ...]:
    """For a plan."""
    names = m.draft.mesh.names
    sizes = m.draft.mesh.sizes
    return tuple(
        Template(
            c.name,
            tuple((n, r) for n, r, size in zip(names, c.roles, sizes, strict=True) if size > 1),
            c.objective_ns,
            c.peak_bytes,
        )
        for c in found
    )
