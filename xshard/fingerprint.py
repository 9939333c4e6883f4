"""The identity of what a plan is for: the graph, its shapes, the mesh, the devices and the pins."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Hashable, Mapping

from xshard.ir.fold import signature
from xshard.ir.graph import Graph
from xshard.spec import MeshShape

_ADDRESS = re.compile(r" at 0x[0-9a-f]+|<function .*?>")


def fingerprint(
    graph: Graph,
    mesh: MeshShape,
    cluster: str,
    pins: Mapping[int, Hashable],
    results: Mapping[int, Hashable],
) -> str:
    """A hex digest, equal in every process and run for equal input."""
    digest = hashlib.sha256()
    names: dict[Hashable, int] = {}
    for op in graph.ops:
        key = signature(graph, op)
        if key not in names:
            names[key] = len(names)
            digest.update(plain_text(key).encode())
        digest.update(repr((names[key], op.inputs, op.outputs)).encode())
    arrays = [(graph.values[v].shape, graph.values[v].dtype) for v in graph.inputs + graph.consts]
    fixed = (arrays, graph.outputs, mesh, cluster, sorted(pins.items()), sorted(results.items()))
    digest.update(repr(fixed).encode())
    return digest.hexdigest()[:32]


def plain_text(value: object) -> str:
    """A text that is equal in every process and run for equal values."""
    return _ADDRESS.sub("", _text(value))


def _text(key: object) -> str:
    """`repr`, but with the members of sets in order: a process lists them as it hashes them."""
    if isinstance(key, tuple | list):
        return f"({', '.join(map(_text, key))})"
    if isinstance(key, set | frozenset):
        return f"{{{', '.join(sorted(map(_text, key)))}}}"
    return repr(key)
