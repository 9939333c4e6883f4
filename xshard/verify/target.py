"""Devices that need not be here, to compile for.

    cluster ─ the device table's "compile_for" ─ XLA's compiler for that platform ─ devices

NVIDIA GPUs need the CUDA plugin of JAX, and no GPU; TPUs need libtpu, and no TPU. Both come with an
extra of this package. For "cpu" the devices are the virtual ones of this process.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from xshard.cost.cluster import Cluster
from xshard.errors import VerifyError

COMPILER_OPTIONS: dict[str, dict[str, Any]] = {
    "cuda": {
        "xla_gpu_autotune_level": 0,
        "xla_gpu_enable_triton_gemm": False,
        "xla_gpu_memory_limit_slop_factor": 1000,
    }
}
"""By platform: without a GPU there is nothing to time kernels on, so matmuls go to cuBLAS. A
program is compiled as it was planned: above some 80% of a GPU's memory XLA would recompute by
itself, from which `Place.compiler_options` keeps it under a limit."""

_CUDA_PLUGINS = {"jax_plugins.xla_cuda12": "jax-cuda12-plugin",
                 "jax_plugins.xla_cuda13": "jax-cuda13-plugin"}  # fmt: skip
_TPU_ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}


def platform_of(cluster: Cluster) -> str:
    """ "cuda", "tpu" or "cpu".

    Raises:
      VerifyError: the device's table does not say how to compile for it.
    """
    platform = cluster.device.compile_for.get("platform")
    if platform not in ("cuda", "tpu", "cpu"):
        raise VerifyError(
            f"the table of {cluster.device.name} does not say how to compile for it; add "
            '"compile_for" to the cluster\'s JSON file, as the shipped tables have it'
        )
    return platform


def missing(platform: str) -> str:
    """Why nothing can be compiled for a platform here, with the mend; "" if it can."""
    if platform == "tpu":
        found = importlib.util.find_spec("libtpu") is not None
        return "" if found else _mend("TPUs needs libtpu", "aot-tpu")
    if platform == "cpu":
        return ""
    name = _cuda_plugin()
    if name is None:
        return _mend("NVIDIA GPUs needs JAX's CUDA plugin", "aot-cuda")
    version = metadata.version(_CUDA_PLUGINS[name])
    if version != jax.__version__:
        return (
            f"{_CUDA_PLUGINS[name]} is of version {version} and JAX of {jax.__version__}; "
            f"pip install {_CUDA_PLUGINS[name]}=={jax.__version__}"
        )
    if importlib.util.find_spec("nvidia") is None or _nvcc() is None:
        return _mend("NVIDIA GPUs needs nvidia-cuda-nvcc", "aot-cuda")
    return ""


def devices_for(cluster: Cluster) -> np.ndarray[Any, Any]:
    """As many devices of XLA's compiler as the cluster has, host by host.

    Raises:
      VerifyError: an extra is missing, or XLA does not know such a cluster.
    """
    platform = platform_of(cluster)
    if reason := missing(platform):
        raise VerifyError(reason)
    try:
        make = {"cuda": _cuda, "tpu": _tpu, "cpu": _cpu}[platform]
        found = make(cluster)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise VerifyError(f"XLA has no devices for {cluster}: {error}") from error
    return np.array(found)


def _cuda(cluster: Cluster) -> list[Any]:
    shape = f"1x{cluster.hosts}x{cluster.devices_per_host}"  # slices × hosts × devices
    target = proto_text(cluster.device.compile_for["target"])

    def ask() -> list[Any]:
        return topologies.get_topology_desc(
            platform="cuda", target_config=target, topology=shape
        ).devices

    try:
        return ask()
    except NotImplementedError:  # JAX left the plugin out, since there is no GPU
        _register_cuda()
        return ask()


def _register_cuda() -> None:
    """Registers the plugin for its compiler alone, without the libraries that a GPU would need."""
    name = _cuda_plugin()
    assert name is not None
    with _environment({"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}):
        importlib.import_module(name).initialize()


def _tpu(cluster: Cluster) -> list[Any]:
    target, count = cluster.device.compile_for["target"], cluster.num_devices
    accelerator = {"TPU_ACCELERATOR_TYPE": f"{target['accelerator']}-{min(count, 4)}"}
    rows = next(n for n in range(math.isqrt(count), 0, -1) if count % n == 0)
    sides = rows, count // rows
    host = [*(math.gcd(side, 2) for side in sides), 1]  # chips of one host, where sides allow 2×2
    with _environment({**_TPU_ENVIRONMENT, **accelerator}):
        name = f"{target['topology']}:{sides[0]}x{sides[1]}"
        found = topologies.get_topology_desc(name, "tpu", chips_per_host_bounds=host).devices
    if len(found) != count:
        raise ValueError(f"{name} has {len(found)} devices")
    return found


def _cpu(cluster: Cluster) -> list[Any]:
    found, count = jax.devices("cpu"), cluster.num_devices
    if len(found) < count:
        raise ValueError(
            f"this process has {len(found)} CPU devices; set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count} before JAX starts"
        )
    return found[:count]


def proto_text(fields: Mapping[str, Any]) -> str:
    """Protocol-buffer text of nested fields, numbers and strings."""
    parts = (
        f"{name} {{ {proto_text(value)} }}"
        if isinstance(value, Mapping)
        else f'{name}: "{value}"'
        if isinstance(value, str)
        else f"{name}: {value}"
        for name, value in fields.items()
    )
    return " ".join(parts)


def _cuda_plugin() -> str | None:
    if importlib.util.find_spec("jax_plugins") is None:
        return None
    return next((name for name in _CUDA_PLUGINS if importlib.util.find_spec(name)), None)


def _nvcc() -> object | None:
    names = ("nvidia.cuda_nvcc", "nvidia.cu13")
    return next((spec for name in names if (spec := importlib.util.find_spec(name))), None)


def _mend(what: str, extra: str) -> str:
    return f"compiling for {what}, which is not installed: pip install 'xshard[{extra}]'"


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the time of a block, where the user has not set them."""
    added = {k: v for k, v in variables.items() if k not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
