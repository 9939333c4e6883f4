"""The command line: `xshard plan`, `verify`, `show`, `report`, `diff`, `profile`, `solve`.

Exit codes: 0 when done, 1 when plans or predictions differ, 2 with one sentence on bad input.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from threading import Timer
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from xshard.errors import PlanError, XshardError
from xshard.plan.plan import Plan
from xshard.spec import MeshShape

if TYPE_CHECKING:
    from xshard.verify.stages import PipelineVerification
    from xshard.verify.verification import Verification

_AXES = ("data", "model", "seq")
"""Names of a mesh that is given by its sizes only."""
_PATIENCE_S = 1.0
"""Seconds after which a command shows that it is working."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # × and → where the encoding has them, else ?
            stream.reconfigure(errors="replace")
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except XshardError as error:
        print(f"xshard {args.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="xshard", description="Automatic parallelization for JAX.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_plan(commands.add_parser("plan", help="plan a training step for a cluster"))
    _add_verify(commands.add_parser("verify", help="compile a saved plan's step for its devices"))
    show = commands.add_parser("show", help="print a saved plan")
    show.add_argument("plan", metavar="PLAN.json")
    show.set_defaults(run=_show)
    _add_report(commands.add_parser("report", help="write a saved plan as a page with figures"))
    diff = commands.add_parser("diff", help="compare two saved plans; exit code 1 if they differ")
    diff.add_argument("before", metavar="A.json")
    diff.add_argument("after", metavar="B.json")
    diff.set_defaults(run=_diff)
    _add_profile(commands.add_parser("profile", help="measure ops and collectives on this machine"))
    _add_solve(commands.add_parser("solve", help="solve a problem from a file"))
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_plan(plan: argparse.ArgumentParser) -> None:
    add = plan.add_argument
    _add_step(plan)
    add("--cluster", required=True, help='such as "v100-sxm2-32gb:2x8" (hosts × devices)')
    add("--mesh", type=_mesh, help='such as "2x8" or "data=2,model=8"; default: xshard chooses')
    add("--memory-limit", metavar="BYTES", help='per device, such as "30GB"')
    add("--time-limit", metavar="SECONDS", type=_positive, help="of the solver")
    add(
        "--microbatches",
        metavar="N",
        type=_number,
        help='parts of the batch, or "auto"; default: 1',
    )
    add("--remat", choices=("auto", "none", "all"), help="layers to recompute; default: none")
    add("--cost-db", metavar="FILE", help="measured costs (default: the user's own)")
    add("--output", metavar="PLAN.json", help="save the plan")
    plan.set_defaults(run=_plan)


def _add_step(command: argparse.ArgumentParser) -> None:
    place = "MODULE:FUNCTION"
    command.add_argument("function", metavar=place, help="the training step")
    command.add_argument(
        "--args", metavar=place, required=True, dest="example",
        help="a function without arguments that returns the step's example arguments, arrays or "
        "shapes: a tuple, or the only argument")  # fmt: skip


def _add_verify(verify: argparse.ArgumentParser) -> None:
    verify.description = (
        "Compiles a plan's step for the plan's devices, without having them, and compares memory "
        "and collectives with the plan. Exit code 1 if they differ by more than 8% or 5%, the "
        "memory limit is exceeded, or XLA moves a megabyte that was not planned."
    )
    _add_step(verify)
    verify.add_argument("plan", metavar="PLAN.json")
    verify.add_argument("--cluster", help="the plan's, where no shipped table has its devices")
    verify.set_defaults(run=_verify)


def _add_report(report: argparse.ArgumentParser) -> None:
    report.description = (
        "Writes one HTML file without scripts that needs no network: time, memory, the sharding "
        "map, communication, what lost, and a comparison."
    )
    report.add_argument("plan", metavar="PLAN.json")
    report.add_argument("--against", metavar="OTHER.json", help="another plan to compare with")
    report.add_argument(
        "--output", metavar="REPORT.html", default="report.html", help="default: report.html"
    )
    report.set_defaults(run=_report)


def _add_solve(solve: argparse.ArgumentParser) -> None:
    add = solve.add_argument
    add("problem", metavar="PROBLEM.json[.gz]", help="docs/solver.md describes the format")
    add("--time-limit", metavar="SECONDS", type=_positive, default=60.0, help="default: 60")
    add(
        "--workers",
        metavar="N",
        type=_whole,
        default=os.cpu_count() or 1,
        help="default: all cores",
    )
    add("--seed", metavar="N", type=_whole, default=0, help="of the search; default: 0")
    add("--start", metavar="SOLUTION.json", help="begin at the choices of an earlier solution")
    add("--output", "--out", metavar="SOLUTION.json", help="write the solution")
    solve.set_defaults(run=_solve)


def _plan(args: argparse.Namespace) -> int:
    _without_devices()
    names = ("mesh", "memory_limit", "time_limit", "microbatches", "remat", "cost_db")
    options = {name: getattr(args, name) for name in names}
    given = {name: value for name, value in options.items() if value is not None}
    with _progress(f"planning {args.function} for {args.cluster}"):
        function, avals = _named(args.function), _call(_named(args.example), args.example)
        plan = _planned(args.function, function, *avals, cluster=args.cluster, **given)
    if args.output:
        plan.save(args.output)
    _print(plan, plan.to_json() if args.json else None)
    return 0


def _verify(args: argparse.Namespace) -> int:
    plan = _saved(args.plan)
    _without_devices(plan.mesh.num_devices if plan.cluster.startswith("cpu:") else 0)
    with _progress(f"compiling {args.function} for {plan.cluster}") as told:
        function, avals = _named(args.function), _call(_named(args.example), args.example)
        found = _verifier()(plan, function, *avals, cluster=args.cluster, on_step=told)
    _print(found, found.to_json() if args.json else None)
    return int(not found.ok())


def _without_devices(virtual: int = 0) -> None:
    """Lets JAX start on the CPU, with so many virtual devices: nothing here runs on a device."""
    import jax

    if not jax.config.jax_platforms:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # a CUDA plugin that misses its driver
    if virtual:
        count = f"--xla_force_host_platform_device_count={virtual}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()


def _add_profile(profile: argparse.ArgumentParser) -> None:
    """The arguments of `xshard profile`."""
    add = profile.add_argument
    place = "MODULE:FUNCTION"
    add("function", metavar=place, nargs="?", help="a training step; default: a standard sweep")
    add("--args", metavar=place, dest="example", help="of the step, as for xshard plan")
    add("--mesh", type=_mesh, help='such as "2x8"; default: one axis (the step: all shapes)')
    add("--cpu-devices", metavar="N", type=_count, help="so many virtual devices on this CPU")
    add("--budget", metavar="SECONDS", type=_positive, default=300.0, help="default: 300")
    add("--cost-db", metavar="FILE", help="default: the user's own")
    add("--again", action="store_true", help="measure what is known, too")
    instead = profile.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="only print what is known")
    instead.add_argument("--export", metavar="F.json", help="only write what is known there")
    instead.add_argument("--import", metavar="F.json", dest="import_", help="only read from there")
    profile.set_defaults(run=_profile)


