"""Which ops share a class: tandem repeats of layers, and what must stay apart."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.steps import array, mix, mix_params, mlp, mlp_params, state, train
from xshard.ir.fold import Classes, fold, unfolded
from xshard.ir.graph import Graph, Op, Value
from xshard.ir.trace import trace

MLP, MIX = mlp_params(), mix_params()


def graph_of(blocks: Any, params: Any) -> Graph:
    return trace(train(blocks), (state(params), array(4, 8))).graph


def sizes(graph: Graph, classes: Classes, prim: str, phase: str) -> list[int]:
    """Members of each class of that primitive in that phase, in program order."""
    firsts = [(graph.ops[members[0]], len(members)) for members in classes.members]
    return [n for op, n in firsts if (op.prim, op.phase) == (prim, phase)]


CASES = {
    # name: blocks, parameters, forward matmuls, backward matmuls, square roots of the update
    "equal layers": ([mlp] * 5, [MLP] * 5, [5, 5], [5, 5, 5, 4], [5, 5]),
    "another width half-way": (
        [mlp] * 6, [MLP] * 3 + [mlp_params(8, 32)] * 3,
        [3, 3, 3, 3], [3, 3, 3, 3, 3, 3, 3, 2], [3, 3, 3, 3],
    ),
    "encoder and decoder": (
        [mlp] * 4 + [mix] * 4, [MLP] * 4 + [MIX] * 4, [4, 4, 4], [4, 4, 4, 4, 4, 3], [4, 4, 4],
    ),
    "two kinds in turn": (
        [mlp, mix] * 4, [MLP, MIX] * 4, [4, 4, 4], [4, 4, 4, 4, 4, 3], [4, 4, 4],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_layers_are_found_in_each_phase(name: str) -> None:
    blocks, params, forward, backward, update = CASES[name]
    graph = graph_of(blocks, params)
    classes = fold(graph).verify(graph)
    assert sizes(graph, classes, "dot_general", "fwd") == forward
    assert sorted(sizes(graph, classes, "dot_general", "bwd"), reverse=True) == backward
    assert sizes(graph, classes, "sqrt", "update") == update


def test_arguments_of_equal_layers_share_a_class() -> None:
    graph = graph_of([mlp] * 5, [MLP] * 5)
    classes = fold(graph)
    kinds = Counter(int(classes.value_class[v]) for v in graph.inputs)
    # the batch; the first "up", which no gradient of the batch reads; the other ones; all the rest
    assert sorted(kinds.values()) == [1, 1, 4] + [5] * 5


@pytest.mark.parametrize("kinds", [([mlp], [MLP]), ([mlp, mix], [MLP, MIX])])
def test_as_many_classes_for_any_depth(kinds: Any) -> None:
    blocks, params = kinds
    counts = []
    for depth in (4, 24):
        graph = graph_of(blocks * depth, params * depth)
        classes = fold(graph)
        counts.append((len(classes.members), len(classes.value_members)))
    assert counts[0] == counts[1]


def test_without_repeats_all_stand_alone() -> None:
    def loss(x: Any, w: Any) -> Any:
        return ((x @ w).T @ x).sum()

    graph = trace(loss, (array(4, 8), array(8, 6))).graph
    classes = fold(graph)
    assert classes.members == unfolded(graph).members
    assert classes.value_members == unfolded(graph).value_members


def values_of(graph: Graph, prim: str) -> list[int]:
    return [op.outputs[0] for op in graph.ops if (op.prim, op.phase) == (prim, "fwd")]


@pytest.mark.parametrize("which", ["argument", "result"])
def test_pinned_members_are_kept_apart(which: str) -> None:
    graph = graph_of([mlp] * 9, [MLP] * 9)
    ups = [v for v in graph.inputs if graph.values[v].name.startswith("args[0][0]")][1::2]
    members = ups if which == "argument" else values_of(graph, "tanh")
    pinned, others = members[4], members[:4] + members[5:]
    classes = fold(graph, {pinned: ((0,), None)}).verify(graph)
    of = classes.value_class
    assert all(of[pinned] != of[other] for other in others)
    assert of[others[1]] == of[others[2]] and of[others[-1]] == of[others[-2]]


def test_equally_pinned_members_stay_together() -> None:
    graph = graph_of([mlp] * 5, [MLP] * 5)
    pins = dict.fromkeys(values_of(graph, "tanh"), ((0,), None))
    assert len(fold(graph, pins).members) == len(fold(graph).members)


def chain(letters: str, reaches: list[int]) -> Graph:
    """Ops named by the letters; each reads the value before it and one further back."""
    ops, values = [], [Value(0, (4,), "float32", 4)]
    for i, letter in enumerate(letters):
        inputs = (i, max(0, i - reaches[i % len(reaches)]))
        ops.append(Op(i, letter, inputs, (i + 1,)))
        values.append(Value(i + 1, (4,), "float32", 4, producer=i))
    return Graph(tuple(values), tuple(ops), (0,), (), (len(ops),)).verify()


TEXTS = st.one_of(
    st.text("abc", max_size=60),
    st.builds(
        lambda a, m, b, n, c: a * m + b * n + a * m + c,
        st.text("abcd", min_size=1, max_size=12), st.integers(1, 5),
        st.text("abe", max_size=9), st.integers(0, 5), st.text("ab", max_size=4),
    ),
)  # fmt: skip


@settings(max_examples=150)
@given(TEXTS, st.lists(st.integers(0, 9), min_size=1, max_size=5), st.sets(st.integers(0, 60)))
def test_any_classes_verify(letters: str, reaches: list[int], pinned: set[int]) -> None:
    graph = chain(letters, reaches)
    keys = {v: ((v % 2,),) for v in pinned if v < len(graph.values)}
    classes = fold(graph, keys).verify(graph)
    for labels, members in (
        (classes.op_class, classes.members),
        (classes.value_class, classes.value_members),
    ):
        assert sorted(i for group in members for i in group) == list(range(len(labels)))
        assert all(labels[i] == c for c, group in enumerate(members) for i in group)
    for group in classes.value_members:
        assert len({keys.get(v) for v in group}) == 1


@pytest.mark.parametrize("copies", [2, 3, 8])
def test_copies_are_numbered_by_place(copies: int) -> None:
    classes = fold(chain("xy" + "abcdefgh" * copies + "z", [1]))
    places = [tuple(range(2 + k, 2 + 8 * copies, 8)) for k in range(8)]
    assert classes.members == ((0,), (1,), *places, (2 + 8 * copies,))
