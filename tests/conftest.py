"""Eight virtual CPU devices whatever the machine has, and the same examples in every run."""

import os

from tests import fast_compile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + f" {fast_compile.FLAGS} --xla_force_host_platform_device_count=8"
    # Eight devices on few cores may wait long for each other; by default that aborts after 40 s.
    + " --xla_cpu_collective_call_terminate_timeout_seconds=600"
)

os.environ["XSHARD_COST_DB"] = ""  # no test depends on what was measured on this machine
os.environ["XSHARD_PLAN_CACHE"] = ""  # nor on what was planned on it before

# JAX reads the first two when it is imported.
import math
from collections.abc import Callable

import hypothesis
import jax
import pytest
from jax.sharding import AxisType, Mesh

hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.load_profile("same")


@pytest.fixture(scope="session")
def mesh() -> Callable[..., Mesh]:
    """`mesh(2, 4)`: the first 2x4 devices with axes "x", "y", "z", as many as there are sizes."""

    def make(*shape: int, axis_type: AxisType = AxisType.Auto) -> Mesh:
        devices = jax.devices()[: math.prod(shape)]
        return jax.make_mesh(
            shape, tuple("xyz"[: len(shape)]), (axis_type,) * len(shape), devices=devices
        )

    return make