def _profile(args: argparse.Namespace) -> int:
    from xshard.profile import command

    if args.cpu_devices or args.list or args.export or args.import_:
        _without_devices(args.cpu_devices or 0)
    if args.list or args.export or args.import_:
        report = command.known(args.cost_db, args.export, args.import_)
    else:
        step = None
        if args.function:
            if not args.example:
                raise XshardError("a step needs --args MODULE:FUNCTION, which gives its arguments")
            from xshard.api import profile_steps

            avals = _call(_named(args.example), args.example)
            step = partial(profile_steps, _named(args.function), avals)
        report = command.measure(step, args.mesh, args.cost_db, args.budget, args.again)
    _print(report, report.to_json() if args.json else None)
    return 0


def _saved(path: str) -> Any:
    """The `Plan` or `PipelinePlan` in a file."""
    from xshard.mpmd.plan_file import load_any

    return load_any(path)


def _show(args: argparse.Namespace) -> int:
    plan = _saved(args.plan)
    _print(plan, plan.to_json() if args.json else None)
    return 0


def _report(args: argparse.Namespace) -> int:
    plan = _saved(args.plan)
    if isinstance(plan, Plan):
        plan.to_html(args.output, Plan.load(args.against) if args.against else None)
    elif args.against:
        raise PlanError("--against compares plans of one program; leave it out for a pipeline")
    else:
        plan.to_html(args.output)
    _print(args.output, json.dumps({"report": args.output}) + "\n" if args.json else None)
    return 0


