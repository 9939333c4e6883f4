"""How many microbatches a step is run in: the number that the user states, or the fastest."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, NoReturn

from xshard.cost.measured import Measured
from xshard.errors import InfeasibleError, MicrobatchError
from xshard.ir.trace import Traced
from xshard.microbatch.split import Divided, divided, found_axes, stated_axes
from xshard.plan.plan import Plan
from xshard.plan.records import Trial
from xshard.planning import (
    Prepared,
    Request,
    make_plan,
    measured,
    plan_that_fits,
    prepare_all,
)
from xshard.spec import MeshShape
from xshard.ties import ties_of

Number = int | str


def read_number(microbatches: Any) -> Number:
    """The option as it is, if it is a positive number or "auto".

    Raises:
      MicrobatchError: it is neither.
    """
    if microbatches == "auto" or (type(microbatches) is int and microbatches > 0):
        return microbatches
    raise MicrobatchError(f'microbatches={microbatches!r} is no number from 1 on, nor "auto"')


@dataclass(slots=True)
class Candidates:
    """One step, prepared for each number of microbatches that is looked at.

    Attributes:
      requests: what to plan for a traced step, one for each mesh.
      batch_axes: as the user states them; None: found.
      donated: argument values whose memory may be reused.
      patience_s: how long the smallest limit is looked for where nothing fits.
      known: what is known of the devices by measurement.
    """

    traced: Traced
    requests: Callable[[Traced], list[Request]]
    microbatches: Number = "auto"
    batch_axes: Any = None
    donated: frozenset[int] = frozenset()
    patience_s: float = 60.0
    known: Measured | None = None
    _divided: dict[tuple[int, ...], Divided] = field(default_factory=dict)
    _prepared: dict[tuple[int, tuple[int, ...], int], list[Prepared]] = field(default_factory=dict)
    _before: int | None = None

    def know(self, known: Measured | None) -> None:
        """Prices are to be by what is known of the devices by measurement."""
        self.known = known
        self._prepared = {key: measured(made, known) for key, made in self._prepared.items()}

    def prepared(
        self, number: int, dims: tuple[int, ...] | None = None, lanes: int = 1
    ) -> list[Prepared]:
        """The step in so many microbatches, for each mesh that the lanes could be split over.

        Args:
          dims: the batch's dimension in each flattened argument, -1 for none, as a plan states it.
          lanes: parts of each sum over the batch that are added up after the loop.

        Raises:
          MicrobatchError: the step cannot be divided so.
        """
        key = number, () if number == 1 else dims or self.dims(), lanes
        if key not in self._prepared:
            traced = self.traced if number == 1 else self._split(key[1]).into(number, lanes)
            requests = [r for r in self.requests(traced) if lanes in widths(r.mesh)]
            requests = [replace(r, microbatches=number, lanes=lanes) for r in requests]
            self._prepared[key] = measured(prepare_all(requests), self.known)
        return self._prepared[key]

    def _with_lanes(self, number: int) -> list[Prepared]:
        """The step in so many microbatches, with each number of lanes that could be of use."""
        found = self.prepared(number)
        if number == 1:
            return found
        rows = self._split(self.dims()).batch // number
        lanes = {n for p in found for n in widths(p.request.mesh) if n > 1 and rows % n == 0}
        return [*found, *(p for n in sorted(lanes) for p in self.prepared(number, lanes=n))]

    def first(self) -> list[Prepared]:
        """The step as it is stated: in one piece if the number is open."""
        return self.prepared(1 if isinstance(self.microbatches, str) else self.microbatches)

    def for_plan(self, plan: Plan) -> list[Prepared]:
        """The step as a plan runs it."""
        return self.prepared(plan.microbatches, plan.batch_dims, plan.lanes)

    def dims(self) -> tuple[int, ...]:
        """The batch's dimension in each flattened argument, -1 for none."""
        if self.batch_axes is not None:
            axes = stated_axes(self.traced, self.batch_axes)
        else:
            inputs = self.traced.graph.inputs
            state = {*ties_of(self.traced).values(), *self.donated}
            axes = found_axes(self.traced, frozenset(i for i, v in enumerate(inputs) if v in state))
        return tuple(-1 if d is None else d for d in axes)

    def best(self, limit: int | None) -> Plan:
        """The fastest plan within the limit.

        Raises:
          InfeasibleError: none fits.
          MicrobatchError: the stated number does not divide the batch, or the step is no sum.
        """
        if isinstance(self.microbatches, int):
            return self._stated(make_plan(self._under(self.microbatches, limit)), ())
        if limit is None:
            return make_plan(self._under(1, None))
        return self._auto(limit)

    def _auto(self, limit: int) -> Plan:
        """One piece, if the limit costs nothing so; else the fastest of some numbers."""
        whole = make_plan(self._under(1, None))
        if whole.peak_bytes <= limit:
            return replace(whole, memory_limit=limit)
        try:
            batch = self._split(self.dims()).batch
        except MicrobatchError as error:
            plan = self._one_piece(limit, error)
            return replace(plan, notes=(*plan.notes, f"not in microbatches: {error}"))
        search = _Search(self, limit, numbers(batch))
        plan = search.run(self._before or _guess(whole, limit, search.numbers))
        self._before = plan.microbatches
        return self._stated(plan, search.trials())

    def _one_piece(self, limit: int, why: MicrobatchError) -> Plan:
        try:
            return make_plan(self._under(1, limit))
        except InfeasibleError as error:
            text = f"{error}\nMicrobatches do not help: {why}"
            raise InfeasibleError(text, error.smallest_limit_bytes) from None

    def _stated(self, plan: Plan, trials: tuple[Trial, ...]) -> Plan:
        number = plan.microbatches
        return replace(plan, batch_dims=() if number == 1 else self.dims(), trials=trials)

    def _under(self, number: int, limit: int | None) -> list[Prepared]:
        return [
            replace(p, request=replace(p.request, memory_limit=limit))
            for p in self._with_lanes(number)
        ]

    def _split(self, dims: tuple[int, ...]) -> Divided:
        if dims not in self._divided:
            axes = [None if d < 0 else d for d in dims]
            self._divided[dims] = divided(self.traced, axes)
        return self._divided[dims]

    def plan_for(self, number: int, limit: int) -> Plan | None:
        """The best plan in so many microbatches; None if none fits."""
        return plan_that_fits(self._under(number, limit))

    def refuse(self, number: int, limit: int) -> None:
        """Raises the InfeasibleError of that number."""
        make_plan(self._under(number, limit))


