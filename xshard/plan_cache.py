"""Plans kept on disk: the same step, mesh, prices and options are planned once on a machine.

An entry is a plan's JSON in a file named by a digest of all that the plan depends on: the traced
graph with the names and lines that plans show, pins, ties, donations, limits, meshes, devices,
measurements, versions, and xshard's own source. A file is put in place at once or not at all, so
that processes may share the folder; one that holds no plan for the step is set aside (`.bad`).
Only JSON is ever read.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

from xshard.cost.store import cache_folder
from xshard.cost.versions import jax_version
from xshard.errors import PlanError
from xshard.fingerprint import plain_text
from xshard.ir.trace import Traced
from xshard.microbatching import Candidates
from xshard.outer import Outer
from xshard.plan.plan import Alternative, Plan
from xshard.plan.store import load, save
from xshard.planning import described

PlanCacheOption = str | os.PathLike[str] | Literal[False] | None
"""A folder; None for the default one; False for no cache."""
VARIABLE = "XSHARD_PLAN_CACHE"
MOST_ENTRIES = 500
"""The plans that were not used for longest go first."""


def folder_of(option: PlanCacheOption) -> Path | None:
    """The folder that is meant; None for none.

    By default $XSHARD_PLAN_CACHE (empty: none), or `xshard/plans` in the user's cache folder.
    """
    if option is False:
        return None
    if option is not None:
        return Path(option)
    given = os.environ.get(VARIABLE)
    if given is not None:
        return Path(given) if given else None
    return cache_folder() / "xshard" / "plans"


def best(outer: Outer, limit: int | None, option: PlanCacheOption) -> Plan:
    """`outer.best(limit)`, or what it gave before.

    Raises:
      InfeasibleError, MicrobatchError: as `outer.best`; errors are not kept.
    """
    folder = folder_of(option)
    if folder is None:
        return outer.best(limit)
    began, candidates = time.perf_counter(), outer.candidates
    path = folder / f"{key(candidates, limit)}.json"
    kept = _read(path, candidates)
    if kept is not None:
        seconds = {"cache": time.perf_counter() - began}
        outer.told = kept, True
        made = cache(partial(_described, outer, limit))
        return replace(
            kept, seconds=seconds, _alternatives=partial(_alternatives, made),
            _templates=lambda: made().templates,
        )  # fmt: skip
    made = outer.best(limit)
    _write(path, made)
    return made


def key(candidates: Candidates, limit: int | None) -> str:
    """A digest of all that the plan depends on, equal in every process and run."""
    digest = hashlib.sha256(_code().encode())
    for part in _parts(candidates, limit):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:40]


def _parts(candidates: Candidates, limit: int | None) -> Iterator[str]:
    yield repr((limit, jax_version()))
    yield from _fields(candidates, "traced", "requests", "known")
    yield candidates.known.to_json() if candidates.known else ""
    yield from _shown(candidates.traced)
    for prepared in candidates.first():
        yield prepared.fingerprint
        yield from _fields(prepared.request, "traced", "measured", "memory_limit")


def _fields(record: Any, *without: str) -> Iterator[str]:
    """All of a record's public fields but those, so that an option added later counts too."""
    for f in fields(record):
        if f.name not in without and not f.name.startswith("_"):
            yield f"{f.name}={plain_text(getattr(record, f.name))}"


def _shown(traced: Traced) -> Iterator[str]:
    """What a plan shows and its fingerprint leaves out."""
    yield repr((traced.in_paths, traced.out_paths))
    for op in traced.graph.ops:
        yield f"{op.scope}|{op.source}"


@cache
def _code() -> str:
    """A digest of xshard's source and tables: another version plans otherwise."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".json")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def _read(path: Path, candidates: Candidates) -> Plan | None:
    """The plan in the file, if it is there and for this step."""
    if not path.exists():
        return None
    try:
        plan = load(path)
        if all(plan.fingerprint != p.fingerprint for p in candidates.for_plan(plan)):
            raise PlanError("the entry is of another step")
    except PlanError:
        with suppress(OSError):
            os.replace(path, path.with_suffix(".bad"))
        return None
    with suppress(OSError):
        path.touch()
    return plan


def _write(path: Path, plan: Plan) -> None:
    """Keeps the plan; a folder that cannot be written keeps nothing."""
    with suppress(OSError, PlanError):
        path.parent.mkdir(parents=True, exist_ok=True)
        save(plan, path)
        entries = sorted(path.parent.glob("*.json"), key=lambda p: p.stat().st_mtime_ns)
        for old in entries[:-MOST_ENTRIES]:
            old.unlink(missing_ok=True)


def _described(outer: Outer, limit: int | None) -> Plan:
    """A plan that was read, as it is where it is made: with alternatives and templates."""
    found = outer.learned()
    return outer.best(limit) if found is None else described(*found)


def _alternatives(made: Callable[[], Plan], what: str) -> tuple[Alternative, ...]:
    found = made()._alternatives  # pyright: ignore[reportPrivateUsage]
    assert found is not None
    return tuple(found(what))
