"""Costs for a run on the devices that are here: from the database, or by a quick profile.

A kind of device counts as profiled if the cost database has any measurement of it, or if the
package's own table of it was measured (`"measured": true`; that is `cpu`). Else, and with
`profile=True`, what a step needs is measured for `QUICK_S` seconds, and kept.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
from rich.console import Console

from xshard.cost.database import CostDatabase, Row
from xshard.cost.measured import Measured
from xshard.cost.store import CostDb, device_key, load, of_rows, path_of, was_measured
from xshard.errors import CostError
from xshard.profile.bar import Bar
from xshard.profile.run import Bench, Progress, profile
from xshard.profile.targets import Step, of_steps

QUICK_S = 20.0
"""Of measuring; compiling the last program comes on top."""
_LOG = logging.getLogger("xshard")


@dataclass(slots=True)
class Costs:
    """What `auto_shard` knows about its devices.

    Attributes:
      cost_db: see `xshard.cost.store.CostDb`.
      wanted: profile always (True), never (False), or where nothing is known (None).
      budget_s: of a quick profile.
    """

    cost_db: CostDb = None
    wanted: bool | None = None
    budget_s: float = QUICK_S

    def of(self, steps: Sequence[Step], devices: Sequence[Any]) -> Measured | None:
        """The measurements to plan a step with; called in process 0 only.

        Args:
          steps: the step on each mesh that is tried.
          devices: of the meshes, as JAX has them.

        Raises:
          CostError: the database cannot be used.
        """
        here = [d for d in devices if d.process_index == jax.process_index()]
        key, path = device_key(here[0].device_kind, len(here)), path_of(self.cost_db)
        found = load(path, [key])
        known = found is not None or was_measured(steps[0].prices.cluster)
        if self.wanted is False or (self.wanted is None and known):
            return found
        _LOG.warning(
            "%s; measuring what this step needs for up to %.0f s, once; profile=False plans "
            "without, and `xshard profile` measures more",
            f"profile=True on {key}" if known else f"{key} was never profiled", self.budget_s,
        )  # fmt: skip
        return self._measured(steps, here, key, path)

    def _measured(
        self, steps: Sequence[Step], devices: Sequence[Any], key: str, path: str | None
    ) -> Measured | None:
        """After a quick profile; where the database cannot be written, it is kept for this run."""
        try:
            db = CostDatabase(path or ":memory:")
        except CostError as error:
            if self.cost_db is not None:
                raise
            _LOG.warning("%s; the measurements are not kept", error)
            db = CostDatabase(":memory:")
        local = len(devices) == len(jax.devices()) or jax.process_count() == 1
        with db, _bar() as bar:
            targets = of_steps(steps)
            if not local:  # other processes wait: what their devices take part in is not measured
                targets = [t for t in targets if t.mesh is None]
            done = profile(targets, Bench(devices), db, budget_s=self.budget_s, on_progress=bar)
            _LOG.info("measured %d of %d in %.0f s", done.measured, done.total, done.seconds)
            rows: list[Row] = db.rows([key])
        return of_rows(rows)


def _bar() -> AbstractContextManager[Any]:
    """A progress bar on a terminal."""
    return Bar(Console(stderr=True)) if sys.stderr.isatty() else nullcontext(_silent)


def _silent(_: Progress) -> None:
    """Shows nothing."""
