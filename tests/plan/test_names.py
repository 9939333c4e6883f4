"""Paths that differ in numbers only get one label."""

from __future__ import annotations

import pytest

from xshard.plan.names import collapse, times, words


@pytest.mark.parametrize(
    ("items", "labels"),
    [
        (  # layers as a list; the argument's own number stays
            [(f"args[0]['layers'][{k}]['w']", "s") for k in range(48)],
            ["args[0]['layers'][*]['w'] ×48"],
        ),
        ([(f"args[0]['layer_{k}'].w", "s") for k in range(12)], ["args[0]['layer_*'].w ×12"]),
        ([("args[0]", "s"), ("args[1]", "s")], ["args[0]", "args[1]"]),
        (  # a number that does not vary stays
            [(f"args[0][1].mu['l{k}']['q8']", "s") for k in (3, 4)],
            ["args[0][1].mu['l*']['q8'] ×2"],
        ),
        (  # the same paths with two specs: the numbers say which
            [(f"args[0]['l{k}']", "t" if k in (2, 5) else "s") for k in range(7)],
            ["args[0]['l0-1,3-4,6'] ×5", "args[0]['l2,5'] ×2"],
        ),
        ([("args[0]['a']", "s"), ("args[0]['b']", "s")], ["args[0]['a']", "args[0]['b']"]),
        ([("", "s"), ("['loss']", "s")], ["", "['loss']"]),
        ([], []),
    ],
)
def test_labels(items: list[tuple[str, str]], labels: list[str]):
    assert [times(group) for group in collapse(items)] == labels


def test_groups_partition_the_items_in_order():
    items = [(f"args[0][{k}]['{n}']", n) for k in range(3) for n in "ab"]
    assert [group.members for group in collapse(items)] == [(0, 2, 4), (1, 3, 5)]


@pytest.mark.parametrize(
    "path", ["args[0]['w'].mu", "args/0/w/mu", "args.0.w.mu", 'args[0]["w"]/mu']
)
def test_spellings_of_one_path(path: str):
    assert words(path) == ("args", "0", "w", "mu")
