"""The sharding map: arrays and operations, each dimension in the colour of the axes that split it.

Arrays of a model's layers stand one above the other over the layers' numbers; layers that are
sharded alike are one box. Arrays outside of layers and operations have a box each.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from xshard.plan import names
from xshard.plan.page.bars import WIDTH, keys
from xshard.plan.page.markup import Element, element
from xshard.plan.page.style import axis_class
from xshard.plan.plan import Plan, PlannedArray, PlannedOp
from xshard.plan.text import MATMULS
from xshard.plan.units import duration, size, spec_text

_LEFT, _ROW = 330, 20
_MOST_ROWS = 90
_MOST_OPS = 24
_LETTERS = 48


@dataclass(frozen=True, slots=True)
class Part:
    """One dimension or factor: its text, and the mesh axes that split it."""

    text: str
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Box:
    """What is split alike from layer `first` to layer `last`."""

    first: int
    last: int
    parts: tuple[Part, ...]
    title: str


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the map."""

    label: str
    title: str
    boxes: tuple[Box, ...]


def sharding_map(plan: Plan) -> Element:
    """All arguments, then the main operations."""
    layered, single = _rows(plan)
    content: list[Element] = [axis_keys(plan)]
    if layered:
        content += [element("h3", "Arrays of layers"), _figure(_together(layered))]
    if single:
        content += [element("h3", "Other arrays" if layered else "Arrays")]
        content += [_figure(_together(single))]
    ops = _op_rows(plan)
    if ops:
        content += [element("h3", "Operations, the longest first"), _figure(ops)]
    return element("div", *content)


def axis_keys(plan: Plan) -> Element:
    """The colours of the mesh's axes."""
    pairs = zip(plan.mesh.names, plan.mesh.sizes, strict=True)
    axes = [(axis_class(i), f"{name} ({n} devices)") for i, (name, n) in enumerate(pairs)]
    return keys([*axes, ("whole", "not split")])


def _rows(plan: Plan) -> tuple[list[Row], list[Row]]:
    """Rows of arrays in numbered layers, and of all others."""
    groups: dict[tuple[str, int], list[PlannedArray]] = {}
    single: list[Row] = []
    for found in _families(plan.arguments):
        place = _layer_place(found)
        if place is None:
            single += [Row(_short(a.path), a.path, (_array_box(a, plan, 0),)) for a in found]
            continue
        for a in found:
            groups.setdefault((_without(a.path, place), place), []).append(a)
    layered = [
        Row(_short(path), path, tuple(_runs(found, place, plan)))
        for (path, place), found in groups.items()
    ]
    return layered, single


def _together(rows: Sequence[Row]) -> list[Row]:
    """Rows that look alike and whose paths end alike, such as a parameter's and its moments'."""
    found: dict[tuple[str, tuple[Box, ...]], list[Row]] = {}
    for row in rows:
        found.setdefault((_ending(row.label), row.boxes), []).append(row)
    endings = Counter(ending for ending, _ in found)
    return [
        _one_row(ending if endings[ending] == 1 else alike[0].label, alike)
        for (ending, _), alike in found.items()
    ]


def _one_row(label: str, alike: Sequence[Row]) -> Row:
    if len(alike) == 1:
        return alike[0]
    return Row(f"{label} ×{len(alike)}", "\n".join(row.title for row in alike), alike[0].boxes)


def _ending(label: str) -> str:
    """The keys from the layer on; where there is none, the last two."""
    keys = label.split("/")
    start = next((i for i, key in enumerate(keys) if "*" in key), max(0, len(keys) - 2))
    return "/".join(keys[start:])


def _families(arrays: Iterable[PlannedArray]) -> Iterable[list[PlannedArray]]:
    """Arrays whose paths differ in numbers only."""
    found: dict[tuple[str, ...], list[PlannedArray]] = {}
    for a in arrays:
        found.setdefault(names.skeleton(a.path), []).append(a)
    return found.values()


def _layer_place(arrays: Sequence[PlannedArray]) -> int | None:
    """Which piece of the paths is the layer's number: the first that differs."""
    columns = list(zip(*(names.pieces(a.path) for a in arrays), strict=True))
    return next((i for i, column in enumerate(columns) if len(set(column)) > 1), None)


def _without(path: str, place: int) -> str:
    pieces = names.pieces(path)
    return "".join([*pieces[:place], "*", *pieces[place + 1 :]])


