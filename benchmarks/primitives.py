"""JAX's own single-primitive programs, each sharded over 2×2×2 virtual devices and compared.

    python -m benchmarks.primitives [--every 15] [--only scatter] [--x64] [--resume F.jsonl]
                                    [--mesh 3x2] [--uneven]

JAX tests its exporters with some 5,600 programs, nearly all of one primitive, with all its dtypes,
shapes and parameters (`jax._src.internal_test_util.test_harnesses`). Each is planned for slow
devices with fast links and with the least memory that is feasible, so that whatever may be split is
split, run through `auto_shard`, and held against `jax.jit` on one device. Printed: how many are
equal, in how many an operand is really split, which primitives ran whole for want of a rule, and
each failure.

Programs run in worker processes: one that crashes or hangs is reported like any other failure.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.common import markdown, virtual_devices
from benchmarks.primitive_case import Outcome, harnesses

START_S = 120.0


class Worker:
    """A process that runs one program after the other; it is replaced when it dies or hangs."""

    def __init__(self, options: Sequence[str], timeout_s: float) -> None:
        self._options, self._timeout_s = options, timeout_s
        self._process: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()

    def run(self, name: str, group: str) -> Outcome:
        """The outcome of one program, whatever happens to the process."""
        process = self._process or self._start()
        assert process.stdin is not None
        process.stdin.write(name + "\n")
        process.stdin.flush()
        try:
            line = self._lines.get(timeout=self._timeout_s)
        except queue.Empty:
            self.stop()
            return Outcome(name, group, "timeout", f"no answer in {self._timeout_s:.0f} s")
        if not line:
            code = process.wait()
            self.stop()
            return Outcome(name, group, "error", f"the process ended with {code}")
        return outcome(line)

    def stop(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> subprocess.Popen[str]:
        self._lines = lines = queue.Queue[str]()
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.primitive_case", *self._options], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        threading.Thread(target=_pump, args=(process, lines), daemon=True).start()
        if lines.get(timeout=START_S).strip() != "ready":
            raise RuntimeError("a worker did not start: python -m benchmarks.primitive_case")
        return process


def _pump(process: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.put(line)
    lines.put("")


def outcome(line: str) -> Outcome:
    """Reads what a worker wrote."""
    fields = json.loads(line)
    return Outcome(**{**fields, "without_rule": tuple(fields["without_rule"])})


def run_all(
    programs: Sequence[tuple[str, str]], worker: Callable[[], Worker], jobs: int, log: Path
) -> None:
    """Runs (name, group) programs in `jobs` workers; appends a line each to `log`."""
    todo = iter(programs)
    lock, done = threading.Lock(), 0

    def serve() -> None:
        nonlocal done
        mine = worker()
        while True:
            with lock:
                program = next(todo, None)
            if program is None:
                mine.stop()
                return
            found = mine.run(*program)
            with lock, log.open("a") as file:
                done += 1
                file.write(json.dumps(_record(found)) + "\n")
                if sys.stderr.isatty():
                    print(f"\r{done}/{len(programs)} {found.name[:60]:60}", end="", file=sys.stderr)

    threads = [threading.Thread(target=serve) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _record(found: Outcome) -> dict[str, object]:
    return {name: getattr(found, name) for name in Outcome.__dataclass_fields__}


def report(found: Sequence[Outcome]) -> None:
    """Prints the shares, and each failure with its reason."""
    compared = [o for o in found if o.status != "skipped"]
    equal = [o for o in compared if o.status == "ok"]
    total = max(len(compared), 1)
    rows = [
        ("programs that jax.jit runs", len(compared), ""),
        ("equal to the unsharded run", len(equal), f"{len(equal) / total:.2%}"),
        ("with a split operand", n := sum(o.sharded for o in equal), f"{n / total:.2%}"),
        (
            "of those with a dimension of even size",
            m := sum(o.divisible for o in compared),
            f"{n / max(m, 1):.2%}",
        ),
        ("skipped: jax.jit itself fails", len(found) - len(compared), ""),
    ]
    print(markdown(("", "programs", "share"), rows))
    whole = collections.Counter(p for o in compared for p in o.without_rule)
    names = ", ".join(f"{p} ({n})" for p, n in whole.most_common())
    print(f"\nwithout a rule: {names or 'none'}\n")
    for o in sorted(compared, key=lambda o: (o.group, o.name)):
        if o.status != "ok":
            print(f"{o.status}: {o.name}: {o.reason}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="take one program of so many")
    parser.add_argument("--offset", type=int, default=0, help="where the sample begins")
    parser.add_argument("--only", default="", help="programs with this in their name")
    parser.add_argument("--x64", action="store_true", help="with 64-bit types")
    parser.add_argument("--mesh", default="2x2x2")
    parser.add_argument("--uneven", action="store_true", help="split what does not divide, too")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds a program")
    parser.add_argument("--resume", type=Path, help="a file of outcomes: what is in it is kept")
    options = parser.parse_args()
    os.environ["JAX_ENABLE_X64"] = str(int(options.x64))
    virtual_devices(1)
    wanted = {n: h.group_name for n, h in harnesses().items() if options.only in n}
    sample = list(wanted.items())[options.offset :: options.every]
    log = options.resume or Path("primitives.jsonl")
    if options.resume is None:
        log.unlink(missing_ok=True)
    before = [outcome(line) for line in log.read_text().splitlines()] if log.exists() else []
    names = {o.name for o in before}
    told = (options.mesh, *(["uneven"] if options.uneven else []))
    missing = [p for p in sample if p[0] not in names]
    run_all(missing, lambda: Worker(told, options.timeout), options.jobs, log)
    chosen = dict(sample)
    found = [o for o in map(outcome, log.read_text().splitlines()) if o.name in chosen]
    report(found)
    sys.exit(any(o.status not in ("ok", "skipped") for o in found))


if __name__ == "__main__":
    main()
