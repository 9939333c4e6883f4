"""Plans as JSON text and files: deterministic, checked field by field, written atomically.

The schema is the dataclasses of `plan.py` themselves: `decode` reads a value against the type that
a field is declared with, so that a file can never hold what a `Plan` cannot.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, cast

from xshard.errors import PlanError
from xshard.plan.check import check_plan
from xshard.plan.decode import Mismatch, decode, encode
from xshard.plan.plan import Plan

SCHEMA = "xshard.plan"
VERSION = 3
UNSAVED = frozenset({"seconds", "_alternatives", "_templates", "_step", "_replan"})
"""Fields that are not part of the decision."""
_MEND = "save the plan again with plan.save(path)"


def to_json(plan: Plan) -> str:
    """The plan as JSON text: the same plan gives the same bytes; one record a line.

    `from_json` gives an equal plan, without `seconds`.
    """
    return text_of(cast("dict[str, Any]", encode(plan, UNSAVED)), SCHEMA, VERSION)


def text_of(record: dict[str, Any], schema: str, version: int) -> str:
    """JSON text of a record of some schema."""
    record = {**record, "schema": schema, "version": version}
    lines = (f"{json.dumps(key)}: {_value(record[key])}" for key in sorted(record))
    return "{\n" + ",\n".join(lines) + "\n}\n"


def from_json(text: str, name: str = "the plan") -> Plan:
    """Reads what `to_json` wrote; `name` says in errors what is read.

    Raises:
      PlanError: the text is truncated, foreign, of another version, or a field is wrong.
    """
    record = record_of(text, name, SCHEMA, VERSION)
    with refused(name):
        return plan_of(record, "")
    raise AssertionError


def plan_of(record: Any, where: str) -> Plan:
    """The plan in a record.

    Raises:
      Mismatch: it is none; `where` is put before the field's name.
    """
    return check_plan(decode(Plan, record, where, UNSAVED))


def record_of(text: str, name: str, schema: str, version: int) -> dict[str, Any]:
    """What `text_of` wrote.

    Raises:
      PlanError: the text is truncated, foreign, or of another version.
    """
    record = _object(text, name)
    _check_schema(record, name, schema, version)
    return record


@contextmanager
def refused(name: str) -> Generator[None]:
    """Field errors inside become a PlanError about what is read."""
    try:
        yield
    except Mismatch as error:
        raise PlanError(f"{name} cannot be used: {error}; {_MEND}") from None


def save(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Writes the plan; a reader sees the old file or the new one, never a part.

    Raises:
      PlanError: the file cannot be written.
    """
    write(path, to_json(plan))


def write(path: str | os.PathLike[str], text: str) -> None:
    """Puts a file with this text in place of what is there, at once or not at all.

    Raises:
      PlanError: the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        _write_out(part, text)
        os.replace(part, target)
    except OSError as error:
        _refuse_os(f"cannot write {os.fspath(path)}", error)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def load(path: str | os.PathLike[str]) -> Plan:
    """Reads a plan that `save` wrote.

    Raises:
      PlanError: there is no such file, or it holds no plan.
    """
    return from_json(*text_in(path))


def text_in(path: str | os.PathLike[str]) -> tuple[str, str]:
    """(the text of a plan file, what errors call it).

    Raises:
      PlanError: there is no such file, or it holds no text.
    """
    name = f"plan file {os.fspath(path)}"
    try:
        return Path(path).read_bytes().decode("utf-8"), name
    except OSError as error:
        _refuse_os(f"cannot read {name}", error)
    except UnicodeDecodeError:
        raise PlanError(f"{name} is not a plan of xshard: it is not text; {_MEND}") from None


def _write_out(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _refuse_os(what: str, error: OSError) -> NoReturn:
    reason = error.strerror or type(error).__name__
    raise PlanError(f"{what}: {reason}; give the path of a file in a folder that exists") from error


def _value(value: Any) -> str:
    """JSON of one field; a list of records has one on each line."""
    compact = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
    items = cast("list[Any]", value) if isinstance(value, list) else []
    if items and isinstance(items[0], dict):
        return "[\n  " + ",\n  ".join(map(compact, items)) + "\n]"
    return compact(value)


def _object(text: str, name: str) -> dict[str, Any]:
    if not text.strip():
        raise PlanError(f"{name} is empty; {_MEND}")
    try:
        record: Any = json.loads(text, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{name} {_syntax(text, error)}; {_MEND}") from None
    if not isinstance(record, dict):
        raise PlanError(f"{name} is not a plan of xshard: it holds no JSON object; {_MEND}")
    return cast("dict[str, Any]", record)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"field {twice!r} stands twice")
    return record


def _syntax(text: str, error: Exception) -> str:
    """Truncated text ends where the parser wants more; anything else is foreign."""
    if isinstance(error, json.JSONDecodeError):
        rest = text[error.pos :].rstrip()
        word = any(whole.startswith(rest) for whole in ("true", "false", "null"))
        cut = word or error.msg.startswith("Unterminated")
        if cut and text.lstrip().startswith("{"):
            return f"is truncated: it ends in line {text.count(chr(10)) + 1} before the plan does"
        return f"is not a plan of xshard: no JSON in line {error.lineno} ({error.msg})"
    return f"is not a plan of xshard: {error}"


def _check_schema(record: dict[str, Any], name: str, schema: str, version: int) -> None:
    if record.pop("schema", None) != schema:
        raise PlanError(f'{name} is not a plan of xshard: no "schema": "{schema}"; {_MEND}')
    found = record.pop("version", None)
    if type(found) is not int or found != version:
        raise PlanError(
            f"{name} has version {found!r} of the format, and this xshard reads version "
            f"{version}; plan again, or use the xshard that wrote it"
        )
