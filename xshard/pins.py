"""What the user fixed: `in_specs`, `out_specs` and sharding constraints as pins on values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from xshard.errors import PinError
from xshard.ir.graph import Graph, Op
from xshard.ir.trace import Traced
from xshard.spec import MeshShape, may_split

Pin = tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True, slots=True)
class Pins:
    """What the user fixed.

    Attributes:
      values: of values, by id: arguments, and what sharding constraints make.
      results: of results as they are returned, by position.
    """

    values: dict[int, Pin]
    results: dict[int, Pin]


def pins_of(traced: Traced, mesh: MeshShape, in_specs: Any, out_specs: Any) -> Pins:
    """Pins from the user's specs and from the constraints in his function.

    Args:
      in_specs, out_specs: pytree prefixes of the arguments (static ones left out) and of the
        result; a PartitionSpec fixes a whole subtree, None leaves it to the solver.

    Raises:
      PinError: a spec names an unknown axis, has too many dimensions or does not divide.
    """
    graph, found = traced.graph, dict[int, Pin]()
    for i, spec, name in _stated(graph.inputs, traced.in_tree, in_specs, traced.in_paths):
        v = graph.inputs[i]
        found[v] = read(spec, graph.values[v].shape, mesh, name)
    for op in graph.ops:
        for v, sharding in zip(op.outputs, _stated_by(op), strict=False):
            if isinstance(sharding, NamedSharding):
                found[v] = _constraint(graph, op, v, sharding, mesh)
    names = [f"result{path}" for path in traced.out_paths]
    stated = _stated(graph.outputs, traced.out_tree, out_specs, names)
    shapes = [() if v is None else graph.values[v].shape for v in graph.outputs]
    return Pins(found, {i: read(spec, shapes[i], mesh, name) for i, spec, name in stated})


def _stated_by(op: Op) -> Sequence[Any]:
    """The shardings that an op asks for, by result."""
    if op.prim == "device_put":
        return op.params["devices"]
    return (op.params[_CONSTRAINTS[op.prim]],) if op.prim in _CONSTRAINTS else ()


_CONSTRAINTS = {"sharding_constraint": "sharding", "reshard": "dst_sharding"}
"""Primitives that put a result where the user says, and the parameter that says it."""


def read(
    spec: PartitionSpec, shape: tuple[int, ...], mesh: MeshShape, name: str, *, even: bool = True
) -> Pin:
    """A PartitionSpec as a pin of an array of that shape; `name` is for errors.

    Arguments and results must divide. Inside, what does not is kept where plans split so too, and
    else open: the function's own constraint stays, whatever the value is kept in after it.
    """
    if len(spec) > len(shape):
        raise PinError(
            f"{name}: {spec} has {len(spec)} dimensions, the array has shape {shape}; "
            "drop the entries that are too many."
        )
    entries = [*spec, *(None,) * (len(shape) - len(spec))]
    pin = tuple(
        None if e is PartitionSpec.UNCONSTRAINED else _axes(e, n, i, spec, mesh, name, even)
        for i, (e, n) in enumerate(zip(entries, shape, strict=True))
    )
    used = [axis for axes in pin for axis in axes or ()]
    if len(set(used)) < len(used):
        raise PinError(f"{name}: {spec} names an axis twice; an axis splits one dimension, once.")
    return pin


def _axes(
    entry: Any, size: int, dim: int, spec: PartitionSpec, mesh: MeshShape, name: str, even: bool
) -> tuple[int, ...] | None:
    names = () if entry is None else entry if isinstance(entry, tuple) else (entry,)
    unknown = [n for n in names if n not in mesh.names]
    if unknown:
        raise PinError(
            f"{name}: {spec} names the axis {unknown[0]!r}, but the mesh has {mesh}; "
            "use one of its axes."
        )
    axes = tuple(mesh.names.index(n) for n in names)
    if axes != tuple(sorted(axes)):
        raise PinError(
            f"{name}: {spec} lists the axes of dimension {dim} in another order than the mesh "
            f"({mesh}); list them in the mesh's order, or reorder the mesh."
        )
    if not even and not (size and may_split(size, mesh.size_of(axes))):
        return None
    if even and size % mesh.size_of(axes):
        raise PinError(
            f"{name}: {spec} splits dimension {dim} of {size} elements over {mesh.size_of(axes)} "
            "shards, which does not divide; pin another dimension or change the size."
        )
    return axes


def _constraint(graph: Graph, op: Op, v: int, sharding: NamedSharding, mesh: MeshShape) -> Pin:
    where = f"the sharding constraint at {op.source or op.scope or 'an unknown line'}"
    pin = read(sharding.spec, graph.values[v].shape, mesh, where, even=False)
    free = op.params.get("unconstrained_dims") or ()
    return tuple(None if i in free else axes for i, axes in enumerate(pin))


def _stated(
    values: Sequence[int | None], tree: Any, specs: Any, names: Sequence[str]
) -> Iterator[tuple[int, PartitionSpec, str]]:
    """(position, spec, name) of every leaf for which the prefix tree states a spec."""
    if specs is None:
        return
    everything = jax.tree.unflatten(tree, range(len(values)))
    found: list[tuple[Any, int]] = []

    def collect(spec: Any, part: Any) -> None:
        found.extend((spec, i) for i in jax.tree.leaves(part))

    try:
        jax.tree.map(collect, specs, everything, is_leaf=_is_spec)
    except ValueError as error:
        raise PinError(
            f"the specs are no prefix of {names[0] if names else 'the tree'} and its siblings: "
            f"{str(error).splitlines()[0]}"
        ) from error
    for spec, i in found:
        if not _is_spec(spec):
            raise PinError(f"{names[i]}: expected a PartitionSpec or None, got {spec!r}")
        if values[i] is not None and spec is not None:
            yield i, spec, names[i]


def _is_spec(x: Any) -> bool:
    return x is None or isinstance(x, PartitionSpec)
