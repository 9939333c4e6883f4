"""The text of a compiled XLA module as computations: who calls whom, and how often each runs.

One pass over the lines. Only the lines that matter are kept: collectives and calls. GPU modules of
large models have 100 MB of text, so a line is tested by substring before it meets a regex.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from xshard.verify.frames import TABLES, SourceTables

if TYPE_CHECKING:
    from xshard.verify.collectives import CountFrom

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+)")
_CALLEES = re.compile(
    r"\b(body|condition|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
_CALLEE_LISTS = re.compile(r"\b(?:branch|called)_computations=\{([^}]*)\}")
_TRIP_COUNT = re.compile(r'known_trip_count[\\"]*:\{[\\"]*n[\\"]*:[\\"]*(\d+)')
_BOUND = re.compile(r" = [su](?:8|16|32|64)\[\] constant\((\d+)\)")
_WORK = re.compile(r" (?:custom-call|dot|convolution|while|call)\(|gemm")
_PARTITIONS = re.compile(r"\bnum_partitions=(\d+)")


@dataclass(frozen=True, slots=True)
class Runs:
    """How often a computation runs in one call of the program; see `Collective`."""

    count: int
    count_from: CountFrom = "known"
    in_branch: bool = False

    def then(self, inner: Runs) -> Runs:
        """Of something that runs `inner` times in each of these."""
        worst = _worst(self.count_from, inner.count_from)
        return Runs(self.count * inner.count, worst, self.in_branch or inner.in_branch)

    def plus(self, other: Runs) -> Runs:
        """Of something called from two places."""
        worst = _worst(self.count_from, other.count_from)
        return Runs(self.count + other.count, worst, self.in_branch or other.in_branch)


@dataclass(slots=True)
class Module:
    """What an audit needs of a module's text.

    Attributes:
      num_partitions: from the module's header; None when it does not say.
      collectives: (computation, number of the line) of each line that may be a collective.
      calls: callee → (caller, the calling line).
      spans: computation → the range of its lines in `lines`.
    """

    lines: list[str]
    entry: str = ""
    num_partitions: int | None = None
    tables: SourceTables = field(default_factory=SourceTables)
    collectives: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    calls: dict[str, list[tuple[str, str]]] = field(
        default_factory=dict[str, list[tuple[str, str]]]
    )
    spans: dict[str, range] = field(default_factory=dict[str, range])


def read_module(text: str) -> Module:
    """Read a module in one pass; ValueError when `text` has no ENTRY computation."""
    module = Module(text.split("\n"))
    current, begin, table = "", 0, ""
    for number, line in enumerate(module.lines):
        if line.startswith(" "):
            if "all-" in line or "reduce-scatter" in line or "collective-" in line:
                module.collectives.append((current, number))
            if "calls=" in line or "to_apply=" in line or "_computation" in line or "body=" in line:
                _read_calls(module, current, line)
        elif line.startswith("}"):
            module.spans[current] = range(begin, number)
        elif line.endswith("{") and (match := _HEADER.match(line)):
            current, begin = match[2], number + 1
            module.entry = current if match[1] else module.entry
        elif line in TABLES:
            table = line
        elif line[:1].isdigit():
            module.tables.add(table, line)
        elif line.startswith("HloModule") and (match := _PARTITIONS.search(line)):
            module.num_partitions = int(match[1])
    if not module.entry:
        raise ValueError("no ENTRY computation: this is not the text of a compiled XLA module")
    return module


def _read_calls(module: Module, caller: str, line: str) -> None:
    if "async-update(" in line or "async-done(" in line:  # their async-start calls it already
        return
    for key, callee in _CALLEES.findall(line):
        if key != "to_apply" or " call(" in line:  # the others apply a scalar function
            module.calls.setdefault(callee, []).append((caller, line))
    for names in _CALLEE_LISTS.findall(line):
        for name in names.split(","):
            module.calls.setdefault(name.strip().lstrip("%"), []).append((caller, line))


def runs_of_computations(module: Module) -> dict[str, Runs]:
    """How often each computation runs; 0 when nothing that runs calls it."""

    @cache
    def runs(name: str) -> Runs:
        total = Runs(1 if name == module.entry else 0)
        for caller, line in module.calls.get(name, ()):
            outer = runs(caller)
            if outer.count:
                total = total.plus(outer.then(_runs_per_call(module, name, line)))
        return total

    return {name: runs(name) for name in module.spans}


def _runs_per_call(module: Module, callee: str, line: str) -> Runs:
    if " conditional(" in line:
        return Runs(1, in_branch=True)
    if " while(" not in line:
        return Runs(1)
    condition = next((name for key, name in _CALLEES.findall(line) if key == "condition"), "")
    trips = _trip_count(module, condition, line)
    if callee == condition and trips.count_from != "unknown":  # it is asked once more than it holds
        return Runs(trips.count + 1, trips.count_from)
    return trips


def beside(module: Module, name: str, start: int) -> bool:
    """Whether a matmul, a loop or a library call stands between the two ends of a collective.

    Args:
      start: the line in which it begins.
    """
    done = re.compile(rf"-done\(.*%?{re.escape(name)}\b(?![.\-\w])")
    for line in module.lines[start + 1 :]:
        if _WORK.search(line):
            return True
        if line.startswith("}") or ("-done(" in line and done.search(line)):
            return False
    return False


def _trip_count(module: Module, condition: str, line: str) -> Runs:
    if match := _TRIP_COUNT.search(line):
        return Runs(int(match[1]))
    body = [module.lines[i] for i in module.spans.get(condition, range(0))]
    bounds = [int(match[1]) for text in body if (match := _BOUND.search(text))]
    if len(bounds) == 1 and _compares_less(module, body):
        return Runs(bounds[0], "condition")
    return Runs(1, "unknown")


def _compares_less(module: Module, body: list[str]) -> bool:
    """Whether a condition's result is a `<`, perhaps in a fusion."""
    root = next((text for text in body if "ROOT " in text), "")
    if match := re.search(r"calls=%?([\w.\-]+)", root):
        return _compares_less(module, [module.lines[i] for i in module.spans[match[1]]])
    return " compare(" in root and "direction=LT" in root


def _worst(a: CountFrom, b: CountFrom) -> CountFrom:
    if "unknown" in (a, b):
        return "unknown"
    return "condition" if "condition" in (a, b) else "known"
