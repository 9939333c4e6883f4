"""Dataclasses to JSON values and back, each value checked against the declared type of its field.

Types that a field may have: str, int, bool, another dataclass, `X | None`, and tuples.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Set
from functools import cache
from typing import Any, NoReturn, TypeVar, cast

T = TypeVar("T")


class Mismatch(ValueError):
    """A value does not have the declared type; says where."""


def encode(value: Any, skip: Set[str] = frozenset()) -> object:
    """Dataclasses as dicts (without the fields in `skip`), tuples as lists, the rest as it is."""
    if dataclasses.is_dataclass(value):
        fields = [f.name for f in dataclasses.fields(value) if f.name not in skip]
        return {name: encode(getattr(value, name)) for name in fields}
    if isinstance(value, tuple):
        return [encode(item) for item in cast("tuple[Any, ...]", value)]
    return value


def decode(cls: type[T], record: Any, where: str, skip: Set[str] = frozenset()) -> T:
    """The dataclass `cls` with the fields in `record`, all but those in `skip`.

    Raises:
      Mismatch: a field is missing, unknown, or has another type; `where` is put before its name.
    """
    if not isinstance(record, dict):
        _refuse(where, "an object", record)
    given = cast("dict[str, Any]", record)
    hints = {name: hint for name, hint in _hints(cls).items() if name not in skip}
    dot = f"{where}." if where else ""
    for name in [*(n for n in hints if n not in given), *(n for n in given if n not in hints)]:
        raise Mismatch(f"field {dot}{name} is {'unknown' if name in given else 'missing'}")
    values = {name: _value(hint, given[name], f"{dot}{name}") for name, hint in hints.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise Mismatch(f"field {where or cls.__name__}: {error}") from None


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return decode(cast("type[Any]", hint), value, where)
    origin = typing.get_origin(hint)
    if origin is tuple:
        return _tuple(typing.get_args(hint), value, where)
    if origin is types.UnionType:
        inner = next(arg for arg in typing.get_args(hint) if arg is not types.NoneType)
        return None if value is None else _value(inner, value, where)
    if type(value) is not hint:
        _refuse(where, _KINDS[hint], value)
    return value


def _tuple(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        _refuse(where, "a list", value)
    items = cast("list[Any]", value)
    if kinds[-1] is ...:
        kinds = kinds[:1] * len(items)
    if len(kinds) != len(items):
        raise Mismatch(f"field {where} must have {len(kinds)} items, and has {len(items)}")
    pairs = zip(kinds, items, strict=True)
    return tuple(_value(hint, item, f"{where}[{i}]") for i, (hint, item) in enumerate(pairs))


_KINDS: dict[Any, str] = {str: "a string", int: "an integer", bool: "true or false"}


def _refuse(where: str, wanted: str, value: Any) -> NoReturn:
    text = repr(value)
    shown = text if len(text) <= 40 else f"{text[:37]}..."
    raise Mismatch(f"field {where} must be {wanted}, and is {shown}")
