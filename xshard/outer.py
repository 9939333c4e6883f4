"""The search over ways to run a step: numbers of microbatches, and of recomputed layers.

Without a memory limit, one piece and nothing recomputed is fastest: more only adds work. Under one,
a number of microbatches is guessed from the least peak of the step in one piece. Where it is
quickly proven that nothing fits (`planning.hopeless`), the next number is the first at which the
part of the peak that a microbatch makes would be small enough. Two plans are looked at for a
number: with as many layers recomputed as let the fastest specs fit (by interpolation between the
peaks of none and of all), and with none, which must squeeze its specs under the limit; with all
layers recomputed and no others, where none would hold far more than the limit.

The fastest plan in m microbatches without a limit and with nothing recomputed bounds all plans in m
microbatches from below, since recomputing takes time. Where that bound is no better than the best
plan so far, nothing more is solved; within a solve, the best so far ends the search as soon as the
solver's bound passes it. What is not proven to be worse: numbers of microbatches on which the walk
did not come by, numbers of layers between those that are looked at, meshes that were beaten in
another number, and other lanes than the most that have room enough, on the best mesh.
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
from xshard.planning import (
    Hints,
    Hopeless,
    Relaxed,
    Unfit,
    described,
    fitting,
    hopeless,
    make_plan,
    planned,
    relaxed,
)
from xshard.prepare import Modelled, Prepared
from xshard.recall import Models
from xshard.solve.problem import Solution
from xshard.spec import MeshShape

CLOSE = 0.03
"""More microbatches are not tried where the plan takes at most this share longer than without a
limit: they would make no more room that is needed."""
GROWTH = 0.5
"""From one number to the next the time grows at least by this share of what it grew by for each
microbatch since the first."""
MOST_SPARED = 0.8
"""Of what is made of rows, recomputing all layers spares this at most: what one of them makes while
it is recomputed, and what is outside of layers, is left."""
FREE_S = 2.0
"""Time limit of a solve that only says how fast a way could be."""
FAR_ABOVE = 1.3
"""Layers are not kept where that would hold so many times the limit."""


@dataclass(slots=True)
class Outer:
    """Finds the best plan over the ways that are open.

    Attributes:
      before: where the last search ended, with which the next one begins.
      models: what was found, which a search with another limit or with more pins makes use of.
    """

    candidates: Candidates
    before: int | None = None
    models: Models = field(default_factory=Models)

    def best(self, limit: int | None) -> Plan:
        """The fastest plan within the limit.

        Raises:
          InfeasibleError: none fits.
          MicrobatchError: the stated number does not divide the batch, or the step is no sum.
        """
        c = self.candidates
        way, is_open = c.stated(), "auto" in (c.microbatches, c.remat)
        prepared = c.with_lanes(way, None if is_open else limit)
        made, whole = planned(_under(prepared, None if is_open else limit), models=self.models)
        if not is_open or limit is None or whole.peak_bytes <= limit:
            return self._finished(replace(whole, memory_limit=limit), ())
        try:
            found = numbers(c.batch()) if c.microbatches == "auto" else (way.microbatches,)
        except MicrobatchError as error:
            return self._in_one_piece(made, whole, limit, error)
        return self._searched(made, whole, limit, found)

    def _in_one_piece(self, made: Modelled, whole: Plan, limit: int, why: MicrobatchError) -> Plan:
        try:
            plan = self._searched(made, whole, limit, (1,))
        except InfeasibleError as error:
            text = f"{error}\nMicrobatches do not help: {why}"
            raise InfeasibleError(text, error.smallest_limit_bytes) from None
        return replace(plan, notes=(*plan.notes, f"not in microbatches: {why}"))

    def _searched(self, made: Modelled, whole: Plan, limit: int, found: tuple[int, ...]) -> Plan:
        search = _Search(
            self.candidates, limit, found, self.models, hopeless(made, limit), whole.objective_ns
        )  # fmt: skip
        plan = search.run(self.before or search.guess(whole))
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


@dataclass(slots=True)
class _Search:
    """Walks over numbers of microbatches, upwards until one fits, then to where it is fastest.

    Attributes:
      kept: the least peak of the step in one piece with all layers kept, if that does not fit.
      whole_ns: what it takes in one piece without a limit.
      free_ns: what the best way takes on its mesh without a limit.
      least: the number that could fit by the least peak of the step in one piece.
      nearest: the least peak of the numbers in which nothing fits.
      meshes: those that were not beaten in the first number in which something fits.
      hints: choices of ways that differ in numbers only.
    """

    candidates: Candidates
    limit: int
    numbers: tuple[int, ...]
    models: Models
    kept: Hopeless | None = None
    whole_ns: int = 0
    trials: list[Trial] = field(default_factory=list)
    best: tuple[Modelled, Solution] | None = None
    free_ns: int = 0
    fits: dict[int, bool] = field(default_factory=dict)
    bounds: dict[tuple[int, MeshShape], int] = field(default_factory=dict)
    known: dict[Way, list[Relaxed]] = field(default_factory=dict)
    least: int = 1
    nearest: dict[int, Hopeless] = field(default_factory=dict)
    meshes: set[MeshShape] = field(default_factory=set)
    saved_bytes: float | None = None
    hints: Hints = field(default_factory=dict)

    def run(self, first: int) -> Plan:
        """The plan of the fastest way that was looked at."""
        i = self.numbers.index(first)
        while not self._look(i):
            i = self._next(i)
            if i == len(self.numbers):
                self._refuse()
        self._walk(i, 1)
        self._walk(i, -1)
        self._try_lanes()
        assert self.best is not None
        chosen, solution = self.best
        return described(chosen, solution)

    def guess(self, whole: Plan) -> int:
        """The least number that could fit: of the least peak, or else of arguments that are split
        over all devices and the rest, a part in each microbatch.
        """
        state = sum(a.local_bytes for a in whole.arguments)
        least, rest = state // whole.mesh.num_devices, whole.peak_bytes - state
        if self.kept is not None:
            least, rest = self.kept.fixed_bytes, self.kept.rows_bytes
        rest *= 1 - self._spared(whole)
        fitting = [n for n in self.numbers if least + rest / n <= self.limit]
        found = min(fitting, default=self.numbers[-1])
        self.least = 1 if self.kept is None else found
        return found

    def _spared(self, whole: Plan) -> float:
        """The share of what a step holds beside its arguments that recomputing could save."""
        if self.candidates.remat != "auto":
            return 0.0
        state = sum(a.local_bytes for a in whole.arguments)
        saved = sum(part.saved_bytes for part in self.candidates.layers(Way()).parts)
        held = max(1, whole.peak_bytes - state) * whole.mesh.num_devices
        return min(MOST_SPARED, saved / held)

    def _next(self, i: int) -> int:
        """The first number that could fit, by the least peak of `numbers[i]`, which does not."""
        found = self.nearest.get(self.numbers[i])
        later = range(i + 1, len(self.numbers))
        if found is None or not later:
            return i + 1
        peaks = ((j, found.at(self.numbers[j], self.numbers[i])) for j in later)
        return next((j for j, peak in peaks if peak <= self.limit), len(self.numbers) - 1)

    def _walk(self, i: int, step: int) -> None:
        """Goes on as long as it gets faster."""
        while 0 <= i + step < len(self.numbers) and self._may_gain(i + step, step):
            before = self._objective()
            self._look(i + step)
            if self._objective() == before:
                return
            i += step

    def _may_gain(self, i: int, step: int) -> bool:
        """Whether a further number could be faster, by what is known of others."""
        if step > 0:
            assert self.best is not None
            now, then = self.best[0].prepared.request.microbatches, self.numbers[i]
            each = max(0, self.free_ns - self.whole_ns) / max(1, now - 1)
            least = self.free_ns + GROWTH * each * (then - now)
            return self.best[1].objective > least * (1 + CLOSE)
        number = self.numbers[i]
        peaks = (found.at(number, of) for of, found in self.nearest.items())
        return number >= self.least and all(peak <= self.limit for peak in peaks)

    def _look(self, i: int) -> bool:
        """Tries some plans in `numbers[i]` microbatches; whether any fits."""
        if i in self.fits:
            return self.fits[i]
        number, before = self.numbers[i], len(self.trials)
        for way in self._ways(number):
            self._try(way)
        tried = self.trials[before:]
        self.fits[i] = any(t.time_ns is not None for t in tried)
        if self.fits[i] and not self.meshes:
            self.meshes = self._unbeaten(number)
        return self.fits[i]

    def _unbeaten(self, number: int) -> set[MeshShape]:
        """Meshes that could be faster than the best plan so far, if memory were no matter."""
        most = self._objective() or 0
        return {mesh for (n, mesh), bound in self.bounds.items() if n == number and bound <= most}

    def _ways(self, number: int) -> Iterator[Way]:
        lengths = () if self.candidates.remat == "none" else self.candidates.all_layers(number)
        every = Way(number, lengths)
        is_open = self.candidates.remat == "auto" and any(lengths)
        if not is_open or not self._relaxed(every) or self._is_far_above(number):
            yield every
        else:
            yield from self._recomputing(number, every)
            yield Way(number)

    def _is_far_above(self, number: int) -> bool:
        """Whether nothing comes near the limit with all layers kept."""
        return self.kept is not None and self.kept.at(number, 1) > FAR_ABOVE * self.limit

    def _recomputing(self, number: int, every: Way) -> Iterator[Way]:
        """As many recomputed layers as let the fastest specs fit; none if they do anyway.

        What a layer saves is seen once; it is as much less in more microbatches as these are more.
        """
        kept, all_made = self._relaxed(Way(number)), self._relaxed(every)
        if not kept:
            yield every
            return
        if kept[0].peak_bytes <= self.limit:
            return
        if self.saved_bytes is None:
            self.saved_bytes = number * max(1.0, kept[0].peak_bytes - all_made[0].peak_bytes)
        share = min(1.0, number * (kept[0].peak_bytes - self.limit) / self.saved_bytes)
        yield Way(number, tuple(ceil(share * n) for n in every.recomputed))

    def _relaxed(self, way: Way) -> list[Relaxed]:
        """The models of the meshes on which something may fit that is better than the best."""
        if way not in self.known:
            tried = _under(self.candidates.prepared(way), self.limit)
            models = [self.models.of(p) for p in tried if not self._is_beaten(way, p)]
            self.known[way] = found = relaxed(
                models if any(map(self._may_fit, models)) else [], FREE_S, self.hints
            )
            for r in found:
                key = way.microbatches, r.modelled.prepared.request.mesh
                self.bounds[key] = min(r.free.bound, self.bounds.get(key, r.free.bound))
        return self.known[way]

    def _may_fit(self, modelled: Modelled) -> bool:
        """Whether it is not quickly proven that nothing fits; keeps by how little it does not."""
        found, number = hopeless(modelled, self.limit), modelled.prepared.request.microbatches
        if found is None:
            return True
        before = self.nearest.get(number, found)
        self.nearest[number] = min(found, before, key=lambda h: h.at(number, number))
        return False

    def _is_beaten(self, way: Way, prepared: Prepared) -> bool:
        mesh = prepared.request.mesh
        if self.meshes and mesh not in self.meshes:
            return True
        return self.best is not None and self._bound(way, mesh) >= self.best[1].objective

    def _bound(self, way: Way, mesh: MeshShape) -> int:
        """No plan in so many microbatches is faster, whatever is recomputed."""
        return self.bounds.get((way.microbatches, mesh), 0)

    def _try(self, way: Way) -> None:
        """Looks for a plan that is faster than the best so far."""
        found = self._relaxed(way)
        answer = fitting(found, self._objective())
        if isinstance(answer, Unfit):
            self._note(way, at_least=answer.at_least_ns)
            return
        self._take(found, answer)
        self._note(way, answer)

    def _take(self, found: Sequence[Relaxed], answer: tuple[Modelled, Solution]) -> None:
        below = self._objective()
        if below is None or answer[1].objective < below:
            self.best = answer
            self.free_ns = next(r.free.objective for r in found if r.modelled is answer[0])

    def _try_lanes(self) -> None:
        """The best plan's way, with sums that are finished once a step, on its mesh."""
        assert self.best is not None
        best = self.best[0].prepared.request
        counts = tuple(part.recomputed for part in best.remat)
        way = Way(best.microbatches, counts if any(counts) else ())
        lanes = self.candidates.lanes(way, self.limit, best.mesh)
        for n in sorted(lanes)[-1:]:
            tried = _under(self.candidates.prepared(replace(way, lanes=n)), self.limit)
            models = [self.models.of(p) for p in tried if p.request.mesh == best.mesh]
            found = relaxed(models, FREE_S, self.hints)
            answer = fitting(found, self._objective())
            if not isinstance(answer, Unfit) and answer[1].objective < (self._objective() or 0):
                self._take(found, answer)
                same = way.microbatches, way.recomputed
                self.trials = [t for t in self.trials if _order(t) != same]
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
                make_plan(_under(self.candidates.prepared(Way(n, counts)), self.limit))
            except InfeasibleError as error:
                errors.append((error.smallest_limit_bytes or 1 << 62, n, error))
            if time.monotonic() - began > self.candidates.patience_s:
                break
        smallest, n, error = min(errors, key=lambda e: e[:2])
        raise InfeasibleError(f"{error}\n(in {n} microbatches)", smallest) from None
