"""What the benchmarks share: virtual devices, alternating timing, tables and JSON.

Runs are alternated in one process, in an order that turns from round to round, so that what else
the machine does falls on all of them alike; ratios are taken round by round. Beside wall-clock time
stands the processor time of the whole process: shared out over the cores, it is what a step would
take on a machine that does nothing else.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Row = Sequence[object]


def virtual_devices(count: int) -> None:
    """Makes JAX start with so many CPU devices; call it before anything imports JAX."""
    flag = f"--xla_force_host_platform_device_count={count}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XSHARD_PLAN_CACHE"] = ""  # what is measured is planned anew
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # the partitioner's warnings


@dataclass(slots=True)
class Timing:
    """One figure a round: seconds on the wall, and processor seconds of the process."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        """Median wall-clock seconds."""
        return float(np.median(self.wall_s))

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a part of the median."""
        low, high = np.percentile(self.wall_s, (25, 75))
        return float(high - low) / 2 / self.median_s

    @property
    def quiet_s(self) -> float:
        """Median processor time over the cores: the step on a machine that does nothing else."""
        return float(np.median(self.cpu_s)) / cores()

    def record(self) -> dict[str, object]:
        """For JSON."""
        return {"median_s": self.median_s, "spread": self.spread, "quiet_s": self.quiet_s,
                "wall_s": self.wall_s, "cpu_s": self.cpu_s}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median ratio of two runs over the rounds, and a 95% interval of that median."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def alternate(
    runs: Mapping[str, Callable[[], Any]], rounds: int, warmup: int = 2
) -> dict[str, Timing]:
    """Times each run once a round, in an order that is drawn anew; a run waits for its own result.

    What ran before matters: it leaves caches and the allocator as it needs them.
    """
    names, draw = list(runs), random.Random(0)
    times = {name: Timing() for name in names}
    for turn in range(-warmup, rounds):
        for name in draw.sample(names, len(names)):
            wall, cpu = time.perf_counter(), time.process_time()
            runs[name]()
            spent = time.perf_counter() - wall, time.process_time() - cpu
            if turn >= 0:
                times[name].wall_s.append(spent[0])
                times[name].cpu_s.append(spent[1])
    return times


def ratio(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """Of a to b, round by round; the interval is by the bootstrap (Efron 1979), seeded."""
    each = np.asarray(a) / np.asarray(b)
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(each, (1000, len(each))), axis=1)
    low, high = (float(np.percentile(medians, q)) for q in (2.5, 97.5))
    return Ratio(float(np.median(each)), low, high)


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's, without ties."""
    ranks = [np.argsort(np.argsort(np.asarray(x))) for x in (a, b)]
    table: Any = np.corrcoef(ranks)
    return float(table[0, 1])


def table(title: str, columns: Row, rows: Sequence[Row]) -> None:
    """Prints a table."""
    from rich.console import Console
    from rich.table import Table

    out = Table(title=title, title_justify="left")
    for i, name in enumerate(columns):
        out.add_column(str(name), justify="right" if i else "left")
    for row in rows:
        out.add_row(*map(str, row))
    Console(width=150).print(out)


def markdown(columns: Row, rows: Sequence[Row]) -> str:
    """The table for a README."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def machine() -> dict[str, object]:
    """Where and under which load this ran."""
    import jax

    return {"cores": cores(), "load": os.getloadavg()[0], "jax": jax.__version__}


def to_json(records: object) -> str:
    """Machine and records."""
    return json.dumps({"machine": machine(), "records": records}, indent=1)


def ms(seconds: float) -> str:
    """ "12.3 ms"."""
    return f"{seconds * 1e3:.1f} ms"


def mb(nbytes: float) -> str:
    """ "12.3 MB"."""
    return f"{nbytes / 1e6:.1f} MB"
