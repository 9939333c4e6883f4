"""What training prints: the plan, progress, held-out losses and the prediction held against facts.

People read stdout as text with the progress bar on stderr; with `--json` it is one object a line.
Process 0 speaks for all.
"""

import dataclasses
import json
import sys
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from xshard import PipelinePlan
from xshard.plan.plan import Plan
from xshard.plan.table import Table, to_text
from xshard.plan.text import report as tables_of

_BRIEF_ROWS = 6
"""Rows of each table of a plan that is printed in brief."""


class Report:
    """Prints as text or as JSON lines."""

    def __init__(self, *, as_json: bool, silent: bool, brief: bool = False) -> None:
        """`silent` is for all processes but the first; `brief` shortens the plan."""
        self._json = as_json
        self._silent = silent
        self._brief = brief
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=silent or as_json or not sys.stderr.isatty(),
        )

    def plan(self, plan: Plan | PipelinePlan) -> None:
        """The plan, whole or in brief; of a pipeline its stages."""
        text = _in_brief(plan) if self._brief and isinstance(plan, Plan) else str(plan)
        self._say("plan", text, plan=json.loads(plan.to_json()) if self._json else None)

    def resumed(self, step: int) -> None:
        """That a checkpoint was found."""
        self._say("resumed", f"resumed after step {step}", step=step)

    def __enter__(self) -> Self:
        """Takes the progress bar away at the end of a with block."""
        return self

    def __exit__(self, *_: object) -> None:
        """See `__enter__`."""
        self._bar.stop()

    def start(self, done: int, total: int) -> None:
        """Shows the progress bar."""
        self._line_every = max(1, (total - done) // 10)
        self._bar.start()
        self._task = self._bar.add_task("", total=total, completed=done, text="compiling")

    def step(self, step: int, metrics: dict[str, float], tokens_per_s: float | None) -> None:
        """One step's metrics; as text the bar moves, or a line is printed at every tenth."""
        text = f"loss {metrics['loss']:.3f}"
        if tokens_per_s:
            text += f"  {tokens_per_s:,.0f} tokens/s"
        self._bar.update(self._task, completed=step, text=text)
        if self._json or (self._bar.disable and step % self._line_every == 0):
            self._say("step", f"step {step}: {text}", step=step, **metrics)

    def held_out(self, step: int, loss: float) -> None:
        """A held-out loss in nats per token."""
        self._say("held_out", f"step {step}: held-out loss {loss:.4f}", step=step, loss=loss)

    def summary(self, facts: dict[str, float | None]) -> None:
        """Throughput, and predicted against measured time and memory."""
        self._say("summary", _table(facts), **facts)

    def _say(self, event: str, text: str, **fields: Any) -> None:
        if self._silent:
            return
        print(json.dumps({"event": event, **fields}) if self._json else text, flush=True)


def _in_brief(plan: Plan) -> str:
    """The plan's report with the first rows of each table, of arrays only those that are split."""
    parts = (p if isinstance(p, str) else _shortened(p) for p in tables_of(plan))
    return to_text([p for p in parts if isinstance(p, str) or p.rows]) + "\n"


def _shortened(table: Table) -> Table:
    rows = [row for row in table.rows if "sharding" not in table.columns or row[2] != "P()"]
    left = len(table.rows) - len(rows[:_BRIEF_ROWS])
    more = f"{left} more row{'s' * (left > 1)}; {table.foot}".rstrip("; ")
    foot = more if left else table.foot
    return dataclasses.replace(table, rows=tuple(rows[:_BRIEF_ROWS]), foot=foot)


def _table(facts: dict[str, float | None]) -> str:
    """Lines such as "step time    0.21 s predicted    0.23 s measured"."""

    def show(name: str, scale: float, unit: str) -> str:
        value = facts.get(name)
        return f"{'-':>12}   " if value is None else f"{value * scale:12,.3f} {unit:<2}"

    rows = [
        ("", f"{'predicted':>15}", f"{'measured':>15}"),
        ("step time", show("predicted_time_s", 1e3, "ms"), show("measured_time_s", 1e3, "ms")),
        (
            "peak memory",
            show("predicted_bytes", 1e-6, "MB"),
            show("measured_bytes", 1e-6, "MB"),
        ),
        ("tokens/s", "", show("tokens_per_s", 1, "")),
        ("model TFLOP/s", "", show("model_flops_per_s", 1e-12, "")),
    ]
    return "\n".join(f"{name:<14}{left:>16}{right:>16}".rstrip() for name, left, right in rows)
