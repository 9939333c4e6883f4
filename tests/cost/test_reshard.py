"""Laws of resharding: identity, free slices, the triangle, tables equal to the sum of steps."""

import itertools

import numpy as np
import pytest

from xshard.cost.cluster import Cluster
from xshard.cost.collectives import CollectiveModel
from xshard.cost.reshard import Resharder
from xshard.spec import MeshShape

MB = 1 << 20


def all_specs(ndim, naxes):
    """Every way to put each axis on one dimension or on none."""
    for places in itertools.product(range(-1, ndim), repeat=naxes):
        yield tuple(tuple(a for a in range(naxes) if places[a] == d) for d in range(ndim))


def resharder(sizes, cluster="h100-80gb:2x8"):
    mesh = MeshShape(tuple("abc"[: len(sizes)]), sizes)
    return Resharder(CollectiveModel(Cluster.parse(cluster), mesh))


MESHES = pytest.mark.parametrize("sizes", [(8,), (2, 4), (2, 2, 2), (3, 2), (1, 8)])


@MESHES
@pytest.mark.parametrize("nbytes", [256, 96 * MB])
def test_table_is_the_sum_of_steps(sizes, nbytes):
    reshard, specs = resharder(sizes), tuple(all_specs(2, len(sizes)))
    table = reshard.table(specs, nbytes)
    for (i, src), (j, dst) in itertools.product(enumerate(specs), repeat=2):
        steps = reshard.steps(src, dst, nbytes)
        total = sum(reshard.model.time_ns(s.kind, s.nbytes, s.axes) for s in steps)
        assert table[i, j] == total == reshard.time_ns(src, dst, nbytes)
    assert table.dtype == np.int64


@MESHES
def test_staying_is_free(sizes):
    table = resharder(sizes).table(tuple(all_specs(3, len(sizes))), MB)
    assert (np.diag(table) == 0).all()


@MESHES
def test_slicing_what_every_device_holds_is_free(sizes):
    reshard = resharder(sizes)
    for dst in all_specs(2, len(sizes)):
        assert reshard.steps(((), ()), dst, MB) == ()


@pytest.mark.parametrize(
    ("src", "dst", "expected"),
    [
        (((0,), ()), ((), ()), [("all-gather", (0,), 1.0)]),
        (((0,), (1,)), ((), (1,)), [("all-gather", (0,), 1 / 4)]),
        (((0,), ()), ((), (0,)), [("all-to-all", (0,), 1 / 2)]),
        (((0, 1), ()), ((0,), (1,)), [("all-to-all", (1,), 1 / 8)]),
        (((0, 1), ()), ((0,), ()), [("all-gather", (1,), 1 / 2)]),
        (((1,), ()), ((1,), (0,)), []),
    ],
)
def test_steps(src, dst, expected):
    steps = resharder((2, 4)).steps(src, dst, MB)
    assert [(s.kind, s.axes, s.nbytes / MB) for s in steps] == expected
