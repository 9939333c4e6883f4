"""The search over ways to run a step: numbers of microbatches, and of recomputed layers.

Without a memory limit, one piece and nothing recomputed is fastest: more only adds work. Under one,
a number of microbatches is guessed from the least peak of the step in one piece, which is not
modelled where even an equal share of all that is live exceeds the limit (`xshard.hopeless`). Where
it is quickly proven that nothing fits, the next number is the first at which the part of the peak
that a microbatch makes would be small enough. Plans are looked at for a number with as many layers
recomputed as let the fastest specs fit, by interpolation between the peaks of none and of all; with
all, if so many do not fit; and with none, which must squeeze its specs under the limit, unless that
is proven not to fit.

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
from xshard.hopeless import Hopeless, hopeless, nothing_fits
from xshard.microbatching import Candidates, Way, numbers
from xshard.one_model import Hints, unlimited
from xshard.plan.plan import Plan
from xshard.plan.records import Trial
from xshard.plan.units import size
from xshard.planning import Relaxed, Unfit, described, fitting, make_plan, planned, relaxed
from xshard.prepare import Modelled, Prepared
from xshard.recall import Models, learn
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


@dataclass(slots=True)
class Outer:
    """Finds the best plan over the ways that are open.

    Attributes:
      before: where the last search ended, with which the next one begins.
      models: what was found, which a search with another limit or with more pins makes use of.
      told: a plan that was made elsewhere, and whether its bound is proven under its limit.
    """

    candidates: Candidates
    before: int | None = None
    models: Models = field(default_factory=Models)
    told: tuple[Plan, bool] | None = None

    def learned(self) -> tuple[Modelled, Solution] | None:
        """The model and the answer of the plan that was told, which the next search knows then."""
        if self.told is None:
            return None
        (plan, proven), self.told = self.told, None
        tried = self.candidates.for_plan(plan)
        same = next((p for p in tried if p.fingerprint == plan.fingerprint), None)
        if same is None:
            return None
        made = self.models.of(same)
        found = learn(made, plan, proven=proven)
        self.before = plan.microbatches if self.candidates.microbatches == "auto" else None
        return None if found is None else (made, found)

    def best(self, limit: int | None) -> Plan:
        """The fastest plan within the limit.

        Raises:
          InfeasibleError: none fits.
          MicrobatchError: the stated number does not divide the batch, or the step is no sum.
        """
        self.learned()
        c = self.candidates
        way, is_open = c.stated(), "auto" in (c.microbatches, c.remat)
        if not is_open or limit is None:
            prepared = c.with_lanes(way, limit)
            _, whole = planned(_under(prepared, limit), models=self.models)
            return self._finished(replace(whole, memory_limit=limit), ())
        kept = self._kept(way, limit)
        if isinstance(kept, Plan):
            return self._finished(replace(kept, memory_limit=limit), ())
        try:
            found = numbers(c.batch()) if c.microbatches == "auto" else (way.microbatches,)
        except MicrobatchError as error:
            return self._in_one_piece(kept, limit, error)
        return self._searched(kept, limit, found)

    def bound_ns(self, limit: int | None) -> int:
        """No plan within the limit takes less than the fastest specs without one, of the step as
        it is stated.
        """
        c, most = self.candidates, limit and 2 * limit  # more lanes would not leave room for state
        prepared = _under(c.with_lanes(c.stated(), most), None)
        found = relaxed([self.models.of(p) for p in prepared])
        return min((r.free.bound for r in found), default=0)

    def _kept(self, way: Way, limit: int) -> Plan | _Kept:
        """The best plan with all layers kept if it fits, or else what that holds."""
        c = self.candidates
        least = nothing_fits(c.prepared(way)[0], limit)
        if least is not None:
            return _Kept(way, least, proven=True)
        made, whole = planned(_under(c.with_lanes(way, limit), None), models=self.models)
        if whole.peak_bytes <= limit:
            return whole
        mesh = made.prepared.request.mesh  # lanes hold more than the step without them
        [plain] = [p for p in _under(c.prepared(way), None) if p.request.mesh == mesh]
        least = hopeless(self.models.of(plain), limit)
        state = sum(a.local_bytes for a in whole.arguments)
        about = Hopeless(state // whole.mesh.num_devices, whole.peak_bytes - state)
        return _Kept(way, least or about, least is not None, whole.objective_ns)

    def _in_one_piece(self, kept: _Kept, limit: int, why: MicrobatchError) -> Plan:
        try:
            plan = self._searched(kept, limit, (1,))
        except InfeasibleError as error:
            text = f"{error}\nMicrobatches do not help: {why}"
            raise InfeasibleError(text, error.smallest_limit_bytes) from None
        return replace(plan, notes=(*plan.notes, f"not in microbatches: {why}"))

    def _searched(self, kept: _Kept, limit: int, found: tuple[int, ...]) -> Plan:
        search = _Search(self.candidates, limit, found, self.models, kept)
        plan = search.run(self.before or search.guess())
        self.before = plan.microbatches
        trials = search.trials if len(search.trials) > 1 else []
        return self._finished(plan, tuple(sorted(trials, key=_order)))

    def _finished(self, plan: Plan, trials: tuple[Trial, ...]) -> Plan:
        dims = () if plan.microbatches == 1 else self.candidates.dims()
        return replace(plan, batch_dims=dims, trials=trials)


@dataclass(slots=True)
class _Kept:
    """The step as it is stated, with all layers kept, where that exceeds the limit.

    Attributes:
      least: what is held.
      proven: whether no specs hold less; otherwise the fastest ones hold so much, about.
      time_ns: without a limit; None: not known.
    """

    way: Way
    least: Hopeless
    proven: bool
    time_ns: int | None = None

    def at(self, microbatches: int) -> float:
        """About what is held in another number of microbatches."""
        return self.least.at(microbatches, self.way.microbatches)


def _order(trial: Trial) -> tuple[int, tuple[int, ...]]:
    return trial.microbatches, trial.recomputed


def _under(tried: Sequence[Prepared], limit: int | None) -> list[Prepared]:
    return [replace(p, request=replace(p.request, memory_limit=limit)) for p in tried]


@dataclass(slots=True)
class _Search:
    """Walks over numbers of microbatches, upwards until one fits, then to where it is fastest.

    Attributes:
      kept: the step as it is stated, which does not fit.
      free_ns: what the best way takes on its mesh without a limit.
      least: the number that could fit by the least peak of the step as it is stated.
      nearest: the least peak of the numbers in which nothing fits.
      meshes: those that were not beaten in the first number in which something fits.
      hints: choices of ways that differ in numbers only.
    """

    candidates: Candidates
    limit: int
    numbers: tuple[int, ...]
    models: Models
    kept: _Kept
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
        if self.kept.proven:
            self._note(self.kept.way)
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

    def guess(self) -> int:
        """The least number that could fit, by what is held with all layers kept."""
        least, of = self.kept.least, self.kept.way.microbatches
        spared = replace(least, rows_bytes=int(least.rows_bytes * (1 - self._spared())))
        fitting = [n for n in self.numbers if spared.at(n, of) <= self.limit]
        found = min(fitting, default=self.numbers[-1])
        self.least = found if self.kept.proven else 1
        return found

    def _spared(self) -> float:
        """The share of what is made of rows that recomputing could save."""
        if self.candidates.remat != "auto":
            return 0.0
        saved = sum(part.saved_bytes for part in self.candidates.layers(self.kept.way).parts)
        devices = self.candidates.prepared(self.kept.way)[0].request.mesh.num_devices
        return min(MOST_SPARED, saved / (max(1, self.kept.least.rows_bytes) * devices))

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
            wanted = self.best[1].objective / (1 + CLOSE)
            if wanted <= self.free_ns:
                return False
            of = self.kept.way.microbatches
            each = max(0, self.free_ns - self._whole_ns()) / max(1, now - of)
            return wanted > self.free_ns + GROWTH * each * (then - now)
        number = self.numbers[i]
        peaks = (found.at(number, of) for of, found in self.nearest.items())
        return number >= self.least and all(peak <= self.limit for peak in peaks)

    def _whole_ns(self) -> int:
        """What the step takes as it is stated, without a limit; on the best mesh, if unknown."""
        if self.kept.time_ns is None:
            assert self.best is not None
            mesh = self.best[0].prepared.request.mesh
            [p] = (p for p in self.candidates.prepared(self.kept.way) if p.request.mesh == mesh)
            free = unlimited(self.models.of(p), FREE_S)
            self.kept.time_ns = 0 if free is None else free.objective
        return self.kept.time_ns

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
        every, held = Way(number, lengths), self.kept.at(number)
        is_open = self.candidates.remat == "auto" and any(lengths)
        if not is_open or not self._relaxed(every):
            yield every
            return
        yield from self._recomputing(number, every)
        if not self.kept.proven or held <= self.limit:
            yield self.candidates.kept(number)

    def _recomputing(self, number: int, every: Way) -> Iterator[Way]:
        """As many recomputed layers as let the fastest specs fit; none if they do anyway.

        What a layer saves is seen once; it is as much less in more microbatches as these are more.
        Where the least is all that is known with all layers kept, so many may be too few.
        """
        held = self.kept.at(number)
        if not self.kept.proven or held <= self.limit:
            kept = self._relaxed(self.candidates.kept(number))
            if not kept:
                yield every
                return
            held = kept[0].peak_bytes
        if held <= self.limit:
            return
        if self.saved_bytes is None:
            self.saved_bytes = number * max(1.0, held - self._relaxed(every)[0].peak_bytes)
        share = min(1.0, number * (held - self.limit) / self.saved_bytes)
        some = Way(number, tuple(ceil(share * n) for n in every.recomputed))
        yield some
        if some != every and self.trials[-1].time_ns is None:
            yield every

    def _relaxed(self, way: Way) -> list[Relaxed]:
        """The models of the meshes on which something may fit that is better than the best."""
        if way not in self.known:
            tried = [p for p in _under(self.candidates.prepared(way), self.limit)
                     if not self._is_beaten(way, p)]  # fmt: skip
            models = self._fitting(way, tried)
            self.known[way] = found = relaxed(models, FREE_S, self.hints)
            for r in found:
                key = way.microbatches, r.modelled.prepared.request.mesh
                self.bounds[key] = min(r.free.bound, self.bounds.get(key, r.free.bound))
        return self.known[way]

    def _fitting(self, way: Way, tried: Sequence[Prepared]) -> list[Modelled]:
        """The models; none where it is quickly proven that nothing fits."""
        if not tried or self._exceeds(way, nothing_fits(tried[0], self.limit)):
            return []
        models = [self.models.of(p) for p in tried]
        fits = any(not self._exceeds(way, hopeless(m, self.limit)) for m in models)
        return models if fits else []

    def _exceeds(self, way: Way, found: Hopeless | None) -> bool:
        """Whether nothing fits; keeps by how little it does not."""
        if found is None:
            return False
        number = way.microbatches
        before = self.nearest.get(number, found)
        self.nearest[number] = min(found, before, key=lambda h: h.at(number, number))
        return True

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
        way = Way(best.microbatches, counts)
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
            peak = chosen.peak_bytes(solution.choices)
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
        if not errors:
            raise InfeasibleError(f"nothing that fits {size(self.limit)} per device was found")
        smallest, n, error = min(errors, key=lambda e: e[:2])
        raise InfeasibleError(f"{error}\n(in {n} microbatches)", smallest) from None