def _diff(args: argparse.Namespace) -> int:
    diff = Plan.load(args.before).diff(Plan.load(args.after))
    _print(diff, json.dumps(asdict(diff), indent=1) + "\n" if args.json else None)
    return int(bool(diff))


def _solve(args: argparse.Namespace) -> int:
    from xshard.solve.command import run_solve, summary  # brings OR-tools, which others do not need

    found = run_solve(
        args.problem, time_limit_s=args.time_limit, workers=max(args.workers, 1), seed=args.seed,
        output=args.output, start=args.start,
    )  # fmt: skip
    sys.stdout.write(json.dumps(found) + "\n" if args.json else summary(found))
    return 0


def _print(report: Any, text: str | None) -> None:
    """JSON as it is; else the report, in colour and as wide as the terminal if there is one."""
    if text is not None:
        sys.stdout.write(text)
    elif sys.stdout.isatty():
        Console(highlight=False).print(report)
    else:
        sys.stdout.write(f"{report}\n")


def _planned(place: str, *args: Any, **options: Any) -> Plan:
    try:
        return _planner()(*args, **options)
    except XshardError:
        raise
    except Exception as error:
        notes = [n for n in getattr(error, "__notes__", ()) if n.startswith("xshard was tracing")]
        if not notes:
            raise
        raise XshardError(f"{place} failed: {_reason(error)}; {notes[-1]}") from error


def _planner() -> Callable[..., Plan]:
    from xshard.api import plan  # brings JAX with it, which `show` and `diff` do not need

    return plan


def _verifier() -> Callable[..., Verification | PipelineVerification]:
    from xshard.proof import verify

    return verify


def _named(place: str) -> Callable[..., Any]:
    """The function at "module:name", looked for in the working folder too."""
    module, colon, name = place.partition(":")
    if not (module and colon and name):
        raise XshardError(f"{place!r} names no function; write MODULE:FUNCTION, as train:step")
    sys.path[:0] = [] if {"", os.getcwd()} & set(sys.path) else [os.getcwd()]
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise XshardError(f"cannot import {module}: {_reason(error)}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise XshardError(f"module {module} has no {name!r}; check the name behind the colon")
        found = getattr(found, part)
    if not callable(found):
        raise XshardError(f"{place} is of type {type(found).__name__}, not a function")
    return found


def _call(example: Callable[[], Any], place: str) -> tuple[Any, ...]:
    try:
        result = example()
    except XshardError:
        raise
    except Exception as error:
        raise XshardError(f"{place}() failed to make the arguments: {_reason(error)}") from error
    return result if type(result) is tuple else (result,)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _mesh(text: str) -> MeshShape:
    """`"2x8"` or `"data=2,model=8"`."""
    axes = re.split("," if "=" in text else "[x×]", text)
    named = [axis.rpartition("=")[::2] for axis in axes]
    names = tuple(name.strip() for name, _ in named) if "=" in text else _AXES[: len(named)]
    try:
        if not all(name.isidentifier() for name in names):
            raise ValueError(text)
        return MeshShape(names, tuple(int(size) for _, size in named))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'{text!r} is no mesh; write "2x8" (up to {len(_AXES)} axes) or "data=2,model=8"'
        ) from None


def _count(text: str) -> int:
    if text.isdecimal() and int(text):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number of devices")


def _number(text: str) -> int | str:
    """A number where there is one; the planner says what else it takes."""
    return int(text) if text.isdecimal() else text


def _positive(text: str) -> float:
    with suppress(ValueError):
        if 0 < (value := float(text)) < math.inf:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")


def _whole(text: str) -> int:
    with suppress(ValueError):
        if (value := int(text)) >= 0:
            return value
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 up")


@contextmanager
def _progress(what: str) -> Iterator[Callable[[str], None]]:
    """A bar on stderr while the body runs, if that is a terminal and the body takes long.

    The body gets a function that says what is being done.
    """
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(what, total=None)
    timer = Timer(_PATIENCE_S, bar.start)
    timer.start()
    try:
        yield lambda step: bar.update(task, description=f"{what}: {step}")
    finally:
        timer.cancel()
        timer.join()
        if bar.live.is_started:
            bar.stop()