def _runs(arrays: Sequence[PlannedArray], place: int, plan: Plan) -> Iterable[Box]:
    """Neighbouring layers that are sharded alike."""
    boxes = sorted((_array_box(a, plan, int(names.pieces(a.path)[place])) for a in arrays),
                   key=lambda box: box.first)  # fmt: skip
    for _, found in groupby(enumerate(boxes), key=lambda x: (x[1].first - x[0], x[1].parts)):
        run = [box for _, box in found]
        yield Box(run[0].first, run[-1].last, run[0].parts, run[0].title)


def _array_box(a: PlannedArray, plan: Plan, layer: int) -> Box:
    parts = tuple(Part(str(n), axes) for n, axes in zip(a.shape, a.spec, strict=True))
    pinned = ", pinned" if a.pinned else ""
    title = f"{a.dtype}{list(a.shape)} {spec_text(a.spec, plan.mesh.names)}{pinned}"
    return Box(layer, layer, parts, f"{title}: {size(a.local_bytes)} on a device")


def _op_rows(plan: Plan) -> list[Row]:
    main = [op for op in plan.ops if op.prim in MATMULS and op.known] or list(plan.ops)
    return [_op_row(op) for op in sorted(main, key=lambda op: -op.time_ns)[:_MOST_OPS]]


def _op_row(op: PlannedOp) -> Row:
    factors = dict.fromkeys(re.findall(r"\w+", op.rule)) if op.known else {}
    parts = [
        Part(name, tuple(i for i, factor in enumerate(op.factors) if factor == name))
        for name in factors
    ]
    where = op.scope or op.source or op.prim
    label = f"{op.phase} {where}" + (f" ×{op.members}" if op.members > 1 else "")
    title = f"{op.prim} {op.phase} {op.scope} {op.source}: {op.rule}"
    box = Box(0, 0, tuple(parts), f"{op.rule}: {duration(op.time_ns)} a step")
    return Row(label, title, (box,))


def _short(path: str) -> str:
    """The keys of a path, without the place of the argument itself."""
    words = names.words(path)
    return "/".join(words[2:] if words[:1] == ("args",) and len(words) > 2 else words)


def _figure(rows: Sequence[Row]) -> Element:
    layers = sorted(
        {n for row in rows for box in row.boxes for n in range(box.first, box.last + 1)}
    )
    shown, head = rows[:_MOST_ROWS], 20 if len(layers) > 1 else 4
    height = head + _ROW * len(shown) + 4
    svg = element("svg", element("title", "sharding map"), width=WIDTH, height=height,
                  role="img", viewBox=f"0 0 {WIDTH} {height}")  # fmt: skip
    step = (WIDTH - _LEFT) / max(len(layers), 1)
    if len(layers) > 1:
        svg.extend(_numbers(layers, step))
    places = {n: i for i, n in enumerate(layers)}
    for i, row in enumerate(shown):
        svg.extend(_line(row, head + i * _ROW, places, step))
    left = len(rows) - len(shown)
    foot = element("p", f"and {left} other rows", class_="quiet") if left else None
    return element("div", svg, foot, class_="wide")


def _numbers(layers: Sequence[int], step: float) -> list[Element]:
    """The layers' numbers, as many as have room."""
    every = max(1, round(26 / step))
    return [
        element("text", str(layers[i]), x=_LEFT + (i + 0.5) * step, y=13, text_anchor="middle",
                class_="quiet")
        for i in range(0, len(layers), every)
    ]  # fmt: skip


def _line(row: Row, top: float, places: dict[int, int], step: float) -> list[Element]:
    label = row.label if len(row.label) <= _LETTERS else "…" + row.label[1 - _LETTERS :]
    found = [element("text", element("title", row.title), label, x=0, y=top + 13, class_="mono")]
    for box in row.boxes:
        first, last = places[box.first], places[box.last]
        found.append(_drawn(box, _LEFT + first * step, top, (last - first + 1) * step))
    return found


def _drawn(box: Box, left: float, top: float, wide: float) -> Element:
    """A box cut into its dimensions, a dimension into the axes that split it."""
    parts = box.parts or (Part("", ()),)
    each, group = (wide - 2) / len(parts), element("g", element("title", box.title))
    for k, part in enumerate(parts):
        looks = [axis_class(axis) for axis in part.axes] or ["whole"]
        x, share = left + k * each, (each - 1) / len(looks)
        for j, look in enumerate(looks):
            group.append(element("rect", x=x + j * share, y=top + 1, width=max(share, 0.5),
                                 height=_ROW - 3, class_=look))  # fmt: skip
        if 7 * len(part.text) + 4 < each:
            look = "mono onfill" if part.axes else "mono"
            group.append(element("text", part.text, x=x + each / 2, y=top + 13,
                                 text_anchor="middle", class_=look))  # fmt: skip
    return group
