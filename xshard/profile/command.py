"""What `xshard profile` does: measures on the present devices, lists, exports and imports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from xshard.cost.cluster import Cluster
from xshard.cost.collectives import CollectiveModel
from xshard.cost.database import CostDatabase, Row
from xshard.cost.store import CostDb, from_json, path_of, to_json
from xshard.errors import CostError, MeshError
from xshard.profile.bar import Bar
from xshard.profile.run import Bench, Progress, profile
from xshard.profile.targets import Step, Target, of_steps, sweep
from xshard.spec import MeshShape

_CPU_SIDES = (32, 128, 512)
"""Of the sweep's matmuls on virtual devices, which share the cores of a machine."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a cost database holds, and what was just done with it."""

    path: str
    rows: tuple[Row, ...]
    done: str = ""

    def to_json(self) -> str:
        """The rows, as `--export` writes them."""
        return to_json(self.rows)

    def __str__(self) -> str:
        if self.done:
            return self.done
        console = Console(width=160, highlight=False, force_terminal=False)
        with console.capture() as text:
            console.print(self)
        return "\n".join(line.rstrip() for line in text.get().splitlines())

    def __rich__(self) -> Any:
        if self.done:
            return self.done
        table = Table(title=f"{len(self.rows)} measurements in {self.path}", title_justify="left")
        for name in ("device", "jax", "what", "sizes"):
            table.add_column(name, overflow="fold")
        for name in ("median", "spread", "samples"):
            table.add_column(name, justify="right")
        for row in self.rows:
            table.add_row(*_cells(row))
        return table


def _cells(row: Row) -> tuple[str, ...]:
    s = row.signature
    sizes = "×".join(map(str, s.sizes))
    times = f"{row.median_ns * 1e-3:.1f} µs", f"{row.spread:.0%}", str(row.samples)
    return (row.device, row.jax, f"{s.kind} {s.family}", sizes, *times)


def known(cost_db: CostDb, export: str | None, import_: str | None) -> Known:
    """Lists, exports or imports.

    Raises:
      CostError: a file cannot be read or written, or there is no database.
    """
    path = _path(cost_db)
    if import_:
        rows = from_json(_read(import_), import_)
        with CostDatabase(path) as db:
            count = db.add(rows)
        return Known(path, tuple(rows), f"read {count} measurements from {import_} into {path}")
    with CostDatabase(path, write=False) as db:
        rows = db.rows()
    if not export:
        return Known(path, tuple(rows))
    _write(export, to_json(rows))
    return Known(path, tuple(rows), f"wrote {len(rows)} measurements to {export}")


StepsOf = Callable[[Cluster, MeshShape | None], Sequence[Step]]
"""A step on a mesh over the cluster, or on each that would be tried."""


def measure(
    step: StepsOf | None, mesh: MeshShape | None,
    cost_db: CostDb, budget_s: float, again: bool,
) -> Known:  # fmt: skip
    """Profiles a step, or in general.

    Raises:
      CostError: the database cannot be used.
      MeshError: there are not as many devices as the mesh has.
    """
    if jax.process_count() > 1:
        raise MeshError("profile in one process, on the devices of one host")
    devices, path = jax.devices(), _path(cost_db)
    if mesh is not None and mesh.num_devices != len(devices):
        raise MeshError(
            f"the mesh {mesh} has {mesh.num_devices} devices, and there are {len(devices)}; make "
            "them equal (--cpu-devices N gives N virtual ones)"
        )
    cluster = Cluster.for_devices(devices[0].device_kind, len(devices))
    targets = _targets(step, mesh, cluster)
    with CostDatabase(path) as db, Bar(Console(stderr=True)) as bar:
        bench = Bench(devices)
        done = profile(targets, bench, db, budget_s=budget_s, on_progress=bar, again=again)
        rows = db.rows([bench.device])
    return Known(path, tuple(rows), _told(done, bench.device, path))


def _targets(step: StepsOf | None, mesh: MeshShape | None, cluster: Cluster) -> Sequence[Target]:
    if step is not None:
        return of_steps(step(cluster, mesh))
    shape = mesh or MeshShape(("d",), (cluster.num_devices,))
    model = CollectiveModel(cluster, shape)
    return sweep(model, *([_CPU_SIDES] if cluster.device.collectives == "shared-memory" else []))


def _told(done: Progress, device: str, path: str) -> str:
    parts = [f"{done.measured} measured", f"{done.known} known before"]
    if done.left:
        parts.append(f"{done.left} left: a larger --budget, or the same again, goes on with them")
    lines = [f"{device}: {', '.join(parts)}", f"kept in {path} ({done.seconds:.0f} s)"]
    lines += [f"not measured: {what}: {reason}" for what, reason in done.failed]
    return "\n".join(lines)


def _path(cost_db: CostDb) -> str:
    path = path_of(cost_db)
    if path is None:
        raise CostError("there is no cost database: $XSHARD_COST_DB is empty; give --cost-db FILE")
    return path


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CostError(
            f"cannot read {path}: {getattr(error, 'strerror', None) or error}"
        ) from None


def _write(path: str, text: str) -> None:
    try:
        Path(path).write_text(text, "utf-8")
    except OSError as error:
        raise CostError(f"cannot write {path}: {error.strerror}") from None
