"""What earlier answers say about the next one, of the same model or of one with other pins.

An answer is one under every limit that its peak fits, and its bound holds under every smaller
limit. More pins only leave out choices, so that bounds hold with them too, as long as the same ops
and values share a choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from xshard.ir.fold import Classes
from xshard.plan.plan import Plan
from xshard.plan.records import RecomputedLayers
from xshard.prepare import Answer, Modelled, Prepared, Request, model
from xshard.solve.check import objective_of
from xshard.solve.draft import Assignment, Draft, decode, encode
from xshard.solve.problem import FORBIDDEN, Infeasible, Problem, Solution, Start
from xshard.spec import MeshShape

NO_LIMIT = 1 << 62
_Key = tuple[MeshShape, int, int, tuple[RecomputedLayers, ...]]


def start_of(modelled: Modelled, limit: int | None) -> Start | None:
    """Where a search under the limit may begin; None where nothing is known."""
    known = modelled.answers
    if not known:
        return None
    best = _cheapest(modelled, limit)
    near = min(known, key=lambda a: abs(_bytes(a.limit) - _bytes(limit)))
    choices = near.choices if best is None else best.choices
    return Start(choices, bound_under(modelled, limit), near.prices)


def bound_under(modelled: Modelled, limit: int | None) -> int:
    """No choices within the limit cost less, by what is known."""
    holding = (a.bound for a in modelled.answers if _bytes(a.limit) >= _bytes(limit))
    return max(holding, default=0)


def answer_from(
    modelled: Modelled, limit: int | None, gap: float, effort_s: float
) -> Solution | None:
    """The best answer that is known, if no search would look for a better one.

    Args:
      gap: a search ends this close to the best, if it was one of this very model.
      effort_s: the time limit of the search that is meant.
    """
    best, bound = _cheapest(modelled, limit), bound_under(modelled, limit)
    if best is None or best.choices is None:
        return None
    searched = best.limit == limit and best.effort_s >= effort_s > 0
    if bound < best.objective * (1 - (gap if best.effort_s else 0.0)) and not searched:
        return None
    return Solution(best.choices, best.objective, min(bound, best.objective), prices=best.prices)


def keep(
    modelled: Modelled, limit: int | None, answer: Solution | Infeasible, effort_s: float
) -> None:
    """Remembers an answer under a limit, of a search with that time limit."""
    if isinstance(answer, Solution):
        found = Answer(
            limit, answer.bound, answer.choices, answer.objective, answer.prices, effort_s
        )
        modelled.answers.append(found)
    elif answer.bound is not None:
        modelled.answers.append(Answer(limit, answer.bound))
    elif answer.choices is not None:
        found = _revalued(modelled, Answer(None, 0), answer.choices)
        modelled.answers.append(found)


def learn(made: Modelled, plan: Plan, *, proven: bool) -> Solution | None:
    """A plan's answer, from now on known of its model; None if it is not of this model.

    Args:
      plan: with the model's fingerprint.
      proven: whether the plan's bound is one under its memory limit, after a search.
    """
    answer = Answer(plan.memory_limit, plan.bound_ns if proven else 0)
    found = _revalued(made, answer, encode(made.draft, _assignment(made.draft, plan)))
    if found.choices is None or found.objective != plan.objective_ns:
        return None
    effort_s = made.prepared.request.time_limit_s if proven else 0.0
    made.answers.append(replace(found, effort_s=effort_s))
    return Solution(found.choices, found.objective, found.bound)


def _assignment(d: Draft, plan: Plan) -> Assignment:
    """What a plan says of a draft's classes."""
    strategies = tuple(
        next((s for s in made if (s.factors, s.operands) == (op.factors, op.operands)), made[0])
        for made, op in zip(d.strategies, plan.ops, strict=True)
    )
    outputs = (v for v in d.graph.outputs if v is not None)
    of_value = {v: result.spec for v, result in zip(outputs, plan.results, strict=True)}
    returned = {
        (int(d.classes.value_class[v]), pin): of_value[v]
        for i, pin in d.results.items()
        if (v := d.graph.outputs[i]) is not None
    }
    copies = {(vc, phase): spec for vc, phase, spec in plan.copies}
    return Assignment(strategies, plan.values, copies, returned)


