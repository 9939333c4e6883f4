"""The GPT-3 study: every configuration and microbatch size planned, beside the published figures.

    python -m models.gpt3.tables [--configs 350M,39B] [--modes tensor,pipeline]
        [--microbatch-sizes 1,2,4,8,16,32] [--memory-limit published] [--cluster v100-sxm2-32gb]
        [--schedule 1f1b] [--stages auto] [--json rows.jsonl --resume]
        [--format markdown|csv|html] [--output FILE] [--verify] [--plans FOLDER] [--workers 2]

No GPU is needed. A configuration is planned for the number of devices of its published run, eight
a host, and for the best mesh of one and two axes; in the mode pipeline also in stages, if that is
faster. The published memory limits are 30 GB, and 25 GB for 16 and 32 sequences. With `--json` each
row is appended to a file as soon as it is there, and with `--resume` those that stand there are not
planned again. With `--verify` XLA compiles every plan for its devices (the extra `aot-cuda`), all
stages of those in stages: 5 s of processor time and 2 s for each layer that is unlike others; a
plan that takes more than its limit is made again, under a lower one. Rows
can be planned first and compiled later: `--plans` keeps their plans, as files that `xshard show`
and `xshard report` read too. The formulas of TFLOP/s and MFU are in `models/gpt3/study.py`.
"""

import argparse
import itertools
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING

from models.gpt3.config import CONFIGS

if TYPE_CHECKING:
    from models.gpt3.study import Case, Row

SIZES = "1,2,4,8,16,32"
MODES = ("tensor", "pipeline")
LIMITS = {size: "25GB" if size >= 16 else "30GB" for size in (1, 2, 4, 8, 16, 32)}
"""Of the published runs, by sequences in a microbatch."""
FORMATS = ("markdown", "csv", "html")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the study; returns an exit code."""
    options = _parser().parse_args(argv)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from models.gpt3.study import append, read
    from models.gpt3.study_text import FORMATS as texts

    known = read(options.json) if options.json and options.resume else {}
    cases = list(_cases(options))
    if options.plans:
        options.plans.mkdir(parents=True, exist_ok=True)
    for row in _rows([c for c in cases if not _is_done(known.get(c), options)], known, options):
        known[row.case] = row
        if options.json:
            append(options.json, row)
        took = row.error or f"{row.step_s:.2f} s a step"
        print(row.case.model, row.case.mode, f"{row.case.microbatch_size}: {took}", file=sys.stderr)
    rows = [known[case] for case in cases]
    text = texts[options.format](rows)
    if options.output:
        options.output.write_text(text, "utf-8")
    else:
        sys.stdout.write(text)
    return 0


def _is_done(row: "Row | None", options: argparse.Namespace) -> bool:
    """Whether there is nothing left to do for a row."""
    if row is None or row.error:
        return row is not None
    return row.compiled_bytes is not None or not options.verify


def _rows(
    cases: "Sequence[Case]", known: "dict[Case, Row]", options: argparse.Namespace
) -> "Iterator[Row]":
    """Plans cases, here or in so many processes; each of these is a fresh one for every row."""
    if options.workers == 1:
        for case in cases:
            yield _row(case, list(known.values()), options)
        return

    def apart(case: "Case") -> "Row":
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as one:
            return one.submit(_row, case, list(known.values()), options).result()

    with ThreadPoolExecutor(options.workers) as pool:
        for future in as_completed([pool.submit(apart, case) for case in cases]):
            yield future.result()


def _row(case: "Case", known: "list[Row]", options: argparse.Namespace) -> "Row":
    from jax import clear_caches

    from models.gpt3.study import plan_row

    row = plan_row(case, options.time_limit, verify=options.verify, like=known, plans=options.plans)
    clear_caches()
    return row


def _cases(options: argparse.Namespace) -> "Iterator[Case]":
    from models.gpt3.study import Case

    for model, mode, size in itertools.product(options.configs, options.modes, options.sizes):
        if CONFIGS[model].batch % size == 0:
            limit = options.memory_limit
            limit = LIMITS.get(size, "30GB") if limit == "published" else limit
            staged = (options.schedule, options.stages) if mode == "pipeline" else ()
            yield Case(model, mode, size, options.cluster, limit, *staged)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models.gpt3.tables", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    published = [name for name in CONFIGS if name != "tiny"]
    add("--configs", type=_some(tuple(CONFIGS)), default=published, help="names, with commas")
    add("--modes", type=_some(MODES), default=["tensor"], help="tensor,pipeline; default: tensor")
    add("--microbatch-sizes", type=_sizes, default=_sizes(SIZES), dest="sizes",
        help=f"sequences in a microbatch; default: {SIZES}")  # fmt: skip
    add("--memory-limit", default="30GB", help='of a device, or "published"; default: 30GB')
    add("--cluster", default="v100-sxm2-32gb", help="kind of device; default: v100-sxm2-32gb")
    add("--schedule", default="1f1b", help='of the mode pipeline; "auto" or a name; default: 1f1b')
    add("--stages", type=_stages, default="auto", help='of the mode pipeline; default: "auto"')
    add("--time-limit", type=float, default=20.0, help="of one solve, in seconds")
    add("--json", type=Path, metavar="ROWS.jsonl", help="append each row there")
    add("--resume", action="store_true", help="do not plan again what stands in --json")
    add("--plans", type=Path, metavar="FOLDER", help="keep each plan there, to compile it later")
    add("--format", choices=FORMATS, default="markdown", help="default: markdown")
    add("--output", type=Path, help="default: standard output")
    add("--workers", type=int, default=1, help="rows at the same time; default: 1")
    add("--verify", action="store_true", help="compile each plan for its devices")
    return parser


def _some(names: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        unknown = [name for name in text.split(",") if name not in names]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(names)}")
        return text.split(",")

    return parse


def _stages(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


def _sizes(text: str) -> list[int]:
    if not all(part.isdecimal() and int(part) for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers, such as 1,2,4")
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    raise SystemExit(main())
