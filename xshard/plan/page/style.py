"""How pages and notebook output look, and the colours of mesh axes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from xshard.plan.page.markup import Element, element

AXIS_COLOURS = 6
"""Axes that have a colour of their own; a mesh has three at most as a rule."""


@cache
def _css(name: str) -> str:
    return Path(__file__).with_name(name).read_text("utf-8")


def style(name: str = "report.css") -> Element:
    """A style element with the rules of one of the files beside this one."""
    return element("style", _css(name))


def axis_class(axis: int) -> str:
    """The CSS class that colours what mesh axis number `axis` splits."""
    return f"axis{axis % AXIS_COLOURS}"
