"""A user's own cluster as JSON: read, completed from a shipped table, and checked figure by figure.

    {"device": "h100-80gb", "hosts": 4, "devices_per_host": 8,
     "inter_host": {"bandwidth_bytes_per_s": 3e9}}

"device" is the name of a shipped table, or an object with the fields of `Device`; with "like", the
fields that it lacks are those of that table. Links ("intra_host", "inter_host") lack what the
table's links have. A figure is a number or {"value": ..., "source": ...}; "source" may stand
anywhere, and says where the figures beside it are from.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from xshard.cost.device import Device, Link, MatmulCurve, plain, table_named
from xshard.errors import MeshError

LINKS = ("intra_host", "inter_host")
_COUNTS = ("hosts", "devices_per_host")
_OF_TABLES = frozenset(
    {"like", "aliases", "device_kinds", "measured", "per_core", *LINKS, *_COUNTS}
)
"""What tables say besides the figures of a `Device`."""
_ABOVE_0 = {"memory_bytes", "memory_bandwidth_bytes_per_s", "bandwidth_bytes_per_s",
            "combined_bytes", "random_words"}  # fmt: skip
_PARTS = {"memory_efficiency", "max_efficiency"}
_SHARES = {"gradient_overlap"}
_TEXTS = {"name"}
_FLAGS = {"fused_reduce_scatter", "copies_operands", "loops_apart", "generic", "per_core",
          "measured"}  # fmt: skip
_MAPS = {"peak_flops", "kind_efficiency", "dtype_efficiency", "seconds_per_element", "groups"}
_COLLECTIVES = ("ring", "shared-memory")
_COST_KINDS = ("all-gather", "all-reduce", "all-to-all", "permute")
_COST_FIGURES = ("latency_per_member_s", "s_per_byte_cached", "s_per_byte", "cached_bytes")


def read_cluster(text: str, name: str) -> dict[str, Any]:
    """The description with "device" as a whole table, whose links are the cluster's.

    Args:
      name: what errors call the text.

    Raises:
      MeshError: naming the first figure that is missing, unknown or impossible.
    """
    data = _object(text, name)
    _known(data, {"device", *_COUNTS, *LINKS}, "", name)
    for key in _COUNTS:
        count = data.get(key)
        if type(count) is not int or count < 1:
            raise _error(name, key, "a whole number above 0", data, key)
    table = _table(data, name)
    for link in LINKS:
        given = data.get(link) or {}
        if not isinstance(given, Mapping):
            raise _error(name, link, "an object", data, link)
        usual = plain(table.get(link) or {})
        if "bandwidth_bytes_per_s" in given:
            usual.pop("groups", None)  # of other links
        table[link] = {**usual, **plain(given)}
        _check(table[link], Link, link, name)
    return {"device": table, "hosts": data["hosts"], "devices_per_host": data["devices_per_host"]}


def _table(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The checked table of the device."""
    given = data.get("device")
    if isinstance(given, str):
        return dict(_named(given, "device", name))
    if not isinstance(given, Mapping):
        raise _error(name, "device", "the name of a known kind, or an object", data, "device")
    like = given.get("like")
    if like is not None and not isinstance(like, str):
        raise _error(name, "device.like", "the name of a known kind", given, "like")
    base = _named(like, "device.like", name) if like else {}
    table = {**base, **{k: v for k, v in given.items() if k != "like"}}
    if like and "name" not in given:
        table["name"] = f"like {base['name']}"
    _check({k: v for k, v in plain(table).items() if k not in _OF_TABLES}, Device, "device", name)
    _known(given, {f.name for f in fields(Device)} | _OF_TABLES, "device.", name)
    return table


def _named(kind: str, where: str, name: str) -> Mapping[str, Any]:
    try:
        return table_named(kind)
    except MeshError as error:
        raise MeshError(f"{name}: {where}: {error}") from None


def _check(record: Mapping[str, Any], cls: type[Any], where: str, name: str) -> None:
    """That the record has what the dataclass needs, and no figure is impossible."""
    _known(record, {f.name for f in fields(cls)}, f"{where}.", name)
    for field in fields(cls):
        if field.name in record:
            _check_figure(record, field.name, where, name)
        elif field.default is field.default_factory:  # neither is there
            raise MeshError(f"{name}: {where}.{field.name} is missing; {_mend(where)}")


