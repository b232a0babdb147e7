"""What the page's own drawings share. Colours stand in the style sheet, by class: none here."""

from __future__ import annotations

from vlm_ci import svg

CHARACTER = 6.4  # pixels: the mean width of one at the size of labels


def begin(name: str, title: str, description: str, width: float) -> svg.Element:
    """Begin a drawing; ``title`` and ``description`` are what a screen reader reads out."""
    root = svg.Element("svg", role="img", width=f"{width:.0f}")
    root.set("class", "drawing")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    svg.add(root, "title", title, id=f"{name}-title")
    svg.add(root, "desc", description, id=f"{name}-desc")
    return root


def label(
    parent: svg.Element, x: float, y: float, text: str, *, kind: str = "", anchor: str = "start"
) -> None:
    """Write one line; ``y`` is its base line, ``kind`` a class such as "pale" or "strong"."""
    made = svg.add(parent, "text", text, x=x, y=y)
    if kind:
        made.set("class", kind)
    if anchor != "start":
        made.set("text-anchor", anchor)


def box(
    parent: svg.Element,
    x: float,
    y: float,
    width: float,
    height: float,
    kind: str,
    title: str = "",
) -> svg.Element:
    """Draw a rectangle of a class, with a tooltip."""
    made = svg.add(parent, "rect", x=x, y=y, width=width, height=height, class_=kind)
    if title:
        svg.add(made, "title", title)
    return made


def rule(
    parent: svg.Element, x: float, y: float, to_x: float, to_y: float, kind: str = "rule"
) -> None:
    """Draw a straight line of a class."""
    svg.add(parent, "line", x1=x, y1=y, x2=to_x, y2=to_y, class_=kind)


def caret(parent: svg.Element, x: float, y: float, kind: str) -> svg.Element:
    """Draw a small triangle that points down to (x, y)."""
    return svg.add(parent, "path", d=f"M{x:.1f} {y:.1f}l-5 -8h10z", class_=kind)


def shorter(text: str, most: int) -> str:
    """Return a text of at most so many characters."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
