"""The cuts of a step that a search looks at, each made once for all meshes and schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from xshard.prepare import Prepared, Request, Timed, prepare, priced
from xshard.stages.cut import Cuttable
from xshard.stages.graph import StageGraph, stage_graph
from xshard.stages.staged import Staged

Counts = tuple[int, ...]
"""Units on each stage."""


@dataclass(slots=True)
class CutStep:
    """A staged step, and the graphs of its stages.

    Attributes:
      ties: result value -> the argument value whose next value it is.
      names: of argument values.
      donated: argument values whose memory the step may reuse.
    """

    staged: Staged
    ties: Mapping[int, int] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)
    donated: frozenset[int] = frozenset()
    _graphs: dict[int, StageGraph] = field(default_factory=dict)
    _prepared: dict[int, list[Prepared]] = field(default_factory=dict)

    def graph(self, stage: int) -> StageGraph:
        """What a stage runs in a step."""
        if stage not in self._graphs:
            self._graphs[stage] = stage_graph(
                self.staged, stage, self.names, self.ties, self.donated
            )
        return self._graphs[stage]

    def prepared(self, stage: int, request: Request) -> Prepared:
        """A stage's graph, prepared; for other meshes it has other prices only."""
        found = self._prepared.setdefault(stage, [])
        for like in found:
            if _alike(like.request, request):
                return priced(replace(like, request=request))
        found.append(_in_memory(prepare(request), self.graph(stage)))
        return found[-1]


def _alike(a: Request, b: Request) -> bool:
    return a.pins == b.pins and (a.mesh.num_devices == 1) == (b.mesh.num_devices == 1)


def _in_memory(prepared: Prepared, graph: StageGraph) -> Prepared:
    """What goes from one program to another has a buffer, though one program would not keep it."""
    stored, buffer = list(prepared.storage.stored), prepared.storage.buffer
    for v in (*graph.crossing, *graph.held):
        stored[buffer[v]] = True
    storage = replace(prepared.storage, stored=tuple(stored))
    return priced(replace(prepared, storage=storage, timed=Timed()))


@dataclass(slots=True)
class Cuts:
    """The cuts of one step in one number of microbatches.

    Attributes:
      ties: result -> the argument whose next value it is, by position.
      donated: positions of arguments whose memory may be reused.
      paths: of the arguments.
    """

    cut: Cuttable
    ties: Mapping[int, int] = field(default_factory=dict)
    donated: frozenset[int] = frozenset()
    paths: Sequence[str] = ()
    _made: dict[tuple[Counts, Counts, bool], CutStep] = field(default_factory=dict)

    def into(self, counts: Counts, recomputed: Counts, *, split_backward: bool) -> CutStep:
        """Stages of so many units, of which so many are recomputed."""
        key = counts, recomputed, split_backward
        if key not in self._made:
            staged = self.cut.into(counts, split_backward=split_backward, recomputed=recomputed)
            names = {p.value: path for pieces, path in zip(staged.inputs, self.paths, strict=False)
                     for p in pieces}  # fmt: skip
            lent = frozenset(p.value for i in self.donated for p in staged.inputs[i])
            self._made[key] = CutStep(staged, _tied_values(staged, self.ties), names, lent)
        return self._made[key]


def _tied_values(staged: Staged, ties: Mapping[int, int]) -> dict[int, int]:
    """Result value -> argument value, for results and arguments that are taken apart alike."""
    found: dict[int, int] = {}
    for result, argument in ties.items():
        new, old = staged.results[result], staged.inputs[argument]
        if [(p.start, p.stop) for p in new] == [(p.start, p.stop) for p in old]:
            found.update((a.value, b.value) for a, b in zip(new, old, strict=True))
    return found