def _check_figure(record: Mapping[str, Any], key: str, where: str, name: str) -> None:
    value, place = record[key], f"{where}.{key}"
    if key == "matmul":
        if not isinstance(value, Mapping):
            raise _error(name, place, "an object", record, key)
        _check(value, MatmulCurve, place, name)
    elif key in _MAPS:
        _check_map(record, key, place, name)
    elif key == "collective_costs":
        _check_costs(record, place, name)
    elif key != "compile_for":
        wanted, holds = _wanted(key)
        if not holds(value):
            raise _error(name, place, wanted, record, key)


def _names_or_none(value: Any) -> bool:
    return value is None or (
        isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
    )


def _wanted(key: str) -> tuple[str, Callable[[Any], bool]]:
    """What a figure must be, in words and as a test."""
    if key == "keeps":
        return "a list of names of primitives", _names_or_none
    if key in _TEXTS:
        return "a text", lambda v: isinstance(v, str) and bool(v)
    if key in _FLAGS:
        return "true or false", lambda v: isinstance(v, bool)
    if key == "collectives":
        return " or ".join(f'"{c}"' for c in _COLLECTIVES), lambda v: v in _COLLECTIVES
    if key in _PARTS:
        return "a number above 0 and up to 1", lambda v: _number(v) and 0 < v <= 1
    if key in _SHARES:
        return "a number from 0 to 1", lambda v: _number(v) and 0 <= v <= 1
    if key in _ABOVE_0:
        return "a number above 0", lambda v: _number(v) and v > 0
    return "a number, 0 or above", lambda v: _number(v) and v >= 0


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _check_map(record: Mapping[str, Any], key: str, place: str, name: str) -> None:
    value = record[key]
    if not isinstance(value, Mapping):
        raise _error(name, place, "an object of numbers by name", record, key)
    for entry, figure in value.items():
        if not _number(figure) or figure <= 0:
            raise _error(name, f"{place}.{entry}", "a number above 0", value, entry)
    if key == "peak_flops" and "float32" not in value:
        raise MeshError(f"{name}: {place}.float32 is missing; it stands for other dtypes, too")


def _check_costs(record: Mapping[str, Any], place: str, name: str) -> None:
    value = record["collective_costs"]
    if not isinstance(value, Mapping):
        raise _error(name, place, "an object by kind of collective", record, "collective_costs")
    needed = _COST_KINDS if record.get("collectives") == "shared-memory" else ()
    for kind in dict.fromkeys((*needed, *value)):
        costs = value.get(kind)
        for figure in _COST_FIGURES:
            if not isinstance(costs, Mapping) or not _number(costs.get(figure)):
                raise MeshError(f"{name}: {place}.{kind}.{figure} must be a number")


def _known(record: Mapping[str, Any], names: set[str], where: str, name: str) -> None:
    """That there are no other fields: a typing error would silently leave a figure as it was."""
    for key in record:
        if key not in names and key not in ("source", "comment"):
            close = difflib.get_close_matches(key, sorted(names), 1)
            hint = (
                f"; did you mean {close[0]!r}?"
                if close
                else f"; known are {', '.join(sorted(names))}"
            )
            raise MeshError(f"{name}: {where}{key} is unknown{hint}")


def _object(text: str, name: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise MeshError(f"{name} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise MeshError(f"{name} is not a JSON object; {_mend('')}")
    return data


def _mend(where: str) -> str:
    if where.endswith("host"):
        return "give it, or name a shipped device, whose links are then the default"
    return 'give it, or "like": "h100-80gb" (or another shipped table) for the rest'


def _error(name: str, place: str, wanted: str, record: Mapping[str, Any], key: str) -> MeshError:
    if key not in record:
        return MeshError(f"{name}: {place} is missing; it must be {wanted}")
    return MeshError(f"{name}: {place} must be {wanted}, and is {json.dumps(record[key])[:60]}")
