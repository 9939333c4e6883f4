"""The search over ways to run a step: numbers of microbatches, and of recomputed layers.

Without a memory limit, one piece and nothing recomputed is fastest: more only adds work. Under one,
two plans are looked at for a number of microbatches: with as many layers recomputed as let the
fastest specs fit (by interpolation between the peaks of none and of all), and with none, which must
squeeze its specs under the limit.

The fastest plan in m microbatches without a limit and with nothing recomputed bounds all plans in m
microbatches from below, since recomputing takes time. Where that bound is no better than the best
plan so far, nothing more is solved; within a solve, the best so far ends the search as soon as the
solver's bound passes it. What is not proven to be worse: numbers of microbatches on which the walk
did not come by, numbers of layers between those that are looked at, and other lanes than those that
were fastest on a mesh where it was first looked at.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import NoReturn

from xshard.errors import InfeasibleError, MicrobatchError
from xshard.microbatching import Candidates, Way, numbers
from xshard.plan.plan import Plan
from xshard.plan.records import Trial
from xshard.planning import Relaxed, Unfit, described, fitting, make_plan, relaxed
from xshard.prepare import Modelled, Prepared, model
from xshard.solve.problem import Solution
from xshard.spec import MeshShape


@dataclass(slots=True)
class Outer:
    """Finds the best plan over the ways that are open.

    Attributes:
      before: where the last search ended, with which the next one begins.
    """

    candidates: Candidates
    before: int | None = None

    def best(self, limit: int | None) -> Plan:
        """The fastest plan within the limit.

        Raises:
          InfeasibleError: none fits.
          MicrobatchError: the stated number does not divide the batch, or the step is no sum.
        """
        c = self.candidates
        way, is_open = c.stated(), "auto" in (c.microbatches, c.remat)
        whole = make_plan(_under(c.with_lanes(way), None if is_open else limit))
        if not is_open or limit is None or whole.peak_bytes <= limit:
            return self._finished(replace(whole, memory_limit=limit), ())
        try:
            found = numbers(c.batch()) if c.microbatches == "auto" else (way.microbatches,)
        except MicrobatchError as error:
            return self._in_one_piece(whole, limit, error)
        return self._searched(whole, limit, found)

    def _in_one_piece(self, whole: Plan, limit: int, why: MicrobatchError) -> Plan:
        try:
            plan = self._searched(whole, limit, (1,))
        except InfeasibleError as error:
            text = f"{error}\nMicrobatches do not help: {why}"
            raise InfeasibleError(text, error.smallest_limit_bytes) from None
        return replace(plan, notes=(*plan.notes, f"not in microbatches: {why}"))

    def _searched(self, whole: Plan, limit: int, found: tuple[int, ...]) -> Plan:
        search = _Search(self.candidates, limit, found)
        plan = search.run(self.before or _guess(whole, limit, found, search.spared(whole)))
        self.before = plan.microbatches
        trials = search.trials if len(search.trials) > 1 else []
        return self._finished(plan, tuple(sorted(trials, key=_order)))

    def _finished(self, plan: Plan, trials: tuple[Trial, ...]) -> Plan:
        dims = () if plan.microbatches == 1 else self.candidates.dims()
        return replace(plan, batch_dims=dims, trials=trials)


def _order(trial: Trial) -> tuple[int, tuple[int, ...]]:
    return trial.microbatches, trial.recomputed


def _under(tried: Sequence[Prepared], limit: int | None) -> list[Prepared]:
    return [replace(p, request=replace(p.request, memory_limit=limit)) for p in tried]


def _guess(whole: Plan, limit: int, numbers: Sequence[int], spared: float) -> int:
    """The least number that could fit: arguments split over all devices, of the rest a part.

    Args:
      spared: the share of the rest that recomputing all layers saves.
    """
    state = sum(a.local_bytes for a in whole.arguments)
    least, rest = state // whole.mesh.num_devices, (whole.peak_bytes - state) * (1 - spared)
    return next((n for n in numbers if least + rest / n <= limit), numbers[-1])


@dataclass(slots=True)
class _Search:
    """Walks over numbers of microbatches, upwards until one fits, then to where it is fastest."""

    candidates: Candidates
    limit: int
    numbers: tuple[int, ...]
    trials: list[Trial] = field(default_factory=list)
    best: tuple[Modelled, Solution] | None = None
    fits: dict[int, bool] = field(default_factory=dict)
    bounds: dict[tuple[int, MeshShape], int] = field(default_factory=dict)
    known: dict[Way, list[Relaxed]] = field(default_factory=dict)
    lanes: dict[MeshShape, int] = field(default_factory=dict)
    saved_bytes: float | None = None

    def run(self, first: int) -> Plan:
        """The plan of the fastest way that was looked at."""
        i = start = self.numbers.index(first)
        while not self._look(i):
            i += 1
            if i == len(self.numbers):
                self._refuse()
        self._walk(i, 1)
        self._walk(start if start < i else i, -1)
        assert self.best is not None
        chosen, solution = self.best
        return described(chosen, solution)

    def spared(self, whole: Plan) -> float:
        """The share of what a step holds beside its arguments that recomputing could save."""
        if self.candidates.remat != "auto":
            return 0.0
        state = sum(a.local_bytes for a in whole.arguments)
        saved = sum(part.saved_bytes for part in self.candidates.layers(Way()).parts)
        held = max(1, whole.peak_bytes - state) * whole.mesh.num_devices
        return min(0.9, saved / held)

    def _walk(self, i: int, step: int) -> None:
        """Goes on as long as it gets faster."""
        while 0 <= i + step < len(self.numbers):
            before = self._objective()
            self._look(i + step)
            if self._objective() == before:
                return
            i += step

    def _look(self, i: int) -> bool:
        """Tries some plans in `numbers[i]` microbatches; whether any fits."""
        if i in self.fits:
            return self.fits[i]
        number, before = self.numbers[i], len(self.trials)
        for way in self._ways(number):
            self._try(way)
        tried = self.trials[before:]
        self.fits[i] = any(t.time_ns is not None for t in tried)
        return self.fits[i]

    def _ways(self, number: int) -> Iterator[Way]:
        if self.candidates.remat == "auto":
            yield from self._recomputing(number)
            yield Way(number)
        else:
            every = self.candidates.remat == "all"
            yield Way(number, self.candidates.all_layers(number) if every else ())

    def _recomputing(self, number: int) -> Iterator[Way]:
        """As many recomputed layers as let the fastest specs fit; none if they do anyway.

        What a layer saves is seen once; it is as much less in more microbatches as these are more.
        """
        lengths = self.candidates.all_layers(number)
        kept = self._relaxed(Way(number)) if lengths else []
        if not kept or kept[0].peak_bytes <= self.limit:
            return
        if self.saved_bytes is None:
            every = self._relaxed(Way(number, lengths))
            if not every:
                return
            self.saved_bytes = number * max(1.0, kept[0].peak_bytes - every[0].peak_bytes)
        share = min(1.0, number * (kept[0].peak_bytes - self.limit) / self.saved_bytes)
        yield Way(number, tuple(ceil(share * n) for n in lengths))

    def _relaxed(self, way: Way) -> list[Relaxed]:
        """The models of the meshes that may still be better than the best so far."""
        if way not in self.known:
            tried = _under(self._prepared(way), self.limit)
            found = relaxed([model(p) for p in tried if not self._is_beaten(way, p)])
            self.known[way] = found
            for r in found:
                request = r.modelled.prepared.request
                key = way.microbatches, request.mesh
                self.bounds[key] = min(r.free.bound, self.bounds.get(key, r.free.bound))
                if way.microbatches > 1:
                    self.lanes.setdefault(request.mesh, request.lanes)
        return self.known[way]

    def _prepared(self, way: Way) -> list[Prepared]:
        """For each mesh without lanes, which take room, and with the first fastest."""
        if not self.lanes or way.microbatches == 1:
            return self.candidates.with_lanes(way)
        found = [p for n in sorted({1, *self.lanes.values()})
                 for p in self.candidates.prepared(replace(way, lanes=n))]  # fmt: skip
        return [p for p in found if p.request.lanes in (1, self.lanes.get(p.request.mesh))]

    def _is_beaten(self, way: Way, prepared: Prepared) -> bool:
        bound = self._bound(way, prepared.request.mesh)
        return self.best is not None and bound >= self.best[1].objective

    def _bound(self, way: Way, mesh: MeshShape) -> int:
        """No plan in so many microbatches is faster, whatever is recomputed."""
        return self.bounds.get((way.microbatches, mesh), 0)

    def _try(self, way: Way) -> None:
        """Looks for a plan that is faster than the best so far."""
        answer = fitting(self._relaxed(way), self._objective())
        if isinstance(answer, Unfit):
            self._note(way, at_least=answer.at_least_ns)
            return
        below = self._objective()
        if below is None or answer[1].objective < below:
            self.best = answer
        self._note(way, answer)

    def _objective(self) -> int | None:
        return None if self.best is None else self.best[1].objective

    def _note(
        self, way: Way, answer: tuple[Modelled, Solution] | None = None, at_least: int | None = None
    ) -> None:
        time_ns = None if answer is None else answer[1].objective
        peak = None
        if answer is not None:
            chosen, solution = answer
            peak = chosen.peak_bytes(solution)
        self.trials.append(Trial(way.microbatches, time_ns, peak, way.recomputed, at_least))

    def _refuse(self) -> NoReturn:
        """Raises for the way that comes nearest, of those that there is time to look at."""
        began, errors = time.monotonic(), list[tuple[int, int, InfeasibleError]]()
        for n in reversed(self.numbers):
            counts = () if self.candidates.remat == "none" else self.candidates.all_layers(n)
            try:
                make_plan(_under(self.candidates.with_lanes(Way(n, counts)), self.limit))
            except InfeasibleError as error:
                errors.append((error.smallest_limit_bytes or 1 << 62, n, error))
            if time.monotonic() - began > self.candidates.patience_s:
                break
        smallest, n, error = min(errors, key=lambda e: e[:2])
        raise InfeasibleError(f"{error}\n(in {n} microbatches)", smallest) from None
