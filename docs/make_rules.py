"""Writes docs/rules.md from the table of rules: `python docs/make_rules.py`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xshard.rules import registered

PAGE = Path(__file__).with_name("rules.md")
HEAD = """\
# Primitives with a rule

Written by `python docs/make_rules.py` from the tables in `xshard/rules`.

A rule says which dimensions of an operation's operands and results belong together, as an einsum
over factors: a mesh axis may split any factor. `k!` may not be split, `(a b)` is one dimension of
two factors, `1` and `.` are a dimension and an operand that nothing is tied to, `?` must be whole.
A factor that only operands have is summed over. `xshard/rules/rule.py` defines the notation. The
texts below are examples; the rule of an operation is made from its shapes and parameters.

A primitive that is not listed runs whole on every device, and the plan's notes say so. Calls
(`jit`, `custom_jvp_call`, `checkpoint` and the like) are inlined; `scan`, `while` and `cond` become
the ports of the last section around their bodies.
"""


def page() -> str:
    """The page: a section for each family, a line for the primitives of each rule."""
    families: dict[str, dict[str, list[str]]] = {}
    for name, rule in registered().items():
        families.setdefault(rule.__module__, {}).setdefault(_text(rule), []).append(name)
    parts = [HEAD]
    for module in sorted(families, key=lambda m: (m.endswith("ports"), m)):
        title = (sys.modules[module].__doc__ or module).splitlines()[0].rstrip(".")
        parts.append(f"\n## {title}\n\n`{module}`\n\n")
        for text, names in families[module].items():
            parts.append(f"- {', '.join(f'`{name}`' for name in names)}: {text}\n")
    return "".join(parts)


def _text(rule: Callable[..., Any]) -> str:
    """The first paragraph of what a rule, or the function that makes it, says about itself."""
    maker = rule.__qualname__.partition(".")[0]
    said = inspect.getdoc(rule) or inspect.getdoc(getattr(sys.modules[rule.__module__], maker))
    return " ".join((said or "").partition("\n\n")[0].split())


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