def least_peak(models: Sequence[Modelled]) -> tuple[Modelled, Answer, int] | None:
    """The choices that hold least, of all that were found on any of the models, and their peak."""
    found = (
        (m, a, m.peak_bytes(a.choices)) for m in models for a in m.answers if a.choices is not None
    )
    return min(found, key=lambda each: each[2], default=None)


def forced(modelled: Modelled, like: Modelled) -> Modelled:
    """The same with what is known of `like`, whose nodes and choices are these but allow more."""
    known = [_revalued(modelled, a, a.choices) for a in like.answers]
    return replace(modelled, answers=known, crowded=list(like.crowded))


@dataclass(slots=True)
class Models:
    """The models of one step that were made so far.

    Attributes:
      before: those of the same step with other pins.
    """

    before: Models | None = None
    made: dict[_Key, Modelled] = field(default_factory=dict[_Key, Modelled])

    def of(self, prepared: Prepared) -> Modelled:
        """The model of a request, with what is known of it."""
        key = _key(prepared.request)
        if key not in self.made:
            self.made[key] = self._new(prepared)
        return replace(self.made[key], prepared=prepared)

    def bound(self, prepared: Prepared) -> int:
        """No plan of a request is faster, by what is known; without making a model."""
        limit, key = prepared.request.memory_limit, _key(prepared.request)
        if key in self.made:
            return bound_under(self.made[key], limit)
        like = self._like(prepared)
        return 0 if like is None else bound_under(like, limit)

    def by_bound(
        self, tried: Sequence[Prepared]
    ) -> tuple[list[Prepared], list[tuple[Prepared, int]]]:
        """Requests to begin with, and the others, which are known to be slower than a bound."""
        bounds = [self.bound(p) for p in tried]
        least = min((b for b in bounds if b), default=0)
        both = list(zip(tried, bounds, strict=True))
        return [p for p, b in both if b <= least], [(p, b) for p, b in both if b > least]

    def _new(self, prepared: Prepared) -> Modelled:
        made, like = model(prepared), self._like(prepared)
        if like is None:
            return made
        known = [_revalued(made, a, _mapped(like, made, a)) for a in like.answers]
        names = [int(row.name) for row in like.crowded if row.name.isdigit()]
        crowded = made.timeline.rows(names) if names else ()
        return replace(made, answers=known, crowded=list(crowded))

    def _like(self, prepared: Prepared) -> Modelled | None:
        """The model before, if it allows all that this one does."""
        earlier = self.before
        while earlier is not None:
            found = earlier.made.get(_key(prepared.request))
            if found is not None and _allows_more(found.prepared, prepared):
                return found
            earlier = earlier.before
        return None


def _key(r: Request) -> _Key:
    return r.mesh, r.microbatches, r.lanes, r.remat


def _allows_more(before: Prepared, now: Prepared) -> bool:
    """Whether `now` is `before` with more pins, and the same ops and values share a choice."""
    a, b = before.request, now.request
    return (
        a.pins.items() <= b.pins.items()
        and a.results.items() <= b.results.items()
        and a.ties == b.ties
        and _same_classes(before.classes, now.classes)
    )


def _same_classes(a: Classes, b: Classes) -> bool:
    return np.array_equal(a.op_class, b.op_class) and np.array_equal(a.value_class, b.value_class)


def _mapped(like: Modelled, made: Modelled, answer: Answer) -> tuple[int, ...] | None:
    if answer.choices is None:
        return None
    return encode(made.draft, decode(like.draft, answer.choices))


def _revalued(modelled: Modelled, answer: Answer, choices: tuple[int, ...] | None) -> Answer:
    """An answer of another model as one of this: the bound, and the choices if they are allowed."""
    bare = replace(answer, choices=None, effort_s=0.0)
    if choices is None:
        return bare
    d = modelled.draft
    objective = objective_of(Problem(tuple(d.nodes), tuple(d.edges)), choices)
    if objective >= FORBIDDEN:
        return bare
    return replace(bare, choices=choices, objective=objective)


def _cheapest(modelled: Modelled, limit: int | None) -> Answer | None:
    found = sorted(
        (a for a in modelled.answers if a.choices is not None), key=lambda a: a.objective
    )
    return next((a for a in found if modelled.fits(a.choices or (), limit)), None)


def _bytes(limit: int | None) -> int:
    return NO_LIMIT if limit is None else limit
