"""JUnit files for the tests, small ones by hand and real ones from pytest."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB"


def case(
    name: str,
    outcome: str = "passed",
    *,
    message: str = "assert 0",
    text: str = "",
    where: str = "tests.test_a",
    seconds: float = 0.5,
    extra: str = "",
    file: str = "",
    **properties: str,
) -> str:
    """Return a testcase. A property's ``__`` stands for the dot in its name."""
    inner = _properties(properties)
    if outcome in ("failure", "error"):
        inner += f"<{outcome} message={quoteattr(message)}>{escape(text or message)}</{outcome}>"
    elif outcome != "passed":
        kind = {"xfailed": "pytest.xfail"}.get(outcome, "pytest.skip")
        inner += f'<skipped type="{kind}" message="no"/>'
    place = f" file={quoteattr(file)}" if file else ""
    return (
        f'<testcase classname="{where}" name={quoteattr(name)} time="{seconds}"{place}>'
        f"{inner}{extra}</testcase>"
    )


def suite(*cases: str, at: int | None = None, name: str = "pytest", **properties: str) -> str:
    """Return a testsuite; ``at`` is the second at which it started."""
    start = f' timestamp="2026-01-01T00:00:{at:02}+00:00"' if at is not None else ""
    return f'<testsuite name="{name}"{start}>{_properties(properties)}{"".join(cases)}</testsuite>'


def write(path: Path, *suites: str) -> str:
    """Write a file and return its name."""
    path.write_text(f"<testsuites>{''.join(suites)}</testsuites>", encoding="utf-8")
    return path.name


def _properties(properties: dict[str, str]) -> str:
    entries = "".join(
        f'<property name="{name.replace("__", ".")}" value={quoteattr(value)}/>'
        for name, value in properties.items()
    )
    return f"<properties>{entries}</properties>" if entries else ""


def root(path: Path) -> ElementTree.Element:
    """Return a file's root, read without the code under test."""
    return ElementTree.parse(path).getroot()


def cases(path: Path) -> dict[str, ElementTree.Element]:
    """Return the cases of a file by name; each name once."""
    found = list(root(path).iter("testcase"))
    by_name = {one.attrib["name"]: one for one in found}
    assert len(by_name) == len(found)
    return by_name


def properties(element: ElementTree.Element) -> dict[str, str]:
    """Return the properties of a case or a suite."""
    return {
        one.attrib["name"]: one.attrib["value"] for one in element.iterfind("properties/property")
    }


def verdict(element: ElementTree.Element) -> str:
    """Return passed, failure, error or skipped."""
    tags = {child.tag for child in element}
    return next((tag for tag in ("failure", "error", "skipped") if tag in tags), "passed")
