"""`xshard solve`: a problem from a file, its solution checked and written."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from xshard.errors import InfeasibleError, ProblemError
from xshard.solve.check import check, peak_of
from xshard.solve.problem import Infeasible, Problem, Start
from xshard.solve.problem_io import Json, load_choices, load_problem, solution_json
from xshard.solve.search import Progress, solve


def run_solve(
    path: str, *, time_limit_s: float, workers: int, seed: int, output: str | None,
    start: str | None = None,
) -> Json:  # fmt: skip
    """Solves the problem at `path`; returns the solution as JSON and writes it to `output`.

    Args:
      start: a file that `output` once was, of a problem with the same nodes and choices.

    Raises:
      ProblemError: the file is no problem, or `output` cannot be written.
      InfeasibleError: no choices fit the limit, or none were found in time.
    """
    began_s = time.monotonic()
    problem = load_problem(path)
    before = None if start is None else Start(load_choices(start, problem))
    _check_writable(output)
    answer = solve(
        problem, time_limit_s=time_limit_s, workers=workers, seed=seed,
        on_progress=_show, began_s=began_s, catch_interrupt=True, start=before,
    )  # fmt: skip
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    if isinstance(answer, Infeasible):
        raise InfeasibleError(_why(answer, problem), answer.smallest_limit)
    check(problem, answer.choices)
    stages = range(max(1, len(problem.limits)))
    found = solution_json(problem, answer, [peak_of(problem, answer.choices, s)[0] for s in stages])
    if output:
        _write(output, json.dumps(found) + "\n")
    return found


def _check_writable(output: str | None) -> None:
    """Fails before the work instead of after it."""
    if output and (Path(output).is_dir() or not Path(output).absolute().parent.is_dir()):
        raise ProblemError(f"cannot write {output}: its folder does not exist or it is a folder")


def _write(output: str, text: str) -> None:
    try:
        Path(output).write_text(text)
    except OSError as error:
        raise ProblemError(f"cannot write {output}: {error.strerror or error}") from error


def summary(found: Json) -> str:
    """The solution in two lines."""
    limit = "" if found["limit_bytes"] is None else f" of {found['limit_bytes']} bytes"
    return (
        f"objective {found['objective']}, bound {found['bound']}, gap {found['gap']:.2%}, "
        f"{found['wall_s']:.1f} s\npeak memory {found['peak_bytes']}{limit}; "
        "checked without the solver\n"
    )


def _show(progress: Progress) -> None:
    """One line on stderr, written over where that is a terminal."""
    if progress.objective is None:
        text = f"{progress.wall_s:7.1f} s  {progress.stage}: nothing fits yet"
    else:
        gap = 1 - progress.bound / progress.objective if progress.objective else 0.0
        text = (
            f"{progress.wall_s:7.1f} s  {progress.stage}: incumbent {progress.objective}  "
            f"bound {progress.bound}  gap {max(gap, 0.0):.2%}"
        )
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[2K{text}")
    else:
        sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _why(answer: Infeasible, problem: Problem) -> str:
    smallest, limits = answer.smallest_limit, problem.limits or (problem.limit or 0,)
    if smallest is None:
        return "forbidden choices and pairs leave no choices at all; no limit would help"
    given = ", ".join(map(str, limits))
    found = ", ".join(str(n + smallest - max(limits)) for n in limits)
    several = len(limits) > 1
    if answer.proven:
        what = "limits that work, all raised alike, are" if several else "limit that works is"
        return f"nothing fits {given} bytes; the smallest {what} {found}"
    what = "limits, all raised alike, for what was found are" if several else "peak found is"
    return (
        f"nothing was found that fits {given} bytes; the smallest {what} {found}, try "
        f"{'those limits' if several else 'that limit'} or a longer --time-limit"
    )
