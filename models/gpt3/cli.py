"""Command line of `python -m models.gpt3.train`; imports no JAX, so that it can be set up first."""

import argparse
import dataclasses
from pathlib import Path
from typing import NoReturn

from models.gpt3.config import CONFIGS, GPT3Config

Arguments = argparse.Namespace


class InputError(ValueError):
    """What the user asked for cannot be done; the message is one sentence that says why."""


class _Parser(argparse.ArgumentParser):
    """Reports a bad argument in one sentence, without the usage text."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message[:1].upper()}{message[1:].rstrip('.')}.")


def parse(argv: list[str] | None = None) -> Arguments:
    """The arguments, each checked by itself.

    Raises:
        InputError: an argument is unknown, missing or malformed.
    """
    parser = _Parser(
        prog="python -m models.gpt3.train",
        description="Trains GPT-3 on the Python standard library's sources, sharded by xshard.",
    )
    _add_model(parser)
    _add_plan(parser)
    _add_run(parser)
    _add_hosts(parser)
    args = parser.parse_args(argv)
    hosts = (args.coordinator, args.num_processes, args.process_id)
    if any(x is not None for x in hosts) and any(x is None for x in hosts):
        parser.error("--coordinator, --num-processes and --process-id belong together")
    return args


def config(args: Arguments) -> GPT3Config:
    """The chosen configuration with the command line's changes.

    Raises:
        InputError: the changes contradict each other.
    """
    names = (field.name for field in dataclasses.fields(GPT3Config))
    changes = {n: getattr(args, n) for n in names if getattr(args, n, None) is not None}
    try:
        return CONFIGS[args.config].replace(**changes)
    except ValueError as error:
        raise InputError(str(error)) from error


def _add_model(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--config", choices=list(CONFIGS), default="tiny", help="default: tiny")
    group.add_argument("--layers", choices=["unrolled", "scanned"], help="default: unrolled")
    group.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], help="for compute")
    group.add_argument("--remat", action="store_true", default=None, help="recompute each layer")
    group.add_argument("--batch", type=_positive, metavar="N", help="sequences a step")
    group.add_argument("--seq-len", type=_positive, metavar="N", help="tokens a sequence")
    group.add_argument("--dropout", type=float, metavar="RATE")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("plan")
    group.add_argument(
        "--devices", type=_positive, metavar="N", help="virtual devices of each process, on CPU"
    )
    group.add_argument(
        "--mesh", type=_mesh, metavar="2x4", help="sizes of the mesh axes (default: xshard chooses)"
    )
    group.add_argument("--memory-limit", metavar="SIZE", help='a device\'s, in bytes or as "30GB"')
    group.add_argument("--time-limit", type=float, metavar="S", help="seconds for the solver")
    group.add_argument("--microbatches", type=_positive, metavar="N", help="default: 1")
    group.add_argument(
        "--pipeline", type=_positive, metavar="N", help="groups of devices that share the layers"
    )
    group.add_argument(
        "--schedule", choices=["auto", "gpipe", "1f1b", "interleaved", "zero_bubble"],
        help="of the pipeline (default: auto)",
    )  # fmt: skip
    group.add_argument("--plan", type=Path, metavar="FILE", help="use this plan, solve nothing")
    group.add_argument("--brief", action="store_true", help="print the plan in brief")
    group.add_argument("--save-plan", type=Path, metavar="FILE", help="write the plan as JSON")


def _add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument("--steps", type=_positive, default=200, metavar="N", help="default: 200")
    group.add_argument("--seed", type=_natural, default=0, metavar="N", help="default: 0")
    group.add_argument(
        "--eval-every", type=_positive, metavar="N", help="steps between held-out losses"
    )
    group.add_argument("--checkpoint-dir", type=Path, metavar="FOLDER", help="resumes if it can")
    group.add_argument(
        "--checkpoint-every", type=_positive, default=50, metavar="N", help="default: 50 steps"
    )
    group.add_argument("--json", action="store_true", help="print one JSON object a line")


def _add_hosts(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("many hosts")
    group.add_argument("--distributed", action="store_true", help="as Slurm or Open MPI says")
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--num-processes", type=_positive, metavar="N")
    group.add_argument("--process-id", type=_natural, metavar="I")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def _mesh(text: str) -> tuple[int, ...]:
    sizes = text.lower().split("x")
    if not all(size.isdecimal() and int(size) for size in sizes) or len(sizes) > 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not one to three sizes such as 8 or 2x4")
    return tuple(map(int, sizes))
