"""Collective times against formulas worked out by hand."""

import pytest

from xshard.cost.cluster import Cluster
from xshard.cost.collectives import KINDS, CollectiveModel, Group
from xshard.cost.device import Link
from xshard.errors import MeshError
from xshard.spec import MeshShape

DEVICE = Cluster.parse("h100-80gb:8").device
NEAR, FAR = Link("near", 100e9, 2e-6), Link("far", 10e9, 10e-6)
MB = 10**6


def model(hosts, per_host, sizes):
    mesh = MeshShape(tuple("abc"[: len(sizes)]), sizes)
    return CollectiveModel(Cluster(DEVICE, hosts, per_host, NEAR, FAR), mesh)


@pytest.mark.parametrize(
    ("hosts", "per_host", "sizes", "axes", "group"),
    [
        (1, 8, (8,), (0,), Group(8, 1, 8, 1)),
        (2, 8, (2, 8), (1,), Group(8, 1, 8, 1)),
        (2, 8, (2, 8), (0,), Group(2, 2, 1, 8)),
        (2, 8, (2, 8), (0, 1), Group(16, 2, 8, 1)),
        (2, 8, (4, 4), (0,), Group(4, 2, 2, 4)),
        (2, 8, (4, 4), (1,), Group(4, 1, 4, 1)),
        (4, 2, (2, 2, 2), (0, 2), Group(4, 2, 2, 1)),
        (4, 2, (2, 2, 2), (0, 1), Group(4, 4, 1, 2)),
    ],
)
def test_where_groups_lie(hosts, per_host, sizes, axes, group):
    assert model(hosts, per_host, sizes).group(axes) == group


@pytest.mark.parametrize(
    ("kind", "nbytes", "seconds"),
    [
        ("all-gather", 8 * MB, 7 * 2e-6 + 7 / 8 * 8e6 / 100e9),
        ("reduce-scatter", 8 * MB, 7 * 2e-6 + 7 / 8 * 8e6 / 100e9),
        ("all-reduce", 800 * MB, 14 * 2e-6 + 14 / 8 * 800e6 / 100e9),  # large: ring
        ("all-reduce", 8, 6 * 2e-6 + 2 * 8 / 100e9),  # small: tree
        ("all-to-all", 8 * MB, 2e-6 + 7 / 8 * 8e6 / 100e9),
        ("permute", 8 * MB, 2e-6 + 8e6 / 100e9),
    ],
)
def test_within_a_host(kind, nbytes, seconds):
    assert model(1, 8, (8,)).time_ns(kind, nbytes, (0,)) == pytest.approx(seconds * 1e9, abs=1)


def test_fewer_devices_may_have_fewer_links_among_them():
    link = Link("mesh of cubes", 120e9, 0.0, {"2": 1 / 3, "4": 2 / 3})
    assert [link.among(n) for n in (2, 3, 4, 8)] == pytest.approx([40e9, 80e9, 80e9, 120e9])
    found = CollectiveModel(Cluster(DEVICE, 1, 8, link, FAR), MeshShape(("a", "b"), (4, 2)))
    assert found.time_ns("all-gather", 8 * MB, (1,)) == pytest.approx(1 / 2 * 8e6 / 40e9 * 1e9)


@pytest.mark.parametrize(
    ("kind", "axes", "seconds"),
    [
        # 8 rings of two devices leave each host at once and share its link
        ("all-gather", (0,), 10e-6 + 1 / 2 * 8e6 / (10e9 / 8)),
        ("all-to-all", (0,), 10e-6 + 1 / 2 * 8e6 * 8 / 10e9),
        ("permute", (0,), 10e-6 + 8e6 * 8 / 10e9),
        # one ring over all 16 against two levels: 7 hops near, one far, one host link for all
        ("all-gather", (0, 1), 7 * 2e-6 + 7 / 8 * 8e6 / 100e9 + 10e-6 + 1 / 2 * 8e6 / 10e9),
    ],
)
def test_across_hosts(kind, axes, seconds):
    assert model(2, 8, (2, 8)).time_ns(kind, 8 * MB, axes) == pytest.approx(seconds * 1e9, abs=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cluster", ["v100-sxm2-32gb:2x4", "cpu:8", "tpu-v5e:2x4", "h100:8"])
def test_more_bytes_take_longer(kind, cluster):
    costs = CollectiveModel(Cluster.parse(cluster), MeshShape(("a", "b"), (2, 4)))
    for axes in ((0,), (1,), (0, 1)):
        times = [costs.time_ns(kind, 4**i, axes) for i in range(16)]
        assert times == sorted(times)
        assert 0 < times[0] < times[-1]


def test_a_group_of_one_is_free():
    assert model(1, 4, (1, 4)).time_ns("all-reduce", MB, (0,)) == 0


def test_planned_reduce_scatter_on_cpu_is_an_all_reduce():
    costs = CollectiveModel(Cluster.parse("cpu:8"), MeshShape(("a",), (8,)))
    times = [costs.time_ns(k, MB, (0,)) for k in ("reduce-scatter", "all-reduce")]
    assert times[0] == times[1]


def test_errors():
    with pytest.raises(MeshError, match="shrink the mesh"):
        model(1, 4, (8,))
    with pytest.raises(ValueError, match="no collective 'broadcast'"):
        model(1, 8, (8,)).time_ns("broadcast", 1, (0,))
