"""What is kept of a plan of the study where it is scaled down to a few virtual devices."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks.gpt3_scaled import Shape, part_of, shape_of, shared_out
from xshard.schedules import build
from xshard.spec import MeshShape


def plan(sizes: tuple[int, ...], groups: int = 1, chunks: int = 1) -> SimpleNamespace:
    names = ("data", "model")[: len(sizes)]
    found = SimpleNamespace(mesh=MeshShape(names, sizes), microbatches=64)
    if groups > 1:
        name = "interleaved" if chunks > 1 else "1f1b"
        found.schedule = build(name, groups, 64, chunks)
    return found


@pytest.mark.parametrize(
    ("given", "sizes", "groups", "stages"),
    [
        (plan((16,)), (8,), 1, (0,)),
        (plan((4, 16)), (2, 4), 1, (0,)),
        (plan((2, 4), 8), (2, 2), 2, (0, 7)),
        (plan((1,), 4), (1,), 4, (0, 1, 2, 3)),
        (plan((2,), 8, chunks=2), (2,), 4, (0, 2, 5, 7, 8, 10, 13, 15)),
    ],
    ids=["16", "4x16", "8 groups of 2x4", "4 of 1", "interleaved on 8 of 2"],
)
def test_mesh_and_groups_are_halved(
    given: SimpleNamespace, sizes: tuple[int, ...], groups: int, stages: tuple[int, ...]
) -> None:
    found = shape_of(given, rows=16)
    assert (found.sizes, found.groups, found.stages) == (sizes, groups, stages)
    assert found.devices <= 8 and found.rows == 8
    assert found.microbatches == (2 * groups if groups > 1 else 4)
    assert isinstance(found, Shape)


def test_layers_and_recomputed_ones_keep_their_shares() -> None:
    assert shared_out(9, (15, 16, 16, 17)) == (2, 2, 2, 3)
    assert shared_out(4, (1, 20, 1, 1)) == (1, 1, 1, 1)
    assert [part_of(2, again, 16) for again in (0, 1, 8, 15, 16)] == [0, 1, 1, 1, 2]
