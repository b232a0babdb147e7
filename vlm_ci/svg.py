"""Elements of SVG, one function each. Knows nothing of what is drawn; does no I/O."""

from __future__ import annotations

import re
from xml.etree import ElementTree

Element = ElementTree.Element

INK, PALE, LINE = "#1c2733", "#5a6672", "#aab4be"  # for text, for lesser text, for thin lines
FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', Arial, sans-serif"

# What XML 1.0 has no way to write.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def document(title: str, description: str, width: int) -> Element:
    """Begin a document ``width`` pixels wide on white ground; ``title`` and ``description`` are
    what a screen reader reads out."""
    root = ElementTree.Element("svg", xmlns="http://www.w3.org/2000/svg", role="img")
    root.set("aria-labelledby", "vlm-ci-title vlm-ci-desc")
    root.set("font-family", FONT)
    root.set("width", str(width))
    add(root, "title", title, id="vlm-ci-title")
    add(root, "desc", description, id="vlm-ci-desc")
    add(root, "rect", width="100%", height="100%", fill="#ffffff")
    return root


def finish(root: Element, height: int) -> str:
    """Return the document as text, ``height`` pixels high."""
    root.set("height", str(height))
    root.set("viewBox", f"0 0 {root.get('width')} {height}")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def inline(root: Element, height: int, name: str) -> str:
    """Return the document as an element of a page that has others: every id begins with ``name``
    in place of ``vlm-ci``."""
    for element in root.iter():
        for key, value in element.attrib.items():
            if key == "id" or "(#" in value or key == "aria-labelledby":
                element.set(key, value.replace("vlm-ci-", f"{name}-"))
    root.attrib.pop("xmlns")  # HTML knows what an svg is
    return finish(root, height)


def add(parent: Element, tag: str, text: str = "", **attributes: str | float) -> Element:
    """Append an element. ``stroke_width`` stands for stroke-width and ``class_`` for class; what
    XML cannot hold is replaced in the text, the rest is escaped."""
    element = ElementTree.SubElement(parent, tag)
    element.text = _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text) or None
    for name, value in attributes.items():
        shown = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        element.set(name.rstrip("_").replace("_", "-"), shown)
    return element


def text(
    parent: Element,
    x: float,
    y: float,
    text: str,
    *,
    size: int = 11,
    weight: str = "normal",
    fill: str = INK,
    anchor: str = "start",
) -> None:
    """Write one line of text; ``y`` is its base line."""
    element = add(parent, "text", text, x=x, y=y, font_size=size, fill=fill)
    if weight != "normal":
        element.set("font-weight", weight)
    if anchor != "start":
        element.set("text-anchor", anchor)


def box(parent: Element, x: float, y: float, width: float, height: float, fill: str) -> Element:
    """Draw a rectangle without a border."""
    return add(parent, "rect", x=x, y=y, width=width, height=height, fill=fill)


def line(
    parent: Element, x: float, y: float, to_x: float, to_y: float, stroke: str, width: float
) -> None:
    """Draw a straight line."""
    add(parent, "line", x1=x, y1=y, x2=to_x, y2=to_y, stroke=stroke, stroke_width=width)


def caret(parent: Element, x: float, y: float, *, filled: bool) -> None:
    """Draw a small triangle with its tip at (x, y)."""
    path = f"M{x:.1f} {y}l5 9h-10z"
    add(parent, "path", d=path, fill=INK if filled else "#ffffff", stroke=INK)


def pattern(parent: Element, name: str, ground: str, path: str, stroke: str) -> None:
    """Define a fill: a path that repeats every 6 pixels; its id is ``vlm-ci-`` and its name."""
    made = add(
        parent,
        "pattern",
        id=f"vlm-ci-{name}",
        width=6,
        height=6,
        patternUnits="userSpaceOnUse",
    )
    box(made, 0, 0, 6, 6, ground)
    add(made, "path", d=path, stroke=stroke, fill="none")
