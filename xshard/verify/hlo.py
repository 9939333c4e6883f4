"""Read the collectives out of the text of a compiled XLA module (`compiled.as_text()`).

    text ─ module.py: lines → computations, calls, how often each runs
         ─ groups.py: replica groups → mesh axes
         ─ payload.py: result type → bytes
         ─ frames.py: metadata → the user's source line

It takes text, not a compiled object, so a module compiled elsewhere for another machine will do.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, get_args

from xshard.errors import MeshError
from xshard.verify.collectives import Collective, Kind
from xshard.verify.groups import (
    GROUPS,
    PAIRS,
    axes_of_groups,
    axes_of_pairs,
    parse_braces,
    parse_groups,
)
from xshard.verify.module import beside, read_module, runs_of_computations
from xshard.verify.payload import payload

if TYPE_CHECKING:
    from xshard.verify.module import Module, Runs

_KINDS: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
_INSTRUCTION = re.compile(
    rf'\s+(?:ROOT )?%?([\w.\-]+) = ([^"]*?) ({"|".join(map(re.escape, _KINDS))})(-start)?\('
)
_OP_NAME = re.compile(r'\bop_name="((?:[^"\\]|\\.)*)"')
_WHO = {"collective-permute": ("source_target_pairs=", PAIRS)}


def collectives_in(
    compiled_text: str, mesh_shape: tuple[int, ...], axis_names: tuple[str, ...]
) -> tuple[Collective, ...]:
    """Every collective that one call of the module executes, in the order of the text.

    A `-start`/`-done` pair is one. Device `i` of the module's logical order is at the row-major
    coordinates of `i` in `mesh_shape`. Collectives over groups of one device are included.

    Raises:
      MeshError: the module was compiled for another number of devices.
      ValueError: the text is not that of a compiled module.
    """
    module = read_module(compiled_text)
    _check_mesh(module, mesh_shape, axis_names)
    runs = runs_of_computations(module)
    reader = _Reader(mesh_shape, axis_names, module)
    found = (
        reader.read(match, number, runs[computation])
        for computation, number in module.collectives
        if (match := _INSTRUCTION.match(module.lines[number])) and runs[computation].count
    )
    return tuple(found)


class _Reader:
    """Turns lines into collectives; distinct groups are few and are understood once each."""

    def __init__(
        self, mesh_shape: tuple[int, ...], axis_names: tuple[str, ...], module: Module
    ) -> None:
        self.mesh_shape = mesh_shape
        self.axis_names = axis_names
        self.module = module
        self.understood: dict[str, tuple[tuple[str, ...], int]] = {}

    def read(self, match: re.Match[str], number: int, runs: Runs) -> Collective:
        kind, line = _KINDS[match[3]], self.module.lines[number]
        groups = _raw_groups(kind, line)
        axes, group_size = self.who(groups, is_pairs=kind == "collective-permute")
        size_bytes, dtype = payload(kind, match[4] is not None, match[2], group_size)
        op_name = _OP_NAME.search(line)
        return Collective(
            name=match[1],
            kind=kind,
            axes=axes,
            bytes=size_bytes,
            dtype=dtype,
            count=runs.count,
            count_from=runs.count_from,
            in_branch=runs.in_branch,
            group_size=group_size,
            groups=groups,
            op_name=op_name[1] if op_name else "",
            source=self.module.tables.source(line),
            beside=beside(self.module, match[1], number) if match[4] else None,
        )

    def who(self, raw: str, *, is_pairs: bool) -> tuple[tuple[str, ...], int]:
        """(axes, devices in a group) of groups or pairs as written."""
        key = f"{is_pairs}{raw}"
        if key not in self.understood:
            self.understood[key] = self._who_pairs(raw) if is_pairs else self._who_groups(raw)
        return self.understood[key]

    def _who_groups(self, raw: str) -> tuple[tuple[str, ...], int]:
        groups = parse_groups(raw)
        axes = axes_of_groups(groups, self.mesh_shape)
        size = max(map(len, groups)) if groups else math.prod(self.mesh_shape)
        return self._names(axes or ()), size

    def _who_pairs(self, raw: str) -> tuple[tuple[str, ...], int]:
        axes = axes_of_pairs(parse_braces(raw), self.mesh_shape)
        return self._names(axes), math.prod(self.mesh_shape[i] for i in axes)

    def _names(self, axes: tuple[int, ...]) -> tuple[str, ...]:
        return tuple(self.axis_names[i] for i in axes)


def _raw_groups(kind: Kind, line: str) -> str:
    """Groups or pairs as written; `{}`, all devices, when there are none.

    A cross-replica collective with a channel but without global ids lists replicas, and all
    partitions of them take part: with JAX's one replica, all devices.
    """
    attribute, pattern = _WHO.get(kind, ("replica_groups=", GROUPS))
    match = pattern.search(line)
    if match is None and attribute in line:
        raise ValueError(f"unknown form of {attribute}...: {line.strip()[:400]}")
    raw = match[1] if match else "{}"
    lists_replicas = raw == "{{0}}" and "channel_id=" in line
    return "{}" if lists_replicas and "use_global_device_ids=true" not in line else raw


def _check_mesh(module: Module, mesh_shape: tuple[int, ...], axis_names: tuple[str, ...]) -> None:
    if len(mesh_shape) != len(axis_names):
        raise MeshError(f"{len(axis_names)} axis names {axis_names} for mesh shape {mesh_shape}")
    if module.num_partitions not in (None, math.prod(mesh_shape)):
        raise MeshError(
            f"the module was compiled for {module.num_partitions} devices, but mesh shape "
            f"{mesh_shape} has {math.prod(mesh_shape)}; pass the mesh that it was compiled for"
        )
