"""Writes docs/api.md from the docstrings of the public names: `python docs/make_api.py`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xshard

PAGE = Path(__file__).with_name("api.md")
HEAD = """\
# API

Written by `python docs/make_api.py` from the docstrings. Everything here is importable from
`xshard`; what is not here may change. Times are in nanoseconds where a name ends in `_ns`, in
seconds where it ends in `_s`; sizes are in bytes.
"""
_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Yields):$")
_ENTRY = re.compile(r"^  ([\w*][\w, *]*?): (.*)$")


def page() -> str:
    """The page: functions, then classes, then errors."""
    found = {name: getattr(xshard, name) for name in xshard.__all__}
    errors = {n: x for n, x in found.items() if inspect.isclass(x) and issubclass(x, Exception)}
    functions = {n: x for n, x in found.items() if not inspect.isclass(x)}
    classes = {n: x for n, x in found.items() if n not in errors and n not in functions}
    parts = [HEAD, "\n## Functions\n", *_each(functions), "\n## Classes\n", *_each(classes)]
    return "".join([*parts, "\n## Errors\n\n", *(_error(n, x) for n, x in errors.items())])


def _each(found: dict[str, Any]) -> Iterator[str]:
    for name, thing in found.items():
        if inspect.isclass(thing):
            yield f"\n### `{name}`\n\n{_text(thing)}\n"
            yield from _members(name, thing)
        else:
            yield f"\n### `{name}`\n\n```py\n{_signature(name, thing)}\n```\n\n{_text(thing)}\n"


def _members(owner: str, cls: type) -> Iterator[str]:
    """Public methods and properties that say what they are for."""
    for name, raw in vars(cls).items():
        thing = raw.__func__ if isinstance(raw, classmethod | staticmethod) else raw
        if name.startswith("_") or not inspect.getdoc(thing):
            continue
        if isinstance(raw, property):
            yield f"\n**`{owner}.{name}`**: {_text(raw)}\n"
        elif inspect.isfunction(thing):
            call = _signature(f"{owner}.{name}", thing, bound=True)
            yield f"\n```py\n{call}\n```\n\n{_text(thing)}\n"


def _error(name: str, cls: type) -> str:
    base = cls.__bases__[0].__name__
    return f"- `{name}` (a `{base}`): {' '.join(_text(cls).split())}\n"


def _signature(name: str, function: Callable[..., Any], *, bound: bool = False) -> str:
    """One line if it fits, else a line for each parameter."""
    found = inspect.signature(function)
    parameters = list(found.parameters.values())
    if bound:
        parameters = parameters[1:]
    found = found.replace(parameters=parameters)
    plain = _plain(str(found))
    if len(name + plain) <= 88:
        return name + plain
    shown = [_plain(str(p)) for p in parameters]
    kinds = [p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters]
    star = [inspect.Parameter.VAR_POSITIONAL]
    if True in kinds and not any(p.kind in star for p in parameters):
        shown.insert(kinds.index(True), "*")
    back = _plain(str(found.return_annotation))
    return f"{name}(\n    " + ",\n    ".join(shown) + f",\n) -> {back}"


def _plain(text: str) -> str:
    """Without quotes around annotations and addresses of default functions."""
    return re.sub(r"<function .*? at 0x\w+>", "...", re.sub(r"'([^']*)'", r"\1", text))


def _text(thing: Any) -> str:
    """A docstring as Markdown: sections as headings, their entries as lists."""
    lines: list[str] = []
    section = False
    for line in (inspect.getdoc(thing) or "").splitlines():
        heading, entry = _SECTION.match(line), _ENTRY.match(line)
        if heading:
            section = True
            lines += [f"*{heading[1]}*", ""]
        elif section and entry:
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        else:
            section = section and (not line or line.startswith(" "))
            lines.append(f"  {line.strip()}" if section and line else line)
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
