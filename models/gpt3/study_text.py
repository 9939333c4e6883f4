"""Rows of the GPT-3 study as Markdown, CSV or HTML, beside the published ones."""

import csv
import io
from collections.abc import Sequence

from models.gpt3.study import Row, best
from xshard.plan.page.tables import to_html
from xshard.plan.table import Table

COLUMNS = (
    "model", "mode", "sequences", "mesh", "step s", "memory GB", "XLA GB", "TFLOP/s", "MFU", "HFU",
    "recomputed", "gap",
    "planned s", "published step s", "published GB", "its planning s",
)  # fmt: skip
NOTE = "published: what an earlier planner's plan took when it ran, where it did"


def cells(row: Row) -> tuple[str, ...]:
    """One row, in the order of `COLUMNS`."""
    case, old = row.case, row.published
    head = case.model, case.mode, str(case.microbatch_size)
    ours: tuple[str, ...] = (row.mesh, _number(row.step_s), _number(row.peak_bytes, 1e9),
            "failed" if row.not_compiled else _number(row.compiled_bytes, 1e9),
            _number(row.flops_per_s, 1e12), _share(row.mfu), _share(row.hfu), row.recomputed,
            _share(row.gap))  # fmt: skip
    if row.error:
        ours = ("does not fit", *ours[1:])
    beside = (None,) * 3 if old is None else (old.measured_s, old.measured_gb, old.planning_s)
    return (*head, *ours, _number(row.planning_s), *map(_number, beside))


def markdown(rows: Sequence[Row]) -> str:
    """All rows, and the best of each model and mode."""
    fastest = _markdown(list(best(rows).values()))
    return f"{_markdown(rows)}\n\n{memory(rows)}The best of each:\n\n{fastest}\n"


def memory(rows: Sequence[Row]) -> str:
    """How near predicted memory is to compiled memory, and whether that keeps to the limits."""
    errors = [row.memory_error for row in rows if row.memory_error is not None]
    if not errors:
        return ""
    over = [row for row in rows if not row.fits]
    mean, most = sum(map(abs, errors)) / len(errors), max(errors, key=abs)
    return (
        f"{len(errors)} of {len(rows)} rows compiled: predicted memory is off by {mean:.1%} in the "
        f"mean, by {most:+.1%} at most; {len(over)} above their limit.\n\n"
    )


def to_csv(rows: Sequence[Row]) -> str:
    """All rows."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows([COLUMNS, *map(cells, rows)])
    return out.getvalue()


def html(rows: Sequence[Row]) -> str:
    """A page."""
    columns = tuple(f">{name}" if i > 1 else name for i, name in enumerate(COLUMNS))
    every = Table("GPT-3, planned", columns, tuple(map(cells, rows)), NOTE)
    fastest = Table("The best of each", columns, tuple(map(cells, best(rows).values())))
    return f'<!doctype html>\n<meta charset="utf-8">\n{to_html((fastest, every))}\n'


FORMATS = {"markdown": markdown, "csv": to_csv, "html": html}


def _markdown(rows: Sequence[Row]) -> str:
    lines = [COLUMNS, ("---", "---", *["---:"] * (len(COLUMNS) - 2)), *map(cells, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float | None, unit: float = 1) -> str:
    return "" if value is None else f"{value / unit:.2f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