def widths(mesh: MeshShape) -> frozenset[int]:
    """The numbers of devices that some axes of the mesh make together."""
    sizes = mesh.sizes
    subsets = (c for k in range(len(sizes) + 1) for c in combinations(sizes, k))
    return frozenset(map(math.prod, subsets))


def numbers(batch: int) -> tuple[int, ...]:
    """Divisors of the batch, each at least twice the one before."""
    found = [1]
    for n in range(2, batch + 1):
        if batch % n == 0 and n >= 2 * found[-1]:
            found.append(n)
    return tuple(found)


def _guess(whole: Plan, limit: int, numbers: Sequence[int]) -> int:
    """The least number that could fit: arguments split over all devices, the rest by the number."""
    state = sum(a.local_bytes for a in whole.arguments)
    least = state // whole.mesh.num_devices
    return next(
        (n for n in numbers if least + (whole.peak_bytes - state) / n <= limit), numbers[-1]
    )


@dataclass(slots=True)
class _Search:
    """Walks from a first guess to more microbatches until one fits, then to where it is fastest."""

    candidates: Candidates
    limit: int
    numbers: tuple[int, ...]
    found: dict[int, Plan | None] = field(default_factory=dict)

    def run(self, first: int) -> Plan:
        """The fastest of the plans that were looked at."""
        i = self.numbers.index(first)
        while self._plan(i) is None:
            if i + 1 == len(self.numbers):
                self._refuse()
            i += 1
        for step in (1, -1):
            while self._faster(i + step, i):
                i += step
        best = self._plan(i)
        assert best is not None
        return best

    def trials(self) -> tuple[Trial, ...]:
        """What was tried, with its estimate."""
        return tuple(
            Trial(n, None if p is None else p.objective_ns, None if p is None else p.peak_bytes)
            for n, p in sorted(self.found.items())
        )

    def _plan(self, i: int) -> Plan | None:
        n = self.numbers[i]
        if n not in self.found:
            self.found[n] = self.candidates.plan_for(n, self.limit)
        return self.found[n]

    def _faster(self, new: int, old: int) -> bool:
        if not 0 <= new < len(self.numbers):
            return False
        a, b = self._plan(new), self._plan(old)
        return a is not None and (b is None or a.objective_ns < b.objective_ns)

    def _refuse(self) -> NoReturn:
        """Raises for the number that comes nearest, of those that there is time to look at."""
        began, errors = time.monotonic(), list[tuple[int, int, InfeasibleError]]()
        for n in reversed(self.numbers):
            try:
                self.candidates.refuse(n, self.limit)
            except InfeasibleError as error:
                errors.append((error.smallest_limit_bytes or 1 << 62, n, error))
            if time.monotonic() - began > self.candidates.patience_s:
                break
        smallest, n, error = min(errors, key=lambda e: e[:2])
        raise InfeasibleError(f"{error}\n(in {n} microbatches)", smallest) from None
