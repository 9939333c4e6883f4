"""Where measured costs are kept, and what they are kept under."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from xshard.cost.cluster import Cluster
from xshard.cost.database import CostDatabase, Row
from xshard.cost.device import tables
from xshard.cost.measured import Measured
from xshard.cost.signature import Signature
from xshard.cost.versions import jax_version
from xshard.errors import CostError

CostDb = str | os.PathLike[str] | Literal[False] | None
"""A path; None for the default one; False for no measurements at all."""
SCHEMA = "xshard.costs"
VARIABLE = "XSHARD_COST_DB"


def path_of(cost_db: CostDb) -> str | None:
    """The path of the cost database that is meant; None for none.

    By default $XSHARD_COST_DB (empty: none), or `xshard/costs.sqlite` in the user's cache folder.
    """
    if cost_db is False:
        return None
    if cost_db is not None:
        return os.fspath(cost_db)
    given = os.environ.get(VARIABLE)
    if given is not None:
        return given or None
    return str(cache_folder() / "xshard" / "costs.sqlite")


def cache_folder() -> Path:
    """The user's folder for what can be made again."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def device_key(device_kind: str, devices_per_host: int) -> str:
    """What measurements of a kind of device, as JAX calls it, are kept under.

    Virtual CPU devices share a machine: their number, its cores and its processor belong to it.
    """
    if device_kind != "cpu":
        return device_kind
    return f"cpu: {devices_per_host} devices on {os.cpu_count() or 1} cores of {processor()}"


def keys_of(cluster: Cluster) -> tuple[str, ...]:
    """The keys of a cluster's devices: every name that JAX has for its kind of device."""
    name = cluster.device.name
    kinds = tables().get(name, {}).get("device_kinds") or [_inner(name)]
    return tuple(device_key(kind, cluster.devices_per_host) for kind in kinds)


def _inner(name: str) -> str:
    """The kind in "generic (kind)"."""
    return name.removeprefix("generic (").removesuffix(")") if "generic (" in name else name


@cache
def processor() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8", "replace").splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def was_measured(cluster: Cluster) -> bool:
    """Whether the package's own table of these devices was measured, not taken from datasheets."""
    return bool(tables().get(cluster.device.name, {}).get("measured"))


def load(path: str | None, keys: Sequence[str]) -> Measured | None:
    """The measurements of a kind of device; None without any.

    Those of the installed version of JAX if there are some, else of the latest that has any.

    Raises:
      CostError: the database cannot be read.
    """
    if path is None or not os.path.exists(path):
        return None
    with CostDatabase(path, write=False) as db:
        rows = db.rows(keys)
    return of_rows(rows)


def known(cost_db: CostDb, cluster: Cluster) -> Measured | None:
    """The measurements to plan with for a cluster; None without any.

    Raises:
      CostError: the database that is named does not exist or cannot be read.
    """
    path = path_of(cost_db)
    if path is not None and cost_db is not None and not os.path.exists(path):
        raise CostError(
            f"there is no cost database {path}; name another, or make it by "
            f"`xshard profile --cost-db {path}`"
        )
    return load(path, keys_of(cluster))


def of_rows(rows: Sequence[Row]) -> Measured | None:
    """The rows of the installed version of JAX, or else of the one that was last measured with."""
    if not rows:
        return None
    jax, mine = jax_version(), [r.jax for r in rows]
    if jax not in mine:
        jax = max(rows, key=lambda r: r.measured_at).jax
    times = {r.signature: r.median_ns for r in rows if r.jax == jax}
    return Measured(times, rows[0].device, jax)


def to_json(rows: Sequence[Row]) -> str:
    """Rows as JSON text: one a line, sorted, so that files can be compared."""
    records = [json.dumps(_record(row), sort_keys=True) for row in rows]
    body = ",\n  ".join(records)
    return f'{{\n"schema": "{SCHEMA}",\n"version": 1,\n"costs": [\n  {body}\n]\n}}\n'


def from_json(text: str, name: str) -> list[Row]:
    """The rows that `to_json` wrote.

    Raises:
      CostError: the text holds no measurements; says what is wrong.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise CostError(f"{name} is no JSON ({error}); export it again") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise CostError(f'{name} holds no measured costs: no "schema": "{SCHEMA}"')
    if data.get("version") != 1:
        raise CostError(
            f"{name} has version {data.get('version')!r} of the format, and this xshard reads "
            "version 1; use the xshard that wrote it"
        )
    records = data.get("costs")
    if not isinstance(records, list):
        raise CostError(f'{name}: "costs" must be a list; export it again')
    return [_row(record, f"{name}: costs[{i}]") for i, record in enumerate(records)]


_FIELDS: dict[str, type | tuple[type, ...]] = {
    "device": str, "jax": str, "kind": str, "family": str, "sizes": list, "median_ns": (int, float),
    "spread": (int, float), "samples": int, "measured_at": str,
}  # fmt: skip


def _record(row: Row) -> dict[str, Any]:
    s = row.signature
    return {
        "device": row.device, "jax": row.jax, "kind": s.kind, "family": s.family,
        "sizes": list(s.sizes), "median_ns": row.median_ns, "spread": row.spread,
        "samples": row.samples, "measured_at": row.measured_at,
    }  # fmt: skip


def _row(record: Any, where: str) -> Row:
    if not isinstance(record, dict):
        raise CostError(f"{where} must be an object; export it again")
    for field, kind in _FIELDS.items():
        if not isinstance(record.get(field), kind) or isinstance(record[field], bool):
            raise CostError(f"{where}: field {field!r} is missing or of the wrong type")
    if not all(type(n) is int for n in record["sizes"]) or not record["median_ns"] > 0:
        raise CostError(f"{where}: sizes must be integers, and median_ns above 0")
    signature = Signature(record["kind"], record["family"], tuple(record["sizes"]))
    return Row(
        record["device"], record["jax"], signature, float(record["median_ns"]),
        float(record["spread"]), record["samples"], record["measured_at"],
    )  # fmt: skip
