"""HTML and SVG elements. Text and attributes are data: what is written out is always escaped."""

from __future__ import annotations

from xml.etree import ElementTree

Element = ElementTree.Element
Content = Element | str | None


def element(tag: str, *content: Content, **attributes: str | float | None) -> Element:
    """An element with text and elements inside, None left out.

    Args:
      attributes: `class_` is class, `stroke_width` is stroke-width; None is left out, and numbers
        are written with at most two decimals.
    """
    made = ElementTree.Element(tag)
    for name, value in attributes.items():
        if value is not None:
            made.set(name.rstrip("_").replace("_", "-"), _attribute(value))
    last: Element | None = None
    for item in content:
        if isinstance(item, str):
            _add_text(made, last, item)
        elif item is not None:
            made.append(item)
            last = item
    return made


def render(made: Element) -> str:
    """The HTML text; what UTF-8 cannot hold becomes a question mark."""
    text = ElementTree.tostring(made, encoding="unicode", method="html")
    return text.encode("utf-8", "replace").decode("utf-8")


def _add_text(parent: Element, last: Element | None, text: str) -> None:
    if last is None:
        parent.text = (parent.text or "") + text
    else:
        last.tail = (last.tail or "") + text


def _attribute(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
