"""From rules to strategies: a row for each case, with every strategy written out."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xshard.rules.rule import parse
from xshard.spec import MeshShape, divides, replicated, to_text
from xshard.strategies import Strategy, specs_of, strategies_of


def mesh_of(*sizes: int) -> MeshShape:
    return MeshShape(tuple("xyzw"[: len(sizes)]), sizes)


def strategies(text: str, shapes: str, mesh: MeshShape, **sizes: int) -> tuple[Strategy, ...]:
    """Of the rule in text form, for shapes such as "4 8, 8 6 -> 4 6"."""
    left, right = ([tuple(map(int, g.split())) for g in s.split(",")] for s in shapes.split("->"))
    rule = parse(text, tuple(left), tuple(right), factor_sizes=sizes)
    return strategies_of(rule, mesh, tuple(map(len, left)), tuple(map(len, right)))


def line(s: Strategy, mesh: MeshShape) -> str:
    """ "[x ·] [· ·] -> [x ·]", with "+ axes" for partial sums."""
    names = mesh.names
    ins, outs = (" ".join(to_text(x, names) for x in g) for g in (s.operands, s.results))
    sums = "".join(names[a] for a in s.partial)
    return f"{ins} -> {outs} + {sums}" if sums else f"{ins} -> {outs}"


TABLE = {
    # name: rule, shapes, mesh, strategies in order
    "matmul": ("i k, k j -> i j", "4 6, 6 8 -> 4 8", (2,), [
        "[· ·] [· ·] -> [· ·]", "[x ·] [· ·] -> [x ·]", "[· x] [x ·] -> [· ·] + x",
        "[· ·] [· x] -> [· x]",
    ]),
    "what does not divide is left out": ("i k, k j -> i j", "4 6, 6 9 -> 4 9", (4,), [
        "[· ·] [· ·] -> [· ·]", "[x ·] [· ·] -> [x ·]",
    ]),
    "shards of 32 elements or more may be padded": ("i k, k j -> i j", "1 4, 4 65 -> 1 65", (2,), [
        "[· ·] [· ·] -> [· ·]", "[· x] [x ·] -> [· ·] + x", "[· ·] [· x] -> [· x]",
    ]),
    "but not in a dimension of several factors": ("(i j) -> i j", "195 -> 65 3", (2,), [
        "[·] -> [· ·]",
    ]),
    "two axes need not divide together": ("i -> i", "6 -> 6", (2, 3), [
        "[·] -> [·]", "[y] -> [y]", "[x] -> [x]", "[x+y] -> [x+y]",
    ]),
    "two axes that do not divide together": ("i -> i", "4 -> 4", (4, 2), [
        "[·] -> [·]", "[y] -> [y]", "[x] -> [x]",
    ]),
    "an axis of one device splits nothing": ("i j -> i j", "4 4 -> 4 4", (1, 2), [
        "[· ·] -> [· ·]", "[y ·] -> [y ·]", "[· y] -> [· y]",
    ]),
    "a blocked factor": ("i w! -> i w!", "4 4 -> 4 4", (2,), [
        "[· ·] -> [· ·]", "[x ·] -> [x ·]",
    ]),
    "a dimension of one element": ("i 1 -> i j", "4 1 -> 4 4", (2,), [
        "[· ·] -> [· ·]", "[x ·] -> [x ·]", "[· ·] -> [· x]",
    ]),
    "an operand that must be whole": ("?, i -> i", "4 4, 4 -> 4", (2,), [
        "[· ·] [·] -> [·]", "[· ·] [x] -> [x]",
    ]),
    "a scalar": ("., i -> i", ", 4 -> 4", (2,), ["[] [·] -> [·]", "[] [x] -> [x]"]),
    "a sum": ("i j -> i", "4 4 -> 4", (2, 2), [
        "[· ·] -> [·]", "[y ·] -> [y]", "[· y] -> [·] + y",
        "[x ·] -> [x]", "[x+y ·] -> [x+y]", "[x y] -> [x] + y",
        "[· x] -> [·] + x", "[y x] -> [y] + x", "[· x+y] -> [·] + xy",
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_table(name: str) -> None:
    rule, shapes, sizes, expected = TABLE[name]
    mesh = mesh_of(*sizes)
    assert [line(s, mesh) for s in strategies(rule, shapes, mesh)] == expected


COMPOUND = {
    # name: mesh, sizes of a and b in "(a b) -> a b", strategies
    "the outer factor, or none": ((2,), 2, 3, ["[·] -> [· ·]", "[x] -> [x ·]"]),
    "the inner one only behind a whole outer one": (
        (2, 2), 2, 4, ["[·] -> [· ·]", "[y] -> [y ·]", "[x] -> [x ·]", "[x+y] -> [x y]"],
    ),
    "not in strides": ((2,), 3, 4, ["[·] -> [· ·]"]),
    "an outer factor of one element": ((2,), 1, 4, ["[·] -> [· ·]", "[x] -> [· x]"]),
    "both axes outside": (
        (2, 2), 4, 3, ["[·] -> [· ·]", "[y] -> [y ·]", "[x] -> [x ·]", "[x+y] -> [x+y ·]"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPOUND)
def test_compound_dimensions(name: str) -> None:
    sizes, a, b, expected = COMPOUND[name]
    mesh = mesh_of(*sizes)
    found = strategies("(a b) -> a b", f"{a * b} -> {a} {b}", mesh, a=a, b=b)
    assert [line(s, mesh) for s in found] == expected


@pytest.mark.parametrize("sizes", [(2,), (2, 2), (2, 2, 2), (2, 1, 2)])
def test_a_matmul_has_four_choices_an_axis(sizes: tuple[int, ...]) -> None:
    found = strategies("i k, k j -> i j", "8 8, 8 8 -> 8 8", mesh_of(*sizes))
    assert len(found) == 4 ** sum(size > 1 for size in sizes)
    assert found[0].factors == (None,) * len(sizes)


COUNTS = {
    # shape, mesh: specs
    ((), (2, 4)): 1,
    ((1,), (2,)): 1,
    ((0,), (2,)): 1,
    ((3,), (2,)): 1,
    ((4,), (4,)): 2,
    ((4,), (2, 2)): 4,
    ((4,), (2, 4)): 3,  # not over both
    ((8, 8), (2, 4)): 9,
    ((8, 8, 8), (2, 2)): 16,
    ((8, 8), (2, 2, 2)): 27,
    ((8, 4), (2, 2, 2)): 26,  # not all three on the second
    ((8, 8), (1, 8)): 3,
}


@pytest.mark.parametrize(("shape", "sizes"), COUNTS)
def test_number_of_specs(shape: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    specs = specs_of(shape, mesh_of(*sizes))
    assert len(specs) == len(set(specs)) == COUNTS[shape, sizes]
    assert specs[0] == replicated(len(shape))


SIDES = st.lists(st.integers(0, 12), max_size=3).map(tuple)


@given(SIDES, st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_specs_are_all_that_divide(shape: tuple[int, ...], sizes: list[int]) -> None:
    mesh = mesh_of(*sizes)
    ways = itertools.product(*[[None, *range(len(shape))] if n > 1 else [None] for n in sizes])
    every = [
        tuple(tuple(a for a, d in enumerate(way) if d == dim) for dim in range(len(shape)))
        for way in ways
    ]
    fits = [
        s for s in every
        if divides(s, shape, mesh) and all(n > 0 for n, axes in zip(shape, s, strict=True) if axes)
    ]  # fmt: skip
    assert sorted(specs_of(shape, mesh)) == sorted(fits)


@given(st.integers(1, 8), st.integers(1, 8), st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_work_and_results_are_split_alike(i: int, k: int, sizes: list[int]) -> None:
    mesh = mesh_of(*sizes)
    for s in strategies("i k, k -> i", f"{i} {k}, {k} -> {i}", mesh):
        used = [a for axes in s.operands[0] for a in axes]
        assert mesh.size_of(tuple(used)) == s.splits(mesh)
        assert s.operands[0][0] == s.results[0][0] and s.operands[0][1] == s.operands[1][0]
        assert s.partial == s.operands[1][0]
