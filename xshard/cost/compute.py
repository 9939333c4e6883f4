"""The time of one op on one device: a roofline with the rate that its local size reaches.

    time = overhead + max(flops / rate, (bytes_read + bytes_written) / bandwidth)

For a matmul of local batch b and sizes m, n, k, `rate` is the dtype's peak times

    e_max · m/(m+m½) · n/(n+n½) · k/(k+k½) · o/(o+o½),    o = b·m·n

so that short sides fill tiles badly, a short k does not amortise reading and writing the result,
and a small result o leaves multiprocessors idle. The form is the Hill curve of a rate against
problem size, r∞·n/(n+n½) of Hockney and Jesshope (1988), one factor a side. Bandwidth is the peak
times the part that the kind of op reaches. Where a device's time per element of a kind was measured
(random bits, transcendental functions), it bounds the time too. Roofline: Williams, Waterman,
Patterson (2009).
Parameters and their sources are in `devices/*.json`.
"""

from __future__ import annotations

from xshard.cost.device import Device, MatmulCurve

Dims = tuple[int, int, int, int]


def matmul_efficiency(curve: MatmulCurve, dims: Dims) -> float:
    """Achieved part of the peak for local (batch, m, n, k)."""
    b, m, n, k = dims
    tiles = m / (m + curve.half_m) * (n / (n + curve.half_n)) * (k / (k + curve.half_k))
    outputs = b * m * n
    return curve.max_efficiency * tiles * outputs / (outputs + curve.half_output)


def op_time_ns(
    device: Device,
    kind: str,
    *,
    flops: float,
    bytes_read: float,
    bytes_written: float,
    dtype: str,
    dims: Dims | None = None,
    elements: float = 0.0,
    launches: int = 1,
) -> int:
    """Nanoseconds of one op on its local operands.

    Args:
      device: figures of the device.
      kind: the op family: "matmul", or a memory-bound one ("elementwise", "reduce", "gather",
        "scatter", "random", "transcendental", ...).
      flops: floating point operations of the local op.
      bytes_read: bytes of the local operands that come from memory.
      bytes_written: bytes of the local results that go to memory.
      dtype: name of the operands' dtype, "bfloat16" for instance.
      dims: local (batch, m, n, k) of a matmul.
      elements: of the local results.
      launches: kernels that it takes; 0 for an op that is fused into its neighbour.
    """
    seconds = max(
        flops / _rate(device, kind, dtype, dims),
        (bytes_read + bytes_written) / bandwidth(device, kind, dtype),
        elements * device.seconds_per_element.get(kind, 0.0),
    )
    return round((seconds + launches * device.launch_overhead_s) * 1e9)


def bandwidth(device: Device, kind: str, dtype: str) -> float:
    """Bytes per second that a memory-bound op of that kind and dtype reaches."""
    efficiency = device.kind_efficiency.get(kind, device.memory_efficiency)
    efficiency *= device.dtype_efficiency.get(dtype, 1.0)
    return device.memory_bandwidth_bytes_per_s * efficiency


def _rate(device: Device, kind: str, dtype: str, dims: Dims | None) -> float:
    """FLOP/s of an op: by its size for a matmul; float32's vector rate for any other op."""
    if kind != "matmul":
        return device.flops_for("float32")
    efficiency = matmul_efficiency(device.matmul, dims) if dims else device.matmul.max_efficiency
    return device.flops_for(dtype) * efficiency
