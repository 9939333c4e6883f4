"""What values, copies and unfinished sums take on a device under a draft's choices."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from xshard.cost.kernels import Copy, Sizes, Unfinished
from xshard.solve.draft import Draft
from xshard.solve.memory import Timeline
from xshard.spec import Spec, num_shards

Choices = tuple[int, ...]


def sizes_of(d: Draft, timeline: Timeline, choices: Choices, replaced: frozenset[int]) -> Sizes:
    """The sizes under these choices; the order of the timeline does not matter.

    Args:
      replaced: values whose buffer is a donated argument's.
    """
    nbytes = [v.nbytes for v in d.graph.values]
    for owner, v, taken in zip(
        timeline.owner.tolist(), timeline.value.tolist(), timeline.sizes(d, choices).tolist(),
        strict=True,
    ):  # fmt: skip
        if owner >= 0:
            nbytes[v] = taken
    unfinished: dict[int, Unfinished] = {}
    for v, taken, together in _unfinished(d, choices):
        unfinished[v] = Unfinished(len(nbytes), taken, together)
        nbytes.append(taken)
    copies, made, phases = dict[tuple[int, int], Copy](), dict[object, int](), _phases(d, choices)
    for key, v, op, taken in _copies(d, choices):
        if key not in made:
            made[key] = len(nbytes)
            nbytes.append(taken)
        is_tied = d.graph.ops[op].phase == "bwd" and len(phases[v]) > 1
        copies[v, op] = Copy(made[key], taken, is_tied)
    return Sizes(nbytes, unfinished, copies, replaced, frozenset(_carried(d, choices)))


def _carried(d: Draft, choices: Choices) -> Iterator[int]:
    """carry_in ops of loops that make the next value split like the last one."""
    for op in d.graph.ops:
        following = op.inputs[1] if op.prim == "carry_in" and len(op.inputs) > 1 else None
        if following is None:
            continue
        if _spec(d, choices, op.outputs[0]) == _spec(d, choices, following):
            yield op.id


def _spec(d: Draft, choices: Choices, value: int) -> Spec:
    node, index = d.stored[int(d.classes.value_class[value])]
    return d.specs(d.graph.values[value].shape)[int(index[choices[node]])]


def _usage(d: Draft, choices: Choices, e: int) -> int:
    edge = d.edges[e]
    return 0 if edge.usage is None else int(edge.usage[choices[edge.a], choices[edge.b]])


def _unfinished(d: Draft, choices: Choices) -> Iterator[tuple[int, int, object]]:
    """(value, bytes of what its op leaves, what tells apart collectives that are not joined)."""
    for e, (c, k) in d.sum_edges.items():
        if not _usage(d, choices, e):
            continue
        strategy = d.strategies[c][choices[d.edges[e].a]]
        shards = num_shards(strategy.results[k], d.mesh)
        for member in d.classes.members[c]:
            value = d.graph.values[d.graph.ops[member].outputs[k]]
            is_gradient = d.is_gradient[int(d.classes.value_class[value.id])]
            together = (strategy.partial, value.dtype) if is_gradient else None
            yield value.id, -(-value.nbytes // shards), together


def _copies(d: Draft, choices: Choices) -> Iterator[tuple[object, int, int, int]]:
    """(what copies of it are shared by, value, op that reads it, bytes)."""
    by_use = {(u.value, u.op, u.k): _usage(d, choices, e) for e, u in d.use_edges.items()}
    by_phase = {key: _usage(d, choices, e) for e, key in d.copy_edges.items()}
    value_class, op_class = d.classes.value_class.tolist(), d.classes.op_class.tolist()
    for op in d.graph.ops:
        for k, v in enumerate(op.inputs):
            if v is None:
                continue
            if taken := by_use.get((value_class[v], op_class[op.id], k), 0):
                yield (v, op.id, k), v, op.id, taken
            elif taken := by_phase.get((value_class[v], op.phase), 0):
                yield (v, op.phase), v, op.id, taken


def _phases(d: Draft, choices: Choices) -> dict[int, set[str]]:
    """In which phases copies of a value are made."""
    found: defaultdict[int, set[str]] = defaultdict(set)
    for _, v, op, _ in _copies(d, choices):
        found[v].add(d.graph.ops[op].phase)
    return found
