"""Laws of resharding: identity, free slices, the triangle, tables equal to the sum of steps."""

import itertools

import numpy as np
import pytest

from xshard.cost.cluster import Cluster
from xshard.cost.collectives import CollectiveModel
from xshard.cost.prices import reduction
from xshard.cost.reshard import Resharder, one_stop
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
        total = sum(reshard.step_ns(s) for s in steps)
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
        # other axes on the same number of tiles: a permute
        (((0,), (1,)), ((1,), (0,)), [("all-to-all", (1,), 1 / 8), ("permute", (0, 1), 1 / 8)]),
        # no common number of tiles: everything is gathered
        (((1,), ()), ((), (0,)), [("all-gather", (1,), 1.0)]),
    ],
)
def test_steps(src, dst, expected):
    steps = resharder((2, 4)).steps(src, dst, MB)
    assert [(s.kind, s.axes, s.nbytes / MB) for s in steps] == expected


@MESHES
def test_an_all_gather_is_never_beaten_by_more_than_gathering_all(sizes):
    """A route moves at most what gathering everything moves, and one permute and one all-to-all."""
    reshard, specs = resharder(sizes), tuple(all_specs(3, len(sizes)))
    for src, dst in itertools.product(specs, repeat=2):
        steps = reshard.steps(src, dst, 1.0)
        assert sum(s.nbytes for s in steps if s.kind == "all-gather") <= 2
        assert all(0 < s.nbytes <= 1 and s.devices > 1 for s in steps)


@MESHES
def test_stopping_once_obeys_the_triangle(sizes):
    reshard, specs = resharder(sizes), tuple(all_specs(2, len(sizes)))
    times = reshard.table(specs, 96 * MB)
    best, via = one_stop(times)
    for i, j in itertools.product(range(len(specs)), repeat=2):
        assert best[i, j] <= (times[i] + times[:, j]).min()
        stop = via[i, j]
        assert best[i, j] == (times[i, j] if stop < 0 else times[i, stop] + times[stop, j])


def test_stopping_beats_gathering_everything():
    """[1 4-way tiles, whole] to [whole, 2 tiles]: slice first, then an all-to-all of a part."""
    specs = tuple(all_specs(2, 2))
    times = resharder((2, 4)).table(specs, 96 * MB)
    src, dst = specs.index(((1,), ())), specs.index(((), (0,)))
    best, via = one_stop(times)
    assert best[src, dst] < times[src, dst]
    assert via[src, dst] >= 0


def test_gathering_an_inner_dimension_takes_copies_on_a_cpu():
    specs = {dim: tuple((0,) if d == dim else () for d in range(3)) for dim in range(3)}
    for cluster, copies in (("cpu:8", True), ("h100:8", False)):
        reshard = resharder((8,), cluster)
        outer, middle, inner = (reshard.time_ns(specs[d], ((),) * 3, MB) for d in range(3))
        assert (outer < middle < inner) if copies else (outer == middle == inner)


@pytest.mark.parametrize(
    ("raw", "partial", "final", "kinds", "middle"),
    [
        (((), ()), (0, 1), ((0, 1), ()), ["reduce-scatter"], ((0, 1), ())),
        (((), ()), (0, 1), ((0,), ()), ["reduce-scatter", "all-reduce"], ((0,), ())),
        # into two dimensions: XLA sums whole arrays
        (((), ()), (0, 1), ((0,), (1,)), ["all-reduce"], ((), ())),
        (((0,), ()), (1,), ((0, 1), ()), ["reduce-scatter"], ((0, 1), ())),
        (((0,), ()), (1,), ((0,), ()), ["all-reduce"], ((0,), ())),
        # cut by axis 0 behind axis 1, tiles would be in another order than the spec's
        (((1,), ()), (0,), ((0, 1), ()), ["all-reduce"], ((1,), ())),
    ],
)
def test_partial_sums_are_scattered_where_xla_can(raw, partial, final, kinds, middle):
    steps, found = reduction(raw, partial, final, (64, 64), 4, MeshShape(("a", "b"), (2, 4)))
    assert ([s.kind for s in steps], found) == (kinds, middle)
