"""What a pipeline's tasks and transfers took in one step, seen from beside it.

After each action one number of what it made is copied on its device, and a thread a track waits for
the copies. So the step runs as it does otherwise, but for copies of a few bytes.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from xshard.mpmd.plan import PipelinePlan
from xshard.mpmd.step import Pipeline
from xshard.mpmd.tape import Action, Held, Run
from xshard.schedules.trace import Span, predicted, save_trace, task_span


@dataclass(frozen=True)
class StepProfile:
    """One step, measured.

    Attributes:
      result: of the step.
      spans: tasks of the groups of this process, transfers to them, and what runs once.
      wall_ns: from the call to the last result.
    """

    plan: PipelinePlan
    result: Any
    spans: tuple[Span, ...]
    wall_ns: int

    def task_ns(self) -> dict[tuple[int, str], int]:
        """(stage, part) -> the median time of its tasks, as in `plan.times`."""
        found: dict[tuple[int, str], list[int]] = {}
        for span in self.spans:
            if "stage" in span.facts:
                key = span.facts["stage"], span.kind
                found.setdefault(key, []).append(span.end_ns - span.start_ns)
        return {key: sorted(times)[len(times) // 2] for key, times in found.items()}

    def trace(self, path: str | os.PathLike[str]) -> None:
        """Writes the predicted and the measured step side by side as a Chrome trace."""
        plan = self.plan
        save_trace(
            path, {"predicted": predicted(plan.timeline, plan.times), "measured": self.spans}
        )


def measured(pipeline: Pipeline, plan: PipelinePlan, call: Callable[[], Any]) -> StepProfile:
    """Calls the step, whose pipeline this is, and looks on."""
    watcher = _Watcher()
    pipeline.observer = watcher.see
    try:
        result = jax.block_until_ready(call())
    finally:
        pipeline.observer = None
        watcher.join()
    wall_ns = time.perf_counter_ns() - watcher.began
    return StepProfile(plan, result, tuple(watcher.spans(pipeline)), wall_ns)


class _Watcher:
    def __init__(self) -> None:
        self.began = time.perf_counter_ns()
        self._seen: list[tuple[Action, int]] = []
        self._ends: dict[int, int] = {}
        self._queues: dict[str, queue.SimpleQueue[Any]] = {}
        self._threads: list[threading.Thread] = []

    def see(self, action: Action, made: Sequence[Any]) -> None:
        """An action was dispatched."""
        track = _track(action)
        if track not in self._queues:
            self._queues[track] = queue.SimpleQueue()
            self._threads.append(threading.Thread(target=self._wait, args=(track,)))
            self._threads[-1].start()
        self._queues[track].put((len(self._seen), _token(made)))
        self._seen.append((action, time.perf_counter_ns()))

    def join(self) -> None:
        """Waits for all that was dispatched."""
        for waiting in self._queues.values():
            waiting.put(None)
        for thread in self._threads:
            thread.join()

    def spans(self, pipeline: Pipeline) -> list[Span]:
        """Each from when it could start: dispatched, all that it reads there, its track free."""
        there: dict[Held, int] = {}
        free: dict[str, int] = {}
        found: list[Span] = []
        for i, (action, dispatched) in enumerate(self._seen):
            track = _track(action)
            ready = max((there.get(h, 0) for h in (*action.reads, *action.carries)), default=0)
            end = self._ends[i]
            start = min(max(dispatched, ready, free.get(track, 0)), end)
            free[track] = end
            there.update(dict.fromkeys((*action.makes, *action.carries), end))
            found.append(_span(pipeline, action, track, start - self.began, end - self.began))
        return found

    def _wait(self, track: str) -> None:
        while (item := self._queues[track].get()) is not None:
            number, token = item
            jax.block_until_ready(token)
            self._ends[number] = time.perf_counter_ns()


def _track(action: Action) -> str:
    if isinstance(action, Run):
        return f"group {action.group}"
    return f"group {action.source} to {action.target}"


def _span(pipeline: Pipeline, action: Action, track: str, start: int, end: int) -> Span:
    if isinstance(action, Run) and action.task is not None:
        return task_span(action.group, action.task, start, end)
    if isinstance(action, Run):
        program = pipeline.staged.programs[action.program]
        return Span(track, program.name, program.part, start, end, {})
    name = str(action.microbatch) if action.microbatch >= 0 else "once"
    return Span(track, name, "transfer", start, end, {"values": len(action.values)})


def _token(made: Sequence[Any]) -> Any:
    """Something that is there when these are, and that nobody donates."""
    arrays = [x for x in made if x.addressable_shards and x.size]
    if not arrays:
        return ()
    return _first(min(arrays, key=lambda x: x.nbytes).addressable_shards[0].data)


@jax.jit
def _first(x: Any) -> Any:
    return jnp.ravel(x)[:1]
