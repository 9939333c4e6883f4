"""The roofline of single ops."""

from typing import Any

import pytest

from xshard.cost.cluster import Cluster
from xshard.cost.compute import matmul_efficiency, op_time_ns

V100 = Cluster.parse("v100-sxm2-32gb:8").device


def matmul(m, n, k, dtype="float16", device=V100):
    flops, size = 2 * m * n * k, 2
    return op_time_ns(
        device, "matmul", flops=flops, bytes_read=size * (m * k + k * n),
        bytes_written=size * m * n, dtype=dtype, dims=(1, m, n, k),
    )  # fmt: skip


def test_a_large_matmul_is_bound_by_its_achieved_rate():
    rate = 125e12 * matmul_efficiency(V100.matmul, (1, 4096, 4096, 4096))
    expected = 2 * 4096**3 / rate + V100.launch_overhead_s
    assert matmul(4096, 4096, 4096) == pytest.approx(expected * 1e9, abs=1)


def test_a_memory_bound_op_is_bound_by_bandwidth():
    taken = op_time_ns(V100, "elementwise", flops=1e6, bytes_read=1e9, bytes_written=1e9,
                       dtype="float16")  # fmt: skip
    expected = 2e9 / (900e9 * V100.memory_efficiency) + V100.launch_overhead_s
    assert taken == pytest.approx(expected * 1e9, abs=1)


def test_efficiency_grows_with_every_side():
    sizes = [64, 128, 512, 2048, 8192]
    for side in range(4):
        dims: list[Any] = [tuple(s if i == side else 512 for i in range(4)) for s in sizes]
        efficiencies = [matmul_efficiency(V100.matmul, d) for d in dims]
        assert efficiencies == sorted(efficiencies)
        assert 0 < efficiencies[0] < efficiencies[-1] < V100.matmul.max_efficiency


def test_splitting_a_matmul_never_halves_its_time():
    assert matmul(1024, 1024, 512) > matmul(1024, 1024, 1024) / 2
    assert matmul(512, 1024, 1024) > matmul(1024, 1024, 1024) / 2


def test_a_fused_op_launches_nothing():
    taken = op_time_ns(V100, "elementwise", flops=0, bytes_read=0, bytes_written=0,
                       dtype="float16", launches=0)  # fmt: skip
    assert taken == 0


def test_float32_without_tensor_cores_is_slower():
    assert matmul(2048, 2048, 2048, "float32") > 5 * matmul(2048, 2048, 2048, "float16")
