"""Clusters as text, JSON or figures: hosts × devices per host, and the links between them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xshard.cost.cluster_file import read_cluster
from xshard.cost.device import Device, Link, device_of, link_of, plain, table_for_kind, table_named
from xshard.errors import MeshError

_TEXT = re.compile(r"(?P<kind>[\w.\- ]+):(?:(?P<hosts>\d+)[x×])?(?P<devices>\d+)")
_FORMS = '"h100-80gb:8" (one host), "v100-sxm2-32gb:2x8" (hosts × devices) or a path to a JSON file'


@dataclass(frozen=True, slots=True)
class Cluster:
    """Equal hosts of equal devices; device number `host * devices_per_host + place`."""

    device: Device
    hosts: int
    devices_per_host: int
    intra_host: Link
    inter_host: Link

    def __post_init__(self) -> None:
        if self.hosts < 1 or self.devices_per_host < 1:
            raise MeshError(f"a cluster has at least one device, not {self}")

    @property
    def num_devices(self) -> int:
        return self.hosts * self.devices_per_host

    def __str__(self) -> str:
        return f"{self.device.name}:{self.hosts}x{self.devices_per_host}"

    @classmethod
    def parse(cls, text: str, cores: int | None = None) -> Cluster:
        """Reads a cluster from text such as "h100-80gb:8", "v100-sxm2-32gb:2x8" or a JSON path.

        Args:
          text: the kind, hosts × devices per host; or a path to what `to_json` writes.
          cores: for "cpu": the cores that the virtual devices share; this machine's by default.

        Raises:
          MeshError: the text has no such form, or names no known kind.
        """
        if text.endswith(".json"):
            return cls.from_json(_read(Path(text)), f"the cluster file {text}")
        match = _TEXT.fullmatch(text.strip())
        if match is None:
            raise MeshError(f"{text!r} is no cluster; write {_FORMS}")
        table = table_named(match["kind"])
        return cls.from_table(table, int(match["hosts"] or 1), int(match["devices"]), cores)

    @classmethod
    def for_devices(
        cls, device_kind: str, num_devices: int, hosts: int = 1, cores: int | None = None
    ) -> Cluster:
        """The cluster of devices that JAX calls `device_kind`, spread evenly over `hosts`.

        An unknown kind gets the generic table and `device.generic` is True.
        """
        if hosts < 1 or num_devices % hosts:
            raise MeshError(f"{num_devices} devices cannot be spread evenly over {hosts} hosts")
        return cls.from_table(table_for_kind(device_kind), hosts, num_devices // hosts, cores)

    @classmethod
    def from_table(
        cls, table: Mapping[str, Any], hosts: int, devices_per_host: int, cores: int | None = None
    ) -> Cluster:
        """A cluster of the devices that `table` describes."""
        device = device_of(table)
        intra, inter = link_of(table["intra_host"]), link_of(table["inter_host"])
        if table.get("per_core"):
            device = device.sharing(max(devices_per_host, 1), cores or os.cpu_count() or 1)
        return cls(device, hosts, devices_per_host, intra, inter)

    @classmethod
    def from_json(cls, text: str, name: str = "the cluster description") -> Cluster:
        """Reads what `to_json` writes, or a user's own file: see `cluster_file.py`.

        Args:
          name: what errors call the text.

        Raises:
          MeshError: naming the first figure that is missing, unknown or impossible.
        """
        data = read_cluster(text, name)
        return cls.from_table(data["device"], data["hosts"], data["devices_per_host"])

    def to_json(self) -> str:
        """This cluster as JSON text, every figure in it."""
        return json.dumps(plain(asdict(self)), indent=2, sort_keys=True)


def _read(path: Path) -> str:
    """The text of a cluster file."""
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MeshError(f"cannot read the cluster file {path}: {reason}") from error
