"""`Pipeline`: a staged step that runs, with its state on the groups of devices that use it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from xshard.mpmd.layout import Layout
from xshard.mpmd.leaf import Leaf, Part
from xshard.mpmd.program import Linked, Linker
from xshard.mpmd.tape import ONCE, Action, Held, Run, Send, Tape, tape_of
from xshard.mpmd.transfer import copies, everyone, meet, needs_meeting, place, send
from xshard.schedules import Schedule
from xshard.stages.flat import struct
from xshard.stages.kinds import nbytes
from xshard.stages.staged import Piece, Staged

SMALL_BYTES = 1 << 20
"""Results of at most so many bytes, such as a loss, are there for every process."""

Observer = Callable[[Action, Sequence[Any]], None]
"""Told of each action as soon as it is dispatched, and of what it makes."""


@dataclass
class Pipeline:
    """A staged step under a schedule, on a layout; called with flat arguments.

    Every process holds it and calls it, and runs what is on its devices. Arguments and results have
    their place on one group each, or in parts on several; what is elsewhere has no shards here.

    Attributes:
      ties: result -> the argument whose next value it is, by position: it is brought to its place.
      donated: positions of arguments whose memory the step may reuse.
      inputs, results: how the flat arguments and results lie.
      observer: sees what is dispatched.
    """

    staged: Staged
    schedule: Schedule
    layout: Layout
    ties: Mapping[int, int] = field(default_factory=dict)
    donated: frozenset[int] = frozenset()
    options: dict[str, Any] | None = None
    observer: Observer | None = None

    def __post_init__(self) -> None:
        staged, schedule = self.staged, self.schedule
        homes = self._homes()
        self.inputs = [self._leaf(pieces, homes) for pieces in staged.inputs]
        self.results = [
            self._leaf(pieces, homes, self._next_of(i)) for i, pieces in enumerate(staged.results)
        ]
        wanted: defaultdict[int, set[int]] = defaultdict(set)
        for i, leaf in enumerate(self.results):
            for part in leaf.parts:
                groups = range(schedule.num_groups) if self._is_for_all(i) else (part.group,)
                wanted[part.value].update(groups)
        self.tape = tape_of(staged, schedule, wanted)
        lent = {part.value for i in self.donated for part in self.inputs[i].parts}
        self._lent = frozenset(h for h in self.tape.first if h.value in lent)
        self._in_parts = [i for i in self.donated if self._is_gone(self.inputs[i])]
        self._linker = Linker(staged, self.layout, _read(self.tape), self.options)
        self._linked = self._link()
        self._starts = self._first_shares()
        self._numbers: dict[tuple[int, int], Any] = {}
        self._careful = _may_block(self.layout)

    @cached_property
    def _everywhere(self) -> NamedSharding:
        return NamedSharding(everyone(self.layout.meshes), PartitionSpec())

    @property
    def in_shardings(self) -> list[NamedSharding]:
        """Of the flat arguments."""
        return [leaf.sharding for leaf in self.inputs]

    @property
    def out_shardings(self) -> list[NamedSharding]:
        """Of the flat results."""
        return [
            self._everywhere if self._is_for_all(i) else leaf.sharding
            for i, leaf in enumerate(self.results)
        ]

    def __call__(self, *args: Any) -> list[Any]:
        """Runs a step; arguments lie as `placed` leaves them."""
        held: dict[Held, Any] = dict(self._consts)
        for leaf, x in zip(self.inputs, args, strict=True):
            for part, piece in zip(leaf.parts, leaf.taken(x), strict=True):
                if self.layout.is_here(part.group):
                    held[Held(part.value, ONCE, part.group)] = piece
        lent = [args[i] for i in self._in_parts]
        del args
        latest: dict[int, Any] = {}
        for action in self.tape.actions:
            act = self._run if isinstance(action, Run) else self._send
            made = act(action, held, latest)  # type: ignore[arg-type]
            for h in action.drops:
                self._drop(h, held.pop(h, None))
            if self.observer and made is not None:
                self.observer(action, made)
        results = [self._result(i, held) for i in range(len(self.results))]
        for x in lent:
            x.delete()
        return results

    def placed(self, args: Sequence[Any]) -> list[Any]:
        """Flat arguments as the step takes them."""
        return [leaf.put(x) for leaf, x in zip(self.inputs, args, strict=True)]

    def lower(self, platform: str | None = None) -> dict[int, jax.stages.Lowered]:
        """The programs of this process's groups, by their places among the staged ones.

        JAX keeps what is compiled of them for runs, whose operands lie as these are said to.

        Args:
          platform: to lower for; None: that of the devices.
        """
        number, options = [self.staged.number], {"lowering_platforms": (platform,)}

        def avals(linked: Linked, group: int) -> list[jax.ShapeDtypeStruct]:
            values = (*linked.carried, *(number * linked.numbered), *linked.reads)
            kinds = [struct(self.staged.avals[v]) for v in values]
            where = [self.layout.sharding(v, group) for v in values]
            return [k.update(sharding=s) for k, s in zip(kinds, where, strict=True)]

        return {
            at: one.jitted.trace(*avals(one, self._group_of(at))).lower(
                **(options if platform else {})
            )
            for at, one in self._linked.items()
        }

    def _group_of(self, at: int) -> int:
        return self.schedule.placement[self.staged.programs[at].stage]

    def local_bytes(self, h: Held) -> int:
        """What a device of its group holds of a value."""
        aval = self.staged.avals[h.value]
        part = self.layout.sharding(h.value, h.group).shard_shape(aval.shape)
        return nbytes(aval) * math.prod(part) // max(math.prod(aval.shape), 1)

    def _leaf(
        self, pieces: Sequence[Piece], homes: Mapping[int, int], like: Leaf | None = None
    ) -> Leaf:
        """How an argument or result lies: at home, or where the parts of another one do."""
        rows = [(p.start, p.stop) for p in pieces]
        groups = [homes[p.value] for p in pieces]
        if like is not None and [(p.start, p.stop) for p in like.parts] == rows:
            groups = [p.group for p in like.parts]
        avals = [self.staged.avals[p.value] for p in pieces]
        parts = tuple(
            Part(p.value, g, a.shape, self.layout.sharding(p.value, g), p.start, p.stop)
            for p, g, a in zip(pieces, groups, avals, strict=True)
        )
        return Leaf(parts, avals[0].dtype, self.layout.meshes)

    def _is_gone(self, leaf: Leaf) -> bool:
        """Whether an argument is several arrays, none of which is a result as it is."""
        parts = {Held(p.value, ONCE, p.group) for p in leaf.parts}
        return len(parts) > 1 and parts.isdisjoint(self.tape.kept)

    def _next_of(self, i: int) -> Leaf | None:
        """The argument whose next value a result is."""
        return self.inputs[self.ties[i]] if i in self.ties else None

    def _drop(self, h: Held, array: Any) -> None:
        """Frees what the caller has donated, though it still has a name for it."""
        if array is not None and h in self._lent and not array.is_deleted():
            array.delete()

    def _run(self, action: Run, held: dict[Held, Any], latest: dict[int, Any]) -> Any:
        if not self.layout.is_here(action.group):
            return None
        linked, group = self._linked[action.program], action.group
        if self._careful and group in latest:
            _wait(latest[group])
        if not held.keys() >= set(action.carries):
            held.update(zip(action.carries, self._starts[action.program](), strict=True))
        number = [self._number(action.microbatch, group)] if linked.numbered else []
        carried = [held.pop(h) for h in action.carries]
        outs = linked.jitted(*carried, *number, *(held[h] for h in action.reads))
        del carried
        makes = (Held(v, action.microbatch, group) for v in linked.makes)
        held.update(zip((*action.carries, *makes), outs, strict=True))
        if self._careful and outs:
            latest[group] = min(outs, key=lambda x: x.nbytes)
        return outs

    def _send(self, action: Send, held: dict[Held, Any], latest: dict[int, Any]) -> Any:
        here, there = (self.layout.is_here(g) for g in (action.source, action.target))
        if not here and not there:
            return None
        source, target = self.layout.meshes[action.source], self.layout.meshes[action.target]
        arrays = [held[h] for h in action.reads] if here else None
        wanted = [self.layout.sharding(v, action.target) for v in action.values]
        moved: Sequence[Any] | None
        if needs_meeting(source, target):
            for array in latest.values():
                _wait(array)
            lie = [self.layout.sharding(v, action.source) for v in action.values]
            moved = meet(arrays, [self.staged.avals[v] for v in action.values], lie, target)
            moved = None if moved is None else send(moved, wanted)
        else:
            moved = send(arrays or [], wanted)
        if moved is not None:
            held.update(zip(action.makes, moved, strict=True))
        return moved

    def _number(self, microbatch: int, group: int) -> Any:
        key = microbatch, group
        if key not in self._numbers:
            sharding = self.layout.sharding(self.staged.number, group)
            self._numbers[key] = place(np.int32(microbatch), sharding)
        return self._numbers[key]

    def _result(self, i: int, held: Mapping[Held, Any]) -> Any:
        leaf = self.results[i]
        if not self._is_for_all(i):
            there = ((p.value, Held(p.value, ONCE, p.group)) for p in leaf.parts)
            return leaf.found({v: held[h] for v, h in there if h in held})
        groups = [g for g in range(self.schedule.num_groups) if self.layout.is_here(g)]
        value = leaf.parts[0].value
        return copies([held[Held(value, ONCE, g)] for g in groups], self._everywhere)

    def _is_for_all(self, i: int) -> bool:
        """Whether every process gets a result: what is no state, if it is small."""
        if i in self.ties or len(self.results[i].parts) > 1 or jax.process_count() == 1:
            return False
        return math.prod(self.results[i].shape) * self.results[i].dtype.itemsize <= SMALL_BYTES

    def _link(self) -> dict[int, Linked]:
        """The programs of the groups that are here, each of which reuses what it always drops."""
        runs: defaultdict[int, list[Run]] = defaultdict(list)
        for action in self.tape.actions:
            if isinstance(action, Run) and self.layout.is_here(action.group):
                runs[action.program].append(action)
        return {
            at: self._linker.link(at, some[0].group, self._dropped(some))
            for at, some in runs.items()
        }

    def _dropped(self, runs: Sequence[Run]) -> frozenset[int]:
        """Values that each of these runs is the last to read, and that are the step's own."""
        mine = self.tape.first - self._lent
        always = [{h.value for h in r.drops if h in r.reads and h not in mine} for r in runs]
        return frozenset(set.intersection(*always))

    def _first_shares(self) -> dict[int, Callable[[], tuple[Any, ...]]]:
        return {
            at: self._linker.starts(linked.carried, self._group_of(at))
            for at, linked in self._linked.items()
            if linked.carried
        }

    def _homes(self) -> dict[int, int]:
        """By value, the group where it is first."""
        return {v: self.schedule.placement[s] for v, s in self.staged.stage_of.items()}

    @cached_property
    def _consts(self) -> dict[Held, Any]:
        homes = self._homes()
        return {
            Held(v, ONCE, homes[v]): place(const, self.layout.sharding(v, homes[v]))
            for v, const in self.staged.consts.items()
            if v in homes and self.layout.is_here(homes[v])
        }


def _read(tape: Tape) -> frozenset[int]:
    """Values that an action reads, or that are results."""
    return frozenset(h.value for a in tape.actions for h in a.reads) | {h.value for h in tape.kept}


def _may_block(layout: Layout) -> bool:
    """Whether programs of a group must not overlap: XLA's CPU threads wait within collectives, and
    with two such programs under way there may be none left for the one that the others wait for."""
    devices = [d for mesh in layout.meshes for d in mesh.devices.flat]
    alone = all(m.devices.size == 1 for m in layout.meshes)
    processes = {d.process_index for d in devices}
    return devices[0].platform == "cpu" and not (alone and len(processes) == 1)


def _wait(array: Any) -> None:
    if not array.is_deleted():
        array.block_until_ready()
