"""`Target`: where a plan's programs are compiled for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from xshard.cost.cluster import Cluster
from xshard.errors import VerifyError
from xshard.spec import MeshShape
from xshard.verify.target import COMPILER_OPTIONS, devices_for, platform_of


@dataclass(frozen=True, slots=True)
class Target:
    """A mesh of devices that need not be here.

    Attributes:
      platform: "cuda", "tpu" or "cpu".
      options: XLA's.
    """

    platform: str
    mesh: Mesh
    options: Mapping[str, Any]

    @classmethod
    def of(cls, cluster: Cluster, mesh: MeshShape, options: Mapping[str, Any] | None) -> Target:
        """The mesh over the devices of a cluster.

        Raises:
          VerifyError: an extra is missing, or XLA does not know such a cluster.
        """
        platform = platform_of(cluster)
        devices = devices_for(cluster).reshape(mesh.sizes)
        where = Mesh(devices, mesh.names, axis_types=(AxisType.Auto,) * devices.ndim)
        return cls(platform, where, {**COMPILER_OPTIONS.get(platform, {}), **(options or {})})

    def compiled(self, lowered: Any) -> Any:
        """A lowered program, compiled.

        Raises:
          VerifyError: XLA fails.
        """
        try:
            return lowered.compile(compiler_options=dict(self.options))
        except jax.errors.JaxRuntimeError as error:
            raise VerifyError(
                f"XLA cannot compile the step for {self.platform}: {error}"
            ) from error
