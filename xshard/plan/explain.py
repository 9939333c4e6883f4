"""Why a value has its spec: what the best plan with each other spec would cost."""

from __future__ import annotations

from dataclasses import dataclass

from xshard.errors import PlanError
from xshard.plan.find import find
from xshard.plan.page.tables import to_html
from xshard.plan.plan import Alternative, Plan
from xshard.plan.table import Part, Table, to_rich, to_text
from xshard.plan.units import duration, size, spec_text


@dataclass(frozen=True, slots=True)
class Explanation:
    """The alternatives for one value, the fastest first, those that do not fit last.

    Attributes:
      name: what is explained.
      axes: names of the mesh axes.
      alternatives: the chosen spec is among them.
    """

    name: str
    axes: tuple[str, ...]
    alternatives: tuple[Alternative, ...]

    @property
    def chosen(self) -> Alternative | None:
        """The plan's own choice."""
        return next((a for a in self.alternatives if a.chosen), None)

    def __repr__(self) -> str:
        """In one line."""
        spec = spec_text(self.chosen.spec, self.axes) if self.chosen else "nothing"
        return f"Explanation({self.name}: {spec} of {len(self.alternatives)} alternatives)"

    def __str__(self) -> str:
        return to_text(report(self))

    def __rich__(self) -> object:
        return to_rich(report(self))

    def _repr_html_(self) -> str:
        return to_html(report(self))


def explain(plan: Plan, what: str) -> Explanation:
    """The alternatives for the argument, result or op that `what` names.

    Raises:
      XshardError: `what` names nothing, or several things.
      PlanError: the plan was loaded from a file, and knows no alternatives.
    """
    found = find(plan, what)
    ask = plan._alternatives  # pyright: ignore[reportPrivateUsage]
    if ask is None:
        raise PlanError(
            f"this plan cannot explain {what!r}: it was read from a file, which holds the decision "
            "and not its alternatives; plan again and ask that plan"
        )
    ordered = sorted(ask(found.key), key=_by_cost)
    return Explanation(found.label, plan.mesh.names, tuple(ordered))


def report(explanation: Explanation) -> tuple[Part, ...]:
    """The alternatives as a table."""
    rows = tuple(_row(a, explanation.axes) for a in explanation.alternatives)
    columns = ("", "sharding", ">step time", ">more than chosen", ">peak memory")
    foot = "each row is the best plan with that sharding" if rows else "there is no alternative"
    return (Table(explanation.name, columns, rows, foot),)


def _by_cost(a: Alternative) -> tuple[bool, int, bool, object]:
    return (a.time_ns is None, a.time_ns or 0, not a.chosen, a.spec)


def _row(a: Alternative, axes: tuple[str, ...]) -> tuple[str, ...]:
    mark = "→" if a.chosen else ""
    spec = spec_text(a.spec, axes)
    peak = "" if a.peak_bytes is None else size(a.peak_bytes)
    if a.time_ns is None:
        return (mark, spec, "does not fit", "", peak)
    return (mark, spec, duration(a.time_ns), _extra(a), peak)


def _extra(a: Alternative) -> str:
    if a.chosen or a.extra_ns is None:
        return ""
    sign = "-" if a.extra_ns < 0 else "+"
    return f"{sign}{duration(abs(a.extra_ns))}"
