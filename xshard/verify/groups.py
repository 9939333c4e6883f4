"""Replica groups: XLA's three ways to write them, and the mesh axes that they mean.

    explicit   {{0,1},{2,3}}
    iota       [2,2]<=[2,2]T(1,0)      arange(4).reshape(2,2).transpose(1,0).reshape(2,2)
    mesh       mesh['a'=2,'b'=4] {'a','b':(2)2}
               mesh['a'=4,'b'=1], device_ids=([2,2]T(1,0)) {'a'}

`'b':(2)2` is a sub-axis: of the 4 along b, the factor of size 2 after a leading factor of size 2.
`device_ids` reorders the devices (iota form or a list) before they fill the mesh, row-major.
Syntax: xla/hlo/ir/mesh_and_axis.cc and replica_group.cc of openxla/xla.
"""

from __future__ import annotations

import itertools
import math
import re

Groups = tuple[tuple[int, ...], ...]

_PARENTHESES = r"\((?:[^()]|\([^()]*\))*\)"
GROUPS = re.compile(
    rf"replica_groups=(mesh\[[^\]]*\](?:, device_ids={_PARENTHESES})? ?\{{[^}}]*\}}"
    r"|\[[\d,]+\]<=\[[\d,]+\](?:T\([\d,]+\))?"
    r"|\{[\d,{} ]*\})"
)
PAIRS = re.compile(r"source_target_pairs=(\{[\d,{} ]*\})")

_BRACES = re.compile(r"\{([\d, ]+)\}")
_IOTA_GROUPS = re.compile(r"\[\d+,(\d+)\]<=(.*)")
_IOTA = re.compile(r"\[([\d,]+)\](?:T\(([\d,]+)\))?$")
_MESH = re.compile(rf"mesh\[([^\]]*)\](?:, device_ids=({_PARENTHESES}))? ?\{{([^}}]*)\}}")
_SUB_AXIS = re.compile(r"([^:]+)(?::\((\d+)\)(\d+))?$")


def parse_groups(text: str) -> Groups:
    """The device ids of each group, from any of the three forms; () for `{}`: all devices."""
    if text.startswith("{"):
        return parse_braces(text)
    if text.startswith("mesh"):
        return _parse_mesh(text)
    match = _IOTA_GROUPS.match(text)
    if match is None:
        raise ValueError(f"unknown form of replica groups: {text}")
    return _batched(_parse_iota(match[2]), int(match[1]))


def parse_braces(text: str) -> Groups:
    """`{{0,1},{2,3}}` as tuples; also for source-target pairs."""
    return tuple(_ints(body) for body in _BRACES.findall(text))


def axes_of_groups(groups: Groups, mesh_shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The axes along which each group's devices lie, all of them or some; None for other groups.

    Device `i` of the logical order has the row-major coordinates of `i` in `mesh_shape`.
    """
    if not groups:
        return tuple(i for i, n in enumerate(mesh_shape) if n > 1)
    if max(max(group) for group in groups) >= math.prod(mesh_shape):
        return None
    axes = _varying(groups[0], mesh_shape)
    whole = sorted(device for group in groups for device in group) == list(
        range(math.prod(mesh_shape))
    )
    boxes = all(_varying(g, mesh_shape) == axes and _is_box(g, mesh_shape) for g in groups)
    return axes if whole and boxes else None


def axes_of_pairs(pairs: Groups, mesh_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes along which any source differs from its target."""
    return tuple(sorted({axis for pair in pairs for axis in _varying(pair, mesh_shape)}))


def _parse_mesh(text: str) -> Groups:
    match = _MESH.match(text.replace("'", ""))
    if match is None:
        raise ValueError(f"unknown form of replica groups: {text}")
    sizes = {name: int(n) for name, n in (axis.split("=") for axis in match[1].split(","))}
    ids = _parse_device_ids(match[2], math.prod(sizes.values()))
    factors, grouped = _refine(sizes, match[3].split(","))
    order = [i for i in range(len(factors)) if i not in grouped] + grouped
    places = _iota(factors, order)
    return _batched([ids[p] for p in places], math.prod(factors[i] for i in grouped))


def _refine(sizes: dict[str, int], refs: list[str]) -> tuple[list[int], list[int]]:
    """The mesh's axes cut at every (sub-)axis of `refs`: all factors, and which of them `refs` are.

    sizes {a: 8}, refs [a:(2)2] → factors [2, 2, 2], grouped [1].
    """
    spans: list[tuple[str, int, int]] = []
    for ref in refs:
        name, pre, size = _match_sub_axis(ref)
        begin = int(pre or 1)
        spans.append((name, begin, begin * int(size or sizes[name])))
    factors: list[int] = []
    where: dict[tuple[str, int], int] = {}
    for axis, full in sizes.items():
        cuts = sorted({1, full}.union(*((b, e) for name, b, e in spans if name == axis)))
        for begin, end in itertools.pairwise(cuts):
            where[axis, begin] = len(factors)
            factors.append(end // begin)
    grouped = [
        i for name, b, e in spans for (axis, at), i in where.items() if axis == name and b <= at < e
    ]
    return factors, grouped


def _match_sub_axis(ref: str) -> tuple[str, str | None, str | None]:
    match = _SUB_AXIS.match(ref.strip())
    if match is None:
        raise ValueError(f"unknown form of a mesh axis in replica groups: {ref!r}")
    return match[1], match[2], match[3]


def _parse_device_ids(text: str | None, size: int) -> list[int]:
    if text is None:
        return list(range(size))
    body = text[1:-1]
    return _parse_iota(body) if body.startswith("[") else list(_ints(body))


def _parse_iota(text: str) -> list[int]:
    match = _IOTA.match(text)
    if match is None:
        raise ValueError(f"unknown form of an iota device list: {text}")
    dims = list(_ints(match[1]))
    return _iota(dims, list(_ints(match[2])) if match[2] else list(range(len(dims))))


def _iota(dims: list[int], order: list[int]) -> list[int]:
    """arange(prod(dims)).reshape(dims).transpose(order), flat."""
    strides = [math.prod(dims[i + 1 :]) for i in order]
    indices = itertools.product(*(range(dims[i]) for i in order))
    return [sum(i * s for i, s in zip(index, strides, strict=True)) for index in indices]


def _varying(devices: tuple[int, ...], mesh_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes along which the coordinates of `devices` are not all the same."""
    return tuple(i for i, n in enumerate(_extents(devices, mesh_shape)) if n > 1)


def _is_box(devices: tuple[int, ...], mesh_shape: tuple[int, ...]) -> bool:
    """Whether `devices` are all combinations of the coordinates that they have."""
    return math.prod(_extents(devices, mesh_shape)) == len(devices)


def _extents(devices: tuple[int, ...], mesh_shape: tuple[int, ...]) -> list[int]:
    """How many coordinates `devices` have along each axis."""
    strides = [math.prod(mesh_shape[i + 1 :]) for i in range(len(mesh_shape))]
    return [
        len({device // stride % size for device in devices})
        for size, stride in zip(mesh_shape, strides, strict=True)
    ]


def _batched(flat: list[int], size: int) -> Groups:
    return tuple(tuple(flat[i : i + size]) for i in range(0, len(flat), size))


def _ints(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n.strip())
